"""`edgevlm run`: answers stream, errors are three lines, and the crash of an engine is one of them."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgevlm
from edgevlm.bundle import Bundle
from edgevlm.child import run_child
from edgevlm.cli import main
from edgevlm.cli.run import harmless

ENGINES = ["--vision-engine", "onnxruntime", "--threads", "1"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["run", *arguments])
    code = caught.value.code
    assert isinstance(code, int)
    return code


def test_the_answer_is_the_sessions(bundle: Bundle, image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with edgevlm.load(bundle.path, vision_engine="onnxruntime", threads=1) as session:
        expected = session.generate(image, "What?", max_tokens=6)
    question = [str(bundle.path), "--image", str(image), "--prompt", "What?", "--max-tokens", "6", *ENGINES]
    assert run(*question) == 0
    shown, errors = capfd.readouterr()
    assert shown == harmless(expected.text) + "\n"
    assert errors == ""
    assert run(*question, "--json") == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["text"] == expected.text
    assert answer["token_ids"] == list(expected.token_ids)
    assert answer["stats"]["image_tokens"] == 16
    assert answer["stats"]["ttft_ms"] > 0
    assert answer["peak_rss_bytes"] > 1e7


def test_a_question_may_be_about_several_images(bundle: Bundle, image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    twice = ["--image", str(image), "--image", str(image)]
    assert run(str(bundle.path), *twice, "--prompt", "Which?", "--max-tokens", "2", "--json", *ENGINES) == 0
    assert json.loads(capfd.readouterr().out)["stats"]["image_tokens"] == 32


def test_stats_go_to_standard_error(bundle: Bundle, image: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(str(bundle.path), "--image", str(image), "--prompt", "a", "--max-tokens", "3", *ENGINES, "--stats") == 0
    shown, errors = capfd.readouterr()
    assert "time to first token" not in shown
    assert "time to first token" in errors
    assert "onnxruntime" in errors


BAD: list[tuple[list[str], str]] = [
    (["--prompt", " "], "prompt is empty"),
    (["--prompt", "x", "--image", "missing.png"], "No such file"),
    (["--prompt", "x", "--video"], "takes no video"),
    (["--prompt", "x " * 4000], "context"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_three_lines_and_exit_code_2(
    bundle: Bundle, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(str(bundle.path), *ENGINES, *arguments) == 2
    shown, errors = capfd.readouterr()
    assert shown == ""
    assert message in errors
    assert len(errors.splitlines()) <= 3
    assert "Traceback" not in errors


def test_a_folder_that_is_no_bundle(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path), "--prompt", "x") == 2
    assert "not a bundle" in capfd.readouterr().err


def crash(send: Callable[[Any], None], **_: Any) -> None:
    """A child whose engine breaks after the first piece."""
    send("par")
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_crashing_engine_is_three_lines_and_exit_code_1(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def crashing(_target: str, _arguments: dict[str, Any], **options: Any) -> Any:
        path = {"PYTHONPATH": str(Path(__file__).parent)}
        return run_child("test_run:crash", {}, environment=path, **options)

    monkeypatch.setattr("edgevlm.child.run_child", crashing)
    assert run(str(bundle.path), "--prompt", "x") == 1
    shown, errors = capfd.readouterr()
    assert shown == "par"
    assert "SIGSEGV" in errors
    assert "doctor" in errors
    assert len(errors.splitlines()) == 3


def test_a_model_cannot_steer_the_terminal() -> None:
    assert harmless("a\x1b[2J\tb\n\x07数") == "a\\x1b[2J\tb\n\\x07数"
