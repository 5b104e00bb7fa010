"""Methods that read the question against their formulas, written out in numpy on hand-made features and texts."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reducer_models import CLIP, attention, highest, reducer, rows, taps, vision_spec

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.dpp import dpp_greedy
from edgevlm.pruning.tokens.recoverable import RecoverableOptions

TOKENS = 36


def shown(layers: tuple[int, ...] = (), seed: int = 1) -> Taps:
    """What an encoder and a question show: patches `[2, 36, 6]` and a text `[1, 6]` of one space."""
    made = taps(layers, TOKENS + 1)
    generator = torch.Generator().manual_seed(seed)
    made.patches = torch.randn(2, TOKENS, 6, generator=generator)
    text = torch.randn(1, 6, generator=generator)
    made.text = 0.8 * text / text.norm()  # the mean of several unit vectors is shorter
    return made


def features(seed: int = 2) -> torch.Tensor:
    return torch.randn(2, TOKENS, 12, generator=torch.Generator().manual_seed(seed))


def similarity(seen: Taps) -> NDArray[np.float64]:
    """The mean cosine of patches and question."""
    assert seen.patches is not None
    assert seen.text is not None
    patches = rows(seen.patches)
    cosines: NDArray[np.float64] = patches @ rows(seen.text)[0] / np.linalg.norm(patches, axis=-1)
    return cosines


def by_determinants(kernel: NDArray[np.float64], keep: int) -> list[int]:
    """Greedy MAP by its definition: always the token with which the determinant is the largest."""
    chosen: list[int] = []
    for _ in range(keep):
        others = [index for index in range(len(kernel)) if index not in chosen]
        values = [np.linalg.slogdet(kernel[np.ix_([*chosen, index], [*chosen, index])])[1] for index in others]
        chosen.append(others[int(np.argmax(values))])
    return sorted(chosen)


@pytest.mark.parametrize("keep", [1, 4, 8])
def test_the_choice_is_that_of_determinants(keep: int) -> None:
    generator = np.random.default_rng(0)
    factors = generator.standard_normal((5, 12, 9))
    kernels = factors @ factors.transpose(0, 2, 1)
    found = dpp_greedy(torch.from_numpy(kernels).float(), keep)
    assert found.tolist() == [by_determinants(kernel, keep) for kernel in kernels]


def test_the_first_of_equals_is_chosen() -> None:
    assert dpp_greedy(torch.eye(600)[None], 4).tolist() == [[0, 1, 2, 3]]
    twins = torch.eye(3).repeat_interleave(2, dim=0)
    assert dpp_greedy((twins @ twins.T)[None], 3).tolist() == [[0, 2, 4]], "a token's double adds nothing"
    assert dpp_greedy((twins @ twins.T)[None], 5).tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("theta", [None, 0.0, 0.6])
def test_cdpruner_is_a_dpp_of_features_weighted_by_the_question(theta: float | None) -> None:
    x, seen = features(), shown()
    away = -similarity(seen)
    relevance = (away - away.min(-1, keepdims=True)) / (away.max(-1, keepdims=True) - away.min(-1, keepdims=True))
    if theta is not None:
        relevance = np.exp(theta / (2 * (1 - theta)) * relevance)
    units = rows(x) / np.linalg.norm(rows(x), axis=-1, keepdims=True)
    alike = np.where(np.eye(TOKENS), 1, units @ units.transpose(0, 2, 1))
    kernels = relevance[:, :, None] * alike * relevance[:, None]
    found = reducer("cdpruner", vision_spec(CLIP), 9, theta=theta).select(x, seen)  # type: ignore[operator]
    assert found.tolist() == [by_determinants(kernel, 9) for kernel in kernels]


def test_cdpruner_keeps_others_for_another_question() -> None:
    x, method = features(), reducer("cdpruner", vision_spec(CLIP), 6)
    found = [method.select(x, shown(seed=seed)).tolist() for seed in range(4)]  # type: ignore[operator]
    assert all(one != other for one, other in pairwise(found))
    alone = reducer("cdpruner", vision_spec(CLIP), 6, theta=0)
    same = [alone.select(x, shown(seed=seed)).tolist() for seed in range(4)]  # type: ignore[operator]
    assert all(one == other for one, other in pairwise(same)), "theta 0 is diversity alone"


def clusters(rest: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Means of density-peak clusters, centre by centre."""
    square = ((rest[:, None] - rest[None]) ** 2).sum(-1) / rest.shape[-1]
    density = np.exp(-np.sort(square, axis=1)[:, 1:6].mean(1))
    separation = np.array(
        [np.sqrt(min((square[i, density > density[i]]), default=square.max())) for i in range(len(rest))]
    )
    centres = highest(density * separation, count)
    belongs = square[:, centres].argmin(1)
    return np.stack([rest[belongs == each].mean(0) for each in range(count)])


def test_recoverable_keeps_by_class_token_and_question_and_merges_the_rest() -> None:
    x, seen = features(), shown((-1,))
    scores, likeness = attention(seen.found[-1])[:, :, 0, 1:].mean(1), similarity(seen)
    found = rows(reducer("recoverable", vision_spec(CLIP), 12, recovered=4, merged=3)(x, seen))
    for image in range(2):
        first = highest(scores[image], 5)
        others = [index for index in range(TOKENS) if index not in first]
        recovered = [others[index] for index in highest(likeness[image][others], 4)]
        kept = sorted([*first, *recovered])
        rest = rows(x)[image][[index for index in others if index not in recovered]]
        np.testing.assert_allclose(found[image, :9], rows(x)[image][kept], rtol=1e-6)
        np.testing.assert_allclose(found[image, 9:], clusters(rest, 3), rtol=1e-4)


def test_recoverable_shares_k_out_and_merges_equal_tokens() -> None:
    assert RecoverableOptions().counts(36) == (21, 12, 3)
    assert RecoverableOptions().counts(3) == (1, 1, 1)
    method = reducer("recoverable", vision_spec(CLIP), 9, recovered=2, merged=4)
    alike = torch.ones(2, TOKENS, 12)
    torch.testing.assert_close(method(alike, shown((-1,))), torch.ones(2, 9, 12))
    whole = reducer("recoverable", vision_spec(CLIP), TOKENS, recovered=3, merged=3)
    x = features()
    kept = whole(x, shown((-1,)))
    assert sorted(kept[0, :, 0].tolist()) == sorted(x[0, :, 0].tolist()), "nothing is left to merge"
