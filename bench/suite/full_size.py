"""The full-size model of the suite: a synthetic fastvlm-0.5b checkpoint, and its export in a child process.

Exports run in a child so that their peak memory is theirs alone; it is sampled over the whole process tree, because
verification runs the exported bundle in a process of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgevlm.bench.memory import TreeWatch
from edgevlm.child import Json, Send, run_child
from edgevlm.pipeline import compile_recipe
from edgevlm.recipe import Recipe

_SILENCE_S = 1800.0


@dataclass(frozen=True)
class Export:
    """An exported bundle, and the seconds and peak bytes of memory that the export took, verification included."""

    bundle: Path
    seconds: float
    peak_rss_bytes: int


#: `onnx` or `gguf`, and a precision, to the export in that format.
Exported: TypeAlias = Callable[[str, str], Export]


def export(recipe: Recipe, out: Path) -> Export:
    """Compile `recipe` into `out` in a child process.

    Raises:
        EdgeVLMError: the export failed.
    """
    watches: list[TreeWatch] = []
    start = time.monotonic()
    with ExitStack() as stack:

        def watch(pid: Json) -> None:
            watches.append(stack.enter_context(TreeWatch(int(pid))))

        arguments = {"recipe": recipe.model_dump(mode="json"), "out": str(out)}
        run_child("edgevlm.bench.suite.full_size:compile_in_child", arguments, timeout=_SILENCE_S, on_message=watch)
    memory = watches[0].memory()
    return Export(out, time.monotonic() - start, memory.peak_rss_bytes if memory is not None else 0)


def compile_in_child(send: Send, recipe: Json, out: str) -> None:
    """Entry point of the child: tell who to watch, then export."""
    send(os.getpid())
    compile_recipe(Recipe.model_validate(recipe), Path(out), force=True, progress=lambda *_: None)
