"""TensorRT's engine classes over a pretended GPU: the same logits as ONNX Runtime, whatever the order of the calls.

The pretended TensorRT runs the exported graphs themselves, so that names, shapes, places in the cache, copies and the
recorded decode step are those of the real one; only the kernels are not.
"""

from dataclasses import replace
from pathlib import Path

import fake_gpu
import numpy as np
import pytest
from decoders import QWEN2
from fake_gpu import FakeCuda, engine_bytes
from llava_mini_oracle import make_oracle, write_checkpoint
from tiny import TOKENS, tiny_bundle, tiny_model, tiny_with_tokenizer
from trt_bundles import name_files, trt_bundle

from edgevlm.bundle import Bundle, open_bundle
from edgevlm.errors import BundleError, EngineError, InputError
from edgevlm.exporters.base import Artifact
from edgevlm.exporters.lint import lint
from edgevlm.exporters.onnx.decoder import DecoderBuilder
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.fusion_standard import FusedFusionDialect, build_fusion
from edgevlm.exporters.onnx.graph import Graph
from edgevlm.exporters.tensorrt.plan import component as plan_component
from edgevlm.exporters.tensorrt.schemes import tensorrt_scheme
from edgevlm.exporters.tensorrt.versions import TensorRtOptions
from edgevlm.models import load
from edgevlm.runtimes.base import EngineOptions, Float32
from edgevlm.runtimes.build_plan import PLAN, PLAN_SCHEMA_VERSION, BuildPlan, read_build_plan, write_build_plan
from edgevlm.runtimes.device import Device
from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder, OnnxRuntimeFusion, OnnxRuntimeVision
from edgevlm.runtimes.select import open_decoder, open_fusion, open_vision
from edgevlm.runtimes.tensorrt import TensorRTDecoder, TensorRTFusion, TensorRTVision
from edgevlm.runtimes.trt.cards import Place, card_for, list_engines

LENGTH = 96
OPTIONS = EngineOptions(threads=1)


def _trt_bundle(folder: Path, version: tuple[int, int], scratch: Path) -> Bundle:
    """The tiny model in the standard dialect, with engines of the pretended TensorRT for SM 8.7."""
    trt_bundle(folder, tiny_with_tokenizer(scratch), TensorRtOptions(version, LENGTH), "fp32", "fp32")
    _add_engines(folder, Place("tensorrt", fake_gpu.VERSION, (8, 7)))
    return open_bundle(folder)


def _add_engines(folder: Path, place: Place) -> None:
    bundle, plan = open_bundle(folder), read_build_plan(folder / PLAN)
    (folder / place.folder).mkdir(parents=True)
    for component in plan.components:
        engine = folder / place.folder / f"{component.role}.engine"
        engine.write_bytes(engine_bytes(folder / component.graph, component))
        card = card_for(bundle, component, place, engine)
        engine.with_suffix(".json").write_text(card.model_dump_json())
    list_engines(folder, place, plan.components)


@pytest.fixture(scope="module", params=[(10, 16), (10, 3)], ids=["fused", "decomposed"])
def trt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("trt")
    return _trt_bundle(folder / "bundle", request.param, folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same model as ONNX Runtime's own bundle."""
    return tiny_bundle(tiny_model(), tmp_path_factory.mktemp("onnx") / "bundle")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    gpu = FakeCuda()
    fake_gpu.install(monkeypatch, gpu)
    return gpu


def _ids(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(values, np.int32)


def _image() -> Float32:
    return np.random.default_rng(1).standard_normal((TOKENS, QWEN2.hidden_size)).astype(np.float32)


def _close(ours: Float32, theirs: Float32) -> None:
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert int(ours.argmax()) == int(theirs.argmax())


def _decoders(trt: Bundle, reference: Bundle) -> tuple[TensorRTDecoder, OnnxRuntimeDecoder]:
    paths = reference.artifact("decoder", ".onnx"), reference.artifact("embed", ".onnx")
    options = replace(OPTIONS, context_length=LENGTH)
    return TensorRTDecoder(trt, OPTIONS), OnnxRuntimeDecoder(*paths, reference.spec, options)


def test_a_prompt_and_its_answer_have_the_logits_of_onnxruntime(trt: Bundle, reference: Bundle, cuda: FakeCuda) -> None:
    ours, theirs = _decoders(trt, reference)
    prompt = [_ids(1, 2, 3), _image(), _ids(4, 5)]
    _close(ours.prefill(prompt), theirs.prefill(prompt))
    for token in (7, 8, 9, 10, 11):
        _close(ours.decode(token), theirs.decode(token))
    assert ours.position == theirs.position == 5 + TOKENS + 5
    assert cuda.launches == 5, "each token is one recorded graph"
    ours.close()
    assert not cuda.blocks, "all memory of the GPU is given back"


@pytest.mark.usefixtures("cuda")
def test_a_second_turn_continues_and_a_reset_forgets(trt: Bundle, reference: Bundle) -> None:
    ours, theirs = _decoders(trt, reference)
    for engine in (ours, theirs):
        engine.prefill([_ids(1, 2, 3, 4)])
        for token in (5, 6, 7):
            engine.decode(token)
        engine.reset(4)
    _close(ours.prefill([_ids(8, 9)]), theirs.prefill([_ids(8, 9)]))
    _close(ours.decode(3), theirs.decode(3))
    for engine in (ours, theirs):
        engine.reset()
    _close(ours.prefill([_image()]), theirs.prefill([_image()]))


@pytest.mark.usefixtures("cuda")
def test_a_prompt_longer_than_the_profile_goes_through_in_pieces(trt: Bundle, reference: Bundle) -> None:
    ours, theirs = _decoders(trt, reference)
    ours._longest = 7
    prompt = [_ids(*range(1, 12)), _image(), _ids(4, 5, 6)]
    _close(ours.prefill(prompt), theirs.prefill(prompt))
    _close(ours.decode(2), theirs.decode(2))


def test_the_graphs_are_clean_for_the_release_that_they_are_written_for(trt: Bundle) -> None:
    """Without a JetPack, that is a Jetson's oldest one that the bundle is written for."""
    toolkit, findings = lint(trt.path, "jetson-orin-nano")
    assert ".".join(map(str, toolkit.version[:2])) == read_build_plan(trt.path / PLAN).tensorrt
    assert findings == []


@pytest.mark.usefixtures("cuda")
def test_embeddings_of_tokens(trt: Bundle, reference: Bundle) -> None:
    ours, theirs = _decoders(trt, reference)
    np.testing.assert_allclose(ours.embed(_ids(1, 500, 3)), theirs.embed(_ids(1, 500, 3)), atol=1e-6)
    with pytest.raises(InputError, match="outside the vocabulary"):
        ours.embed(_ids(1024))


def test_without_recording_the_steps_are_the_same(
    trt: Bundle, reference: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tensorrt-rtx may say that a stream cannot be recorded."""
    monkeypatch.setattr(fake_gpu._Context, "is_stream_capturable", lambda *_: False, raising=False)
    ours, theirs = _decoders(trt, reference)
    _close(ours.prefill([_ids(1, 2)]), theirs.prefill([_ids(1, 2)]))
    _close(ours.decode(3), theirs.decode(3))
    assert cuda.launches == 0
    assert ours.stats().details["cuda_graph"] == "no"


@pytest.mark.usefixtures("cuda")
def test_the_context_ends_where_the_cache_does(trt: Bundle) -> None:
    engine = TensorRTDecoder(trt, OPTIONS)
    assert engine.context_length == LENGTH
    engine.prefill([_ids(*[1] * LENGTH)])
    with pytest.raises(InputError, match="positions"):
        engine.decode(1)
    with pytest.raises(InputError, match="context of 97"):
        TensorRTDecoder(trt, replace(OPTIONS, context_length=97))
    with pytest.raises(InputError, match="q8_0"):
        TensorRTDecoder(trt, replace(OPTIONS, kv_cache="q8_0"))


@pytest.mark.usefixtures("cuda")
def test_a_failed_prompt_leaves_the_cache_as_it_was(trt: Bundle) -> None:
    engine = TensorRTDecoder(trt, OPTIONS)
    engine.prefill([_ids(1, 2)])
    with pytest.raises(InputError, match="outside the vocabulary"):
        engine.prefill([_ids(3, 4), _ids(5000)])
    assert engine.position == 2


def test_images(trt: Bundle, reference: Bundle, cuda: FakeCuda) -> None:
    pixels = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
    theirs = OnnxRuntimeVision(reference.artifact("vision", ".onnx"), reference.spec, OPTIONS)
    engine = TensorRTVision(trt)
    np.testing.assert_allclose(engine.encode(pixels), theirs.encode(pixels), atol=1e-4)
    assert "Pretended GPU (SM 8.7)" in engine.stats().details["gpu"]
    engine.close()
    assert not cuda.blocks


def _fusion_bundle(scratch: Path) -> Bundle:
    """LLaVA-Mini's fusion alone: its vision tower would take the test ten seconds to trace."""
    model = load(write_checkpoint(make_oracle(kind="qwen", compressor_size=2), scratch / "checkpoint", kind="qwen"))
    assert model.fusion is not None
    folder = scratch / "bundle"
    (folder / "onnx").mkdir(parents=True)
    files = [
        Artifact("onnx/fusion.onnx", "fusion", "onnx", "fp32"),
        Artifact("onnx/fusion.onnx_data", "fusion", "onnx-data", "fp32"),
    ]
    with ExternalData(folder / files[1].path) as data:
        graph = Graph("fusion", data, opset=FusedFusionDialect.opset, contrib=False)
        dialect = FusedFusionDialect(graph, model.fusion, model.spec.vision.image_tokens, 48, compute="float32")
        build_fusion(DecoderBuilder(model.fusion, dialect, "fp32", scheme=tensorrt_scheme))
    graph.save(folder / files[0].path)
    profiles = {"prompt": {"text_length": (1, 8, 48)}}
    plan = BuildPlan(
        schema_version=PLAN_SCHEMA_VERSION,
        tensorrt="10.16",
        attention="fused",
        kv_length=48,
        components=(plan_component(folder, "fusion", files, compute="float32", profiles=profiles),),
    )
    write_build_plan(folder, plan)
    name_files(folder, model, [*files, Artifact(PLAN, "config", "json")])
    _add_engines(folder, Place("tensorrt", fake_gpu.VERSION, (8, 7)))
    return open_bundle(folder)


def test_image_and_question_are_fused(cuda: FakeCuda, tmp_path: Path) -> None:
    """LLaVA-Mini's third engine, over prompts of two lengths; too long a prompt is refused."""
    bundle = _fusion_bundle(tmp_path)
    ours = open_fusion(bundle, OPTIONS)
    assert isinstance(ours, TensorRTFusion)
    theirs = OnnxRuntimeFusion(bundle.artifact("fusion", ".onnx"), bundle.spec, OPTIONS)
    generator = np.random.default_rng(0)
    hidden = bundle.spec.decoder.hidden_size
    image = generator.standard_normal((bundle.spec.vision.image_tokens, hidden), dtype=np.float32)
    for length in (1, 20):
        text = generator.standard_normal((length, hidden), dtype=np.float32)
        np.testing.assert_allclose(ours.fuse(image, text), theirs.fuse(image, text), atol=1e-5)
    with pytest.raises(InputError, match="takes 1 to 48"):
        ours.fuse(image, np.zeros((49, hidden), np.float32))
    ours.close()
    assert not cuda.blocks
    cuda.devices = 0
    assert isinstance(open_fusion(bundle, OPTIONS), OnnxRuntimeFusion)


def test_auto_takes_the_engines_that_were_built_for_this_machine(trt: Bundle, cuda: FakeCuda) -> None:
    assert isinstance(open_decoder(trt, "auto", OPTIONS), TensorRTDecoder)
    assert isinstance(open_vision(trt, "auto", OPTIONS), TensorRTVision)
    cuda.capability = (8, 9)
    assert isinstance(open_vision(trt, "auto", OPTIONS), OnnxRuntimeVision)
    with pytest.raises(EngineError, match=r"built for .*, SM 8\.7; here is .*, SM 8\.9"):
        open_decoder(trt, "tensorrt", OPTIONS)
    with pytest.raises(InputError, match="on the CPU alone"):
        open_decoder(trt, "auto", replace(OPTIONS, device=Device("cuda")))


def test_what_is_missing_is_said_in_one_line(trt: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.devices = 0
    with pytest.raises(EngineError, match=r"no CUDA GPU here .*cudaErrorInsufficientDriver"):
        TensorRTDecoder(trt, OPTIONS)
    cuda.devices, cuda.memory = 1, 1000
    with pytest.raises(EngineError, match="cudaErrorMemoryAllocation"):
        TensorRTDecoder(trt, OPTIONS)
    assert not cuda.blocks
    cuda.memory = 1 << 30
    monkeypatch.setattr("edgevlm.runtimes.tensorrt.installed", lambda _: False)
    with pytest.raises(EngineError, match="no TensorRT is installed"):
        TensorRTDecoder(trt, OPTIONS)
    with pytest.raises(EngineError, match="no CUDA GPU here"):
        TensorRTDecoder(trt, OPTIONS, device=3)


def test_another_version_of_tensorrt_is_refused(trt: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(monkeypatch, FakeCuda(), version="10.17.0")
    with pytest.raises(EngineError, match=r"built for tensorrt 10\.16\.0.*here is tensorrt 10\.17\.0"):
        TensorRTDecoder(trt, OPTIONS)


def test_an_engine_that_tensorrt_refuses_is_named(tmp_path: Path, trt: Bundle, cuda: FakeCuda) -> None:
    """Its size and card are right, its content is not: the library's own word is passed on, and nothing leaks."""
    import shutil

    folder = Path(shutil.copytree(trt.path, tmp_path / "bundle"))
    (engine,) = folder.glob("tensorrt/*/decoder.engine")
    engine.write_bytes(b"\0" * engine.stat().st_size)
    with pytest.raises(EngineError, match="refuses the engine: Serialization assertion failed"):
        TensorRTDecoder(open_bundle(folder), OPTIONS)
    assert not cuda.blocks
    engine.write_bytes(b"\0")
    with pytest.raises(BundleError, match="1 bytes instead of"):
        open_bundle(folder)
