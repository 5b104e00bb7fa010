"""Checkpoints become `VlmModel`s here: one file a family, one decoder for all.

`load(path)` finds the family by `config.json` and fills a `VlmModel`. Families differ in how they fill it, never in how
it is consumed.
"""

from edgevlm.models.vlm import VlmModel

__all__ = ["VlmModel"]
