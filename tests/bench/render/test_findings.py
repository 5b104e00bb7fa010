"""The sentences of a report claim what its numbers allow, and no more."""

import pytest

from edgevlm.bench.pairs import Interval, wilson
from edgevlm.bench.plan import IS_BASELINE
from edgevlm.bench.render.findings import findings, judgement
from edgevlm.bench.report import Flag, Paired, Report, Verdict


def paired(verdict: Verdict, changed: int = 3, drop: float | None = 0.04) -> Paired:
    return Paired(
        baseline="fp32",
        n=100,
        accuracy=wilson(90, 100),
        delta=Interval(value=-0.01, low=-0.03, high=0.01),
        lost=2,
        gained=1,
        answers_changed=changed,
        tokens_identical=90,
        mcnemar_p=1.0,
        mcnemar_method="exact",
        margin=0.02,
        verdict=verdict,
        smallest_detectable_drop=drop,
    )


@pytest.mark.parametrize(
    ("given", "end"),
    [
        (paired("non-inferior"), ": it loses less than 2 points; this does not show equality."),
        (paired("non-inferior", changed=0), ": it loses less than 2 points."),
        (paired("worse"), ": it loses more than 2 points."),
        (paired("worse").model_copy(update={"margin": 0.01}), ": it loses more than 1 point."),
        (paired("undecided"), "than 2 points is undecided; 100 items show drops from 4.0 points."),
        (paired("undecided", drop=None), "than 2 points is undecided; 100 items are too few to show a drop."),
    ],
)
def test_judgement(given: Paired, end: str) -> None:
    said = judgement(given).replace("\N{MINUS SIGN}", "-")
    assert said.startswith("accuracy -1.0 points against fp32 (95% CI -3.0")
    assert said.endswith(end)


def test_verdicts_come_first_then_flags(swept: tuple[Report, object]) -> None:
    """A baseline is not said to be uncompared with itself; a bundle that could not be compared is."""
    report = swept[0]
    first, second = [row for row in report.rows if row.accuracy is not None][:2]
    assert first.accuracy is not None
    assert first.accuracy.unpaired_reason == IS_BASELINE
    flag = Flag(code="noisy", text="times vary")
    flagged = second.model_copy(update={"flags": [flag]})
    alone = first.model_copy(
        update={"name": "alone", "accuracy": first.accuracy.model_copy(update={"unpaired_reason": "no original"})}
    )
    rows = [row.model_copy(update={"notes": []}) for row in (first, flagged, alone)]
    said = findings(report.model_copy(update={"rows": rows}))
    assert [(finding.name, finding.tone) for finding in said if "accuracy" in finding.text] == [(second.name, "bad")]
    assert [str(finding) for finding in said[1:2]] == ["alone: not compared with the uncompressed model: no original."]
    assert f"{second.name}: times vary." in [str(finding) for finding in said[2:]]
    assert first.flags or first.name not in [finding.name for finding in said]


def test_what_a_bundle_says_of_itself_is_a_finding(swept: tuple[Report, object]) -> None:
    row = swept[0].rows[0].model_copy(update={"notes": ["sms chose 9 of 36 tokens"]})
    said = [str(finding) for finding in findings(swept[0].model_copy(update={"rows": [row]}))]
    assert f"{row.name}: sms chose 9 of 36 tokens." in said
