"""Calibration samples as the decoder sees them: preprocessed, encoded, spliced into the prompt, answered.

In: a `VlmModel` (weights in any float dtype, perhaps memory-mapped) and samples. Out: for each sample the embeddings
that enter the first decoder layer, with the true mix of image and text positions. Images go through the model's own
preprocessing and vision tower, tiles, newlines, token reducers and fusion included.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgevlm import reference
from edgevlm.assembly import ImageAssembler, Piece
from edgevlm.calibration import Calibration, Sample
from edgevlm.calibration.scratch import Scratch
from edgevlm.errors import BundleError, InputError
from edgevlm.imageio import load_image
from edgevlm.models.decoder import KeyValue, rotary_for
from edgevlm.models.vlm import VlmModel
from edgevlm.preprocess import PreparedImage, prepare
from edgevlm.progress import Report
from edgevlm.prompt import IMAGE_PLACEHOLDER, Message, PromptFormatter
from edgevlm.runtimes.base import Encoded
from edgevlm.runtimes.positions import RotaryPositions
from edgevlm.spec import DecoderSpec
from edgevlm.tokenizer import Tokenizer

#: Marks positions without a known next token.
IGNORE = -100
#: Tokens of an answer that are looked at; answers of conversation data may be pages long.
_ANSWER_TOKENS = 128


@dataclass(frozen=True)
class Sequence:
    """What is known of one sample's positions.

    Attributes:
        positions: int `[1, S]`, or `[3, 1, S]` for M-RoPE.
        is_image: bool `[S]`.
        labels: int64 `[S]`, the token that follows where it belongs to an answer, else `IGNORE`.
        starts: where images (tiles) begin, for decoders that drop some of their tokens.
    """

    positions: Tensor
    is_image: Tensor
    labels: Tensor
    starts: tuple[int, ...] = ()

    def kept(self, places: Tensor, starts: tuple[int, ...]) -> Sequence:
        """What is known of the positions at `places`; they are counted anew."""
        return Sequence(torch.arange(len(places))[None], self.is_image[places], self.labels[places], starts)


@dataclass
class Activations:
    """Hidden states `[S, H]` of all samples, float32, in front of some decoder layer; they are overwritten in place."""

    spec: DecoderSpec
    states: list[Tensor]
    sequences: list[Sequence]

    def __post_init__(self) -> None:
        # What a sequence had room for when it was longest.
        self._rooms = list(self.states)

    def __len__(self) -> int:
        return len(self.states)

    def copy(self, scratch: Scratch, count: int | None = None) -> Activations:
        """The same with states that may be overwritten on their own; of `count` samples from all over, or of all."""
        most = len(self) if count is None else min(count, len(self))
        chosen = [index * len(self) // most for index in range(most)]
        kept = [scratch.keep(self.states[index]) for index in chosen]
        return Activations(self.spec, kept, [self.sequences[index] for index in chosen])

    def restore(self, source: Activations) -> None:
        """Take over the states of what this is a copy of."""
        for sample, (states, sequence) in enumerate(zip(source.states, source.sequences, strict=True)):
            self._put(sample, states, sequence)

    def keep(self, sample: int, states: Tensor, places: Tensor, starts: tuple[int, ...]) -> None:
        """Of a sample's new states `[S, H]` those at `places` go on; images then begin at `starts`."""
        self._put(sample, states[places], self.sequences[sample].kept(places, starts))

    def _put(self, sample: int, states: Tensor, sequence: Sequence) -> None:
        self.states[sample] = self._rooms[sample][: len(states)].copy_(states)
        self.sequences[sample] = sequence

    def rotary(self, index: int) -> KeyValue:
        """Cosines and sines of one sample's positions."""
        return rotary_for(self.spec, self.sequences[index].positions)


@dataclass(frozen=True)
class _Part:
    piece: Piece
    is_image: bool

    @property
    def length(self) -> int:
        """Positions."""
        return self.piece.size // self.piece.shape[-1] if self.piece.ndim > 1 else len(self.piece)


class _Embedder:
    """Turns the samples of one model into pieces of its prompt."""

    def __init__(self, model: VlmModel) -> None:
        self._model = model
        self._tokenizer = Tokenizer(model.tokenizer_files["tokenizer.json"])
        self._formatter = PromptFormatter(model.spec.prompt, self._tokenizer)
        newline = None if model.image_newline is None else model.image_newline.float().numpy()
        self._assembler = ImageAssembler(model.spec, self._tokenizer, newline)
        self._end = _end_of_answers(self._formatter, model.spec.prompt.stop_token_ids)
        self._key = b"", ""
        self._seen = Encoded(np.empty(0, np.float32))

    def pieces(self, sample: Sample) -> tuple[list[_Part], list[int]]:
        """The prompt in parts, images encoded, and the ids of the answer, the stop token included."""
        spec = self._model.spec
        system = self._formatter.system_messages(None)
        ids = self._formatter.start([*system, Message("user", sample.prompt, images=1)])
        image = prepare(load_image(sample.image), spec.preprocess)
        # Neighbours often ask about the same image; the vision tower is most of the work.
        key = image.key, sample.prompt if spec.vision.text is not None else ""
        if key != self._key:
            (self._seen,) = reference.encoded_images(self._model, [image], [sample.prompt])
            self._key = key
        return self._spliced(ids, image), self._answer(sample.answer)

    def _spliced(self, ids: list[int], image: PreparedImage) -> list[_Part]:
        place, spec = ids.index(IMAGE_PLACEHOLDER), self._model.spec
        if spec.fusion is not None:
            (fused,) = reference.fused_prompts(self._model, [self._seen.rows[0]], [ids])
            end = place + spec.fusion.image_tokens
            parts = [_Part(fused[:place], False), _Part(fused[place:end], True), _Part(fused[end:], False)]
        else:
            text = np.array(ids, np.int32)
            pieces = self._assembler.pieces(self._seen.rows, image, self._seen.places)
            inside = [_Part(piece, piece.ndim > 1) for piece in pieces]
            parts = [_Part(text[:place], False), *inside, _Part(text[place + 1 :], False)]
        return [part for part in parts if len(part.piece)]

    def _answer(self, answer: str) -> list[int]:
        ids = self._tokenizer.encode_plain(answer)[:_ANSWER_TOKENS] if answer else []
        return [*ids, *self._end] if ids else []


def _end_of_answers(formatter: PromptFormatter, stops: tuple[int, ...]) -> list[int]:
    """The stop token that the chat template writes behind an answer; where it writes none, the first there is."""
    try:
        behind = formatter.follow_up([Message("user", "Why?"), Message("assistant", "So."), Message("user", "Why?")])
    except BundleError:
        behind = []
    return [token for token in behind if token in stops][:1] or list(stops[:1])


def embed(model: VlmModel, calibration: Calibration, scratch: Scratch, progress: Report) -> Activations:
    """The samples in front of the model's first decoder layer.

    Args:
        model: whose preprocessing, vision tower and embeddings are used.
        calibration: the samples.
        scratch: where the hidden states lie.
        progress: called with samples done, samples in all.

    Raises:
        InputError: there are no samples.
    """
    samples = _counted(calibration, progress)
    states: list[Tensor] = []
    sequences: list[Sequence] = []
    embedder = _Embedder(model)
    for sample in samples:
        parts, answer = embedder.pieces(sample)
        if len(answer) > 1:
            # The last token of the answer is never an input, since nothing follows it.
            parts.append(_Part(np.array(answer[:-1], np.int32), False))
        rows = torch.from_numpy(np.concatenate([_rows(model, part.piece) for part in parts]))
        labels = torch.full((len(rows),), IGNORE)
        if answer:
            labels[-len(answer) :] = torch.tensor(answer)
        is_image = torch.cat([torch.full((part.length,), part.is_image) for part in parts])
        positions = _positions(model.spec.decoder, [part.piece for part in parts], len(rows))
        states.append(scratch.keep(rows))
        sequences.append(Sequence(positions, is_image, labels, _starts(parts)))
    return Activations(model.spec.decoder, states, sequences)


def _counted(calibration: Calibration, progress: Report) -> Iterable[Sample]:
    if not calibration.count:
        raise InputError("there are no calibration samples", "calibration", "give images, or --calibrate scenes")
    for index, sample in enumerate(calibration.samples()):
        progress(index, calibration.count, f"calibration image {index + 1} of {calibration.count}")
        yield sample


def _starts(parts: list[_Part]) -> tuple[int, ...]:
    places = accumulate((part.length for part in parts), initial=0)
    return tuple(place for place, part in zip(places, parts, strict=False) if part.is_image)


def _rows(model: VlmModel, piece: Piece) -> NDArray[np.float32]:
    if piece.ndim == 1:
        return reference.token_embeddings(model, piece.tolist())
    return piece.reshape(-1, piece.shape[-1]).astype(np.float32, copy=False)


def _positions(spec: DecoderSpec, pieces: list[Piece], length: int) -> Tensor:
    if spec.rope_sections:
        return torch.from_numpy(RotaryPositions(length).append(0, list(pieces)))[:, None]
    return torch.arange(length)[None]
