"""What an exporter is given and what it returns.

An exporter writes the files of one format into a folder that the pipeline owns (and makes atomic); it never verifies,
renames or prints. `progress(done, total, what)` is called as work goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Role = Literal[
    "vision",
    "text",
    "text_tokenizer",
    "fusion",
    "embed",
    "decoder",
    "image_newline",
    "mmproj",
    "tokenizer",
    "config",
]
Progress: TypeAlias = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Artifact:
    """One file of a bundle.

    Attributes:
        path: relative to the bundle, forward slashes.
        role: what it is for.
        format: `onnx`, `onnx-data`, `gguf`, `json`, ...
        precision: as the user asked for it, or a GGUF type; empty for configuration.
        bits_per_weight: counted from the file's weight payload over its parameters; 0 where there are none.
        parameters: weights held, counted once even where two graphs share them.
    """

    path: str
    role: Role
    format: str
    precision: str = ""
    bits_per_weight: float = 0.0
    parameters: int = 0
