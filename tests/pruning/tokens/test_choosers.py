"""How K is chosen: knees, sigmoids and greedy searches against their formulas, and what is refused."""

import dataclasses
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reducer_models import CLIP, reducer, rows, taps, vision_spec
from refusals import left_in, refusal
from scipy.special import expit
from specs import TINY

from edgevlm.calibration.sources import open_calibration
from edgevlm.errors import EdgeVLMError, InputError, UnsupportedError
from edgevlm.models import load, resolve
from edgevlm.passes import PassContext
from edgevlm.pipeline.passes import parse_passes, plan_passes
from edgevlm.pruning.tokens import CHOOSERS
from edgevlm.pruning.tokens.chooser import Choice
from edgevlm.pruning.tokens.gsearch import STEEPNESS, least_counts
from edgevlm.pruning.tokens.psigmoid import counts, middle_for, shares, spent
from edgevlm.pruning.tokens.pyramiddrop import PyramidDropOptions
from edgevlm.pruning.tokens.sms import knee
from edgevlm.recipe import PassEntry, Recipe
from edgevlm.spec import DropStage, FusionSpec, LdpSpec, ModelSpec, QFormerSpec, VisionSpec

SILENT: Any = lambda *_: None  # noqa: E731
WITH_CLASS = dataclasses.replace(TINY, vision=VisionSpec(CLIP, TINY.vision.projector, 48, 36))


def perpendicular(curve: NDArray[np.float64]) -> int:
    """The place farthest from the line between a curve's ends, on its lower side; the first of them."""
    points = np.stack((np.arange(len(curve)), curve), axis=1)
    along = points[-1] - points[0]
    side = (points - points[0]) @ np.array([along[1], -along[0]]) / np.linalg.norm(along)
    return int(side.round(9).argmax())


@pytest.mark.parametrize(
    "curve",
    [
        1 / np.arange(1, 145),
        np.exp(-np.arange(64) / 9.0),
        np.sort(np.random.default_rng(0).pareto(2, 576))[::-1],
        # A head and a tail with a corner at the fifth score.
        np.concatenate((np.linspace(10, 2, 5), np.linspace(1.9, 1, 20))),
        # A head that falls, a plain, and a tail that falls again, as measured curves have it.
        np.concatenate((np.linspace(1, 0.5, 6), np.linspace(0.49, 0.4, 20), np.linspace(0.38, 0.2, 6))),
    ],
)
def test_the_knee_is_farthest_below_the_line_between_the_ends(curve: NDArray[np.float64]) -> None:
    found = knee(torch.from_numpy(curve.copy()))
    assert found == perpendicular(curve) + 1
    assert 1 < found < len(curve) / 2


def test_a_corner_is_the_knee_and_of_equal_places_the_first() -> None:
    assert knee(torch.tensor([8.0, 6, 4, 2, 1.75, 1.5, 1.25, 1])) == 4
    assert knee(torch.tensor([4.0, 1, 1, 1, 1, 1, 1])) == 2
    # Both corners lie 3 below the line from 8 to 0.
    assert knee(torch.tensor([8.0, 4, 3, 2, 0])) == 2


@pytest.mark.parametrize("curve", [[3.0, 3, 3, 3], [4.0, 3, 2, 1, 0], [4.0, 3.9, 3.5, 2, 0]])
def test_a_curve_that_falls_no_slower_later_has_no_knee(curve: list[float]) -> None:
    assert knee(torch.tensor(curve)) is None


@pytest.mark.parametrize("shuffle", [1, 2])
def test_similarity_to_the_class_token_is_a_cosine(shuffle: int) -> None:
    """Of joined patches, each of which has as many channels as the class token, it is their mean."""
    tokens = 36 // shuffle**2
    x = torch.randn(2, tokens, 12 * shuffle**2, generator=torch.Generator().manual_seed(1))
    seen = taps((-1,), 37)
    assert seen.class_feature is not None
    wanted = np.zeros((2, tokens))
    for image, token in product(range(2), range(tokens)):
        own = rows(seen.class_feature)[image, 0]
        for patch in rows(x)[image, token].reshape(-1, 12):
            wanted[image, token] += patch @ own / np.linalg.norm(patch) / np.linalg.norm(own) / shuffle**2
    method: Any = reducer("cls-similarity", vision_spec(CLIP, shuffle=shuffle), 4)
    np.testing.assert_allclose(method.scores(x, seen).numpy(), wanted, atol=1e-6)
    assert method.select(x, seen).tolist() == [sorted(np.argsort(-row)[:4].tolist()) for row in wanted]


def test_shares_of_layers_are_a_falling_sigmoid() -> None:
    places = (np.arange(24) + 0.5) / 24
    np.testing.assert_allclose(shares(24, 8.0, 0.3), expit(-8 * (places - 0.3)), rtol=1e-12)


@pytest.mark.parametrize("steepness", STEEPNESS)
@pytest.mark.parametrize(("layers", "stages"), [(4, [1, 2, 3]), (24, [4, 9, 14, 19])])
@pytest.mark.parametrize("budget", [0.3, 0.5, 0.9])
def test_the_budget_is_spent_and_not_exceeded(steepness: float, layers: int, stages: list[int], budget: float) -> None:
    middle = middle_for(576, layers, stages, steepness, budget)
    kept = counts(576, layers, stages, steepness, middle)
    share = expit(-steepness * ((np.arange(layers) + 0.5) / layers - middle))
    means = [part.mean() for part in np.split(share, stages)[1:]]
    assert kept == [max(1, int(576 * mean)) for mean in means]
    assert kept == sorted(kept, reverse=True)
    through = np.repeat([576, *kept], np.diff([0, *stages, layers]))
    assert spent(576, layers, stages, kept) == pytest.approx(through.mean() / 576)
    assert through.mean() / 576 <= budget
    more = counts(576, layers, stages, steepness, middle + 2 * (1 + 128 / steepness) / 2**32)
    assert spent(576, layers, stages, more) > budget, "a larger middle spends too much"


def test_the_search_goes_from_shallow_to_deep() -> None:
    """Answers stay as long as so many tokens are left, fewer of them deep inside."""
    needed = {1: 40, 3: 40, 5: 7, 8: 6, 9: 1}
    tried: list[tuple[DropStage, ...]] = []

    def trial(stages: tuple[DropStage, ...]) -> bool:
        tried.append(stages)
        return all(stage.keep >= needed[stage.after_layers] for stage in stages)

    found = least_counts([1, 3, 5, 8, 9], 64, trial)
    # Behind layer 3 nothing more can go, so there is no stage.
    assert found == (DropStage(1, 40), DropStage(5, 7), DropStage(8, 6), DropStage(9, 1))
    assert max(len(stages) for stages in tried) == 4
    assert len(tried) <= 5 * 6
    depths = [stages[-1].after_layers for stages in tried]
    assert depths == sorted(depths)


def test_where_nothing_can_go_nothing_is_found() -> None:
    assert least_counts([1, 2], 9, lambda _: False) == ()


@pytest.mark.parametrize("budget", range(1, 9))
def test_the_search_finds_what_trying_all_counts_finds(budget: int) -> None:
    """Answers stay as long as what went, weighted by depth, is not too much."""

    def trial(stages: tuple[DropStage, ...]) -> bool:
        entering, lost = 9, 0.0
        for stage in stages:
            lost += (entering - stage.keep) / stage.after_layers
            entering = stage.keep
        return lost <= budget

    found: tuple[DropStage, ...] = ()
    for place in (1, 2, 3):
        entering = found[-1].keep if found else 9
        least = min(keep for keep in range(1, entering + 1) if trial((*found, DropStage(place, keep))))
        found = (*found, DropStage(place, least)) if least < entering else found
    assert least_counts([1, 2, 3], 9, trial) == found


def choice(name: str, model: str, samples: int, **options: Any) -> Choice:
    """What is chosen for a shipped model."""
    cls = CHOOSERS[name]
    loaded = load(resolve(model))
    context = PassContext(open_calibration("scenes", samples), loaded, SILENT)
    return cls.choose(loaded, context, cls.Options.model_validate(options))


@pytest.mark.parametrize("options", [{}, {"by": "fastervlm"}])
def test_sms_chooses_the_same_again(options: dict[str, Any]) -> None:
    found = choice("sms", "zoo:nano-llava", 8, **options)
    assert found == choice("sms", "zoo:nano-llava", 8, **options)
    assert found.method == options.get("by", "cls-similarity")
    assert 5 < found.keep < 72
    assert f"sms chose {found.keep} of 144 tokens: the knee of {found.method}'s scores" in found.reason


def test_sms_tells_a_curve_without_a_knee(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.pruning.tokens.sms.knee", lambda _: None)
    with pytest.raises(InputError, match=r"mean curve of attention's sorted scores over .* has no knee"):
        choice("sms", "zoo:nano-fastvlm", 4, by="attention")


def test_gsearch_keeps_the_answers_and_chooses_the_same_again() -> None:
    found = choice("gsearch", "zoo:nano-fastvlm", 8, tolerance=0.25, stages=2)
    assert found == choice("gsearch", "zoo:nano-fastvlm", 8, tolerance=0.25, stages=2)
    stages = PyramidDropOptions.model_validate(found.options).given
    assert (found.method, found.keep) == ("pyramiddrop", stages[-1].keep)
    assert [stage.after_layers for stage in stages] in ([1], [2], [1, 2])
    assert stages[-1].keep < 64
    assert any(f"{kept} of 8 calibration answers stay" in found.reason for kept in (6, 7, 8))


def test_gsearch_within_a_budget_spends_it() -> None:
    found = choice("gsearch", "zoo:nano-fastvlm", 4, budget=0.5)
    stages = PyramidDropOptions.model_validate(found.options).given
    through = [64, *([64] * 4)]
    for layer in range(4):
        through[layer] = next((s.keep for s in reversed(stages) if s.after_layers <= layer), 64)
    assert 0.45 < sum(through[:4]) / (4 * 64) <= 0.5
    assert "at a budget of 0.5, by a sigmoid of steepness" in found.reason


def planned(spec: ModelSpec, method: str, options: dict[str, Any], keep: int | None = None) -> ModelSpec:
    fields = {"name": "prune_tokens", "method": method, "options": options}
    entry = PassEntry.model_validate(fields if keep is None else {**fields, "keep": keep})
    calibration = open_calibration("scenes", 4)
    return plan_passes(parse_passes(Recipe(model="a", passes=(entry,))), spec, calibration)


QUERIES = dataclasses.replace(
    TINY, vision=dataclasses.replace(TINY.vision, projector=QFormerSpec(32, 64, 2, 4, 32), image_tokens=32)
)
JOINED = dataclasses.replace(
    WITH_CLASS, vision=dataclasses.replace(WITH_CLASS.vision, projector=LdpSpec(2, side=3), image_tokens=9)
)
SHALLOW = dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, num_hidden_layers=1))


@pytest.mark.parametrize(
    ("spec", "method", "options", "reason"),
    [
        (TINY, "sms", {}, "no class token, which cls-similarity reads; use by=attention instead"),
        (TINY, "sms", {"by": "vtc-cls"}, "no class token, which vtc-cls reads; use by=attention instead"),
        (TINY, "cls-similarity", {}, "no class token"),
        (JOINED, "sms", {}, "its projector joins neighbouring features"),
        (JOINED, "sms", {"by": "fastervlm"}, "its projector joins neighbouring features"),
        (QUERIES, "sms", {}, "Q-Former makes 32 tokens of an image already, so nothing would be gained"),
        (QUERIES, "gsearch", {}, "Q-Former makes 32 tokens of an image already, so nothing would be gained"),
        (dataclasses.replace(TINY, fusion=FusionSpec(2, 1)), "sms", {}, "leaves 1 token of an image already"),
        (dataclasses.replace(TINY, fusion=FusionSpec(2, 1)), "gsearch", {}, "leaves 1 token of an image already"),
        (SHALLOW, "gsearch", {}, "of 16 tokens and 1 layers nothing can be dropped"),
        (TINY, "gsearch", {"budget": 0.1}, "is spent by its first 1 layers"),
        (TINY, "pyramiddrop", {"counts": "1:8/1:4"}, "ascend from 1 to 1"),
        (TINY, "pyramiddrop", {"counts": "2:4"}, "ascend from 1 to 1"),
        (TINY, "pyramiddrop", {"counts": "1:17"}, "fewer and fewer go on"),
        (TINY, "pyramiddrop", {"counts": "1:5"}, "'counts' ends with 5 tokens, not with 4"),
    ],
)
def test_a_reason_is_given(spec: ModelSpec, method: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        planned(spec, method, options, keep=None if method in CHOOSERS else 4)
    assert reason in caught.value.what


@pytest.mark.parametrize(
    ("method", "keep", "options", "what"),
    [
        ("sms", 9, {}, "sms chooses how many tokens to keep, so that 9 cannot be given"),
        ("gsearch", 9, {}, "gsearch chooses how many tokens to keep, so that 9 cannot be given"),
        ("sms", None, {"by": "divprune"}, "sms option 'by'"),
        ("gsearch", None, {"budget": 1}, "gsearch option 'budget'"),
        ("gsearch", None, {"budget": 0.5, "tolerance": 0.1}, "give tolerance or budget"),
        ("pyramiddrop", 4, {"counts": "1:8", "stages": 2}, "give stages or counts"),
        ("pyramiddrop", 4, {"counts": "1-8"}, "pyramiddrop option 'counts'"),
        ("fastervlm", None, {}, "fastervlm does not say how many tokens to keep"),
    ],
)
def test_what_the_user_wrote_is_named(method: str, keep: int | None, options: dict[str, Any], what: str) -> None:
    with pytest.raises(EdgeVLMError) as caught:
        planned(WITH_CLASS, method, options, keep)
    assert what in caught.value.what


def test_what_can_be_chosen_for_is_planned() -> None:
    assert planned(TINY, "sms", {"by": "attention"}).vision.image_tokens < 16
    assert planned(WITH_CLASS, "gsearch", {}).decoder.token_drop is not None


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--prune-tokens", "sms"], "needs calibration images and there are none"),
        (["--prune-tokens", "gsearch"], "needs calibration images and there are none"),
        (["--prune-tokens", "sms:16", "--calibrate", "scenes"], "sms chooses how many tokens to keep"),
        (["--prune-tokens", "gsearch", "--calibrate", "scenes", "--format", "gguf"], "llama.cpp runs all layers"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    flags: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = refusal(capsys)("export", "zoo:nano-llava", "-o", tmp_path / "out", *flags)
    assert what in lines[0]
    if "needs" in what:
        assert "--calibrate" in lines[2]
    left_in(tmp_path)
