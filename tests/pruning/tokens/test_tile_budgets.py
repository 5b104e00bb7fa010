"""Tokens shared out among tiles, against the published formulas written out in numpy on hand-made attention."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reducer_models import CLIP, attention, highest, reducer, taps, vision_spec
from specs import TINY

from edgevlm.errors import EngineError
from edgevlm.models.taps import QueryKey, Taps
from edgevlm.preprocess import PreparedImage
from edgevlm.pruning.tokens.tile_budgets import Tiles, budgets, packed
from edgevlm.runtimes.base import Encoded
from edgevlm.runtimes.checks import checked_tiles
from edgevlm.spec import AnyresTiles, AspectTiles, ModelSpec, ReducerSpec, RowsLayout
from edgevlm.tile_tokens import by_row, by_tile, encode_image, encode_pixels, positions, tile_boxes

SIDE, KEEP = 6, 5
NEXT = replace(
    TINY,
    vision=vision_spec(CLIP),
    preprocess=replace(TINY.preprocess, tiles=AnyresTiles(((48, 96), (96, 48), (96, 96)))),
    prompt=replace(TINY.prompt, image_layout=RowsLayout(4)),
)
STACKED = replace(NEXT, preprocess=replace(NEXT.preprocess, tiles=AspectTiles(1, 6)), prompt=TINY.prompt)


def image(rows: int, columns: int, width: int, height: int) -> PreparedImage:
    tiles = rows * columns + (rows * columns > 1)
    return PreparedImage(np.zeros((tiles, 1, 1, 3), np.uint8), width, height, rows, columns)


def seen(tiles: int, layers: tuple[int, ...] = (-1,)) -> Taps:
    """Queries and keys of a layer for each tile, sharp enough that tiles differ."""
    made, generator = Taps(layers), torch.Generator().manual_seed(3)
    for layer in layers:
        query, key = (2 * torch.randn((tiles, 4, SIDE**2 + 1, 8), generator=generator) for _ in range(2))
        made.found[layer] = QueryKey(query, key)
    return made


def shares(weights: NDArray[np.float64], room: NDArray[np.int64], total: int) -> list[int]:
    """Largest remainders of a pot that is filled to one level; what a full tile leaves goes to the others."""
    total, full = min(total, int(room.sum())), np.zeros(len(room), bool)
    while True:
        rest = total - room[full].sum()
        parts = np.where(full, room, weights * rest / weights[~full].sum() if not full.all() else room)
        if not (parts > room + 1e-9).any():
            break
        full |= parts >= room - 1e-9
    counts = np.floor(parts + 1e-6).astype(int)
    order = sorted(range(len(room)), key=lambda tile: (-round(float(parts[tile] - counts[tile]), 5), tile))
    for tile in [tile for tile in order if counts[tile] < room[tile]][: total - counts.sum()]:
        counts[tile] += 1
    return counts.tolist()  # type: ignore[no-any-return]


def crops(picture: PreparedImage) -> tuple[list[NDArray[np.bool_]], NDArray[np.bool_], tuple[int, int, int, int]]:
    """Which tokens of each crop show the image, the same on the map, and the image's corner and size there."""
    height, width = picture.rows * SIDE, picture.columns * SIDE
    top = left = 0
    if picture.width / picture.height > width / height:
        top = (height - picture.height * width // picture.width) // 2
    else:
        left = (width - picture.width * height // picture.height) // 2
    whole = np.zeros((height, width), bool)
    whole[top : height - top, left : width - left] = True
    cut = [
        whole[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE].ravel()
        for row in range(picture.rows)
        for column in range(picture.columns)
    ]
    return cut, whole, (top, left, height - 2 * top, width - 2 * left)


def over_crops(values: NDArray[np.float64], picture: PreparedImage) -> NDArray[np.float64]:
    """Sums of the whole image's `values` over the parts of the image that each crop shows."""
    _, _, (top, left, height, width) = crops(picture)
    found = np.zeros((picture.rows, picture.columns))
    for (y, x), value in np.ndenumerate(values.reshape(SIDE, SIDE)):
        row = int((top + (y + 0.5) / SIDE * height) // SIDE)
        found[row, int((left + (x + 0.5) / SIDE * width) // SIDE)] += value
    return found.ravel()


def shared(name: str, spec: ModelSpec, picture: PreparedImage, keep: int, **options: Any) -> tuple[Taps, list[int]]:
    """The attention that a method saw, and the places that it chose."""
    method = reducer(name, spec.vision, keep, **options)
    method.whole_first = spec is NEXT
    noticed = seen(len(picture.tiles), method.layers)
    x = torch.arange(len(picture.tiles) * SIDE**2).reshape(-1, SIDE**2, 1).float()
    rows, places = method.share(x, noticed, torch.from_numpy(tile_boxes(picture, spec)))
    held = places[places >= 0]
    assert torch.equal(rows.flatten()[: len(held)].long(), held), "rows that are not those of their places"
    return noticed, places.tolist()


PICTURES = {
    "square": image(2, 2, 90, 90),
    "wide": image(1, 2, 90, 30),
    "narrow": image(2, 1, 20, 90),
    "nearly": image(2, 2, 90, 75),
}


@pytest.mark.parametrize("alpha", [0.5, 0.3])
@pytest.mark.parametrize("name", PICTURES)
def test_hired_shares_by_the_whole_images_first_layer(name: str, alpha: float) -> None:
    picture = PICTURES[name]
    noticed, found = shared("hired", NEXT, picture, KEEP, alpha=alpha)
    first, last = (attention(noticed.found[layer])[:, :, 0, 1:].sum(1) for layer in (-3, -1))
    marked = np.zeros(SIDE**2)
    marked[highest(first[0], int(SIDE**2 * (1 - alpha)))] = 1
    content = over_crops(marked, picture)
    shown, _, _ = crops(picture)
    weights = np.concatenate(([alpha], (1 - alpha) * content / content.sum()))
    room = np.array([SIDE**2, *(tile.sum() for tile in shown)])
    counts = shares(np.maximum(weights, 1e-6), room, KEEP * len(room))
    wanted = [highest(np.where(mask, row, -1), n) for mask, row, n in zip([True, *shown], last, counts, strict=True)]
    assert found == [tile * SIDE**2 + index for tile, kept in enumerate(wanted) for index in kept]
    if name == "square":
        assert len(set(counts[1:])) > 1, "budgets that do not differ prove nothing"


@pytest.mark.parametrize("temperature", [10, 0.05])
@pytest.mark.parametrize("name", PICTURES)
def test_globalcom2_shares_and_chooses_with_the_whole_images_attention(name: str, temperature: float) -> None:
    picture = PICTURES[name]
    noticed, found = shared("globalcom2", NEXT, picture, KEEP, temperature=temperature)
    scores = attention(noticed.found[-1])[:, :, 0, 1:].mean(1)
    shown, whole, (top, left, height, width) = crops(picture)
    sums = over_crops(scores[0], picture)
    rich = np.exp(sums / temperature) / np.exp(sums / temperature).sum()
    rates = 1 + rich - rich.mean()
    room = np.array([SIDE**2, *(tile.sum() for tile in shown)])
    counts = shares(room * np.array([1, *rates]), room, KEEP * len(room))
    grid = torch.from_numpy(scores[0]).reshape(1, 1, SIDE, SIDE)
    spread = torch.nn.functional.interpolate(grid, (height, width), mode="bilinear", align_corners=False)
    large = np.zeros(whole.shape)
    large[top : top + height, left : left + width] = spread[0, 0].numpy()
    wanted = [highest(scores[0], counts[0])]
    for tile, mask in enumerate(shown):
        row, column = divmod(tile, picture.columns)
        lit = large[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE].ravel() * mask
        own = scores[tile + 1] * mask
        both = own / np.linalg.norm(own) + lit / np.linalg.norm(lit)
        wanted.append(highest(np.where(mask, both, -1), counts[tile + 1]))
    assert found == [tile * SIDE**2 + index for tile, kept in enumerate(wanted) for index in kept]
    if temperature < 1 and name == "square":
        assert len(set(counts[1:])) > 1, "budgets that do not differ prove nothing"


@pytest.mark.parametrize("name", ["hired", "globalcom2"])
def test_one_tile_and_one_square_keep_what_fastervlm_keeps(name: str) -> None:
    noticed, found = shared(name, STACKED, image(1, 1, 50, 40), KEEP)
    wanted = highest(attention(noticed.found[-1])[:, :, 0, 1:].mean(1)[0], KEEP)
    assert found == wanted
    method = reducer(name, NEXT.vision, KEEP)
    plain = taps(method.layers, SIDE**2 + 1)
    same = reducer("fastervlm", NEXT.vision, KEEP).select(torch.zeros(2, SIDE**2, 3), plain)
    assert torch.equal(method.select(torch.zeros(2, SIDE**2, 3), plain), same)


def test_the_view_of_the_whole_image_may_be_the_last_tile() -> None:
    _, found = shared("hired", STACKED, image(1, 2, 90, 45), KEEP, alpha=0.8)
    counts = np.bincount(np.array(found) // SIDE**2, minlength=3)
    assert counts[2] == 12 and counts.sum() == 3 * KEEP


def test_a_method_with_one_k_gives_each_tile_of_a_map_so_many_that_show_the_image() -> None:
    noticed, found = shared("fastervlm", NEXT, PICTURES["nearly"], 24)
    shown, _, _ = crops(PICTURES["nearly"])
    scores = attention(noticed.found[-1])[:, :, 0, 1:].mean(1)
    kept = [highest(np.where(mask, row, -1), 24) for mask, row in zip([True, *shown], scores, strict=True)]
    assert found == [tile * SIDE**2 + index for tile, places in enumerate(kept) for index in places]


@pytest.mark.parametrize(
    ("weights", "room", "keep", "wanted"),
    [
        ([1, 1, 1], [36, 36, 36], 5, [5, 5, 5]),
        ([2, 1, 1], [36, 36, 36], 1, [1, 1, 1]),
        ([1, 1], [36, 36], 36, [36, 36]),
        ([0.5, 0, 0.5], [10, 36, 36], 15, [10, 0, 35]),
        ([0.5, 0, 0.5], [10, 36, 20], 15, [10, 15, 20]),
        ([3, 1, 1], [4, 3, 1], 9, [4, 3, 1]),
        ([1, 1, 1], [36, 0, 36], 5, [8, 0, 7]),
        ([0], [9], 4, [4]),
        ([0.3, 0.3, 0.3, 0.1], [9, 9, 9, 9], 2, [3, 2, 2, 1]),
    ],
)
def test_budgets_are_whole_numbers_that_add_up(
    weights: list[float], room: list[int], keep: int, wanted: list[int]
) -> None:
    assert budgets(torch.tensor(weights, dtype=torch.float32), torch.tensor(room), keep).tolist() == wanted


def test_budgets_of_many_tiles_are_the_largest_remainders() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        tiles = int(rng.integers(1, 38))
        weights, room = rng.integers(1, 50, tiles) / 64, rng.integers(0, 577, tiles)
        keep = int(rng.integers(1, 300))
        found = budgets(torch.from_numpy(weights).float(), torch.from_numpy(room), keep)
        total = min(keep * tiles, int(room.sum()))
        assert found.sum() == total and (found <= torch.from_numpy(room)).all() and (found >= 0).all()
        assert np.abs(found.numpy() - shares(weights, room, total)).max() <= 1


def test_rows_without_a_token_say_so() -> None:
    x, scores = torch.arange(12.0).reshape(3, 4, 1), torch.rand(3, 4)
    rows, places = packed(x, scores, torch.tensor([3, 0, 1]), 2)
    assert rows.shape == (3, 2, 1)
    assert places.tolist()[4:] == [-1, -1]
    assert torch.bincount(places[:4] // 4, minlength=3).tolist() == [3, 0, 1]


@pytest.mark.parametrize("picture", [*PICTURES.values(), image(1, 2, 900, 2)])
def test_boxes_tell_which_tokens_show_the_image(picture: PreparedImage) -> None:
    tiles = Tiles(torch.from_numpy(tile_boxes(picture, NEXT)), SIDE, whole_first=True)
    wanted = [np.ones(SIDE**2, bool), *crops(picture)[0]]
    np.testing.assert_array_equal(tiles.shown.numpy(), wanted)


def test_kept_tokens_stand_row_by_row_and_every_row_of_the_map_ends() -> None:
    picture, newline = PICTURES["wide"], np.array([-1.0], np.float32)
    _, places = shared("hired", NEXT, picture, KEEP)
    rows = np.array(places, np.float32).reshape(3, KEEP, 1)
    found = by_row(Encoded(rows, np.array(places)), picture, newline, SIDE, 4)[:, 0].tolist()
    assert len(found) == positions(picture, replace(NEXT, vision=replace(NEXT.vision, image_tokens=KEEP)))
    whole = [place for place in places if place < SIDE**2]
    wanted = [float(place) for place in whole]
    _, _, (top, _, height, width) = crops(picture)
    for y in range(top, top + height):
        for x in range(width):
            place = SIDE**2 * (1 + x // SIDE) + y * SIDE + x % SIDE
            wanted += [float(place)] if place in places else []
        wanted.append(-1.0)
    assert found == wanted
    assert height < 2 * SIDE and wanted.count(-1.0) == height


def test_fewer_positions_are_counted_where_little_shows_the_image() -> None:
    picture, spec = image(1, 2, 900, 2), replace(NEXT, vision=replace(NEXT.vision, image_tokens=30))
    _, places = shared("hired", NEXT, picture, 30)
    rows = np.zeros((3, 30, 2), np.float32)
    packed_rows = by_row(Encoded(rows, np.array(places)), picture, np.ones(2, np.float32), SIDE, 4)
    assert len(packed_rows) == positions(picture, spec) < 3 * 30


def test_tokens_are_split_by_tile_and_a_tile_may_have_none() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
    split = by_tile(Encoded(rows, np.array([0, 5, 35, 72, 80, -1])), 3, SIDE)
    assert [tile[:, 0].tolist() for tile in split] == [[0, 1, 2], [], [3, 4]]


@pytest.mark.parametrize("places", [[0, 1, 1, 2], [0, 2, 1, 3], [0, 1, 2, 72], [-1] * 4, [0, -1, 2, 3], [0, 1, 2]])
def test_places_that_cannot_be_are_refused(places: list[int]) -> None:
    with pytest.raises(EngineError, match="no place in the image"):
        checked_tiles(np.zeros((2, 2, 3), np.float32), np.array(places), 2, 2, 3, SIDE**2)


def test_an_engine_for_single_tiles_is_refused() -> None:
    class Single:
        encode = stats = close = None

    single: Any = Single()
    with pytest.raises(EngineError, match="one tile at a time"):
        encode_pixels(single, np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 4), np.float32))


def test_an_engine_that_keeps_another_number_of_tokens_is_refused() -> None:
    class Miser:
        encode = stats = close = len

        def encode_tiles(self, pixels: NDArray[np.float32], boxes: NDArray[np.float32]) -> Encoded:
            places = np.where(np.arange(3 * KEEP) < given, np.arange(3 * KEEP), -1)
            rows = np.zeros((len(pixels), KEEP, 4), np.float32)
            return checked_tiles(rows, places, len(boxes), KEEP, 4, SIDE**2)

    engine: Any = Miser()
    kept = replace(NEXT.vision, image_tokens=KEEP, reducer=ReducerSpec("hired", KEEP, shared=True))
    spec = replace(NEXT, vision=kept)
    picture = replace(PICTURES["wide"], tiles=np.zeros((3, 48, 48, 3), np.uint8))
    given = 3 * KEEP
    assert len(encode_image(engine, picture, spec).rows) == 3
    given -= 1
    with pytest.raises(EngineError, match="kept 14 tokens of an image instead of 15"):
        encode_image(engine, picture, spec)
