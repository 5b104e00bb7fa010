"""Rendering of a scene description: antialiased shapes and handwritten numbers on a softly varying background.

In: a `Scene` (positions in pixels of a square canvas) and a random generator for what carries no meaning (background,
noise). Out: uint8 [size, size, 3]. Needs numpy and Pillow only, so it runs on the device.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from edgevlm.zoo.digits import load_digits

Pixels = npt.NDArray[np.uint8]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 40),
    "green": (38, 158, 62),
    "blue": (36, 78, 216),
    "yellow": (242, 214, 30),
    "purple": (148, 46, 186),
    "orange": (246, 132, 18),
}
SHAPES = ("circle", "square", "triangle", "star")
_SUPERSAMPLE = 3
# Grey grain of +-_GRAIN is added in uint8, so everything is drawn within _DARKEST.._LIGHTEST to leave it room.
_GRAIN = 7
_DARKEST, _LIGHTEST = _GRAIN, 255 - _GRAIN


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape: centre (`x`, `y`) and bounding-box side `size` in pixels, `angle` in degrees."""

    shape: str
    colour: str
    x: float
    y: float
    size: float
    angle: float
    tint: tuple[int, int, int]


@dataclass(frozen=True)
class Plate:
    """A handwritten number on a pale plate: centre, glyph side and glyph pitch in pixels, an image index and a tilt
    in degrees for each digit."""

    text: str
    digit_indices: tuple[int, ...]
    angles: tuple[float, ...]
    x: float
    y: float
    glyph: float
    pitch: float
    ink: tuple[int, int, int]

    @property
    def width(self) -> float:
        return self.pitch * len(self.text) + 0.2 * self.glyph

    @property
    def height(self) -> float:
        return 1.15 * self.glyph

    def digit_centre(self, position: int) -> tuple[float, float]:
        return self.x + (position - (len(self.text) - 1) / 2) * self.pitch, self.y


@dataclass(frozen=True)
class Scene:
    """What is in an image; everything a question may be about, and the number of grey scribbles behind it."""

    size: int
    objects: tuple[SceneObject, ...]
    plates: tuple[Plate, ...]
    clutter: int = 0


def render(scene: Scene, rng: np.random.Generator) -> Pixels:
    """Draw `scene` to uint8 [size, size, 3]."""
    canvas = _background(scene.size, rng)
    for _ in range(scene.clutter):
        _draw_scribble(canvas, rng)
    for plate in scene.plates:
        _draw_plate(canvas, plate)
    for item in scene.objects:
        mask = _shape_mask(item)
        left, top = round(item.x - mask.width / 2), round(item.y - mask.height / 2)
        canvas.paste(_shifted(COLOURS[item.colour], item.tint), (left, top), mask)
    pixels = np.array(canvas)
    pixels += rng.integers(0, 2 * _GRAIN + 1, (scene.size, scene.size, 1), dtype=np.uint8)
    pixels -= np.uint8(_GRAIN)
    return pixels


def _background(size: int, rng: np.random.Generator) -> Image.Image:
    """A pale tint, a linear gradient and low-frequency blotches, drawn on a 9x9 grid and enlarged smoothly.

    The grid stays below 232: bicubic enlargement overshoots by up to 7 on these amplitudes.
    """
    base = rng.uniform(160, 220) + rng.uniform(-10, 10, 3)
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 18)
    axis = np.linspace(-1, 1, 9)
    ramp = strength * (math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None])
    field = base + ramp[:, :, None] + rng.uniform(-8, 8, (9, 9, 3))
    small = Image.fromarray(np.clip(field, 0, 232).astype(np.uint8))
    return small.resize((size, size), Image.Resampling.BICUBIC)


def _draw_scribble(canvas: Image.Image, rng: np.random.Generator) -> None:
    """A grey line that wanders over up to half of the canvas: something to look at that nobody asks about."""
    size = canvas.width
    grey = int(rng.integers(70, 235))
    point, heading = rng.uniform(0, size, 2), rng.uniform(0, 2 * math.pi)
    points = [(float(point[0]), float(point[1]))]
    for _ in range(int(rng.integers(3, 9))):
        heading += rng.uniform(-1.2, 1.2)
        point = point + rng.uniform(0.04, 0.1) * size * np.array([math.cos(heading), math.sin(heading)])
        points.append((float(point[0]), float(point[1])))
    width = max(1, round(rng.uniform(3, 10) * size / 512))
    ImageDraw.Draw(canvas).line(points, fill=(grey, grey, grey), width=width, joint="curve")


def _shifted(colour: tuple[int, int, int], tint: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (min(_LIGHTEST, max(_DARKEST, c + t)) for c, t in zip(colour, tint, strict=True))
    return red, green, blue


def _shape_mask(item: SceneObject) -> Image.Image:
    """Coverage of the shape in its bounding box, antialiased by supersampling."""
    side = round(item.size)
    big = side * _SUPERSAMPLE
    mask = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(mask)
    if item.shape == "circle":
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
    else:
        draw.polygon(_polygon(item.shape, big / 2, math.radians(item.angle)), fill=255)
    return mask.reduce(_SUPERSAMPLE)


def _polygon(shape: str, radius: float, angle: float) -> list[tuple[float, float]]:
    """Corners of a regular polygon or a five-pointed star, inscribed in the circle of `radius`."""
    corners = {"square": 4, "triangle": 3, "star": 10}[shape]
    start = -math.pi / 2 + (math.pi / 4 if shape == "square" else 0.0) + angle
    points = []
    for corner in range(corners):
        reach = radius * (0.45 if shape == "star" and corner % 2 else 1.0)
        turn = start + 2 * math.pi * corner / corners
        points.append((radius + reach * math.cos(turn), radius + reach * math.sin(turn)))
    return points


def _draw_plate(canvas: Image.Image, plate: Plate) -> None:
    left, top = plate.x - plate.width / 2, plate.y - plate.height / 2
    box = (round(left), round(top), round(left + plate.width), round(top + plate.height))
    ImageDraw.Draw(canvas).rounded_rectangle(box, radius=10, fill=(248, 248, 244))
    digits = load_digits()
    side = round(plate.glyph)
    for position, index in enumerate(plate.digit_indices):
        ink = np.clip(digits.images[index].astype(np.float32) / 16.0, 0.0, 1.0) * 255.0
        mask = Image.fromarray(ink.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        mask = mask.rotate(plate.angles[position], Image.Resampling.BILINEAR)
        x, y = plate.digit_centre(position)
        canvas.paste(plate.ink, (round(x - side / 2), round(y - side / 2)), mask)
