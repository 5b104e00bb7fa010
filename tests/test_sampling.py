"""Sampling has the distributions of transformers' warpers; stop strings never leak."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from edgevlm.errors import EngineError, InputError
from edgevlm.sampling import Sampler, SamplingOptions, StopStrings, likely_tokens

CASES = [
    SamplingOptions(1.7, top_k=5),
    SamplingOptions(1.0, top_k=1),
    SamplingOptions(1.0, top_p=0.9),
    SamplingOptions(1.0, top_p=0.01),
    SamplingOptions(0.6, top_k=20, top_p=0.8),
    SamplingOptions(3.0, top_p=0.999),
]


def expected(logits: NDArray[np.floating], options: SamplingOptions) -> NDArray[np.floating]:
    scores = torch.from_numpy(logits)[None]
    ids = torch.zeros(1, 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(options.temperature)(ids, scores)
    if options.top_k:
        scores = TopKLogitsWarper(options.top_k)(ids, scores)
    if options.top_p < 1:
        scores = TopPLogitsWarper(options.top_p)(ids, scores)
    return np.asarray(scores.softmax(-1)[0])


def probabilities(logits: NDArray[np.float32], options: SamplingOptions) -> NDArray[np.float64]:
    ids, weights = likely_tokens(logits, options, np.empty_like(logits))
    result = np.zeros(len(logits))
    result[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    return result


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_distribution_equals_transformers(options: SamplingOptions, scale: float) -> None:
    logits = (np.random.default_rng(3).normal(size=2000) * scale).astype(np.float32)
    actual = probabilities(logits, options)
    reference = expected(logits, options)
    np.testing.assert_array_equal(actual > 0, reference > 1e-9)
    np.testing.assert_allclose(actual, reference, atol=1e-6)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.1, 2.0, 3.3, 8.0])
@pytest.mark.parametrize("size", [40_000, 40_001])
def test_nucleus_of_a_large_vocabulary(size: int, scale: float, top_p: float) -> None:
    """Found among the largest logits, with a bound of the others or with their sum, or between two sampled values."""
    logits = (np.random.default_rng(5).normal(size=size) * scale).astype(np.float32)
    options = SamplingOptions(1.0, top_p=top_p)
    reference = expected(logits.astype(np.float64), options)
    actual = probabilities(logits, options)
    np.testing.assert_array_equal(actual > 0, reference > 0)
    np.testing.assert_allclose(actual, reference, atol=1e-6)


@pytest.mark.parametrize("top_p", [0.33333, 0.91111])
@pytest.mark.parametrize("levels", [1, 3, 40])
@pytest.mark.parametrize("size", [1000, 40_000])
def test_of_equal_logits_at_the_edge_the_higher_ids_are_kept(size: int, levels: int, top_p: float) -> None:
    """transformers leaves open which; that a seed repeats needs a rule."""
    logits = (np.random.default_rng(2).integers(0, levels, size) / levels).astype(np.float32)
    options = SamplingOptions(1.0, top_p=top_p)
    actual, reference = probabilities(logits, options), expected(logits.astype(np.float64), options)
    np.testing.assert_allclose(np.sort(actual), np.sort(reference), atol=1e-6)
    edge = logits[actual > 0].min()
    ties = actual[logits == edge] > 0
    assert (np.diff(ties.astype(int)) >= 0).all()


@pytest.mark.parametrize("uniform", [0.0, 0.3, 1 - 2**-53])
def test_a_draw_never_takes_what_lies_outside_the_nucleus(uniform: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights outside are 0 there; running sums that end in them must not."""
    logits = np.zeros(40_000, np.float32)
    logits[10_000:30_000] = 1
    sampler = Sampler(SamplingOptions(1.0, top_p=0.3, seed=0))
    support = probabilities(logits, SamplingOptions(1.0, top_p=0.3)) > 0
    monkeypatch.setattr(sampler, "_random", SimpleNamespace(random=lambda: uniform))
    assert support[sampler(logits)]


@pytest.mark.parametrize(
    ("scale", "options"),
    [
        (1.0, SamplingOptions(1.0, seed=1)),
        (0.0, SamplingOptions(1.0, seed=1)),
        (3.0, SamplingOptions(0.7, seed=1)),
        (3.0, SamplingOptions(1.5, top_k=10_000, seed=1)),
        (1.0, SamplingOptions(1.0, top_k=1500, seed=1)),
    ],
    ids=["all", "equal", "peaked", "top-k of more than all", "some"],
)
@pytest.mark.parametrize("size", [5000, 100])
def test_draws_follow_the_distribution(size: int, scale: float, options: SamplingOptions) -> None:
    """Each tenth of the probability is drawn as often as it should be; impossible tokens never are."""
    logits = (np.random.default_rng(0).normal(size=size) * scale).astype(np.float32)
    logits[::7] = -np.inf
    sampler, reference = Sampler(options), expected(logits, options)
    drawn = np.array([sampler(logits) for _ in range(3000)])
    assert (reference[drawn] > 0).all()
    tenth = (np.cumsum(reference.astype(np.float64)) * 9.999).astype(int)
    wanted = 3000 * np.bincount(tenth, weights=reference, minlength=10)
    held = wanted > 0
    statistic = float(((np.bincount(tenth[drawn], minlength=10) - wanted)[held] ** 2 / wanted[held]).sum())
    assert statistic < 30, "chi-square with at most 9 degrees of freedom exceeds 30 once in 2000 seeds"


@pytest.mark.parametrize("temperature", [1e-3, 1.0])
def test_one_token_far_above_the_others_is_drawn(temperature: float) -> None:
    """Most proposals of its group are refused; the drawing goes on until one is kept."""
    logits = np.full(40_000, -1e4, np.float32)
    logits[12_345] = 0
    assert {Sampler(SamplingOptions(temperature, seed=seed))(logits) for seed in range(20)} == {12_345}


def test_a_seed_repeats_and_another_differs() -> None:
    logits = np.random.default_rng(0).normal(size=500).astype(np.float32)
    draws = [[Sampler(SamplingOptions(1.0, seed=seed))(logits) for _ in range(1)] for seed in (5, 5)]
    assert draws[0] == draws[1]
    sequences = []
    for seed in (5, 6):
        sampler = Sampler(SamplingOptions(1.0, seed=seed))
        sequences.append([sampler(logits) for _ in range(20)])
    assert sequences[0] != sequences[1]


def test_zero_temperature_is_greedy() -> None:
    logits = np.array([0.1, 3.0, 2.9], np.float32)
    assert Sampler(SamplingOptions(0.0, top_k=2, top_p=0.5))(logits) == 1


def test_sampling_leaves_the_logits_alone() -> None:
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32)
    before = logits.copy()
    Sampler(SamplingOptions(0.5, top_k=5, top_p=0.5, seed=0))(logits)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_engine_failure(value: float, temperature: float) -> None:
    with pytest.raises(EngineError, match="finite"):
        Sampler(SamplingOptions(temperature))(np.array([0.0, value, 1.0], np.float32))


@pytest.mark.parametrize(
    "arguments",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"seed": -1}],
)
def test_options_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(InputError, match="out of range"):
        SamplingOptions(**arguments)  # type: ignore[arg-type]


STOPPED = [
    (("###",), "abc###def", "abc", True),
    (("###",), "abc##def", "abc##def", False),
    (("aab",), "aaaab", "aa", True),
    (("b", "abc"), "xabc", "xa", True),
    (("end", "nd."), "an end.", "an ", True),
    ((), "anything", "anything", False),
    (("\n\n",), "one\ntwo\n", "one\ntwo\n", False),
]


@pytest.mark.parametrize(("strings", "text", "shown", "found"), STOPPED)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_stop_strings_in_pieces_of_any_size(
    strings: tuple[str, ...], text: str, shown: str, found: bool, size: int
) -> None:
    stops = StopStrings(strings)
    seen = ""
    for start in range(0, len(text), size):
        seen += stops.add(text[start : start + size])
        assert shown.startswith(seen), "what was shown cannot be taken back"
    assert seen + stops.finish() == shown
    assert stops.found == found


def test_text_is_held_back_only_while_a_stop_string_may_come() -> None:
    stops = StopStrings(("###",))
    assert stops.add("a#") == "a"
    assert stops.add("b") == "#b"
