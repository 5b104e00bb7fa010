"""The accuracy set `scenes`: generated images with questions whose answers can only come from the image.

In: a split (`train`, `calibration` or `test`), a number of items and a seed. Out: items with an image uint8
[H, W, 3], a question and its one right answer, of six types: colour, shape, count, relation, existence, number.
Everything is a function of (split, seed, image index): the splits use different random streams and different
handwritten digit images. Runs on the device (numpy and Pillow only).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from edgevlm.errors import InputError
from edgevlm.zoo.digits import SPLITS, split_indices
from edgevlm.zoo.drawing import COLOURS, SHAPES, Pixels, Plate, Scene, SceneObject, render

TYPES = ("colour", "shape", "count", "relation", "existence", "number")
MAX_OBJECTS = 4
IMAGE_SIZE = 512
_PLATE_SHARE = 0.8
_MIN_OFFSET = 56.0
_GAP = 10.0

# The best that can be said without looking: a uniform guess among equally likely answers. A number has one digit in a
# third of the plates, so its likeliest answers are the ten one-digit numbers.
_CHANCE = {
    "colour": 1 / len(COLOURS),
    "shape": 1 / len(SHAPES),
    "count": 1 / MAX_OBJECTS,
    "relation": 1 / 2,
    "existence": 1 / 2,
    "number": 1 / 30,
}


@dataclass(frozen=True)
class Question:
    """A question about one scene and its only right answer (lower case)."""

    type: str
    question: str
    answer: str


@dataclass(frozen=True)
class Item:
    """One question about one image; items of the same image share `image_id` and the array."""

    id: str
    image_id: str
    image: Pixels
    type: str
    question: str
    answer: str


def chance(question_type: str) -> float:
    """Exact-match accuracy of the best guess that ignores the image."""
    if question_type not in _CHANCE:
        raise InputError(
            what=f"unknown question type {question_type!r}",
            where="scenes",
            hint=f"use one of {', '.join(TYPES)}",
        )
    return _CHANCE[question_type]


def scenes(split: str, n: int, seed: int = 0, size: int = IMAGE_SIZE, clutter: int = 0) -> Iterator[Item]:
    """Yield `n` items of `split`, image after image, at most one question of each type an image.

    `clutter` scribbles behind each scene make a variant of the set, in which the choice of what to look at is harder.
    """
    made = 0
    index = 0
    while made < n:
        _, questions, image = sample(split, seed, index, size, clutter)
        image_id = f"scenes-{split}-{seed}-{index:06d}"
        for question in questions[: n - made]:
            yield Item(
                id=f"{image_id}-{question.type}",
                image_id=image_id,
                image=image,
                type=question.type,
                question=question.question,
                answer=question.answer,
            )
            made += 1
        index += 1


def sample(
    split: str, seed: int, index: int, size: int = IMAGE_SIZE, clutter: int = 0
) -> tuple[Scene, list[Question], Pixels]:
    """Scene number `index`: its description, one question of each type it can answer, its image."""
    rng = scene_rng(split, seed, index)
    scene = replace(compose(split, rng, size), clutter=clutter)
    questions = [q for q in (ask(question_type, scene, rng) for question_type in TYPES) if q is not None]
    return scene, questions, render(scene, rng)


def scene_rng(split: str, seed: int, index: int) -> np.random.Generator:
    """The random stream of one scene: no two (split, seed, index) share one."""
    if split not in SPLITS:
        raise InputError(what=f"unknown split {split!r}", where="scenes", hint=f"use one of {', '.join(SPLITS)}")
    return np.random.default_rng([SPLITS.index(split), seed, index])


def compose(
    split: str,
    rng: np.random.Generator,
    size: int = IMAGE_SIZE,
    objects: int | None = None,
    plates: int | None = None,
) -> Scene:
    """Draw the contents of a scene: 1 to 4 distinct (colour, shape) pairs and, mostly, one number; no overlaps.

    `objects` and `plates` fix the counts (training also uses fuller canvases).
    """
    count = int(rng.integers(1, MAX_OBJECTS + 1)) if objects is None else objects
    plate_count = int(rng.random() < _PLATE_SHARE) if plates is None else plates
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    chosen = [pairs[i] for i in rng.choice(len(pairs), count, replace=False)]
    numbers = [_number(split, rng) for _ in range(plate_count)]
    while True:
        scene = _place(chosen, numbers, rng, size)
        if scene is not None:
            return scene


def _number(split: str, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """A number of 1 to 3 digits (no leading zero) and the handwritten image of each digit."""
    length = int(rng.integers(1, 4))
    text = str(rng.integers(0 if length == 1 else 10 ** (length - 1), 10**length))
    classes = split_indices(split)
    return text, tuple(classes[int(d)][int(rng.integers(len(classes[int(d)])))] for d in text)


def _place(
    pairs: list[tuple[str, str]],
    numbers: list[tuple[str, tuple[int, ...]]],
    rng: np.random.Generator,
    size: int,
) -> Scene | None:
    """Random positions without overlap, or None when this attempt ran out of room. Sizes scale with the canvas."""
    scale = size / IMAGE_SIZE
    boxes: list[tuple[float, float, float, float]] = []

    def spot(width: float, height: float) -> tuple[float, float] | None:
        margin = 4 * scale
        for _ in range(40):
            x = rng.uniform(width / 2 + margin, size - width / 2 - margin)
            y = rng.uniform(height / 2 + margin, size - height / 2 - margin)
            clear = all(
                abs(x - bx) >= (width + bw) / 2 + _GAP * scale or abs(y - by) >= (height + bh) / 2 + _GAP * scale
                for bx, by, bw, bh in boxes
            )
            if clear:
                boxes.append((x, y, width, height))
                return float(x), float(y)
        return None

    plates = []
    for text, indices in numbers:
        glyph = float(rng.uniform(76, 92)) * scale
        ink = tuple(int(v) for v in rng.integers(8, 60, 3))
        tilts = tuple(float(v) for v in rng.uniform(-10, 10, len(text)))
        plate = Plate(text, indices, tilts, 0.0, 0.0, glyph, 0.85 * glyph, (ink[0], ink[1], ink[2]))
        where = spot(plate.width, plate.height)
        if where is None:
            return None
        plates.append(replace(plate, x=where[0], y=where[1]))
    objects = []
    for shape, colour in pairs:
        side = float(rng.uniform(80, 150)) * scale
        where = spot(side, side)
        if where is None:
            return None
        tint = tuple(int(v) for v in rng.integers(-10, 11, 3))
        angle = float(rng.uniform(-15, 15))
        objects.append(SceneObject(shape, colour, *where, side, angle, (tint[0], tint[1], tint[2])))
    return Scene(size, tuple(objects), tuple(plates))


def ask(question_type: str, scene: Scene, rng: np.random.Generator) -> Question | None:
    """A question of `question_type` that `scene` answers in exactly one way, or None if it cannot."""
    objects = scene.objects
    if question_type == "colour":
        lone = [o for o in objects if sum(o.shape == p.shape for p in objects) == 1]
        if not lone:
            return None
        picked = lone[int(rng.integers(len(lone)))]
        return Question("colour", f"What colour is the {picked.shape}?", picked.colour)
    if question_type == "shape":
        lone = [o for o in objects if sum(o.colour == p.colour for p in objects) == 1]
        if not lone:
            return None
        picked = lone[int(rng.integers(len(lone)))]
        return Question("shape", f"What shape is the {picked.colour} object?", picked.shape)
    if question_type == "count":
        return Question("count", "How many shapes are there?", str(len(objects)))
    if question_type == "relation":
        return _ask_relation(scene, rng)
    if question_type == "existence":
        return _ask_existence(scene, rng)
    if question_type == "number":
        if len(scene.plates) != 1:
            return None
        return Question("number", "What number is written?", scene.plates[0].text)
    raise InputError(
        what=f"unknown question type {question_type!r}", where="scenes", hint=f"use one of {', '.join(TYPES)}"
    )


def _ask_relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Left/right or above/below of two named objects that lie clearly apart on that axis."""
    least = _MIN_OFFSET * scene.size / IMAGE_SIZE
    cases = [
        (a, b, axis)
        for a in scene.objects
        for b in scene.objects
        for axis in ("x", "y")
        if abs(getattr(a, axis) - getattr(b, axis)) >= least
    ]
    if not cases:
        return None
    a, b, axis = cases[int(rng.integers(len(cases)))]
    words, answer = ("left or right of", "left") if axis == "x" else ("above or below", "above")
    if getattr(a, axis) > getattr(b, axis):
        answer = "right" if axis == "x" else "below"
    return Question("relation", f"Is the {a.colour} {a.shape} {words} the {b.colour} {b.shape}?", answer)


def _ask_existence(scene: Scene, rng: np.random.Generator) -> Question:
    """Is a (colour, shape) pair there? Half the answers are no; most of those have the colour or shape elsewhere."""
    present = [(o.colour, o.shape) for o in scene.objects]
    if rng.random() < 0.5:
        colour, shape = present[int(rng.integers(len(present)))]
        answer = "yes"
    else:
        absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in present]
        near = [(c, s) for c, s in absent if any(c == pc or s == ps for pc, ps in present)]
        pool = near if rng.random() < 0.5 else absent
        colour, shape = pool[int(rng.integers(len(pool)))]
        answer = "no"
    article = "an" if colour[0] in "aeiou" else "a"
    return Question("existence", f"Is there {article} {colour} {shape}?", answer)
