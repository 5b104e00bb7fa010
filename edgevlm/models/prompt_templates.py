"""Choosing one of the prompt templates that a family offers by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgevlm.errors import InputError
from edgevlm.spec import PromptSpec


def with_template(prompt: PromptSpec, templates: Mapping[str, PromptSpec], name: str, where: str) -> PromptSpec:
    """`prompt` with the wording of the template `name`; ids, stops and limits stay.

    Raises:
        InputError: there is no template of that name.
    """
    template = templates.get(name)
    if template is None:
        known = f"known: {', '.join(templates)}" if templates else "this family has one template and no names"
        raise InputError(f"unknown prompt template {name!r:.60}", where, known)
    return replace(
        prompt,
        chat_template=template.chat_template,
        image_marker=template.image_marker,
        image_text=template.image_text,
        after_images=template.after_images,
    )
