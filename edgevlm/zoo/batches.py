"""Training batches from scene descriptions: images with per-cell targets, and packed questions behind one image.

In: (seed, step) or a scene index. Out: tensors. Everything is a pure function of its arguments, so a resumed training
run sees exactly the batches that an uninterrupted one would have seen.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgevlm.spec import PreprocessSpec
from edgevlm.zoo.drawing import COLOURS, SHAPES, Pixels, Scene, render
from edgevlm.zoo.nano import NanoSpec, PromptPieces
from edgevlm.zoo.scenes import Question, ask, compose, scene_rng

# How often one image is asked each type: what a decoder learns slowly is asked more often.
QUESTIONS_PER_IMAGE = {"colour": 1, "shape": 1, "count": 1, "relation": 3, "existence": 3, "number": 1}
IGNORE = -100
# Cells whose middle is within so much of the size of a shape or digit from its centre lie well inside it.
_CORE = 0.35
# Streams of random numbers within the training split: dense canvases, scenes to train on, and the held-out slice.
DENSE_STREAM, SCENE_STREAM, VALIDATION_STREAM = 1_000, 2_000, 3_000


@dataclass(frozen=True)
class CellTargets:
    """What each grid cell holds, [B, N] (`centre` [B, N, 2], in units of the canvas); IGNORE where undefined."""

    kind: Tensor
    shape: Tensor
    colour: Tensor
    digit: Tensor
    place: Tensor
    centre: Tensor


@dataclass(frozen=True)
class Packed:
    """Prompts of several questions behind one shared image prefix.

    `ids` [B, T] holds -1 where an image embedding goes (the first run of columns alike in all rows), `labels` [B, T]
    the next token where it belongs to an answer, `positions` [B, T], `mask` bool [B, 1, T, T]; `segment` [B, T] numbers
    the question of each label (its index in `questions`), IGNORE elsewhere. `image_tokens` columns are the image's.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    mask: Tensor
    segment: Tensor
    questions: list[Question]
    image_tokens: int


def pixels(images: list[Pixels], spec: NanoSpec | PreprocessSpec) -> Tensor:
    """uint8 [H, W, 3] images to float32 [B, 3, H, W], normalised as `spec` says, channels last in memory."""
    scaled = torch.from_numpy(np.stack(images)).float().div_(255.0)
    return scaled.sub_(torch.tensor(spec.mean)).div_(torch.tensor(spec.std)).permute(0, 3, 1, 2)


def dense_scene(rng: np.random.Generator, size: int) -> Scene:
    """A canvas fuller than any test scene, above all of digits: more to learn from every pixel."""
    return compose("train", rng, size, objects=int(rng.integers(1, 4)), plates=4)


def stream_seed(stream: int, seed: int) -> int:
    """The seed of one stream of the training split; no two (stream, seed) share one."""
    return stream + 10_000 * seed


def train_scene(stream: int, seed: int, index: int, size: int, clutter: int = 0) -> tuple[Scene, Pixels]:
    """Scene `index` of one stream of the training split, with its image; half have up to `clutter` scribbles."""
    scene, rng = describe_scene(stream, seed, index, size, clutter)
    return scene, render(scene, rng)


def describe_scene(
    stream: int, seed: int, index: int, size: int, clutter: int = 0
) -> tuple[Scene, np.random.Generator]:
    """As `train_scene`, not drawn yet: the scene, and the generator to draw it with."""
    rng = scene_rng("train", stream_seed(stream, seed), index)
    scene = dense_scene(rng, size) if stream == DENSE_STREAM else compose("train", rng, size)
    scribbles = int(rng.integers(1, clutter + 1)) * int(rng.random() < 0.5) if clutter else 0
    return replace(scene, clutter=scribbles), rng


def cell_targets(scenes: list[Scene], rows: int, columns: int) -> CellTargets:
    """Targets of the auxiliary heads: the cell that holds the centre of a shape or digit answers for it.

    Other cells well inside a shape also name its shape and colour, those close to a digit's centre the digit, and all
    of a plate the place of the nearest digit: on a fine grid, most of what can be learned from them.
    """
    shape = (len(scenes), rows * columns)
    kind = torch.zeros(shape, dtype=torch.long)
    rest = {name: torch.full(shape, IGNORE) for name in ("shape", "colour", "digit", "place")}
    centre = torch.zeros(*shape, 2)
    down, across = ((torch.arange(count) + 0.5) / count for count in (rows, columns))
    middles = torch.cartesian_prod(down, across).flip(-1)
    for row, scene in enumerate(scenes):

        def cell(x: float, y: float, scene: Scene = scene, row: int = row) -> int:
            column = min(columns - 1, int(x * columns / scene.size))
            index = min(rows - 1, int(y * rows / scene.size)) * columns + column
            centre[row, index] = torch.tensor([x / scene.size, y / scene.size])
            return index

        for item in scene.objects:
            index = cell(item.x, item.y)
            kind[row, index] = 1
            inside = (middles - torch.tensor([item.x, item.y]) / scene.size).norm(
                dim=-1
            ) < _CORE * item.size / scene.size
            inside[index] = True
            rest["shape"][row, inside] = SHAPES.index(item.shape)
            rest["colour"][row, inside] = list(COLOURS).index(item.colour)
        for plate in scene.plates:
            away = (middles * scene.size - torch.tensor([plate.x, plate.y])).abs()
            inside = (away < torch.tensor([plate.width, plate.height]) / 2).all(dim=-1)
            centres = torch.tensor([plate.digit_centre(position) for position in range(len(plate.text))])
            distance = (middles[:, None] * scene.size - centres).norm(dim=-1)
            rest["place"][row, inside] = distance.argmin(dim=-1)[inside]
            for position, digit in enumerate(plate.text):
                index = cell(*plate.digit_centre(position))
                kind[row, index] = 2
                inside = distance[:, position] < _CORE * plate.glyph
                inside[index] = True
                rest["digit"][row, inside] = int(digit)
                rest["place"][row, index] = position
    return CellTargets(kind=kind, centre=centre, **rest)


def word_targets(targets: CellTargets, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """For each cell with a shape or digit the words it stands for: weights [M, V], and the flat cell index [M]."""
    flat = (targets.kind > 0).flatten().nonzero().flatten()
    weights = torch.zeros(len(flat), tokenizer.get_vocab_size())
    colours = list(COLOURS)
    for row, cell in enumerate(flat.tolist()):
        if targets.kind.flatten()[cell] == 1:
            colour, shape = colours[targets.colour.flatten()[cell]], SHAPES[targets.shape.flatten()[cell]]
            words = [colour, f" {colour}", shape, f" {shape}"]
        else:
            words = [str(int(targets.digit.flatten()[cell]))]
        for word in words:
            weights[row, tokenizer.token_to_id(word.replace(" ", "Ġ"))] = 1 / len(words)
    return weights, flat


@dataclass(frozen=True)
class Pointers:
    """Where the text should look: `at` int [P, 4], (slot of `NanoSpec.pointing`, row, column, target column), and
    `place` [P, 2], the centre of what is found there, at once or by way of a noun, in units of the canvas (nan:
    nothing)."""

    at: Tensor
    place: Tensor


def pointers(packed: Packed, scenes: list[Scene], tokenizer: Tokenizer, rows: int, columns: int) -> Pointers:
    """Nouns look at things, and the end of each prompt at the first and the last noun of its question.

    A noun is a shape word (`circle`, or the second word of `red circle`) or the `object` of `red object`. It points to
    the visual token of the one thing that it names, or to the very first token if it names nothing in the scene.
    """
    words = {tokenizer.token_to_id(f"Ġ{word}"): word for word in (*COLOURS, *SHAPES, "object")}
    start = int((packed.ids[0] == -1).nonzero()[0])
    at: list[tuple[int, int, int, int]] = []
    place: list[tuple[float, float]] = []
    for row, (ids, segments, scene) in enumerate(
        zip(packed.ids.tolist(), packed.segment.tolist(), scenes, strict=True)
    ):
        nouns: dict[int, list[tuple[int, tuple[float, float]]]] = {}
        for column in range(1, len(ids)):
            noun, adjective = words.get(ids[column]), words.get(ids[column - 1])
            if noun is None or noun in COLOURS:
                continue
            named = [
                item for item in scene.objects if noun in ("object", item.shape) and adjective in (None, item.colour)
            ]
            target, where = 0, (math.nan, math.nan)
            if len(named) == 1:
                x, y = where = (named[0].x / scene.size, named[0].y / scene.size)
                target = start + int(y * rows) * columns + int(x * columns)
            at.append((0, row, column, target))
            place.append(where)
            nouns.setdefault(segments[column], []).append((column, where))
        for segment, found in nouns.items():
            end = int(((packed.segment[row] == segment) & (packed.labels[row] != IGNORE)).nonzero()[0])
            at += [(1, row, end, found[0][0]), (2, row, end, found[-1][0])]
            place += [found[0][1], found[-1][1]]
    return Pointers(torch.tensor(at, dtype=torch.long).reshape(-1, 4), torch.tensor(place).reshape(-1, 2))


def questions_for(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Fresh questions about one scene in random order, `QUESTIONS_PER_IMAGE` of each type where it has any."""
    asked = [ask(kind, scene, rng) for kind, times in QUESTIONS_PER_IMAGE.items() for _ in range(times)]
    unique = list(dict.fromkeys(q for q in asked if q is not None))
    return [unique[i] for i in rng.permutation(len(unique))]


def pack(per_image: list[list[Question]], tokenizer: Tokenizer, image_tokens: int, style: PromptPieces) -> Packed:
    """Lay the questions of each image behind one prefix; each sees the prefix and itself, positions restart."""
    prefix = tokenizer.encode(style.before).ids + [-1] * image_tokens
    rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
    questions: list[Question] = []
    for asked in per_image:
        ids, labels = list(prefix), [IGNORE] * len(prefix)
        positions, segment = list(range(len(prefix))), [IGNORE] * len(prefix)
        for question in asked:
            prompt = tokenizer.encode(style.behind.format(question=question.question)).ids
            answer = tokenizer.encode(question.answer + style.end).ids
            ids += prompt + answer[:-1]
            labels += [IGNORE] * (len(prompt) - 1) + answer
            length = len(prompt) + len(answer) - 1
            positions += range(len(prefix), len(prefix) + length)
            segment += [len(questions)] * length
            questions.append(question)
        rows.append((ids, labels, positions, segment))
    width = max(len(ids) for ids, *_ in rows)

    def padded(column: int, fill: int) -> Tensor:
        return torch.tensor([row[column] + [fill] * (width - len(row[column])) for row in rows])

    segments = padded(3, IGNORE - 1)
    shared = segments == IGNORE
    same = (segments[:, :, None] == segments[:, None, :]) | shared[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return Packed(
        ids=padded(0, 0),
        labels=padded(1, IGNORE),
        positions=padded(2, 0),
        mask=(same & causal)[:, None],
        segment=segments,
        questions=questions,
        image_tokens=image_tokens,
    )
