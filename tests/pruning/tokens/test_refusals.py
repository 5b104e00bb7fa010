"""What cannot be pruned is refused with the reason, from the spec alone."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from reducer_models import CLIP
from refusals import left_in, refusal
from specs import TINY

from edgevlm.errors import InputError, UnsupportedError
from edgevlm.pipeline.passes import parse_passes, plan_passes
from edgevlm.recipe import PassEntry, Recipe
from edgevlm.spec import (
    FramedLayout,
    FusionSpec,
    LdpSpec,
    ModelSpec,
    PatchesSpec,
    QFormerSpec,
    RowsLayout,
    SplitTiles,
    VisionSpec,
)

WITH_CLASS = dataclasses.replace(TINY, vision=VisionSpec(CLIP, TINY.vision.projector, 48, 36))
TILED = dataclasses.replace(
    WITH_CLASS,
    preprocess=dataclasses.replace(TINY.preprocess, tiles=SplitTiles(96)),
    prompt=dataclasses.replace(TINY.prompt, image_layout=FramedLayout("", "", "", "", "")),
)


def vision(spec: ModelSpec, **changes: Any) -> ModelSpec:
    return dataclasses.replace(spec, vision=dataclasses.replace(spec.vision, **changes))


def planned(spec: ModelSpec, *asked: tuple[str, int, dict[str, Any]]) -> ModelSpec:
    entries = [{"name": "prune_tokens", "method": m, "keep": keep, "options": options} for m, keep, options in asked]
    passes = tuple(PassEntry.model_validate(entry) for entry in entries)
    return plan_passes(parse_passes(Recipe(model="a", passes=passes)), spec, None)


MAP = dataclasses.replace(TILED, prompt=dataclasses.replace(TILED.prompt, image_layout=RowsLayout(9)))
FREE = dataclasses.replace(
    TINY, preprocess=dataclasses.replace(TINY.preprocess, patches=PatchesSpec(8, 2, 2, 64, 4096))
)
QUERIES = vision(TINY, projector=QFormerSpec(32, 64, 2, 4, 32), image_tokens=32)
JOINED = vision(WITH_CLASS, projector=LdpSpec(2, side=3), image_tokens=9)


@pytest.mark.parametrize(
    ("spec", "method", "keep", "options", "reason"),
    [
        (TINY, "fastervlm", 4, {}, "no class token, which fastervlm reads; use attention instead"),
        (TINY, "prumerge", 4, {}, "no class token"),
        (TINY, "uniform", 17, {}, "17 tokens cannot be kept of 16"),
        (TINY, "resolution", 15, {}, "at no resolution it makes 15 tokens"),
        (TINY, "pool", 8, {}, "8 tokens are not a square"),
        (TINY, "fopru", 6, {"strategy": "row"}, "6 tokens are not whole rows of 4"),
        (TINY, "visionzip", 1, {}, "visionzip needs 2 tokens at least"),
        (WITH_CLASS, "visionzip", 4, {"contextual": 3}, "visionzip needs 5 tokens at least"),
        (WITH_CLASS, "prumerge", 1, {}, "prumerge keeps 2 to 36 tokens"),
        (WITH_CLASS, "vtc-cls", 4, {"start": 3}, "cannot start at layer 3 of 3"),
        (TILED, "resolution", 4, {}, "cuts images into tiles"),
        (MAP, "divprune", 4, {}, "joins the tokens of all tiles to one map; use a method that scores each token"),
        (TILED, "hired", 37, {}, "37 tokens cannot be kept of 36"),
        (FREE, "divprune", 4, {}, "their shape"),
        (QUERIES, "divprune", 4, {}, "Q-Former makes 32 tokens of an image already, so nothing would be gained"),
        (dataclasses.replace(TINY, fusion=FusionSpec(2, 1)), "divprune", 4, {}, "leaves 1 token of an image already"),
        (vision(TINY, encoder=dataclasses.replace(CLIP, keep_class_token=True)), "uniform", 4, {}, "among the image"),
        (JOINED, "fastervlm", 4, {}, "their attention tells fastervlm nothing"),
        (JOINED, "divprune", 4, {"compare": "features"}, "leave out compare=features"),
    ],
)
def test_a_reason_is_given(spec: ModelSpec, method: str, keep: int, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        planned(spec, (method, keep, options))
    assert reason in caught.value.what


@pytest.mark.parametrize(("spec", "method"), [(TILED, "fastervlm"), (JOINED, "divprune"), (JOINED, "uniform")])
def test_what_can_be_pruned_is(spec: ModelSpec, method: str) -> None:
    assert planned(spec, (method, 4, {})).vision.image_tokens == 4


@pytest.mark.parametrize(
    ("spec", "method", "shared"),
    [
        (WITH_CLASS, "hired", False),
        (TILED, "hired", True),
        (TILED, "globalcom2", True),
        (TILED, "fastervlm", False),
        (MAP, "globalcom2", True),
        (MAP, "fastervlm", True),
    ],
)
def test_the_spec_says_whether_tiles_share_the_tokens(spec: ModelSpec, method: str, shared: bool) -> None:
    reducer = planned(spec, (method, 4, {})).vision.reducer
    assert reducer is not None
    assert (reducer.keep, reducer.shared) == (4, shared)


def test_tokens_are_pruned_once() -> None:
    with pytest.raises(UnsupportedError, match="prune_tokens stands twice"):
        planned(TINY, ("uniform", 8, {}), ("pool", 4, {}))
    pruned = planned(TINY, ("uniform", 8, {}))
    with pytest.raises(UnsupportedError, match="uniform has reduced its image tokens already"):
        planned(pruned, ("pool", 4, {}))


@pytest.mark.parametrize(
    ("method", "options", "what", "hint"),
    [
        ("fastvlm", {}, "no token reducer 'fastvlm'", "did you mean fastervlm?"),
        ("zzz", {}, "no token reducer 'zzz'", "edgevlm pruners lists all"),
        ("divprune", {"compare": "pixels"}, "divprune option 'compare'", "options of divprune: compare"),
        ("uniform", {"step": 2}, "uniform option 'step'", "options of uniform: none"),
        ("hired", {"alpha": 1}, "hired option 'alpha'", "options of hired: alpha"),
        ("globalcom2", {"temperature": 0}, "globalcom2 option 'temperature'", "options of globalcom2: temperature"),
        ("visionzip", {"contextual": 0}, "visionzip option 'contextual'", "options of visionzip: contextual"),
    ],
)
def test_what_the_user_wrote_is_named(method: str, options: dict[str, Any], what: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        planned(TINY, (method, 4, options))
    assert what in caught.value.what
    assert hint in caught.value.hint


def test_the_spec_says_how_many_tokens_are_left_and_by_what() -> None:
    spec = planned(TINY, ("random", 8, {}))
    assert spec.vision.image_tokens == spec.vision.tokens_at(64) == spec.vision.tokens_at(1024) == 8
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    assert spec.vision.reducer is not None
    assert spec.vision.reducer.options == (("seed", "0"),)
    smaller = planned(TINY, ("resolution", 4, {}))
    assert (smaller.vision.image_size, smaller.preprocess.image_size, smaller.vision.reducer) == (128, 128, None)


@pytest.mark.parametrize(
    ("flag", "what"),
    [
        ("uniform:0", "keep"),
        ("uniform:-3", "keep"),
        ("uniform:x", "keep"),
        ("uniform", "keep"),
        ("uniform:65", "65 tokens cannot be kept of 64"),
        ("fastervlm:16", "use attention instead"),
        ("unifrom:16", "no token reducer 'unifrom'"),
        (":16", "does not say how to prune tokens"),
        ("uniform:", "does not say how to prune tokens"),
        ("divprune:16,compare", "does not say how to prune tokens"),
    ],
)
def test_the_flag_is_checked_before_any_work(
    flag: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = refusal(capsys)
    assert what in refused("export", "zoo:nano-fastvlm", "-o", tmp_path / "out", "--prune-tokens", flag)[0]
    left_in(tmp_path)


def test_mmproj_cannot_leave_out_tokens() -> None:
    from edgevlm.exporters.gguf.mmproj import supports

    assert supports(WITH_CLASS) is None
    assert "as uniform does" in str(supports(planned(WITH_CLASS, ("uniform", 4, {}))))
