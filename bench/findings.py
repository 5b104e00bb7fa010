"""What a report says in sentences, and no more than its numbers allow."""

from __future__ import annotations

from edgevlm.bench import format as show
from edgevlm.bench.report import Paired, Report


def findings(report: Report) -> list[str]:
    """A sentence or two for each row, flags included; failures stand in the comparison itself."""
    lines = []
    for row in report.rows:
        paired = row.accuracy.paired if row.accuracy else None
        if paired is not None:
            lines.append(f"{row.name}: {judgement(paired)}")
        elif row.accuracy is not None and row.kind == "bundle" and row.accuracy.unpaired_reason != "it is the baseline":
            lines.append(f"{row.name}: not compared with the uncompressed model: {row.accuracy.unpaired_reason}.")
        lines += [f"{row.name}: {flag.text}." for flag in row.flags]
    return lines


def judgement(paired: Paired) -> str:
    """What the paired comparison shows, and what it does not."""
    margin = f"{100 * paired.margin:g} points"
    change = f"accuracy {show.points(paired.delta.value)} points, 95% CI {show.points_interval(paired.delta)}"
    if paired.verdict == "non-inferior":
        claim = f"loses less than {margin} against {paired.baseline}"
        limit = " This shows no harmful loss; it does not show equality." if paired.answers_changed else ""
    elif paired.verdict == "worse":
        claim = f"loses more than {margin} against {paired.baseline}"
        limit = ""
    else:
        claim = f"it is not decided whether the loss against {paired.baseline} stays below {margin}"
        drop = paired.smallest_detectable_drop
        seen = f"show a drop of {100 * drop:.1f} points or more" if drop is not None else "are too few to show a drop"
        limit = f" {paired.n} items {seen}."
    return f"{claim} ({change}).{limit}"
