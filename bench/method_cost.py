"""What a method of pruning image tokens costs by itself: one vision graph with it, one without, called by turns.

Two measurements minutes apart differ by more than a method costs; two calls a few milliseconds apart do not. In: two
bundles and an engine. Out: the differences in milliseconds.
"""

from __future__ import annotations

import time

import numpy as np

from edgevlm.bench.images import photo_like
from edgevlm.bench.report import Settings
from edgevlm.bench.stats import Summary, summarise
from edgevlm.bundle import Bundle, open_bundle
from edgevlm.child import Json, Send, run_child
from edgevlm.imageio import load_image
from edgevlm.preprocess import normalise, prepare
from edgevlm.question import GuidedVision, QuestionReader
from edgevlm.runtimes.base import EngineOptions, Float32, VisionEngine
from edgevlm.runtimes.select import open_vision
from edgevlm.seeing import open_questions
from edgevlm.tile_tokens import encode_pixels, shares_tiles, tile_boxes

TARGET = "edgevlm.bench.method_cost:serve"
_IMAGES = 4
_LEAST = 20


def method_cost(
    without: Bundle, with_: Bundle, engine: str, settings: Settings, target: str = TARGET
) -> Summary | None:
    """The differences (ms, with less without), or None where the two vision graphs are the same.

    Args:
        without: the bundle whose graph has no method.
        with_: the other one.
        engine: the vision engine of both.
        settings: images, threads, least time.
        target: `module:function` that measures in a child process.

    Raises:
        EdgeVLMError: a graph cannot be loaded or run.
    """
    if _graph(without) == _graph(with_):
        return None
    arguments = {
        "bundles": [str(without.path), str(with_.path)],
        "engine": engine,
        "threads": settings.threads,
        "size": [settings.image_width, settings.image_height],
        "seed": settings.seed,
        "min_time_s": settings.min_time_s,
    }
    return summarise(run_child(target, arguments, timeout=settings.silence_s).value)


def _graph(bundle: Bundle) -> set[str]:
    """What the vision graph's files hold."""
    return {entry.sha256 for entry in bundle.manifest.artifacts if entry.role == "vision"}


def serve(
    send: Send, bundles: list[str], engine: str, threads: int, size: list[int], seed: int, min_time_s: float
) -> Json:
    """Entry point of the child: the differences in milliseconds, one a pair of calls."""
    opened = [open_bundle(path) for path in bundles]
    engines = [open_vision(bundle, engine, EngineOptions(threads=threads)) for bundle in opened]
    readers = [open_questions(bundle, EngineOptions(threads=threads)) for bundle in opened]
    pixels = [[_pixels(bundle, seed, index, size) for index in range(_IMAGES)] for bundle in opened]
    for which, images in enumerate(pixels):
        encode_pixels(_asked(engines[which], readers[which], 0), *images[0])
    send("loaded")
    found: list[float] = []
    start = time.monotonic()
    while len(found) < _LEAST or time.monotonic() - start < min_time_s:
        took = [0.0, 0.0]
        # Whichever comes second finds the caches warm, so they take turns at that, too.
        for which in (0, 1) if len(found) % 2 else (1, 0):
            begin = time.perf_counter()
            asked = _asked(engines[which], readers[which], len(found))
            encode_pixels(asked, *pixels[which][len(found) % _IMAGES])
            took[which] = 1000 * (time.perf_counter() - begin)
        found.append(took[1] - took[0])
        send(len(found))
    return found


def _asked(engine: VisionEngine, reader: QuestionReader | None, number: int) -> VisionEngine:
    """The engine, with a question of its own for each image where the bundle's image tokens depend on one."""
    return engine if reader is None else GuidedVision(engine, reader.embed(f"What is at place {number} of the image?"))


def _pixels(bundle: Bundle, seed: int, index: int, size: list[int]) -> tuple[Float32, Float32 | None]:
    """One image as the bundle's vision graph gets it: pixels, and where its tiles lie if the graph asks for that."""
    image = prepare(load_image(photo_like(seed, index, size[0], size[1])), bundle.spec.preprocess)
    boxes = tile_boxes(image, bundle.spec) if shares_tiles(bundle.spec) else None
    return np.asarray(normalise(image.tiles, bundle.spec.preprocess)), boxes
