"""Each selector against its formula, written out in numpy on hand-made attention and features."""

import numpy as np
import pytest
import torch
from reducer_models import CLIP, SIGLIP, attention, highest, reducer, rows, taps, vision_spec

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.selecting import products, split, top

NONE = Taps(())


def test_equal_scores_are_taken_from_the_front() -> None:
    scores = torch.tensor([[1.0, 2, 2, 1, 2, 1, 1, 3]])
    assert top(scores, 3).tolist() == [[1, 2, 7]]
    assert top(torch.zeros(1, 600), 5).tolist() == [[0, 1, 2, 3, 4]]
    kept, rest = split(scores, 3)
    assert (kept.tolist(), rest.tolist()) == ([[1, 2, 7]], [[0, 3, 4, 5, 6]])


@pytest.mark.parametrize("count", [36, 191, 192, 200, 577])
def test_products_are_those_of_all_pairs(count: int) -> None:
    x = torch.randn(2, count, 7)
    found = products(x)
    torch.testing.assert_close(found, x @ x.transpose(1, 2))
    if count >= 192:
        assert torch.equal(found[:, 0, -1], found[:, -1, 0]), "a turned copy"


def test_uniform_keeps_the_middle_of_equal_pieces() -> None:
    spec = vision_spec(CLIP)
    assert reducer("uniform", spec, 4).select(torch.zeros(1, 36, 3), NONE).tolist() == [[4, 13, 22, 31]]
    assert reducer("uniform", spec, 36).select(torch.zeros(1, 36, 3), NONE).tolist() == [list(range(36))]


def test_random_is_of_the_seed_alone() -> None:
    spec, x = vision_spec(CLIP), torch.zeros(2, 36, 3)
    first, same = (reducer("random", spec, 9, seed=1).select(x, NONE) for _ in range(2))
    other = reducer("random", spec, 9, seed=2).select(x, NONE)
    assert first.tolist() == same.tolist() != other.tolist()
    assert first[0].tolist() == first[1].tolist() == sorted(set(first[0].tolist()))


@pytest.mark.parametrize("keep", [4, 9, 16, 25, 36])
def test_pool_is_torchs_adaptive_average(keep: int) -> None:
    x = torch.randn(2, 36, 5)
    side = int(keep**0.5)
    grid = x.transpose(1, 2).reshape(2, 5, 6, 6)
    wanted = torch.nn.functional.adaptive_avg_pool2d(grid, side).flatten(2).transpose(1, 2)
    torch.testing.assert_close(reducer("pool", vision_spec(CLIP), keep)(x, NONE), wanted)


def test_fastervlm_takes_what_the_class_token_looks_at() -> None:
    seen = taps((-1,), 37)
    scores = attention(seen.found[-1])[:, :, 0, 1:].mean(1)
    kept = reducer("fastervlm", vision_spec(CLIP), 9).select(torch.zeros(2, 36, 3), seen)
    assert kept.tolist() == [highest(row, 9) for row in scores]


@pytest.mark.parametrize(("encoder", "tokens"), [(CLIP, 37), (SIGLIP, 36)])
def test_attention_takes_what_all_tokens_look_at(encoder: object, tokens: int) -> None:
    seen = taps((-1,), tokens)
    scores = attention(seen.found[-1]).mean((1, 2))[:, tokens - 36 :]
    kept = reducer("attention", vision_spec(encoder), 9).select(torch.zeros(2, 36, 3), seen)  # type: ignore[arg-type]
    assert kept.tolist() == [highest(row, 9) for row in scores]


def test_scores_of_joined_patches_add_up() -> None:
    """Patches (r, c) of a 6 x 6 map are joined in squares of 2 x 2, row by row, as `pixel_shuffle` joins features."""
    seen = taps((-1,), 37)
    patches = attention(seen.found[-1])[:, :, 0, 1:].mean(1).reshape(2, 6, 6)
    scores = np.array(
        [[[p[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].sum() for c in range(3)] for r in range(3)] for p in patches]
    )
    kept = reducer("fastervlm", vision_spec(CLIP, shuffle=2), 4).select(torch.zeros(2, 9, 12), seen)
    assert kept.tolist() == [highest(row.ravel(), 4) for row in scores]


def test_divprune_adds_the_token_farthest_from_those_it_has() -> None:
    x = torch.randn(2, 36, 5, generator=torch.Generator().manual_seed(3))
    wanted = []
    for features in rows(x):
        units = features / np.linalg.norm(features, axis=1, keepdims=True)
        distance = 1 - units @ units.T
        second = np.sort(distance, axis=1)[:, 1]
        kept = [int(second.argmax())]
        while len(kept) < 9:
            nearest = distance[:, kept].min(axis=1)
            nearest[kept] = -1
            kept.append(int(nearest.argmax()))
        wanted.append(sorted(kept))
    assert reducer("divprune", vision_spec(CLIP), 9).select(x, NONE).tolist() == wanted


def test_divprune_of_equal_tokens_takes_the_first_and_none_twice() -> None:
    assert reducer("divprune", vision_spec(CLIP), 5).select(torch.ones(1, 36, 3), NONE).tolist() == [[0, 1, 2, 3, 4]]


def test_vtc_cls_sums_the_layers_from_its_start() -> None:
    seen = taps((-3, -2, -1), 37)
    for start, layers in ((0, (-3, -2, -1)), (1, (-2, -1)), (None, (-2, -1))):
        scores = sum(attention(seen.found[layer])[:, :, 0, 1:].mean(1) for layer in layers)
        kept = reducer("vtc-cls", vision_spec(CLIP), 9, start=start).select(torch.zeros(2, 36, 3), seen)
        assert kept.tolist() == [highest(row, 9) for row in scores]


def test_fopru_ranks_tokens_or_rows() -> None:
    seen, x = taps((-1,), 37), torch.zeros(2, 36, 3)
    scores = attention(seen.found[-1]).mean((1, 2))[:, 1:]
    assert reducer("fopru", vision_spec(CLIP), 12).select(x, seen).tolist() == [highest(row, 12) for row in scores]
    wanted = [[6 * r + c for r in highest(row.reshape(6, 6).sum(1), 2) for c in range(6)] for row in scores]
    assert reducer("fopru", vision_spec(CLIP), 12, strategy="row").select(x, seen).tolist() == wanted


def test_hired_of_one_square_sums_heads() -> None:
    seen = taps((-1,), 37)
    scores = attention(seen.found[-1])[:, :, 0, 1:].sum(1)
    kept = reducer("hired", vision_spec(CLIP), 9).select(torch.zeros(2, 36, 3), seen)
    assert kept.tolist() == [highest(row, 9) for row in scores]


def test_gprune_keeps_what_has_most_information_for_its_edges() -> None:
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(1, 6, 8, generator=generator).repeat_interleave(6, dim=1)
    x = centres + 0.4 * torch.randn(2, 36, 8, generator=generator)
    wanted = []
    for features in rows(x):
        units = features / np.linalg.norm(features, axis=1, keepdims=True)
        cosine = units @ units.T
        edges = cosine > 0.5
        assert 36 < edges.sum() < 36 * 36, "the graph is neither empty nor full"
        flow = np.where(edges, np.exp(cosine / 0.03), 0)
        flow /= flow.sum(1, keepdims=True)
        information = np.full(36, 1 / 36)
        for _ in range(5):
            information = flow.T @ information
        wanted.append(highest(information / edges.sum(1), 9))
    assert reducer("gprune", vision_spec(CLIP), 9).select(x, NONE).tolist() == wanted
