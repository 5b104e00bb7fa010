"""The frame of the command line: quick start, three-line errors, exit codes."""

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest

import edgevlm.cli
from edgevlm._version import __version__
from edgevlm.cli import VERBS, main
from edgevlm.errors import EngineError, InputError

_HEAVY = (
    "numpy",
    "PIL",
    "pydantic",
    "rich",
    "tokenizers",
    "jinja2",
    "torch",
    "transformers",
    "onnxruntime",
    "llama_cpp",
)


def _run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A verb `probe` whose `action` a test may set."""
    module = types.ModuleType("edgevlm.cli.probe")
    module.__dict__["action"] = lambda: None
    module.__dict__["command"] = click.Command("probe", callback=lambda: module.__dict__["action"]())
    monkeypatch.setitem(sys.modules, "edgevlm.cli.probe", module)
    monkeypatch.setitem(VERBS, "probe", "Only for tests.")
    return module


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_start_imports_no_heavy_module(argument: str) -> None:
    script = (
        "import sys, json, edgevlm.cli\n"
        "try: edgevlm.cli.main([sys.argv[1]])\n"
        "except SystemExit as end: code = end.code\n"
        "print(json.dumps([code, sorted(sys.modules)]))"
    )
    run = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True, check=True)
    code, loaded = json.loads(run.stdout.splitlines()[-1])
    assert code == 0
    assert "click" in loaded
    assert not set(_HEAVY).intersection(loaded)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--version") == 0
    assert capsys.readouterr().out == f"edgevlm {__version__}\n"


def test_group_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--help") == 0
    out = capsys.readouterr().out
    assert all(verb in out and sentence in out for verb, sentence in VERBS.items())


@pytest.mark.parametrize("name", list(VERBS))
def test_every_verb_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(name, "--help") == 0
    assert f"Usage: edgevlm {name}" in capsys.readouterr().out


def test_every_verb_module_is_in_the_table() -> None:
    folder = Path(edgevlm.cli.__file__).parent
    modules = {
        path.stem
        for path in folder.glob("*.py")
        if re.search(r"^@click\.(command|group)|^def command", path.read_text(encoding="utf-8"), re.M)
    }
    assert modules - {"__init__"} == set(VERBS)


def test_error_is_three_lines(verb: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.__dict__["action"] = lambda: _raise(InputError("it is\nbroken", "a\x1b[31mfile", "mend it"))
    assert _run("probe") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: it is broken\nwhere: a\\x1b[31mfile\nhint: mend it\n"


def test_long_names_are_cut(verb: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.__dict__["action"] = lambda: _raise(InputError("it is broken", "x" * 5000 + "end"))
    assert _run("probe") == 2
    (where,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("where"))
    assert len(where) < 600
    assert where.endswith("end")


def test_engine_failure_is_exit_code_1(verb: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.__dict__["action"] = lambda: _raise(EngineError("the engine stopped", "decoder", "run edgevlm doctor"))
    assert _run("probe") == 1
    assert capsys.readouterr().err.startswith("error: the engine stopped\n")


def test_debug_shows_the_traceback(verb: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.__dict__["action"] = lambda: _raise(InputError("it is broken"))
    assert _run("--debug", "probe") == 2
    assert "Traceback" in capsys.readouterr().err


def test_fault_of_ours_is_no_traceback(verb: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.__dict__["action"] = lambda: _raise(ZeroDivisionError("by zero"))
    assert _run("probe") == 1
    err = capsys.readouterr().err
    assert "a fault in edgevlm: ZeroDivisionError: by zero" in err
    assert "test_cli.py" in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 3


def test_full_disk_is_bad_input(verb: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.__dict__["action"] = lambda: _raise(OSError(28, "No space left on device", "/somewhere"))
    assert _run("probe") == 2
    assert capsys.readouterr().err == "error: No space left on device\nwhere: /somewhere\nhint: free some space\n"


def test_missing_package_names_it(verb: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.__dict__["action"] = lambda: _raise(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert _run("probe") == 1
    assert "torch is not installed" in capsys.readouterr().err


def test_interruption_is_130(verb: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.__dict__["action"] = lambda: _raise(KeyboardInterrupt())
    assert _run("probe") == 130
    assert capsys.readouterr().err.strip() == "interrupted"


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("--nonsense",), ("export", "--nonsense"), ("zoo", "synth"), ("zoo", "nonsense")]
)
def test_wrong_usage_is_three_lines_and_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "where", "hint"]


def test_no_verb_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run() == 2
    assert "Usage: edgevlm" in capsys.readouterr().err


def test_reader_that_leaves_is_no_traceback() -> None:
    """`edgevlm ... | head`: the rest of the output has nowhere to go, and that is no error."""
    script = "import sys, types, click\nfrom edgevlm.cli import VERBS, main\n"
    script += "probe = types.ModuleType('edgevlm.cli.probe'); VERBS['probe'] = ''\n"
    script += "probe.command = click.Command('probe', callback=lambda: [click.echo('x' * 1000) for _ in range(1000)])\n"
    script += "sys.modules['edgevlm.cli.probe'] = probe; main(['probe'])"
    run = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | head -c 10; exit ${PIPESTATUS[0]}', sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stderr == ""
    assert run.returncode == 1
