"""Losses and scores of training: dense reading of the visual tokens, words of the tokens, answers.

In: model outputs and targets of `batches`. Out: scalar losses and exact-match counts by question type.
"""

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from edgevlm.zoo.batches import IGNORE, CellTargets, Packed, Pointers, word_targets
from edgevlm.zoo.nano import NanoVLM
from edgevlm.zoo.scenes import TYPES

# Tokens of an answer of three digits and its end.
_LONGEST_ANSWER = 4


def cell_loss(read: dict[str, Tensor], targets: CellTargets, empty_weight: float = 1.0) -> Tensor:
    """Cross-entropy of kind, shape, colour, digit (twice: it is hardest) and place, plus the error of the centres.

    `empty_weight` is that of an empty cell in the kind's, against 1 of one with the centre of something.
    """
    kind_weight = torch.tensor([empty_weight, 1.0, 1.0])
    total = F.cross_entropy(read["kind"].flatten(0, 1), targets.kind.flatten(), weight=kind_weight)
    for name in ("shape", "colour", "digit", "place"):
        wanted: Tensor = getattr(targets, name)
        if bool((wanted != IGNORE).any()):
            each = F.cross_entropy(
                read[name].flatten(0, 1), wanted.flatten(), ignore_index=IGNORE, label_smoothing=0.02
            )
            total = total + (2 * each if name == "digit" else each)
    occupied = targets.kind > 0
    if bool(occupied.any()):
        total = total + 4 * (read["centre"] - targets.centre)[occupied].abs().mean()
    return total


def cell_scores(read: dict[str, Tensor], targets: CellTargets) -> dict[str, float]:
    """Share of right cells by head (`kind` over all cells), and the mean centre error as a share of the canvas."""
    scores = {"kind": float((read["kind"].argmax(-1) == targets.kind).float().mean())}
    for name in ("shape", "colour", "digit", "place"):
        wanted: Tensor = getattr(targets, name)
        valid = wanted != IGNORE
        scores[name] = float((read[name].argmax(-1) == wanted)[valid].float().mean()) if valid.any() else 1.0
    occupied = targets.kind > 0
    error = (read["centre"].detach() - targets.centre)[occupied].abs()
    scores["centre"] = float(error.mean()) if occupied.any() else 0.0
    return scores


def token_loss(model: NanoVLM, projected: Tensor, targets: CellTargets, tokenizer: Tokenizer) -> Tensor:
    """Occupied visual tokens [B, N, H] should read as the words for what they show, and hold where its centre lies."""
    weights, cells = word_targets(targets, tokenizer)
    if not len(cells):
        return projected.new_zeros(())
    occupied = projected.flatten(0, 1)[cells]
    words = -(weights * F.log_softmax(model.words(occupied), dim=-1)).sum(-1).mean()
    place: Tensor = model.seen_place(F.rms_norm(occupied, occupied.shape[-1:]))
    return words + 2 * (place - targets.centre.flatten(0, 1)[cells]).abs().sum(-1).mean()


def pointer_loss(pointing: Tensor, places: Tensor, pointers: Pointers) -> Tensor:
    """Text tokens should look at what they name (log-probabilities [P]) and then know where it lies ([P, 2])."""
    if not len(pointing):
        return pointing.sum()
    named = ~pointers.place.isnan().any(-1)
    away = (places - pointers.place)[named].abs().sum() / max(1, int(named.sum()))
    return 2 * away - pointing.mean()


def answer_loss(logits: Tensor, packed: Packed) -> Tensor:
    """Cross-entropy of the answer tokens, every question weighing the same."""
    labels = packed.labels[packed.labels != IGNORE]
    segment = packed.segment[packed.labels != IGNORE]
    each = F.cross_entropy(logits, labels, reduction="none")
    lengths = torch.bincount(segment, minlength=len(packed.questions)).float()
    return (each / lengths[segment]).sum() / len(packed.questions)


def ahead(packed: Packed) -> Tensor:
    """Which of the last tokens of a prompt holds each of the labelled words of the answer: columns [M] for M labels.

    The image is seen by the pre-fusion alone, before there is an answer, so whatever follows the first word must
    already be in the prompt. The last token holds the first word; the others lie in their order before it, always
    equally far from where they are said.
    """
    row, column = (packed.labels != IGNORE).nonzero(as_tuple=True)
    segment = packed.segment[row, column]
    first = column.new_full((len(packed.questions),), packed.labels.shape[1])
    first = first.scatter_reduce(0, segment, column, "amin")[segment]
    return column.where(column == first, column - _LONGEST_ANSWER)


def ahead_loss(model: NanoVLM, fused: Tensor, packed: Packed) -> Tensor:
    """The last fused tokens [B, T, H] of a prompt should read as the words of the answer that they hold."""
    row, column = (packed.labels != IGNORE).nonzero(as_tuple=True)
    return F.cross_entropy(model.words(fused[row, ahead(packed)]), packed.labels[row, column])


def exact_matches(logits: Tensor, packed: Packed) -> dict[str, tuple[int, int]]:
    """Right answers and questions by type.

    An answer is right when every one of its tokens and the end token is the most likely one given the right tokens
    before it; that is exactly when greedy decoding produces it.
    """
    labels = packed.labels[packed.labels != IGNORE]
    segment = packed.segment[packed.labels != IGNORE]
    wrong = torch.bincount(segment, weights=(logits.argmax(-1) != labels).float(), minlength=len(packed.questions))
    counts = dict.fromkeys(TYPES, (0, 0))
    for question, errors in zip(packed.questions, wrong.tolist(), strict=True):
        right, total = counts[question.type]
        counts[question.type] = (right + (errors == 0), total + 1)
    return counts
