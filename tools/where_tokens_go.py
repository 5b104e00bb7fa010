"""Where the tokens that methods keep lie on the images of `scenes`, as a table of docs/measurements/token-pruning.md.

In: a model that sees an image as one square, and how many tokens are kept. Out: for each method that keeps tokens of
the vision side as they are and does not read the question: the share of objects, and of digits, that at least one kept
token lies on, and the mean share of their tokens that are kept. A token lies where its patch has its centre. Run as

    python tools/where_tokens_go.py zoo:nano-llava 36
"""

import argparse

import numpy as np
import torch
from numpy.typing import NDArray

from edgevlm.imageio import load_image
from edgevlm.models import VlmModel, load, resolve
from edgevlm.models.taps import Taps
from edgevlm.preprocess import normalise, prepare
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.zoo.drawing import Scene
from edgevlm.zoo.scenes import sample

IMAGES = 200


def things(scene: Scene, side: int) -> list[tuple[bool, NDArray[np.bool_]]]:
    """Of each thing, whether it is a digit, and which of the `side` by `side` patches have their centre in its box."""
    boxes = [(False, each.x, each.y, each.size) for each in scene.objects]
    for plate in scene.plates:
        boxes += [(True, *plate.digit_centre(digit), plate.glyph) for digit in range(len(plate.text))]
    centres = (np.arange(side) + 0.5) * scene.size / side
    found = []
    for digit, x, y, size in boxes:
        inside = (np.abs(centres - y) <= size / 2)[:, None] & (np.abs(centres - x) <= size / 2)[None]
        found.append((digit, inside.ravel()))
    return [each for each in found if each[1].any()]


def kept(model: VlmModel, method: str, count: int, pixels: torch.Tensor) -> NDArray[np.int64] | None:
    """Indexes of the tokens kept `[B, K]`; None where the method cannot be used here, or makes new tokens."""
    cls = REDUCERS[method]
    options = cls.Options()
    if cls.needs_text or cls.inside_decoder or not hasattr(cls, "select") or cls.refuses(model.spec, count, options):
        return None
    vision = cls.reduced(model, count, options).vision
    reducer = vision.reducer
    assert reducer is not None
    taps = Taps(reducer.layers)
    features = vision.encoder(pixels, taps) if taps.layers else vision.encoder(pixels)
    if not reducer.before_projector:
        features = vision.projector(features)
    indices: torch.Tensor = reducer.select(features, taps)
    return indices.numpy()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("keep", type=int)
    given = parser.parse_args()
    model = load(resolve(given.model))
    model.vision.float()
    side = round(model.spec.vision.image_tokens**0.5)
    drawn = [sample("test", 0, index) for index in range(IMAGES)]
    tiles = [prepare(load_image(image), model.spec.preprocess).tiles[0] for _, _, image in drawn]
    pixels = torch.from_numpy(normalise(np.stack(tiles), model.spec.preprocess))
    masks = [things(scene, side) for scene, _, _ in drawn]
    print("| method | objects with a token | their tokens kept | digits with a token | their tokens kept |")
    print("|---|---:|---:|---:|---:|")
    with torch.no_grad():
        for method in REDUCERS:
            indices = kept(model, method, given.keep, pixels)
            if indices is None:
                continue
            shares: dict[bool, list[float]] = {False: [], True: []}
            for image, chosen in enumerate(indices):
                mask = np.zeros(side * side, bool)
                mask[chosen] = True
                for digit, thing in masks[image]:
                    shares[digit].append(float((mask & thing).sum() / thing.sum()))
            cells = [f"{np.mean(each):.0%}" for kind in shares.values() for each in (np.array(kind) > 0, kind)]
            print(f"| `{method}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
