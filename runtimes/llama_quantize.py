"""Quantize a GGUF with llama.cpp, in a child process, because llama.cpp aborts the process on what it does not expect.

In: a GGUF in F32 or F16, the type, and perhaps how important the input channels of its matrices are. Out: a GGUF of
that type, rounded by llama.cpp's own code.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.child import Json, Send, run_child
from edgevlm.errors import EngineError, InputError
from edgevlm.heap import release_file
from edgevlm.runtimes.base import Float32

_SILENCE_LIMIT_S = 1800.0
_DISK_FULL = 16 << 20
#: Of a matrix's mean importance. llama.cpp makes zeros of blocks without any, and an input that is silent in
#: calibration need not stay silent.
_LEAST_IMPORTANCE = 1e-9
_PROGRESS = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


@dataclass(frozen=True)
class QuantizeChoice:
    """Parameters of `llama_model_quantize`.

    Attributes:
        ftype: `llama_ftype`.
        embedding_type: `ggml_type` of the token embedding, which is also the head where the two are tied.
    """

    ftype: int
    embedding_type: int | None


def quantize_gguf(
    source: Path,
    target: Path,
    choice: QuantizeChoice,
    *,
    importance: Mapping[str, Float32] | None = None,
    threads: int,
    progress: Callable[[float, float], None],
) -> None:
    """Quantize `source` into `target`; `progress(done, total)` counts tensors.

    Args:
        source, target: files.
        choice: the type.
        importance: by names of matrices, the mean square of each input channel `[K]`.
        threads: of llama.cpp.
        progress: called as tensors are done.

    Raises:
        EngineError: llama.cpp refused, crashed or hung.
        InputError: the disk is full.
    """

    def on_message(message: Json) -> None:
        progress(message[0], message[1])

    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "source": str(source),
            "target": str(target),
            "ftype": choice.ftype,
            "embedding_type": choice.embedding_type,
            "importance": None if importance is None else _saved(importance, Path(folder)),
            "threads": threads,
        }
        function = "edgevlm.runtimes.llama_quantize:quantize_in_child"
        try:
            run_child(function, arguments, timeout=_SILENCE_LIMIT_S, on_message=on_message)
        except EngineError as error:
            # llama.cpp only says that its stream failed.
            if shutil.disk_usage(target.parent).free < _DISK_FULL:
                raise InputError("the disk is full", str(target), "free some space") from error
            raise


def _saved(importance: Mapping[str, Float32], folder: Path) -> str:
    path = folder / "importance.npz"
    np.savez(path, allow_pickle=False, **importance)
    return str(path)


def quantize_in_child(
    send: Send,
    source: str,
    target: str,
    ftype: int,
    embedding_type: int | None,
    importance: str | None,
    threads: int,
) -> None:
    """The child's side of `quantize_gguf`.

    llama.cpp maps the source; tensors that are done would stay resident to the end, all 16 GB of a model of 8B.
    """
    import llama_cpp

    lines: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
    def log(_level: int, text: bytes, _user: ctypes.c_void_p) -> None:
        line = text.decode("utf-8", "replace")
        lines.append(line)
        del lines[:-20]
        if match := _PROGRESS.match(line):
            release_file(Path(source).resolve())
            send([int(match[1]), int(match[2])])

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = ftype
    parameters.nthread = threads
    if embedding_type is not None:
        parameters.token_embedding_type = embedding_type
        parameters.output_tensor_type = embedding_type
    rows = _loaded(importance) if importance is not None else {}
    if rows:
        parameters.imatrix = _as_imatrix(llama_cpp, rows)
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)) != 0:
        reason = " ".join("".join(lines).split())[-300:]
        raise EngineError(f"llama.cpp could not quantize: {reason}", target)


def _loaded(path: str) -> dict[str, Float32]:
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    return {name: np.maximum(row, _LEAST_IMPORTANCE * row.mean()) for name, row in found.items() if row.any()}


def _as_imatrix(llama_cpp: Any, rows: Mapping[str, Float32]) -> Any:
    """`llama_model_imatrix_data[]`, ended by a name that is NULL; it points into `rows`."""
    entries = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))()
    for entry, (name, row) in zip(entries, rows.items(), strict=False):
        entry.name, entry.size = name.encode(), row.size
        entry.data = row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries
