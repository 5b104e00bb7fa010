"""`edgevlm models` lists every family and checkpoint, readable in a terminal of 80 columns."""

from click.testing import CliRunner

from edgevlm.cli.models import command
from edgevlm.models.catalog import CATALOG


def test_every_checkpoint_is_listed_whole_within_80_columns() -> None:
    result = CliRunner().invoke(command)
    assert result.exit_code == 0
    assert max(len(line) for line in result.output.splitlines()) <= 80
    words = result.output.split()
    for family in CATALOG:
        assert family.name in words
        assert set(family.checkpoints) <= set(words)


def test_a_pattern_narrows_the_list() -> None:
    output = CliRunner().invoke(command, ["fast*"]).output
    assert "fastvlm" in output
    listed = {line.split()[0] for line in output.splitlines() if line.strip()}
    assert not [family.name for family in CATALOG if family.name != "fastvlm" and family.name in listed]
