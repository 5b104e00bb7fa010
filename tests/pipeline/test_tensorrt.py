"""TensorRT bundles, whole: verified, answering as the others do, and refused where they cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx_models import write_decoder

from edgevlm import pipeline
from edgevlm.bundle import Bundle
from edgevlm.errors import EdgeVLMError, InputError, UnsupportedError
from edgevlm.models import load
from edgevlm.pipeline.tensorrt_choice import options_for
from edgevlm.recipe import CalibrationData, Recipe, VerifyThresholds
from edgevlm.runtimes import open_decoder, open_vision
from edgevlm.runtimes.base import DecoderEngine, EngineOptions
from edgevlm.runtimes.build_plan import PLAN, read_build_plan
from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder
from edgevlm.zoo.synth import synth

PROFILES = Path(__file__).parent.parent.parent / "targets" / "profiles"
KV_LENGTH = 160
OPTIONS = EngineOptions(threads=1, context_length=KV_LENGTH)
#: Random weights answer by chance: what the image does to the answer is not asked.
LENIENT = VerifyThresholds(top1_agreement=0, token_agreement=0)


def silent(_done: float, _total: float, _what: str) -> None:
    """A progress nobody watches."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    synth("fastvlm-0.5b", folder, tiny=True, resolution=128)
    return folder


def recipe(checkpoint: Path, **fields: Any) -> Recipe:
    given = {"format": "tensorrt", "context_length": KV_LENGTH, **fields}
    return Recipe(model=str(checkpoint), **given)


@pytest.fixture(scope="module")
def exact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    wanted = recipe(checkpoint, precision="fp32", tensorrt_version="10.16")
    return pipeline.compile_recipe(wanted, tmp_path_factory.mktemp("bundles") / "fp32", progress=silent)


def answers(decoder: DecoderEngine, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits after an image, some tokens, and a second image behind what is forgotten `[N, V]`."""
    question = np.arange(20, 32, dtype=np.int32)
    found = [decoder.prefill([question, image, question])]
    found += [decoder.decode(token).copy() for token in (3, 141, 59)]
    decoder.reset(len(question))
    found.append(decoder.prefill([image[::-1].copy(), question]))
    decoder.close()
    return np.stack(found)


def test_it_answers_as_the_ort_dialect_does(exact: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    assert {result.metric for result in exact.manifest.parity} >= {"logits_cosine", "token_agreement"}
    vision = open_vision(exact, "onnxruntime", OPTIONS)
    pixels = np.random.default_rng(0).random((1, *exact.spec.vision.input_shape), dtype=np.float32)
    image = vision.encode(pixels)[0]
    vision.close()
    path = write_decoder(load(checkpoint, resolution=128).decoder, tmp_path, "fp32")
    ort = OnnxRuntimeDecoder(path, tmp_path / "embed.onnx", exact.spec, OPTIONS)
    expected = answers(ort, image)
    np.testing.assert_allclose(answers(open_decoder(exact, "auto", OPTIONS), image), expected, atol=1e-4)
    assert np.ptp(expected, axis=0).min() > 0, "these prompts are all alike"


def test_the_plan_says_what_stands_in_the_graphs(exact: Bundle) -> None:
    plan = read_build_plan(exact.path / PLAN)
    numbers = exact.spec.decoder
    assert (plan.tensorrt, plan.attention, plan.kv_length) == ("10.16", "fused", KV_LENGTH)
    assert [component.role for component in plan.components] == ["vision", "embed", "decoder"]
    for component in plan.components:
        graph = onnx.load(str(exact.path / component.graph), load_external_data=False).graph
        assert [tensor.name for tensor in component.inputs] == [value.name for value in graph.input]
        assert [tensor.name for tensor in component.outputs] == [value.name for value in graph.output]
        free = {tensor.name for tensor in component.inputs if any(isinstance(axis, str) for axis in tensor.shape)}
        for profile in component.profiles:
            assert {shape.tensor for shape in profile.shapes} == free
        files = {
            f"onnx/{entry.value}"
            for tensor in graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert files <= set(component.data)
        assert component.weight_bytes > 0
    decoder = plan.component("decoder")
    assert decoder is not None
    assert decoder.in_place
    assert len(decoder.cache) == 2 * numbers.num_hidden_layers
    assert [profile.name for profile in decoder.profiles] == ["prefill", "decode"]
    assert [profile.shapes[0].max[1] for profile in decoder.profiles] == [KV_LENGTH, 1]
    caches = {tensor.shape for tensor in decoder.inputs if tensor.name.startswith("past_key_values.")}
    assert caches == {(1, numbers.num_key_value_heads, KV_LENGTH, numbers.head_dim)}


def test_a_longer_context_than_the_cache_is_refused(exact: Bundle) -> None:
    with pytest.raises(InputError, match=f"context of {KV_LENGTH} positions"):
        open_decoder(exact, "auto", EngineOptions(context_length=KV_LENGTH + 1))
    decoder = open_decoder(exact, "auto", EngineOptions())
    assert decoder.context_length == KV_LENGTH
    with pytest.raises(InputError, match="the context has"):
        decoder.prefill([np.zeros(KV_LENGTH + 1, np.int32)])
    decoder.close()


def test_int4_and_int8_in_half_precision(checkpoint: Path, tmp_path: Path) -> None:
    """GPTQ's codes in the decoder and static int8 in the vision tower pass verification; bits are counted."""
    wanted = recipe(
        checkpoint,
        tensorrt_version="10.3",
        vision_precision="w8a8",
        passes=({"name": "quantize", "scheme": "w4a16-trt:64"},),
        calibration=CalibrationData(source="scenes", n=12),
        verify=LENIENT,
    )
    bundle = pipeline.compile_recipe(wanted, tmp_path / "out", progress=silent)
    decoder = bundle.find("decoder", ".onnx_data")
    assert decoder is not None
    # 4 bits a weight, 16 for 64 of them, and norms and biases, of which a tiny model has many.
    assert 4.25 <= decoder.bits_per_weight < 4.75
    plan = read_build_plan(bundle.path / PLAN)
    assert (plan.tensorrt, plan.attention) == ("10.3", "decomposed")
    assert not any(component.in_place for component in plan.components)
    assert {component.compute for component in plan.components} == {"float16"}
    for component in plan.components:
        model = onnx.load(str(bundle.path / component.graph), load_external_data=False)
        assert {node.domain for node in model.graph.node} == {""}


def test_bfloat16_throughout(checkpoint: Path, tmp_path: Path) -> None:
    """INT4 with scales in bfloat16; files, plan and bundle say so, and what the verification did not see."""
    wanted = recipe(checkpoint, tensorrt_version="10.3", tensorrt_dtype="bf16", precision="int4", verify=LENIENT)
    bundle = pipeline.compile_recipe(wanted, tmp_path / "out", progress=silent)
    assert any("rounds activations is not proved" in note for note in bundle.spec.notes)
    plan = read_build_plan(bundle.path / PLAN)
    assert {component.compute for component in plan.components} == {"bfloat16"}
    vision, decoder = plan.component("vision"), plan.component("decoder")
    assert vision is not None and decoder is not None
    assert (vision.graph, vision.precision) == ("onnx/vision_encoder_bf16.onnx", "bf16")
    caches = {tensor.dtype for tensor in decoder.inputs if tensor.name.startswith("past_key_values.")}
    assert caches == {"bfloat16"}
    for component in plan.components:
        graph = onnx.load(str(bundle.path / component.graph), load_external_data=False).graph
        assert onnx.TensorProto.FLOAT16 not in {tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"passes": ({"name": "quantize", "scheme": "w4-gptq", "symmetric": False},)}, "no zero points"),
        ({"passes": ({"name": "quantize", "scheme": "auto"},)}, "name a scheme"),
        ({"passes": ({"name": "quantize", "scheme": "w8"},), "precision": "int8"}, "w8 is for format onnx"),
        ({"passes": ({"name": "quantize", "scheme": "w4-rtn", "tables": "w8"},)}, "tables w8 is for format onnx"),
        ({"passes": ({"name": "kv_cache"},)}, "type that they compute in"),
        (
            {"passes": ({"name": "prune_tokens", "method": "fastv", "keep": 2, "options": {"after": 1}},)},
            "inside the decoder",
        ),
        ({"vision_precision": "int8"}, "stored for CPUs"),
        ({"vision_precision": "auto"}, "choose fp16 or w8a8"),
        ({"tensorrt_version": "8.6"}, "too old"),
        ({"tensorrt_dtype": "bf16", "precision": "fp32"}, "says nothing where all is fp32"),
        ({"format": "onnx", "context_length": None, "tensorrt_dtype": "bf16"}, "tensorrt_dtype belongs to format"),
        ({"format": "gguf", "context_length": None, "tensorrt_dtype": "fp16"}, "tensorrt_dtype belongs to format"),
        ({"context_length": 10**6}, "cannot have a context"),
        ({"context_length": 4}, "an image takes 4 positions"),
        ({"target": "toaster"}, "no target 'toaster'"),
        ({"target": "raspberry-pi-5"}, "has no TensorRT"),
        ({"format": "onnx"}, "context_length belongs to format tensorrt"),
        ({"format": "gguf", "context_length": None, "tensorrt_version": "10.3"}, "belongs to format tensorrt"),
    ],
)
def test_what_cannot_be_is_refused_before_work(
    fields: dict[str, Any], said: str, checkpoint: Path, tmp_path: Path
) -> None:
    wanted = recipe(checkpoint, calibration=CalibrationData(source="scenes", n=4), **fields)
    with pytest.raises(EdgeVLMError, match=said) as caught:
        pipeline.compile_recipe(wanted, tmp_path / "out", progress=silent)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_is_refused_for_gpus_without_it(checkpoint: Path, tmp_path: Path) -> None:
    """Turing has none; no profile of the package is that old."""
    turing, text = tmp_path / "turing.yaml", (PROFILES / "rtx-3060.yaml").read_text(encoding="utf-8")
    turing.write_text(text.replace('value: "8.6"', 'value: "7.5"').replace("name: rtx-3060", "name: turing"))
    wanted = recipe(checkpoint, tensorrt_dtype="bf16", target=str(turing))
    with pytest.raises(UnsupportedError, match="computes no bfloat16"):
        pipeline.compile_recipe(wanted, tmp_path / "out", progress=silent)
    assert list(tmp_path.iterdir()) == [turing]


@pytest.mark.parametrize(
    ("target", "version", "expected"),
    [
        ("cpu", None, "10.16"),
        ("jetson-orin-nano", None, "10.3"),
        ("jetson-orin-nano", "10.16.0", "10.16"),
        ("rtx-4090", None, "11.4"),
    ],
)
def test_the_target_says_which_version(target: str, version: str | None, expected: str, checkpoint: Path) -> None:
    spec = load(checkpoint, resolution=128).spec
    wanted = recipe(checkpoint, target=target, tensorrt_version=version)
    assert str(options_for(wanted, spec)) == expected
