"""The page on accuracy names every data set, scorer and template as they are."""

from pathlib import Path

from edgevlm.bench.accuracy.reading import MAX_TEXT
from edgevlm.bench.accuracy.scorers import SCORERS
from edgevlm.bench.accuracy.sets import SETS
from edgevlm.bench.opened import FIRST_TOKENS
from edgevlm.zoo.digit_pages import page_order

PAGE = (Path(__file__).parent.parent.parent.parent / "docs" / "accuracy.md").read_text(encoding="utf-8")


def test_every_data_set_is_listed_with_its_files_scorers_and_templates() -> None:
    for known in SETS.values():
        scorers = ", ".join(f"`{name}`" for name in known.scorers) or "none, a judge scores"
        cells = (f"`{known.name}`", known.title, "; ".join(known.files), ", ".join(known.splits), scorers)
        assert f"| {' | '.join(cells)} | {', '.join(known.templates)} |" in PAGE


def test_every_rule_stands_as_it_is() -> None:
    for scorer in SCORERS.values():
        assert f"| `{scorer.id}` | {scorer.rule} |" in PAGE
    assert {name for known in SETS.values() for name in known.scorers} == set(SCORERS)


def test_numbers_of_the_page_are_those_of_the_code() -> None:
    sizes = [len(page_order(split, 0)) for split in ("all", "test", "held-out", "calibration")]
    assert sizes == [1797, 359, 539, 180]
    assert all(str(size) in PAGE for size in sizes)
    assert f"{MAX_TEXT:,} characters" in PAGE
    assert f"the {FIRST_TOKENS}\nlikeliest" in PAGE
