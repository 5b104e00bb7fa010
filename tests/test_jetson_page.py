"""What docs/jetson.md says can be typed: verbs and flags exist, versions are the profiles', names are the package's."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest

from edgevlm._version import __version__
from edgevlm.cli import VERBS
from edgevlm.targets.catalog import load_target, target_names

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")


def _commands() -> list[str]:
    """Every `edgevlm ...` of the page: indented lines, and what is quoted as a whole command."""
    lines = [line.strip() for line in PAGE.splitlines() if line.startswith("    edgevlm ")]
    return lines + [text for text in re.findall(r"`(edgevlm [^`]+)`", PAGE) if len(text.split()) > 2]


def _parse(line: str) -> None:
    """Parse a command line as the command would, without running it."""
    words = shlex.split(line.partition("  #")[0])[1:]
    command = import_module(f"edgevlm.cli.{words[0]}").command
    context = click.Context(command, info_name=words[0])
    while isinstance(command, click.Group):
        words = words[1:]
        command = command.get_command(context, words[0])
        assert command is not None, line
    command.make_context(words[0], words[1:])


def test_the_page_has_commands() -> None:
    assert {line.split()[1] for line in _commands()} >= {
        "estimate",
        "export",
        "lint",
        "build",
        "run",
        "bench",
        "doctor",
    }
    assert {line.split()[1] for line in _commands()} <= set(VERBS)


@pytest.mark.parametrize("line", _commands())
def test_a_command_of_the_page_parses(line: str) -> None:
    _parse(line)


def test_a_flag_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        _parse("edgevlm build BUNDLE --target rtx-4060 --fast")


def test_targets_of_the_page_exist() -> None:
    named = set(re.findall(r"--target ([a-z][\w.-]+)", PAGE)) | set(re.findall(r"targets show ([a-z][\w.-]+)", PAGE))
    assert named
    assert named <= set(target_names())


def test_jetpacks_of_the_page_are_those_of_the_profiles() -> None:
    """Each row of the table says of its JetPacks what every profile says that has them."""
    lines = [line for line in PAGE.splitlines() if re.match(r"\| \d", line)]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    table = {jetpack: row for row in rows for jetpack in row[0].split(", ")}
    profiles = [load_target(name) for name in target_names() if load_target(name).kind == "jetson"]
    assert {release.jetpack for profile in profiles for release in profile.software} == set(table)
    for profile in profiles:
        for release in profile.software:
            assert release.jetpack is not None
            assert release.l4t is not None
            _, l4t, _, cuda, tensorrt, boards = table[release.jetpack]
            assert release.l4t.rpartition(".")[0] in l4t.split(", ")
            assert release.cuda == cuda
            assert ".".join(release.tensorrt.split(".")[:2]) == tensorrt
            assert ("Thor" if "thor" in profile.name else "Orin") in boards


def test_power_modes_of_the_page_are_those_of_the_profile() -> None:
    modes = {(str(mode.id), mode.name) for mode in load_target("jetson-orin-nano-super").power_modes}
    line = next(line for line in PAGE.splitlines() if "nvpmodel -m" in line)
    assert set(re.findall(r"(\d) is (\w+)", line)) == modes
    assert re.search(r"nvpmodel -m (\d)", line)


def test_the_wheel_has_the_name_that_the_page_gives() -> None:
    """The version, and tags for any Python 3 on any machine: nothing is compiled (test_wheel builds it)."""
    assert set(re.findall(r"edgevlm-[\w.]+-[\w-]+\.whl", PAGE)) == {f"edgevlm-{__version__}-py3-none-any.whl"}
    assert not [path for path in (ROOT / "edgevlm").rglob("*") if path.suffix in (".pyx", ".so", ".pyd")]


def test_messages_of_the_page_are_those_of_the_program() -> None:
    """The fixed parts of each quoted message stand somewhere in the code."""
    quoted = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
    assert len(quoted) >= 7
    code = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "runtimes").rglob("*.py"))
    code += (ROOT / "edgevlm" / "child.py").read_text(encoding="utf-8")
    for message in quoted:
        for part in re.split(r" ?\.\.\. ?;?|\d+\.\d+,?|tensorrt ", message):
            words = part.strip()
            assert words in code or not words, (message, words)


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([\w./-]+)", PAGE):
        assert (ROOT / "docs" / target).is_file(), target


def test_errors_point_to_the_page() -> None:
    """Hints of the errors that a Jetson's user meets name the page, under the name that it has."""
    assert (ROOT / "docs" / "jetson.md").is_file()
    hints = [path for path in (ROOT / "runtimes").rglob("*.py") if "docs/jetson.md" in path.read_text(encoding="utf-8")]
    assert len(hints) >= 3
