"""The list of families must agree with the families that load."""

import importlib

from edgevlm.models import FAMILIES
from edgevlm.models.catalog import CATALOG, matching


def test_every_family_is_listed_once_and_can_load() -> None:
    assert [family.name for family in CATALOG] == list(FAMILIES)
    for family in CATALOG:
        assert callable(importlib.import_module(f"edgevlm.models.{family.name}").load)


def test_patterns_match_names_and_checkpoints_without_regard_to_case() -> None:
    assert [family.name for family in matching("FAST*")] == ["fastvlm"]
    assert [family.name for family in matching("apple/fastvlm-7b")] == ["fastvlm"]
    assert matching("bert*") == []
