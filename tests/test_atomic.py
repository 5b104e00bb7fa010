"""A reader never sees half of a file or folder, whatever kills the writer."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgevlm import atomic
from edgevlm.atomic import TEMPORARY_PREFIX, atomic_file, atomic_folder, write_bytes, write_text
from edgevlm.errors import InputError


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _leave_folder(target: Path, content: str) -> None:
    with atomic_folder(target, replace=True) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text(content)


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"
    assert _names(tmp_path) == ["a"]


def test_failed_file_leaves_the_old_content(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_bytes() == b"old"
    assert _names(tmp_path) == ["a"]


def test_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("half")
        raise ZeroDivisionError
    assert _names(tmp_path) == []


def test_failed_replacement_keeps_the_old_folder(tmp_path: Path) -> None:
    _leave_folder(tmp_path / "out", "old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out", replace=True):
        raise ZeroDivisionError
    assert (tmp_path / "out" / "inner" / "a.txt").read_text() == "old"
    assert _names(tmp_path) == ["out"]


def test_occupied_folder_is_refused_before_work(tmp_path: Path) -> None:
    _leave_folder(tmp_path / "out", "old")
    with pytest.raises(InputError, match="already exists"), atomic_folder(tmp_path / "out"):
        pytest.fail("the body ran")
    _leave_folder(tmp_path / "out", "new")
    assert (tmp_path / "out" / "inner" / "a.txt").read_text() == "new"
    assert _names(tmp_path) == ["out"]


def test_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """With --force at a link, what the link led to stays untouched."""
    _leave_folder(tmp_path / "precious", "keep")
    (tmp_path / "out").symlink_to(tmp_path / "precious")
    _leave_folder(tmp_path / "out", "new")
    assert (tmp_path / "precious" / "inner" / "a.txt").read_text() == "keep"
    assert not (tmp_path / "out").is_symlink()


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
    assert _names(tmp_path) == ["out"]


def test_file_at_the_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError), atomic_folder(tmp_path / "out"):
        pytest.fail("the body ran")


def test_unwritable_place_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "out", Path("/proc/edgevlm/out")):
        with pytest.raises(InputError) as caught, atomic_folder(target):
            pytest.fail("the body ran")
        assert caught.value.exit_code == 2
        with pytest.raises(InputError), atomic_file(target):
            pytest.fail("the body ran")


@pytest.mark.parametrize(
    "write",
    [
        "(folder / 'a').write_bytes(bytes(100_000))",
        "import numpy; numpy.zeros(100_000, 'u1').tofile(folder / 'a')",
    ],
    ids=["python", "numpy"],
)
def test_full_disk_is_an_input_error_and_leaves_nothing(tmp_path: Path, write: str) -> None:
    """RLIMIT_FSIZE stands in for a full disk: the write fails in the middle of the file."""
    script = (
        "import resource, signal, sys; from pathlib import Path; from edgevlm.atomic import atomic_folder\n"
        "from edgevlm.errors import InputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    with atomic_folder(Path(sys.argv[1])) as folder: exec(sys.argv[2])\n"
        "except InputError as error: print(error.exit_code)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "out", write], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "2"
    assert _names(tmp_path) == []


def test_no_space_at_the_flush_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems report a full disk only when data are flushed."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _leave_folder(tmp_path / "out", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        _leave_folder(tmp_path / "out", "new")
    assert (tmp_path / "out" / "inner" / "a.txt").read_text() == "old"
    assert _names(tmp_path) == ["out"]


def test_error_of_reading_is_not_reported_as_one_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "out"):
        (tmp_path / "absent").read_bytes()
    assert _names(tmp_path) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from edgevlm import atomic

point, target = sys.argv[1], Path(sys.argv[2])
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if point == "flush":
    atomic._fsync = die
elif point == "rename":
    Path.replace = atomic._exchange = die
elif point == "renamed":
    atomic._remove = die
with atomic.atomic_folder(target, replace=True) as folder:
    if point == "start":
        die()
    (folder / "a").write_text("new" * 1000)
    if point == "middle":
        die()
    (folder / "b").write_text("new")
if point == "after":
    die()
"""


@pytest.mark.parametrize("occupied", [False, True], ids=["fresh", "replacing"])
@pytest.mark.parametrize("point", ["start", "middle", "flush", "rename", "renamed", "after"])
def test_killed_writer_leaves_old_or_new(tmp_path: Path, point: str, occupied: bool) -> None:
    """SIGKILL at any moment: the target is as before or the new folder; the next run succeeds and tidies."""
    target = tmp_path / "out"
    if occupied:
        target.mkdir()
        (target / "a").write_text("old")
        (target / "b").write_text("old")
    run = subprocess.run([sys.executable, "-c", _KILLED, point, target], check=False)
    assert run.returncode == -signal.SIGKILL
    done = point in ("renamed", "after")
    assert target.exists() == (done or occupied)
    if target.exists():
        contents = {(target / "a").read_text(), (target / "b").read_text()}
        assert contents == ({"new" * 1000, "new"} if done else {"old"})
    _leave_folder(target, "next")
    assert _names(tmp_path) == ["out"]
    assert (target / "inner" / "a.txt").read_text() == "next"


def test_replacement_works_where_paths_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _leave_folder(tmp_path / "out", "old")
    monkeypatch.setattr(sys, "platform", "other")
    _leave_folder(tmp_path / "out", "new")
    assert (tmp_path / "out" / "inner" / "a.txt").read_text() == "new"
    assert _names(tmp_path) == ["out"]


def test_leftovers_of_a_living_writer_stay(tmp_path: Path) -> None:
    mine = tmp_path / f"{TEMPORARY_PREFIX}{os.getpid()}-x"
    mine.mkdir()
    other = tmp_path / f"{TEMPORARY_PREFIX}not-a-number"
    other.mkdir()
    atomic.remove_leftovers(tmp_path)
    assert _names(tmp_path) == sorted([mine.name, other.name])
