"""The pass `quantize`: its codes are in the files, AWQ's factors are folded, and what cannot be is refused."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny import tiny_model, tiny_with_tokenizer

from edgevlm.bundle import Bundle, open_bundle
from edgevlm.calibration.sources import open_calibration
from edgevlm.errors import CheckpointError, InputError, UnsupportedError
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import PassContext
from edgevlm.pipeline import compile_recipe
from edgevlm.pipeline.passes import parse_passes, plan_passes
from edgevlm.quant.quantize import Quantize, QuantizeConfig
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme
from edgevlm.recipe import CalibrationData, PassEntry, Recipe


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Statistics of other runs may be of another number of threads, which changes their last bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def recipe(scheme: str, model: str = "zoo:nano-fastvlm", precision: str = "int4", **fields: Any) -> Recipe:
    entry = PassEntry.model_validate({"name": "quantize", "scheme": scheme, **fields.pop("options", {})})
    data = CalibrationData(source="scenes", n=8)
    given: dict[str, Any] = {"model": model, "precision": precision, "calibration": data, **fields}
    return Recipe(passes=(entry,), **given)


def quantized(scheme: str, model: VlmModel | None = None, **fields: Any) -> VlmModel:
    chosen = Quantize(QuantizeConfig(scheme=scheme, **fields), seed=0)
    folder = Path(os.environ["XDG_CACHE_HOME"])
    folder.mkdir(exist_ok=True)
    start = model or tiny_with_tokenizer(folder)
    return chosen.run(start, PassContext(open_calibration("scenes", 4), start, lambda *_: None))


@pytest.mark.parametrize("scheme", ["w4-rtn", "w4-hqq", "w4-gptq", "w4-awq", "w4-awq-gptq", "w3-gptq", "w8"])
def test_every_matrix_of_every_layer_has_codes_near_its_weight(scheme: str) -> None:
    model = quantized(scheme)
    matrices = {name for name, value in model.decoder.layers.state_dict().items() if value.ndim == 2}
    assert {f"layers.{name}" for name in matrices} == set(model.quantized)
    for name, tensor in model.quantized.items():
        assert isinstance(tensor, QuantizedTensor)
        weight = model.decoder.get_parameter(name).detach()
        error = torch.from_numpy(tensor.dequantize()) - weight
        assert float(error.norm() / weight.norm()) < {8: 0.01, 4: 0.2, 3: 0.4}[tensor.scheme.bits]


def test_the_model_before_rounding_answers_as_it_did() -> None:
    """AWQ's factors move from inputs to weights."""
    model, folded = tiny_model(), quantized("w4-awq")
    states, places = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(0)), torch.arange(12)[None]
    assert not torch.equal(
        folded.decoder.layers[0].input_layernorm.weight, model.decoder.layers[0].input_layernorm.weight
    )
    with torch.no_grad():
        torch.testing.assert_close(
            folded.decoder(states, places)[0], model.decoder(states, places)[0], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("scheme", ["w4-rtn", "w4-hqq", "w4-gptq", "w4-awq"])
def test_a_pruned_pattern_survives(scheme: str) -> None:
    """Two zeros in each four, pruned before they are quantized; AWQ's factors keep them, too."""
    folder = Path(os.environ["XDG_CACHE_HOME"])
    folder.mkdir(exist_ok=True)
    model = tiny_with_tokenizer(folder)
    (pruning,) = parse_passes(
        Recipe(model="m", passes=(PassEntry.model_validate(
            {"name": "prune_weights", "method": "magnitude", "sparsity": "2:4"}
        ),))
    )  # fmt: skip
    pruned = pruning.run(model, PassContext(None, model, lambda *_: None))
    for name, tensor in quantized(scheme, pruned).quantized.items():
        assert isinstance(tensor, QuantizedTensor)
        zeros = (tensor.dequantize().reshape(len(tensor.codes), -1, 4) == 0).sum(axis=2)
        assert zeros.min() >= 2, name


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    asked = recipe("w4-gptq", options={"tables": "w8", "symmetric": False})
    return compile_recipe(asked, tmp_path_factory.mktemp("bundles") / "gptq", progress=lambda *_: None)


def test_files_hold_the_codes_that_were_chosen(bundle: Bundle) -> None:
    """A second run makes the same codes; those of three projections lie one below the other."""
    from edgevlm.models import load, resolve

    model = load(resolve("zoo:nano-fastvlm"))
    chosen = Quantize(QuantizeConfig(scheme="w4-gptq", symmetric=False), seed=0)
    codes = chosen.run(model, PassContext(open_calibration("scenes", 8), model, lambda *_: None)).quantized
    expected = [codes[f"layers.1.self_attn.{name}_proj.weight"] for name in "qkv"]
    graph = onnx.load(bundle.artifact("decoder", ".onnx")).graph
    stored = {each.name: each for each in graph.initializer}
    packed = numpy_helper.to_array(stored["layers.1.self_attn.qkv_proj.weight.codes"], str(bundle.path / "onnx"))
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    assert np.array_equal(
        halves, np.concatenate([each.codes for each in expected if isinstance(each, QuantizedTensor)])
    )


def test_bits_of_the_manifest_are_those_of_the_files(bundle: Bundle) -> None:
    for role in ("decoder", "embed"):
        entry = next(each for each in bundle.manifest.artifacts if each.role == role and each.format == "onnx-data")
        graph = onnx.load(bundle.artifact(role, ".onnx"), load_external_data=False).graph
        sizes = {}
        for tensor in graph.initializer:
            if "rotary" in tensor.name or tensor.data_type == onnx.TensorProto.INT64:
                continue
            place = {each.key: int(each.value) for each in tensor.external_data if each.key != "location"}
            sizes[tensor.name] = place.get("length", len(tensor.raw_data))
        held = sum(size for name, size in sizes.items() if role == "embed" or not name.startswith("logits.weight"))
        assert entry.bits_per_weight == pytest.approx(8 * held / entry.parameters, abs=0.02)


def test_notes_say_what_was_done(bundle: Bundle) -> None:
    assert open_bundle(bundle.path).spec.notes[-1] == (
        "quantized: gptq, 4 bits in groups of 32, with zero points; embedding and head w8"
    )


def test_tables_get_their_own_bits() -> None:
    schemes = {name: each for name, each in quantized("w4-rtn", tables="w8").quantized.items() if "layers" not in name}
    assert schemes == {name: QuantScheme(8, 32) for name in ("embed_tokens.weight", "lm_head.weight")}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (recipe("w8"), "w8 needs precision int8, not int4"),
        (recipe("q4_0"), "q4_0 is for format gguf, not onnx"),
        (recipe("w4-gptq", format="gguf"), "w4-gptq is for format onnx or tensorrt, not gguf"),
        (recipe("q8_0", format="gguf"), "q8_0 needs gguf_type q8_0"),
        (recipe("auto", format="gguf", gguf_type="q4_k_m"), "auto chooses among q4_0 and q8_0, not q4_k_m"),
    ],
)
def test_a_recipe_that_cannot_hold_it_is_refused(asked: Recipe, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        parse_passes(asked)


@pytest.mark.parametrize("options", [{"scheme": "w5"}, {"group_size": 48}, {"tables": "w5"}, {"damping": 0}])
def test_fields_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        parse_passes(recipe(options.pop("scheme", "w4-gptq"), options=options))


def test_a_group_that_does_not_divide_a_width_names_the_layer_and_what_fits() -> None:
    passes = parse_passes(recipe("w4-gptq", options={"group_size": 64}))
    with pytest.raises(UnsupportedError, match=r"64 does not divide the 96 inputs of mlp.down_proj; these do: 16, 32"):
        plan_passes(passes, tiny_model().spec, open_calibration("scenes", 1))


def test_calibration_is_asked_for() -> None:
    passes = parse_passes(recipe("w4-awq"))
    with pytest.raises(InputError, match="quantize needs calibration images"):
        plan_passes(passes, tiny_model().spec, None)
    assert plan_passes(parse_passes(recipe("w4-hqq")), tiny_model().spec, None)


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = tiny_model()
    model.decoder.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite") as caught:
        quantized("w4-rtn", model)
    assert caught.value.where == "decoder.layers.1.mlp.down_proj"
