"""Scores of a checkpoint on `scenes`: greedy decoding in torch through the deployed prompt, exact match.

In: a `VlmModel` (as a script: what `edgevlm export` takes) and a split. Out: for each question type the accuracy with
the image, the accuracy with grey noise in its place, and chance. Run as

    python -m edgevlm.zoo.evaluate zoo:nano-fastvlm --split test -n 1800
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from edgevlm.models import VlmModel, load, resolve
from edgevlm.preprocess import prepare
from edgevlm.prompt import IMAGE_PLACEHOLDER, Message, PromptFormatter
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.batches import pixels
from edgevlm.zoo.drawing import Pixels
from edgevlm.zoo.scenes import TYPES, Item, chance, scenes

_BATCH = 32
_MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class Score:
    """Exact-match accuracy of one question type (or of `all`), with the image and with noise instead."""

    type: str
    items: int
    accuracy: float
    noise_accuracy: float
    chance: float


@torch.inference_mode()
def answers(model: VlmModel, items: list[Item]) -> list[str]:
    """Greedy answers to `items`, in their order, from images preprocessed as the model's are; one tile an image."""
    tokenizer = Tokenizer(model.tokenizer_files["tokenizer.json"])
    formatter = PromptFormatter(model.spec.prompt, tokenizer)
    system = formatter.system_messages(None)
    embeddings = _encode(model, {item.image_id: item.image for item in items})
    prompts = [formatter.start([*system, Message("user", item.question, images=1)]) for item in items]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    results = [""] * len(items)
    for indices in by_length.values():
        for start in range(0, len(indices), _BATCH):
            batch = indices[start : start + _BATCH]
            images = torch.stack([embeddings[items[i].image_id] for i in batch])
            split = prompts[batch[0]].index(IMAGE_PLACEHOLDER)
            ids = [prompts[i][:split] + prompts[i][split + 1 :] for i in batch]
            for index, produced in zip(batch, greedy(model, ids, split, images), strict=True):
                results[index] = tokenizer.decode(produced)
    return results


def _encode(model: VlmModel, images: dict[str, Pixels]) -> dict[str, Tensor]:
    names = list(images)
    embeddings: dict[str, Tensor] = {}
    for start in range(0, len(names), _BATCH):
        batch = names[start : start + _BATCH]
        squares = [prepare(Image.fromarray(images[name]), model.spec.preprocess).tiles[0] for name in batch]
        embeddings |= dict(zip(batch, model.vision(pixels(squares, model.spec.preprocess)), strict=True))
    return embeddings


def greedy(model: VlmModel, ids: list[list[int]], split: int, images: Tensor) -> list[list[int]]:
    """Token ids of the answers to prompts of equal length, with image embeddings [B, N, H] spliced in at `split`,
    all fused before where the model has a pre-fusion.

    Where the decoder drops image tokens, every prompt chooses its own, and runs by itself.
    """
    decoder = model.decoder
    if decoder.spec.token_drop is not None and len(ids) > 1:
        return [row for at, prompt in enumerate(ids) for row in greedy(model, [prompt], split, images[at : at + 1])]
    text = decoder.embed_tokens(torch.tensor(ids))
    if model.fusion is not None:
        images, text = model.fusion(images, text).split((model.fusion.image_tokens, text.shape[1]), dim=1)
    x = torch.cat((text[:, :split], images, text[:, split:]), dim=1)
    length = x.shape[1]
    logits, past = decoder(x, torch.arange(length).expand(len(ids), -1), last_only=True, image_starts=(split,))
    produced: list[list[int]] = [[] for _ in ids]
    stopped = [False] * len(ids)
    for step in range(_MAX_NEW_TOKENS):
        chosen = logits[:, -1].argmax(-1)
        for row, token in enumerate(chosen.tolist()):
            stopped[row] = stopped[row] or token in model.spec.prompt.stop_token_ids
            if not stopped[row]:
                produced[row].append(token)
        if all(stopped):
            break
        positions = torch.full((len(ids), 1), length + step)
        logits, past = decoder(decoder.embed_tokens(chosen)[:, None], positions, past)
    return produced


def grey_noise(items: Iterable[Item], seed: int = 0) -> list[Item]:
    """The same questions about grey noise of the same size: what is still answered does not come from the image."""
    noisy: dict[str, Pixels] = {}
    result = []
    for item in items:
        if item.image_id not in noisy:
            rng = np.random.default_rng([seed, len(noisy)])
            grey = rng.integers(0, 256, (*item.image.shape[:2], 1), dtype=np.uint8)
            noisy[item.image_id] = np.repeat(grey, 3, axis=2)
        result.append(Item(item.id, item.image_id, noisy[item.image_id], item.type, item.question, item.answer))
    return result


def evaluate(model: VlmModel, split: str, n: int, seed: int = 0) -> list[Score]:
    """Scores of `n` items by type, then over all. The model's weights are converted to float32 in place."""
    model.vision.float().eval()
    model.decoder.float().eval()
    if model.fusion is not None:
        model.fusion.float().eval()
    right: dict[str, list[tuple[bool, bool]]] = {question_type: [] for question_type in TYPES}
    stream = scenes(split, n, seed)
    while items := list(islice(stream, 192)):
        seen, blind = answers(model, items), answers(model, grey_noise(items))
        for item, with_image, with_noise in zip(items, seen, blind, strict=True):
            right[item.type].append((with_image == item.answer, with_noise == item.answer))
    rows = [
        Score(
            question_type,
            len(pairs),
            float(np.mean([seen for seen, _ in pairs])),
            float(np.mean([blind for _, blind in pairs])),
            chance(question_type),
        )
        for question_type, pairs in right.items()
        if pairs
    ]
    total = sum(row.items for row in rows)

    def mean(values: Iterable[tuple[int, float]]) -> float:
        return sum(count * value for count, value in values) / total

    overall = Score(
        "all",
        total,
        mean((row.items, row.accuracy) for row in rows),
        mean((row.items, row.noise_accuracy) for row in rows),
        mean((row.items, row.chance) for row in rows),
    )
    return [*rows, overall]


def table(scores: list[Score]) -> str:
    """The scores as a Markdown table, in per cent."""
    lines = ["| type | items | accuracy | with grey noise | chance |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {s.type} | {s.items} | {100 * s.accuracy:.1f} | {100 * s.noise_accuracy:.1f} | {100 * s.chance:.1f} |"
        for s in scores
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table for the model and split named on the command line."""
    parser = argparse.ArgumentParser(description="Score a checkpoint on `scenes` by greedy decoding in torch.")
    parser.add_argument("model", help="a folder, zoo:NAME, or a hub id")
    parser.add_argument("--split", default="test")
    parser.add_argument("-n", type=int, default=1800, help="questions")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    scores = evaluate(load(resolve(arguments.model)), arguments.split, arguments.n, arguments.seed)
    print(table(scores))


if __name__ == "__main__":
    main()
