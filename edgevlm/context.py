"""What a session's context holds, part by part: token ids, and embeddings of images.

Parts can be compared without touching embeddings, which is how a session finds what its key/value cache already holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import TypeAlias

import numpy as np

from edgevlm.assembly import Piece
from edgevlm.prompt import IMAGE_PLACEHOLDER
from edgevlm.runtimes.base import Float32, Segment


@dataclass(frozen=True)
class Embeddings:
    """Embeddings `[N, H]` of an image or a part of one; `key` and `index` identify them.

    `grid` is the image's rows and columns where these count for the rotary positions. `turn` counts the parts behind it
    that its turn goes on for, where the decoder chooses among its tokens by them; else it is 0.
    """

    key: bytes
    index: int
    rows: Float32 = field(compare=False)
    grid: tuple[int, int] | None = None
    turn: int = 0

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Frames:
    """An image, or the frames of a video, before it is fused with the prompt (`edgevlm.fusing`).

    Attributes:
        key: identifies the pixels.
        rows: embeddings `[V, H]` of each frame.
        positions: positions that a frame takes in the fused prompt.
    """

    key: bytes
    rows: tuple[Float32, ...] = field(compare=False)
    positions: int

    def __len__(self) -> int:
        return self.positions * len(self.rows)


#: What fills the context: a token id, or embeddings, which take as many positions as there are. `Frames` stand in a
#: conversation; the decoder is given what the fusion makes of it.
Part: TypeAlias = "int | Embeddings | Frames"


def join_frames(frames: Sequence[Frames]) -> Frames:
    """The frames of a video, in the order of time, as one image.

    Raises:
        ValueError: there are none.
    """
    if not frames:
        raise ValueError("a video has at least one frame")
    key = hashlib.blake2b(b"".join(frame.key for frame in frames), digest_size=16).digest()
    return Frames(key, tuple(rows for frame in frames for rows in frame.rows), frames[0].positions)


def image_parts(pieces: Sequence[Piece], key: bytes) -> list[Part]:
    """The segments that an image becomes, as parts; `key` is the image's hash."""
    parts: list[Part] = []
    for index, piece in enumerate(pieces):
        if piece.ndim == 1:
            parts += piece.tolist()
            continue
        rows = piece.astype(np.float32, copy=False).reshape(-1, piece.shape[-1])
        parts.append(Embeddings(key, index, rows, piece.shape[:2] if piece.ndim == 3 else None))
    return parts


def splice(ids: Sequence[int], images: Sequence[list[Part]]) -> list[Part]:
    """Put images where their placeholders are."""
    remaining = iter(images)
    parts: list[Part] = []
    for token in ids:
        if token == IMAGE_PLACEHOLDER:
            parts += next(remaining)
        else:
            parts.append(token)
    return parts


def total_positions(parts: Sequence[Part]) -> int:
    """Positions that the parts take."""
    return sum(1 if isinstance(part, int) else len(part) for part in parts)


def image_positions(parts: Sequence[Part]) -> int:
    """Positions that embeddings take."""
    return sum(len(part) for part in parts if not isinstance(part, int))


def common_prefix(held: Sequence[Part], wanted: Sequence[Part]) -> int:
    """How many parts at the front are the same."""
    pairs = enumerate(zip(held, wanted, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(held), len(wanted)))


def with_turn(parts: Sequence[Part], begin: int) -> list[Part]:
    """The parts, in which those embeddings from `begin` on know that their turn ends with the last part."""
    return [
        replace(part, turn=len(parts) - 1 - index) if index >= begin and isinstance(part, Embeddings) else part
        for index, part in enumerate(parts)
    ]


def whole_turns(parts: Sequence[Part], keep: int) -> int:
    """How many parts at the front can be kept, at most `keep`, without parting embeddings from their turn."""
    ends = _turn_ends(parts[:keep])
    return min((index for index, end in ends.items() if end > keep), default=keep)


def prefills(parts: Sequence[Part], begin: int) -> list[Sequence[Part]]:
    """The parts from `begin` on, cut where a turn with embeddings that depend on it ends."""
    cuts = sorted({begin, len(parts), *(end for end in _turn_ends(parts).values() if end > begin)})
    return [parts[start:stop] for start, stop in pairwise(cuts)]


def _turn_ends(parts: Sequence[Part]) -> dict[int, int]:
    """Of embeddings that depend on their turn, the place and that turn's end."""
    places = enumerate(parts)
    return {index: index + part.turn + 1 for index, part in places if isinstance(part, Embeddings) and part.turn}


def segments(parts: Sequence[Part]) -> list[Segment]:
    """Runs of token ids as int32 arrays, and embeddings, those of a grid as `[rows, columns, H]`."""
    found: list[Segment] = []
    for is_id, run in groupby(parts, key=lambda part: isinstance(part, int)):
        if is_id:
            found.append(np.array(list(run), np.int32))
        else:
            found += [_segment(part) for part in run]
    return found


def _segment(part: Part) -> Segment:
    assert isinstance(part, Embeddings), "a prompt with frames is fused before the decoder sees it"
    return part.rows if part.grid is None else part.rows.reshape(*part.grid, -1)
