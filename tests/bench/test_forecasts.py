"""Forecasts stand beside what was measured, and are those of `edgevlm estimate` for the question that was timed."""

from pathlib import Path

import pytest
from bench_bundles import hollow_bundle
from made_reports import report, row

from edgevlm.bench.render.forecast_table import forecasts
from edgevlm.bench.render.report_html import render_html
from edgevlm.bench.render.report_markdown import render_markdown
from edgevlm.bench.report import Forecast
from edgevlm.bundle import Bundle
from edgevlm.cli import main
from edgevlm.cli.forecasts import with_forecasts
from edgevlm.pipeline.estimate import estimate
from edgevlm.pipeline.planner import Question
from edgevlm.recipe import Recipe
from edgevlm.targets.catalog import load_target


def of_model(folder: Path, model: str) -> Bundle:
    """A hollow bundle whose recipe names that model."""
    bundle = hollow_bundle(folder)
    recipe = Recipe(model=model, format="onnx", precision="int4").model_dump(mode="json")
    manifest = bundle.manifest.model_copy(update={"recipe": recipe})
    return Bundle(bundle.path, manifest, bundle.spec)


def test_forecast_is_the_estimate_for_the_question_that_was_timed(tmp_path: Path) -> None:
    bundle, target = of_model(tmp_path / "b", "zoo:nano-fastvlm"), load_target("jetson-orin-nano")
    measured = report(row("b", n=6, path=str(bundle.path)), row("other", n=6), image_width=300, image_height=200)
    found, other = with_forecasts(measured, [bundle], target).rows
    question = Question(300, 200, text_tokens=80 - 64, answer_tokens=12)
    expected = estimate(Recipe.model_validate(bundle.manifest.recipe), target, question).result.forecast
    assert found.forecast == Forecast(
        target="jetson-orin-nano",
        vision_ms=expected.vision_ms,
        prefill_ms=expected.prefill_ms,
        tokens_per_second=expected.tokens_per_second,
        peak_bytes=round(expected.peak.total),
        reason="",
    )
    assert other.forecast is None


def test_what_cannot_be_forecast_has_the_reason(tmp_path: Path) -> None:
    bundle, target = of_model(tmp_path / "b", str(tmp_path / "gone")), load_target("jetson-orin-nano")
    (found,) = with_forecasts(report(row("b", n=6, path=str(bundle.path))), [bundle], target).rows
    assert found.forecast is not None
    assert found.forecast.vision_ms is None
    assert found.forecast.reason
    strange = Bundle(bundle.path, bundle.manifest.model_copy(update={"recipe": {"no": "recipe"}}), bundle.spec)
    (found,) = with_forecasts(report(row("b", n=6, path=str(bundle.path))), [strange], target).rows
    assert found.forecast is not None
    assert found.forecast.reason == "the bundle's recipe is not one of this version"


def test_table_says_how_far_off_a_forecast_is() -> None:
    measured = row("b", n=40)
    assert measured.latency is not None
    expected = Forecast(
        target="a-board",
        vision_ms=1.5 * measured.latency.stages.vision_ms.median,
        prefill_ms=None,
        tokens_per_second=80.0,
        peak_bytes=100_000_000,
        reason="",
    )
    made = report(row("none", n=6), measured.model_copy(update={"forecast": expected}))
    ((name, target, vision, prefill, decode, memory),) = forecasts(made).rows
    assert (name.text, target.text) == ("b", "a-board")
    assert vision.note.endswith("+50%")
    assert prefill.text == "\N{EN DASH}"
    assert decode.note.startswith("forecast 80.0, ")
    assert memory.note == "forecast 100 MB, \N{MINUS SIGN}50%"
    assert "Forecast against measured" in render_html(made)
    assert "## Forecast against measured" in render_markdown(made)
    assert "Forecast against measured" not in render_html(report(row("none", n=6)))


def test_an_unknown_target_is_refused_before_measuring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = hollow_bundle(tmp_path / "bundle").path
    with pytest.raises(SystemExit) as leaving:
        main(["bench", str(bundle), "-o", str(tmp_path / "out"), "--forecast", "no-such-board"])
    assert leaving.value.code == 2
    assert "no-such-board" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
