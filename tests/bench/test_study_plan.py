"""The grid of a study: what is asked for becomes cells, or a reason, before anything is computed."""

from dataclasses import replace

import pytest
from reducer_models import CLIP, FASTVITHD, SIGLIP, vision_spec
from specs import TINY
from study_fakes import read_flag

from edgevlm.bench.study.plan import Cell, Method, check_methods, parse_methods, parse_percents, plan_cells, with_pass
from edgevlm.errors import InputError
from edgevlm.pruning.tokens import CHOOSERS, REDUCERS
from edgevlm.pruning.tokens.prune_tokens import PruneTokens
from edgevlm.recipe import CalibrationData, Recipe
from edgevlm.spec import EncoderSpec

RECIPE = Recipe(model="nowhere")


def cells(encoder: EncoderSpec, methods: str, percents: str, side: int = 12) -> dict[str, Cell]:
    """The cells of a model with `side` by `side` image tokens."""
    spec = replace(TINY, vision=vision_spec(encoder, side))
    found = plan_cells(spec, parse_methods(methods), parse_percents(percents), RECIPE, read_flag)
    assert len({cell.name for cell in found}) == len(found)
    return {cell.name: cell for cell in found}


def test_percentages_become_counts_of_the_unpruned_tokens() -> None:
    found = cells(replace(CLIP, grid=12), "uniform,random", "6,25,100,12")
    assert list(found) == [f"{name} {count}" for name in ("uniform", "random") for count in (36, 17, 9)]
    assert found["uniform 17"].percents == (12,)
    assert found["random 9"].flag == "random:9"


def test_a_method_that_needs_squares_gets_the_nearest_one() -> None:
    """72 lies between 64 and 81, 17 between 16 and 25."""
    found = cells(replace(CLIP, grid=12), "pool", "50,25,12,6")
    assert [cell.tokens for cell in found.values()] == [64, 36, 16, 9]
    assert not any(cell.reason for cell in found.values())


def test_shares_that_become_one_count_are_one_cell() -> None:
    """Of 4 by 4 tokens, 12% and 6% are 2 and 1, which as a square are both 1."""
    found = cells(replace(CLIP, grid=4), "pool,uniform", "12,6", side=4)
    assert list(found) == ["pool 1", "uniform 2", "uniform 1"]
    assert found["pool 1"].percents == (12, 6)


def test_a_method_that_the_model_cannot_have_is_a_cell_with_the_reason() -> None:
    found = cells(replace(SIGLIP, grid=12), "fastervlm,attention", "25")
    assert "no class token" in found["fastervlm 36"].reason
    assert found["attention 36"].reason == ""
    assert "no class token" in cells(FASTVITHD, "fastervlm", "25", side=4)["fastervlm 4"].reason


def test_all_stands_for_every_method() -> None:
    assert [method.name for method in parse_methods("all")] == [*REDUCERS, *CHOOSERS]


def test_options_go_with_their_method() -> None:
    first, second = parse_methods("random:seed=1, random:seed=2")
    assert (first.label, first.flag(9)) == ("random:seed=1", "random:9,seed=1")
    assert second == Method("random", (("seed", "2"),))
    check_methods([first, second], RECIPE, read_flag)


@pytest.mark.parametrize("methods", ["randon", "uniform,", "random:seed", "random:seed=", ":x=1", "uniform:colour=red"])
def test_an_unknown_method_or_option_is_refused(methods: str) -> None:
    with pytest.raises(InputError):
        check_methods(parse_methods(methods), RECIPE, read_flag)


@pytest.mark.parametrize("percents", ["0", "101", "-5", "half", "25,,6", "nan"])
def test_a_share_that_is_none_is_refused(percents: str) -> None:
    with pytest.raises(InputError, match="is not a percentage"):
        parse_percents(percents)


def test_calibration_data_go_only_to_methods_that_need_them() -> None:
    """Else the cell's bundle would not be the one that an export without them writes."""
    recipe = RECIPE.model_copy(update={"calibration": CalibrationData(source="scenes")})
    assert with_pass(recipe, read_flag("uniform:4")).calibration is None


def test_a_method_that_needs_images_says_so_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PruneTokens, "needs_calibration", True)
    assert "give --calibrate" in cells(replace(CLIP, grid=6), "uniform", "25", side=6)["uniform 9"].reason
    given = RECIPE.model_copy(update={"calibration": CalibrationData(source="scenes")})
    spec = replace(TINY, vision=vision_spec(replace(CLIP, grid=6)))
    (cell,) = plan_cells(spec, [Method("uniform")], [25], given, read_flag)
    assert cell.reason == ""
    assert with_pass(given, read_flag(cell.flag)).calibration == given.calibration


def test_a_method_that_chooses_its_count_is_one_cell() -> None:
    found = cells(replace(CLIP, grid=12), "sms:by=fastervlm,uniform,gsearch", "50,25")
    assert list(found) == ["sms:by=fastervlm", "uniform 72", "uniform 36", "gsearch"]
    assert (found["gsearch"].flag, found["sms:by=fastervlm"].flag) == ("gsearch", "sms,by=fastervlm")
    assert "give --calibrate" in found["gsearch"].reason
    given = RECIPE.model_copy(update={"calibration": CalibrationData(source="scenes")})
    spec = replace(TINY, vision=vision_spec(replace(CLIP, grid=12), 12))
    (cell,) = plan_cells(spec, [Method("sms")], [50, 25], given, read_flag)
    assert (cell.reason, cell.percents, cell.tokens) == ("", (), 144)
    assert with_pass(given, read_flag(cell.flag)).calibration == given.calibration
    (cell,) = plan_cells(replace(TINY, vision=vision_spec(SIGLIP)), [Method("sms")], [50], given, read_flag)
    assert "use by=attention instead" in cell.reason
