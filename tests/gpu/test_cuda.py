"""What needs an NVIDIA GPU: engines there answer as on the CPU. Elsewhere it is skipped, with the reason."""

from pathlib import Path

import numpy as np
import pytest
import torch
from trt_bundles import trt_bundle

from edgevlm.bundle import Bundle, open_bundle
from edgevlm.exporters.tensorrt.versions import tensorrt_options
from edgevlm.models import load
from edgevlm.models.source import resolve
from edgevlm.models.vlm import VlmModel
from edgevlm.pipeline import compile_recipe
from edgevlm.recipe import Recipe
from edgevlm.runtimes.base import DecoderEngine, EngineOptions, Float32
from edgevlm.runtimes.device import Device
from edgevlm.runtimes.llama_cpp import load_library
from edgevlm.runtimes.ort_session import CUDA
from edgevlm.runtimes.select import open_decoder, open_vision
from edgevlm.runtimes.torch import TorchDecoder, TorchVision
from edgevlm.runtimes.trt.build import build_engines
from edgevlm.runtimes.trt.cuda import find_gpu
from edgevlm.runtimes.trt.library import LIBRARIES, installed
from edgevlm.targets.catalog import load_target, target_names

CPU, GPU = Device("cpu"), Device("cuda")
GPU_NODE = Path("/dev/nvidiactl")


def _target() -> str | None:
    """A target with this machine's GPU for which engines can be built here."""
    gpu = find_gpu()
    for name in target_names() if gpu is not None else ():
        profile = load_target(name)
        library = "tensorrt_rtx" if profile.tensorrt_rtx is not None else "tensorrt"
        if profile.compute_capability == gpu.compute_capability and installed(library):  # type: ignore[union-attr]
            return name
    return None


needs_tensorrt = pytest.mark.skipif(
    find_gpu() is None or not any(map(installed, LIBRARIES)) or _target() is None,
    reason="needs an NVIDIA GPU that a target names, its driver, cuda-python, and TensorRT or TensorRT for RTX",
)


needs_torch = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a build of PyTorch with CUDA"
)


def _has_onnxruntime_cuda() -> bool:
    import onnxruntime

    return GPU_NODE.exists() and CUDA in onnxruntime.get_available_providers()


needs_onnxruntime = pytest.mark.skipif(
    not _has_onnxruntime_cuda(), reason="needs an NVIDIA GPU and onnxruntime-gpu in place of onnxruntime"
)


def _has_llama_cuda() -> bool:
    return GPU_NODE.exists() and bool(load_library().llama_supports_gpu_offload())


needs_llama = pytest.mark.skipif(
    not _has_llama_cuda(), reason="needs an NVIDIA GPU and a llama-cpp-python built with CUDA"
)


def _answer(engine: DecoderEngine, image: Float32, tokens: int = 12) -> tuple[list[int], Float32]:
    """Greedy tokens, and the logits of the prompt."""
    first = engine.prefill([np.arange(3, 9, dtype=np.int32), image, np.arange(20, 24, dtype=np.int32)])
    said, logits = [], first
    for _ in range(tokens):
        said.append(int(logits.argmax()))
        logits = engine.decode(said[-1])
    engine.close()
    return said, first


def _same_answers(bundle: Bundle, name: str, on_cpu: str, error: float) -> None:
    """Vision and decoder on the GPU agree with those on the CPU."""
    spec = bundle.spec
    side = spec.vision.image_size
    pixels = np.random.default_rng(0).random((1, 3, side, side), dtype=np.float32)
    if bundle.find("vision", ".onnx") is not None and name != "llama_cpp":
        theirs = open_vision(bundle, "onnxruntime", EngineOptions(device=CPU)).encode(pixels)
        ours = open_vision(bundle, name, EngineOptions(device=GPU)).encode(pixels)
        assert float(np.abs(ours - theirs).max()) < error * float(np.abs(theirs).max())
    image = np.random.default_rng(1).standard_normal((spec.vision.image_tokens, spec.decoder.hidden_size))
    image = image.astype(np.float32)
    theirs_said, theirs_first = _answer(open_decoder(bundle, on_cpu, EngineOptions(device=CPU)), image)
    ours_said, ours_first = _answer(open_decoder(bundle, name, EngineOptions(device=GPU)), image)
    assert float(np.abs(ours_first - theirs_first).max()) < error * float(np.abs(theirs_first).max())
    assert ours_said == theirs_said


@needs_tensorrt
@pytest.mark.parametrize("version", ["10.16", "10.3"])
def test_tensorrt_answers_like_onnxruntime(version: str, tmp_path: Path) -> None:
    model = load(resolve("zoo:nano-fastvlm"))
    folder = trt_bundle(tmp_path / "bundle", model, tensorrt_options(version, None, model.spec), "fp16", "fp16")
    target = _target()
    assert target is not None
    build_engines(folder, target, progress=lambda *_: None)
    _same_answers(open_bundle(folder), "tensorrt", "onnxruntime", error=0.02)


@needs_torch
def test_torch_answers_alike_on_cuda() -> None:
    model = load(resolve("zoo:nano-fastvlm"))
    spec, rng = model.spec, np.random.default_rng(0)
    pixels = rng.random((1, 3, spec.vision.image_size, spec.vision.image_size), dtype=np.float32)
    image = rng.standard_normal((spec.vision.image_tokens, spec.decoder.hidden_size)).astype(np.float32)
    seen, said, logits = zip(*(_by_torch(model, device, pixels, image) for device in (GPU, CPU)), strict=True)
    assert said[0] == said[1]
    np.testing.assert_allclose(seen[0], seen[1], rtol=0, atol=1e-3 * np.abs(seen[1]).max())
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-3 * np.abs(logits[1]).max())


def _by_torch(model: VlmModel, device: Device, pixels: Float32, image: Float32) -> tuple[Float32, list[int], Float32]:
    """Image embeddings, greedy tokens and the logits of the prompt."""
    decoder = TorchDecoder(model, EngineOptions(device=device))
    assert decoder.stats().details["device"].startswith(device.kind)
    said, logits = _answer(decoder, image)
    return TorchVision(model, device).encode(pixels), said, logits


@needs_onnxruntime
def test_onnxruntime_answers_alike_on_cuda(tmp_path: Path) -> None:
    recipe = Recipe(model="zoo:nano-fastvlm", precision="int4", vision_precision="fp16")
    bundle = compile_recipe(recipe, tmp_path / "bundle", progress=lambda *_: None)
    _same_answers(bundle, "onnxruntime", "onnxruntime", error=0.02)


@needs_llama
def test_llama_cpp_answers_alike_on_cuda(tmp_path: Path) -> None:
    recipe = Recipe(model="zoo:nano-fastvlm", format="gguf", precision="fp16")
    bundle = compile_recipe(recipe, tmp_path / "bundle", progress=lambda *_: None)
    _same_answers(bundle, "llama_cpp", "llama_cpp", error=0.02)
