"""EdgeVLM compiles small vision-language models for devices. The public API, imported only when it is used.

import edgevlm

with edgevlm.load("out/onnx") as session:
    print(session.generate("photo.jpg", "What number is written?"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevlm._version import __version__

if TYPE_CHECKING:
    from edgevlm.answer import Answer, AnswerStats, GenerationOptions
    from edgevlm.bundle import Bundle, open_bundle
    from edgevlm.errors import EdgeVLMError
    from edgevlm.session import Chat, Session, load
    from edgevlm.stream import Stream

__all__ = [
    "Answer",
    "AnswerStats",
    "Bundle",
    "Chat",
    "EdgeVLMError",
    "GenerationOptions",
    "Session",
    "Stream",
    "__version__",
    "load",
    "open_bundle",
]

_MODULES = {
    "answer": ("Answer", "AnswerStats", "GenerationOptions"),
    "bundle": ("Bundle", "open_bundle"),
    "errors": ("EdgeVLMError",),
    "session": ("Chat", "Session", "load"),
    "stream": ("Stream",),
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for, so that `import edgevlm` costs nothing."""
    import importlib

    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"edgevlm.{module}"), name)
    raise AttributeError(f"module 'edgevlm' has no attribute {name!r}")
