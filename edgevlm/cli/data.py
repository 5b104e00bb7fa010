"""`edgevlm data`: the benchmarks that can be asked, checks of downloaded ones, and comparisons of finished runs."""

from __future__ import annotations

from pathlib import Path

import click

from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.progress import show_progress
from edgevlm.tables import print_table


@click.group(name="data")
def command() -> None:
    """Data sets for accuracy: list, verify, compare runs."""


@command.command(name="list")
def list_() -> None:
    """List the data sets with their files, splits, scorers and prompts; what is usual stands first."""
    from edgevlm.bench.accuracy.sets import SETS

    rows = [
        [
            known.name,
            known.title,
            "; ".join(known.files),
            ", ".join(known.splits),
            ", ".join(known.scorers) or "none: a judge scores",
            ", ".join(known.templates),
        ]
        for known in SETS.values()
    ]
    print_table(["name", "data set", "files", "splits", "scorers", "templates"], rows)


@command.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--set", "name", required=True, help="Which data set it is, of `edgevlm data list`.")
@click.option("--split", default="", help="Split.  [default: its usual one]")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of the pictures, if another one.")
def verify(folder: Path, name: str, split: str, images: Path | None) -> None:
    """Check a downloaded data set: counts, published hashes, and that every picture opens."""
    from edgevlm.bench.accuracy.reading import Folder
    from edgevlm.bench.accuracy.sets import SETS
    from edgevlm.bench.accuracy.verify import verify as check

    if name not in SETS:
        raise InputError(f"unknown data set {name!r:.40}", "--set", f"sets: {', '.join(SETS)}")
    known = SETS[name]
    wanted = split or known.splits[0]
    if wanted not in known.splits:
        raise InputError(f"unknown split {wanted!r:.40}", "--split", f"splits: {', '.join(known.splits)}")
    with show_progress(f"data verify {name}") as progress:
        findings = check(known, Folder(folder, images), wanted, progress)
    verdicts = {True: "ok", False: "differs", None: "-"}
    rows = [[finding.check, finding.found, finding.expected, verdicts[finding.good]] for finding in findings]
    print_table(["check", "found", "expected", ""], rows)
    bad = [finding.check for finding in findings if finding.good is False]
    if bad:
        raise EdgeVLMError(
            f"not as published: {', '.join(bad)}", str(folder), "download the files again, or mind it in the scores"
        )


@command.command()
@click.argument("ours", type=click.Path(path_type=Path))
@click.argument("baseline", type=click.Path(path_type=Path))
@click.option("--set", "name", default="", help="Data set, for its own figures and for what counts together.")
@click.option("--scorer", default="", help="Score both by this rule.  [default: as they were scored]")
@click.option("--margin", type=click.FloatRange(0, 100), default=2.0, show_default=True, help="Harmless loss, points.")
@click.option("--gate", metavar="accuracy_drop<=POINTS", help="Fail unless OURS surely loses less than that.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the resampling.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(
    ours: Path, baseline: Path, name: str, scorer: str, margin: float, gate: str | None, seed: int, as_json: bool
) -> None:
    """Compare two finished runs item by item, without asking a model.

    OURS and BASELINE are files of the predictions folders of `edgevlm bench`.
    """
    from edgevlm.bench import format as show
    from edgevlm.bench.accuracy.rescoring import compare_runs, read_predictions
    from edgevlm.bench.gate import drop_of
    from edgevlm.bench.render.accuracy_table import paired_facts
    from edgevlm.bench.render.findings import judgement

    if gate is not None:
        margin = drop_of(gate)
    found = compare_runs(
        read_predictions(ours),
        read_predictions(baseline),
        baseline.stem,
        task=name,
        scorer=scorer,
        margin=margin / 100,
        seed=seed,
    )
    if as_json:
        click.echo(found.paired.model_dump_json(indent=1))
    else:
        rows = [["accuracy", show.percent(found.accuracy.value), show.percent(found.paired.accuracy.value)]]
        rows += [[mine.name, show.figure(mine), show.figure(theirs)] for mine, theirs in found.figures]
        print_table(["figure", "ours", "baseline"], rows, numeric=("ours", "baseline"))
        print_table(["pairs", "value"], paired_facts(found.paired))
        click.echo(judgement(found.paired))
        if found.left_out:
            click.echo(f"{found.left_out} items that only one of the two answered are left out.")
    if gate is not None and found.paired.verdict != "non-inferior":
        what, hint = (
            f"the gate {gate} does not hold: {found.paired.verdict}",
            "ask more items where it is undecided, compress less, or allow a larger drop",
        )
        raise EdgeVLMError(what, str(ours), hint)
