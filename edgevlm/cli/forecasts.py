"""The forecasts that `edgevlm bench --forecast` puts beside what it measured.

In: a report, the bundles it measured, and a device's profile. Out: the report with a forecast in each row of a bundle
that was timed. Needs the host half, and the checkpoints that the bundles were made from.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from edgevlm.bench.report import Forecast, Latency, Report, Row
from edgevlm.bundle import Bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.pipeline.estimate import estimate
from edgevlm.pipeline.planner import Question
from edgevlm.recipe import Recipe
from edgevlm.targets.profile import TargetProfile


def with_forecasts(report: Report, bundles: Sequence[Bundle], target: TargetProfile) -> Report:
    """Forecast each row for the question that it was timed with; one that cannot be has the reason."""
    by_path = {str(bundle.path): bundle for bundle in bundles}

    def add(row: Row) -> Row:
        bundle = by_path.get(row.path)
        if bundle is None or row.latency is None:
            return row
        return row.model_copy(update={"forecast": _forecast(report, bundle, row.latency, target)})

    return report.model_copy(update={"rows": [add(row) for row in report.rows]})


def _forecast(report: Report, bundle: Bundle, timed: Latency, target: TargetProfile) -> Forecast:
    asked = report.settings
    question = Question(
        image_width=asked.image_width,
        image_height=asked.image_height,
        text_tokens=max(1, timed.prompt_tokens - timed.image_tokens),
        answer_tokens=asked.max_tokens,
    )
    try:
        expected = estimate(Recipe.model_validate(bundle.manifest.recipe), target, question).result.forecast
    except ValidationError:
        return _none(target, "the bundle's recipe is not one of this version")
    except EdgeVLMError as error:
        return _none(target, error.what)
    return Forecast(
        target=target.name,
        vision_ms=expected.vision_ms,
        prefill_ms=expected.prefill_ms,
        tokens_per_second=expected.tokens_per_second,
        peak_bytes=round(expected.peak.total),
        reason="",
    )


def _none(target: TargetProfile, reason: str) -> Forecast:
    return Forecast(
        target=target.name, vision_ms=None, prefill_ms=None, tokens_per_second=None, peak_bytes=None, reason=reason
    )
