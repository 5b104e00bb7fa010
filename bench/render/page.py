"""Fills the templates of this folder: sandboxed, everything escaped, nothing from outside.

The one script of a page, which sorts tables, is inline; the page's policy allows that script by its hash and nothing
else, so that neither a slip in escaping nor a link could load or run anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import FunctionLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

#: Width of drawings in CSS pixels, for a wide page and for a phone.
WIDE = 1080.0
NARROW = 358.0


@dataclass(frozen=True)
class Page:
    """What stands in the head of every page and at its end."""

    style: Markup
    script: Markup
    policy: str


def fill(template: str, **values: Any) -> str:
    """The text of a template of this folder with `values` in it, and `page` for what all pages share."""
    environment = ImmutableSandboxedEnvironment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(template).render(page=_page(), **values)


def read(name: str) -> str:
    """A file of this folder."""
    return (files("edgevlm.bench.render") / name).read_text(encoding="utf-8")


def both(draw: Callable[[float], str]) -> tuple[Markup, Markup]:
    """A drawing for a wide page and for a phone; the style sheet shows the one that fits."""
    return Markup(draw(WIDE)), Markup(draw(NARROW))


def _page() -> Page:
    script = read("sort.js.jinja")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    return Page(Markup(read("picture.css.jinja") + read("page.css.jinja")), Markup(script), policy)
