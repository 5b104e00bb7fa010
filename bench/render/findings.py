"""What a report says in sentences, and no more than its numbers allow."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.bench import format as show
from edgevlm.bench.plan import IS_BASELINE
from edgevlm.bench.render.table import TONES, Tone
from edgevlm.bench.report import Paired, Report


@dataclass(frozen=True)
class Finding:
    """A row's name, what is said of it, and how it is meant."""

    name: str
    text: str
    tone: Tone = "unsure"

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def findings(report: Report) -> list[Finding]:
    """The verdicts, then what should not be trusted; failures stand in the comparison itself."""
    found = []
    for row in report.rows:
        paired = row.accuracy.paired if row.accuracy else None
        if paired is not None:
            found.append(Finding(row.name, judgement(paired), TONES[paired.verdict]))
        elif row.accuracy is not None and row.kind == "bundle" and row.accuracy.unpaired_reason != IS_BASELINE:
            found.append(
                Finding(row.name, f"not compared with the uncompressed model: {row.accuracy.unpaired_reason}.")
            )
    for row in report.rows:
        if row.accuracy is not None and row.accuracy.skipped:
            first = row.accuracy.skipped_items[0]
            text = f"{row.accuracy.skipped} items were not asked, the first of them {first.id}: {first.reason}."
            found.append(Finding(row.name, text))
    for row in report.rows:
        found += [Finding(row.name, f"{flag.text}.") for flag in row.flags]
        found += [Finding(row.name, f"{note}.") for note in row.notes]
    return found + _without_energy(report)


def _without_energy(report: Report) -> list[Finding]:
    """Why energy was not measured: once, where the reason is the same for all rows."""
    timed = [row for row in report.rows if row.energy is not None]
    missing = [(row.name, row.energy.reason) for row in timed if row.energy and not row.energy.meters]
    if missing and len(missing) == len(timed) and len({reason for _, reason in missing}) == 1:
        return [Finding("energy", f"not measured: {missing[0][1]}.", "quiet")]
    return [Finding(name, f"energy not measured: {reason}.", "quiet") for name, reason in missing]


def judgement(paired: Paired) -> str:
    """What the paired comparison shows, and what it does not."""
    margin = show.margin(paired.margin)
    interval = f"95% CI {show.points_interval(paired.delta)}"
    seen = f"accuracy {show.points(paired.delta.value)} points against {paired.baseline} ({interval})"
    if paired.verdict == "non-inferior":
        limit = "; this does not show equality" if paired.answers_changed else ""
        return f"{seen}: it loses less than {margin}{limit}."
    if paired.verdict == "worse":
        return f"{seen}: it loses more than {margin}."
    drop = paired.smallest_detectable_drop
    power = f"show drops from {100 * drop:.1f} points" if drop is not None else "are too few to show a drop"
    return f"{seen}: whether it loses less than {margin} is undecided; {paired.n} items {power}."
