"""Reading a published checkpoint tensor by tensor, as files from a stranger.

In: a folder with weights as safetensors (single or sharded) or `pytorch_model*.bin`, or one such file. Out: names,
shapes and tensors, memory-mapped, so that nothing is read before it is used. Pickles are opened with
`weights_only=True` and mapped; one that carries code is refused.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgevlm.errors import CheckpointError

_HINT = "download the checkpoint again"
_MAX_JSON_BYTES = 64 << 20


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, too large, or not a JSON object.
    """
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError("a JSON file is too large", str(file), _HINT)
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError("a file of the checkpoint is missing", str(file), _HINT) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"a JSON file cannot be read: {error}", str(file), _HINT) from error
    if not isinstance(data, dict):
        raise CheckpointError("a JSON file does not hold an object", str(file), _HINT)
    return data


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint: `shapes` without reading data, `tensor(name)` mapped from its file.

    Attributes:
        folder: where it lies.
        shapes: shape by published tensor name.
        files: the file that holds each tensor.
    """

    folder: Path
    shapes: dict[str, tuple[int, ...]]
    files: dict[str, Path]
    _pickled: dict[str, Tensor]

    def tensor(self, name: str) -> Tensor:
        """The tensor in its stored dtype, memory-mapped.

        Raises:
            CheckpointError: the file can no longer be read.
        """
        if name in self._pickled:
            return self._pickled[name]
        file = self.files[name]
        try:
            with safe_open(file, framework="pt") as reader:
                tensor: Tensor = reader.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"a tensor cannot be read: {error}", f"{file}: {name}", _HINT) from error
        return tensor

    def joined(self, other: Checkpoint) -> Checkpoint:
        """The tensors of both, in the folder of this one.

        Raises:
            CheckpointError: a tensor is in both.
        """
        for name in self.files.keys() & other.files.keys():
            raise CheckpointError(f"tensor {name} is in two files", f"{self.files[name]}, {other.files[name]}", _HINT)
        return Checkpoint(
            self.folder, self.shapes | other.shapes, self.files | other.files, self._pickled | other._pickled
        )

    @property
    def sources(self) -> tuple[Path, ...]:
        """The weight files, each once, sorted."""
        return tuple(sorted(set(self.files.values())))


def open_checkpoint(folder: Path) -> Checkpoint:
    """List the tensors of the weight files in `folder`.

    Raises:
        CheckpointError: no weights, a missing or truncated shard, a tensor listed twice, or a pickle with code.
    """
    for pattern, reader in (("model*.safetensors", _read_safetensors), ("pytorch_model*.bin", _read_pickle)):
        files = _weight_files(folder, pattern)
        if files:
            return _listed(folder, files, reader)
    raise CheckpointError(
        "no weights: neither model*.safetensors nor pytorch_model*.bin", str(folder), "give a checkpoint folder"
    )


def open_file(file: Path) -> Checkpoint:
    """List the tensors of one file: safetensors by its name, else a pickled state dict, perhaps under `model`.

    Raises:
        CheckpointError: it is missing or truncated, or a pickle with code.
    """
    if not file.is_file():
        raise CheckpointError("a file of the checkpoint is missing", str(file), _HINT)
    return _listed(file.parent, [file], _read_safetensors if file.suffix == ".safetensors" else _read_pickle)


def _listed(
    folder: Path, files: list[Path], reader: Callable[[Path], Mapping[str, Tensor | tuple[int, ...]]]
) -> Checkpoint:
    checkpoint = Checkpoint(folder, {}, {}, {})
    for file in files:
        for name, value in reader(file).items():
            if name in checkpoint.files:
                raise CheckpointError(f"tensor {name} is in two files", f"{checkpoint.files[name]}, {file}", _HINT)
            checkpoint.files[name] = file
            if isinstance(value, Tensor):
                checkpoint._pickled[name] = value
            checkpoint.shapes[name] = tuple(value.shape) if isinstance(value, Tensor) else value
    return checkpoint


def _weight_files(folder: Path, pattern: str) -> list[Path]:
    """The files that an index names, or those that match."""
    index = folder / f"{pattern.replace('*', '')}.index.json"
    if not index.is_file():
        return sorted(folder.glob(pattern))
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError("the index has no weight_map", str(index), _HINT)
    names = sorted({str(value) for value in listed.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError("the index names a file outside the folder", f"{index}: {name}", _HINT)
        if not (folder / name).is_file():
            raise CheckpointError("a shard is missing", str(folder / name), _HINT)
    return [folder / name for name in names]


def _read_safetensors(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(file, framework="pt") as reader:
            return {name: tuple(reader.get_slice(name).get_shape()) for name in reader.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"not a complete safetensors file: {error}", str(file), _HINT) from error


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        # Files from before torch 1.6 are not zip archives and cannot be mapped.
        data = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:
        raise CheckpointError(
            "this pickle holds more than tensors, or is damaged; it was not run",
            str(file),
            "convert the checkpoint to safetensors where you trust it",
        ) from error
    if isinstance(data, dict) and isinstance(data.get("model"), dict):
        data = data["model"]  # beside it lie what only training needs: optimizer states, epoch, configuration
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise CheckpointError("this pickle is not a dictionary of tensors", str(file), "give a model's state dict")
    return {str(name): value for name, value in data.items()}
