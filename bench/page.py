"""Fills the templates of this folder: sandboxed, everything escaped, nothing from outside."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import FunctionLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment


def fill(template: str, **values: Any) -> str:
    """The text of a template of this folder with `values` in it."""
    environment = ImmutableSandboxedEnvironment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(template).render(**values)


def read(name: str) -> str:
    """A file of this folder."""
    return (files("edgevlm.bench") / name).read_text(encoding="utf-8")
