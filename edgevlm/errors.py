"""The one error tree of EdgeVLM.

Every failure that a user can act on is an `EdgeVLMError` with three one-line parts: what went wrong, where, and what
to do. The command line prints exactly these lines and leaves with `exit_code`; anything else is a bug in EdgeVLM.
"""

from __future__ import annotations


class EdgeVLMError(Exception):
    """A failure that the user can act on.

    Args:
        what: what went wrong, one line.
        where: the file, tensor, field or flag concerned, one line; may be empty.
        hint: what to do about it, one line; where it is empty, what the kind of error usually asks for.
    """

    exit_code = 1
    usual_hint = ""

    def __init__(self, what: str, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint or self.usual_hint

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.where, self.hint) if part)


class InputError(EdgeVLMError):
    """Bad input: a file, flag, recipe, image or prompt that cannot be used as given. Exit code 2."""

    exit_code = 2


class CheckpointError(InputError):
    """A checkpoint whose files, tensors or configuration cannot be used."""

    usual_hint = "give the files as they were published"


class BundleError(InputError):
    """A bundle that is incomplete, altered, unsafe or of an unknown schema."""


class UnsupportedError(InputError):
    """A combination (model, format, precision, target) that cannot work; refused before any work starts."""

    usual_hint = "see docs/export.md"


class ParityError(EdgeVLMError):
    """An exported model that does not answer like the original within the recipe's thresholds."""


class EngineError(EdgeVLMError):
    """A runtime that failed, crashed or returned something of the wrong size."""

    usual_hint = "export the bundle again, or try another engine"
