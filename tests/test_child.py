"""Whatever happens in a child process, the caller gets a result or one error that says what happened."""

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgevlm.child import ChildError, ChildResult, run_child
from edgevlm.errors import InputError

HERE = {"PYTHONPATH": str(Path(__file__).parent)}


def run(name: str, timeout: float = 60, **arguments: Any) -> ChildResult:
    return run_child(f"child_targets:{name}", arguments, timeout=timeout, environment=HERE)


def failure(name: str, timeout: float = 60) -> ChildError:
    with pytest.raises(ChildError) as caught:
        run(name, timeout)
    return caught.value


def gone(pid: int) -> bool:
    try:
        psutil.Process(pid).wait(20)
    except psutil.NoSuchProcess:
        return True
    return not psutil.pid_exists(pid)


def test_result_and_messages_arrive_whatever_the_child_prints() -> None:
    messages: list[Any] = []
    result = run_child("child_targets:add", {"a": 2, "b": 3}, timeout=60, on_message=messages.append, environment=HERE)
    assert result.value == 5
    assert messages == [{"share": 0.5}]


def test_segmentation_fault_is_named() -> None:
    error = failure("segfault")
    assert (error.kind, error.signal_name) == ("crashed", "SIGSEGV")
    assert "SIGSEGV" in error.what


def test_kill_is_explained_as_want_of_memory() -> None:
    error = failure("kill_itself")
    assert error.signal_name == "SIGKILL"
    assert "memory" in error.what


def test_early_exit_tells_code_and_last_words() -> None:
    error = failure("leave")
    assert error.kind == "failed"
    assert "exit code 3" in error.what
    assert error.hint == "the reason"


def test_silent_child_is_stopped() -> None:
    pids: list[int] = []
    with pytest.raises(ChildError) as caught:
        run_child("child_targets:hang", {}, timeout=1, on_message=pids.append, environment=HERE)
    assert caught.value.kind == "hung"
    assert gone(pids[0])


def test_grandchildren_of_a_stopped_child_do_not_live_on() -> None:
    pids: list[int] = []
    with pytest.raises(ChildError):
        run_child("child_targets:hang_with_grandchild", {}, timeout=1, on_message=pids.append, environment=HERE)
    assert gone(pids[0])


def test_interrupted_caller_leaves_no_child() -> None:
    pids: list[int] = []

    def interrupt(pid: int) -> None:
        pids.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child("child_targets:hang", {}, timeout=60, on_message=interrupt, environment=HERE)
    assert gone(pids[0])


def test_child_dies_with_a_killed_parent() -> None:
    pids: list[int] = []

    def kill_parent(pid: int) -> None:
        pids.append(pid)
        psutil.Process(pid).parent().kill()  # type: ignore[union-attr]

    with pytest.raises(ChildError):
        run_child("child_targets:parent_of_hanging", {}, timeout=60, on_message=kill_parent, environment=HERE)
    assert gone(pids[0])


def test_our_errors_keep_class_and_parts() -> None:
    with pytest.raises(InputError) as caught:
        run("refuse")
    assert (caught.value.what, caught.value.where, caught.value.hint) == ("bad thing", "the place", "do better")


def test_other_exceptions_are_one_line_with_the_traceback_kept() -> None:
    error = failure("fail")
    assert error.what == "ValueError: unexpected"
    assert "Traceback" in error.output


def test_answer_counts_even_if_the_child_crashes_on_its_way_out() -> None:
    assert run("crash_after_answer").value == "answer"


def test_answer_that_is_not_json_is_an_error() -> None:
    assert "TypeError" in failure("unserializable").what


def test_unknown_function_is_an_error() -> None:
    assert "AttributeError" in failure("no_such_function").what


def test_peak_memory_is_the_childs_own() -> None:
    ballast = bytearray(os.urandom(1) * (300 << 20))
    peak = run("add", a=1, b=1).peak_rss_bytes
    assert len(ballast) > peak > 1 << 20
