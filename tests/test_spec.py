"""A spec survives the manifest unchanged, and a foreign one is refused with the place of its fault."""

import copy
import json
from typing import Any

import pytest
from specs import TINY

from edgevlm.errors import InputError
from edgevlm.spec import FastViTHDSpec, ModelSpec


def test_round_trip_through_json() -> None:
    assert ModelSpec.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY


def test_defaults_fill_absent_fields() -> None:
    data = json.loads(json.dumps(TINY.to_dict()))
    del data["notes"], data["licence"], data["preprocess"]["fit"]
    restored = ModelSpec.from_dict(data)
    assert (restored.notes, restored.licence, restored.preprocess.fit) == ((), "unknown", "pad")


def _changed(path: str, value: Any) -> dict[str, Any]:
    data: dict[str, Any] = copy.deepcopy(json.loads(json.dumps(TINY.to_dict())))
    target = data
    *parents, last = path.split(".")
    for part in parents:
        target = target[part]
    target[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("decoder.hidden_size", "32"),
        ("decoder.hidden_size", 32.5),
        ("decoder.hidden_size", True),
        ("decoder.hidden_size", None),
        ("decoder.norm", "batch"),
        ("decoder.qkv_bias", 1),
        ("decoder.unheard_of", 1),
        ("decoder", []),
        ("vision.encoder.dims", [12, "24"]),
        ("vision.encoder.dims", {"0": 12}),
        ("preprocess.mean", [0.0, 0.0]),
        ("prompt.stop_token_ids", [[1]]),
        ("prompt.bos_token_id", "1"),
    ],
)
def test_ill_fitting_value_is_refused_with_its_place(path: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        ModelSpec.from_dict(_changed(path, value))
    place = path if path.split(".")[-1] != "unheard_of" else "decoder: unknown unheard_of"
    assert f"spec.{place}" in caught.value.what


def test_missing_field_is_named() -> None:
    data = _changed("name", "x")
    del data["decoder"]["vocab_size"]
    with pytest.raises(InputError, match=r"spec\.decoder: missing vocab_size"):
        ModelSpec.from_dict(data)


def test_derived_sizes_are_the_published_ones() -> None:
    """FastViTHD (arXiv 2412.13303): 3072 channels out, one token per 64 pixels."""
    assert (FastViTHDSpec().output_size, FastViTHDSpec().stride) == (3072, 64)
    assert (TINY.decoder.query_size, TINY.decoder.key_value_size) == (32, 16)
