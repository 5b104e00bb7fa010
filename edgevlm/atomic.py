"""Writing files and folders so that a reader never sees half of one.

Content goes to a temporary sibling in the same folder, is flushed to disk and renamed into place. A process that is
killed at any moment leaves either the old content, or the new, and perhaps a sibling whose name starts with
`.edgevlm-tmp-`, which the next run removes once its writer is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgevlm.errors import InputError

TEMPORARY_PREFIX = ".edgevlm-tmp-"
# From linux/fs.h and linux/fcntl.h.
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_leftovers(parent: Path) -> None:
    """Remove temporary siblings in `parent` whose writing process no longer runs."""
    for path in parent.glob(TEMPORARY_PREFIX + "*"):
        pid = path.name[len(TEMPORARY_PREFIX) :].split("-", 1)[0]
        if pid.isdigit() and not _alive(int(pid)):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _prepare(target: Path) -> Path:
    parent = target.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(parent)
    except OSError as error:
        raise InputError(
            f"cannot write here: {error.strerror}", str(parent), "choose a folder that you may write to"
        ) from error
    return parent


def _of_writing(error: OSError, temporary: Path | None) -> bool:
    """Whether the error is one of writing; the body of a `with` may also fail to read something else."""
    if temporary is None or error.errno in _FULL_OR_BROKEN:
        return True
    # numpy's tofile gives no number, only "131072 requested and 85072 written".
    without_number = error.errno is None and str(error).endswith(" written")
    return without_number or str(error.filename or "").startswith(str(temporary))


def _write_error(error: OSError, target: Path) -> InputError:
    return InputError(
        f"cannot write: {error.strerror or error}", str(target), "free some space or choose another place"
    )


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is flushed and renamed to `target`.

    Raises:
        InputError: the folder cannot be written to, or the disk is full. Nothing is left behind.
    """
    parent = _prepare(target)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY_PREFIX}{os.getpid()}-", dir=parent)
        temporary = Path(name)
        os.close(handle)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        yield temporary
        _fsync(temporary)
        temporary.replace(target)
        _fsync(parent)
    except OSError as error:
        if not _of_writing(error, temporary):
            raise
        raise _write_error(error, target) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write `text` (UTF-8) to `target` atomically."""
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` atomically."""
    with atomic_file(target) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def atomic_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success every file is flushed and the folder renamed.

    Args:
        target: where the finished folder goes. An empty folder there is replaced.
        replace: allow a non-empty folder at `target` to be replaced (it stays until the new one is complete).

    Raises:
        InputError: `target` exists and may not be replaced, cannot be written to, or the disk is full.
    """
    occupied = target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir())))
    if occupied and not replace:
        raise InputError("the output already exists", str(target), "use --force to replace it, or choose another place")
    parent = _prepare(target)
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{os.getpid()}-", dir=parent))
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if not path.is_symlink():
                _fsync(path)
        _fsync(temporary)
        if occupied:
            _exchange(temporary, target)
        else:
            temporary.replace(target)
        _fsync(parent)
    except OSError as error:
        if not _of_writing(error, temporary):
            raise
        raise _write_error(error, target) from error
    finally:
        if temporary is not None:
            _remove(temporary)


def _exchange(new: Path, old: Path) -> None:
    """Swap two paths of one folder in one step (renameat2(2)), so that `old` is never absent.

    Where the file system cannot, in two renames: a kill between them leaves `old` under a temporary name.
    """
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 and renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return
    aside = Path(tempfile.mkdtemp(prefix=new.name, dir=new.parent)) / "old"
    old.replace(aside)
    new.replace(old)
    aside.replace(new)
    aside.parent.rmdir()
