"""`--device`: each runtime takes what its build has, and says in three lines what it lacks."""

import types
from pathlib import Path

import onnxruntime
import pytest
import torch
from refusals import refusal

from edgevlm.bundle import Bundle
from edgevlm.errors import EngineError, InputError
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.device import AUTO, Device, parse_device
from edgevlm.runtimes.llama_cpp import gpu_layers
from edgevlm.runtimes.ort_session import CPU, CUDA, TENSORRT, open_session, providers_for
from edgevlm.runtimes.select import open_decoder, open_vision
from edgevlm.runtimes.torch import torch_device

GPU = Device("cuda", 1)


def test_names_of_devices() -> None:
    assert parse_device("auto") == AUTO
    assert parse_device("cpu") == Device("cpu")
    assert parse_device("cuda") == Device("cuda", 0)
    assert str(parse_device("cuda:1")) == "cuda:1"
    assert parse_device("tensorrt:0").is_gpu


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:-1", "cuda:0:1", "cpu:1", "CUDA", "cuda:999"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="no device"):
        parse_device(text)


def test_a_build_without_cuda_says_what_it_has() -> None:
    assert CUDA not in onnxruntime.get_available_providers(), "this test needs a build for CPUs"
    with pytest.raises(InputError, match=r"no cuda; it has .*CPU"):
        providers_for(GPU)
    assert providers_for(AUTO, auto=CUDA) == [(CPU, {})], "auto goes on without"


def test_providers_of_a_build_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    assert [name for name, _ in providers_for(AUTO, auto=CUDA)] == [CUDA, CPU]
    assert [name for name, _ in providers_for(AUTO)] == [CPU], "the decoder's auto stays on the CPU"
    assert [name for name, _ in providers_for(Device("cpu"), auto=CUDA)] == [CPU]
    assert providers_for(GPU)[0] == (CUDA, {"device_id": 1})
    assert [name for name, _ in providers_for(Device("tensorrt"))] == [TENSORRT, CUDA, CPU]


def test_a_provider_that_does_not_start_is_an_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime itself would compute on the CPU and say nothing."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    path = bundle.artifact("vision", ".onnx")
    with pytest.warns(UserWarning, match="CUDA"), pytest.raises(EngineError, match="could not start CUDA"):
        open_session(path, 1, {}, GPU)


def test_torch_takes_a_gpu_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert torch_device(GPU) == torch.device("cuda", 1)
    assert torch_device(AUTO) == torch_device(Device("cpu")) == torch.device("cpu"), "the reference, unless asked for"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert torch_device(GPU) == torch.device("cpu"), "the uncompressed model is measured all the same"


def test_engines_are_chosen_by_their_device(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="openvino does not compute there"):
        open_vision(bundle, "openvino", EngineOptions(device=GPU))
    with pytest.raises(InputError, match="no cuda"):
        open_vision(bundle, "auto", EngineOptions(device=GPU))
    with pytest.raises(InputError, match="no cuda"):
        open_decoder(bundle, "auto", EngineOptions(device=GPU))
    assert open_decoder(bundle, "auto", EngineOptions(device=Device("cpu"))).stats().details["provider"] == CPU


def _library(offloads: bool) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        llama_supports_gpu_offload=lambda: offloads, llama_print_system_info=lambda: b"CPU : AVX2 = 1 | "
    )


def test_layers_of_llama_cpp_on_the_gpu() -> None:
    assert gpu_layers(_library(True), AUTO) == -1
    assert gpu_layers(_library(True), GPU) == -1
    assert gpu_layers(_library(True), Device("cpu")) == 0
    assert gpu_layers(_library(False), AUTO) == 0
    with pytest.raises(InputError, match="computes on CPU alone"):
        gpu_layers(_library(False), GPU)


def test_the_command_refuses_a_device_that_is_not_there(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = refusal(capsys)
    assert "no cuda" in refused("run", bundle.path, "--prompt", "?", "--device", "cuda:0")[0]
    assert "no device 'gpu'" in refused("run", bundle.path, "--prompt", "?", "--device", "gpu")[0]
    assert not list(tmp_path.iterdir())
