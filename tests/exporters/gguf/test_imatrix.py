"""Importance matrices: strengths are those of the real inputs, files have the published form, llama.cpp heeds them."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from gguf_models import LLAMA, PHI2, QWEN2, make_model
from torch import Tensor, nn

from edgevlm.calibration.activations import Activations, Sequence
from edgevlm.calibration.sources import open_calibration
from edgevlm.errors import CheckpointError, InputError
from edgevlm.exporters.gguf.exporter import export
from edgevlm.exporters.gguf.imatrix import Imatrix, Importance, collect, make, read_imatrix, write_imatrix
from edgevlm.exporters.gguf.layout import tensor_name
from edgevlm.models import load, resolve
from edgevlm.models.vlm import VlmModel
from edgevlm.runtimes import llama_embedding
from edgevlm.spec import DecoderSpec
from edgevlm.zoo.scenes import scenes

WIDE = replace(QWEN2, hidden_size=256, intermediate_size=512, head_dim=64, rotary_dim=64)
LENGTHS = (5, 9, 3)
TOOL = Path(__file__).parents[3] / "tools" / "measure_imatrix.py"


def silent(*_: object) -> None:
    """Progress that nobody watches."""


def inputs(decoder: DecoderSpec) -> Activations:
    generator = torch.Generator().manual_seed(1)
    states = [torch.randn(length, decoder.hidden_size, generator=generator) for length in LENGTHS]
    none = torch.empty(0)
    return Activations(decoder, states, [Sequence(torch.arange(n)[None], none, none) for n in LENGTHS])


def seen_by_hooks(model: VlmModel, activations: Activations) -> dict[str, Tensor]:
    """What enters each linear module when the decoder runs whole; the head's for `lm_head` where it is tied, too."""
    seen: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0][0]))
        for name, module in model.decoder.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]
    handles.append(
        model.decoder.norm.register_forward_hook(lambda *args: seen.setdefault("lm_head", []).append(args[2][0]))
    )
    for rows in activations.states:
        model.decoder(rows[None], torch.arange(len(rows))[None])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


@pytest.mark.parametrize("decoder", [QWEN2, LLAMA, PHI2], ids=["qwen2", "llama", "phi2"])
def test_strengths_are_sums_of_squares_of_what_enters_each_matrix(decoder: DecoderSpec, files: dict[str, Path]) -> None:
    model = make_model(decoder, files)
    expected = seen_by_hooks(model, inputs(decoder))
    found = collect(model, inputs(decoder), "test", silent)
    assert found.entries.keys() == {tensor_name(f"{name}.weight") for name in expected}
    for name, rows in expected.items():
        entry = found.entries[str(tensor_name(f"{name}.weight"))]
        assert entry.count == sum(LENGTHS)
        np.testing.assert_allclose(entry.sums, rows.double().square().sum(0), rtol=1e-4)
    assert (found.samples, found.positions) == (3, 6)


def test_the_file_has_the_published_form_and_reads_back(files: dict[str, Path], tmp_path: Path) -> None:
    imatrix = collect(make_model(QWEN2, files), inputs(QWEN2), "scenes", silent)
    write_imatrix(tmp_path / "imatrix.gguf", imatrix)
    reader = gguf.GGUFReader(tmp_path / "imatrix.gguf")
    assert "general.architecture" not in reader.fields
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values["general.type"] == "imatrix"
    assert values["imatrix.datasets"] == ["scenes"]
    assert (values["imatrix.chunk_count"], values["imatrix.chunk_size"]) == (3, 6)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.1.ffn_down.weight.in_sum2"].shape.tolist() == [QWEN2.intermediate_size, 1]
    assert tensors["blk.1.ffn_down.weight.counts"].data.tolist() == [[17.0]]
    library = llama_embedding._ggml()
    context = library.gguf_init_from_file(
        str(tmp_path / "imatrix.gguf").encode(), llama_embedding._InitParams(no_alloc=True, ctx=None)
    )
    assert context, "ggml's own reader, which llama.cpp's tools use, takes the file"
    assert library.gguf_find_tensor(context, b"output.weight.in_sum2") >= 0
    library.gguf_free(context)
    again = read_imatrix(tmp_path / "imatrix.gguf")
    assert (again.dataset, again.samples, again.positions) == ("scenes", 3, 6)
    assert again.entries.keys() == imatrix.entries.keys()
    for name, entry in imatrix.entries.items():
        np.testing.assert_array_equal(again.entries[name].sums, entry.sums)
        assert again.entries[name].count == entry.count


def test_what_is_no_importance_matrix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    with pytest.raises(InputError, match="not an importance matrix"):
        read_imatrix(path)
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(InputError, match="not an importance matrix"):
        read_imatrix(path)
    good = np.ones(64, np.float32)
    for sums, count in ((good * np.nan, 1), (good * -1, 1), (good, 0)):
        write_imatrix(path, Imatrix({"blk.0.attn_q.weight": Importance(sums.astype(np.float32), count)}, "x", 1, 1))
        with pytest.raises(InputError, match=r"blk\.0\.attn_q"):
            read_imatrix(path)


def test_inputs_that_are_not_finite_name_the_matrix(files: dict[str, Path]) -> None:
    model = make_model(QWEN2, files)
    model.decoder.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    with pytest.raises(CheckpointError, match="not finite") as caught:
        collect(model, inputs(QWEN2), "test", silent)
    assert caught.value.where == "layers.1.mlp.down_proj.weight"


def weighed_error(model: VlmModel, path: Path, imatrix: Imatrix) -> float:
    """Squared errors of the file's matrices, weighed by the strengths of their inputs."""
    state, total = model.decoder.state_dict(), 0.0
    names = {tensor_name(name): name for name in state}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name in imatrix.entries:
            error = gguf.quants.dequantize(tensor.data, tensor.tensor_type) - state[names[tensor.name]].numpy()
            total += float((np.square(error, dtype=np.float64) * imatrix.entries[tensor.name].mean).sum())
    return total


@pytest.mark.parametrize("gguf_type", ["q4_0", "q4_1", "iq4_nl", "q4_k_m"])
def test_llama_cpp_lessens_the_errors_that_matter(gguf_type: str, files: dict[str, Path], tmp_path: Path) -> None:
    model, path = make_model(WIDE, files), tmp_path / "imatrix.gguf"
    imatrix = collect(model, inputs(WIDE), "test", silent)
    # A few channels far stronger than the others, and a block of silent ones, as in trained models.
    for entry in imatrix.entries.values():
        entry.sums[::16] *= 1000
        entry.sums[32:64] = 0
    write_imatrix(path, imatrix)
    errors = []
    for given in (None, path):
        export(model, tmp_path, gguf_type=gguf_type, imatrix=given, progress=silent)
        errors.append(weighed_error(model, tmp_path / f"model-{gguf_type}.gguf", imatrix))
    assert errors[1] < 0.8 * errors[0]
    fields = gguf.GGUFReader(tmp_path / f"model-{gguf_type}.gguf").fields
    assert fields["quantize.imatrix.chunks_count"].contents() == 3
    (silent_block,) = (
        t for t in gguf.GGUFReader(tmp_path / f"model-{gguf_type}.gguf").tensors if t.name == "blk.0.attn_q.weight"
    )
    weights = gguf.quants.dequantize(silent_block.data, silent_block.tensor_type)[:, 32:64]
    assert np.abs(weights).max(axis=1).min() > 0, "weights of silent inputs must not become zero"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure_imatrix", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_importances_from_images_keep_the_answers_of_a_trained_model(tool: ModuleType, tmp_path: Path) -> None:
    """Closer to the original's distributions on questions about images than without, and than from text alone.

    docs/measurements/imatrix.md has the same with intervals, on twenty times as many questions.
    """
    model = load(resolve("zoo:nano-fastvlm"))
    calibration = open_calibration("scenes", 64)
    questions = list(tool.asked(model, scenes("test", 100)))
    right = tool.log_probabilities(model, tool.quantized(model, tmp_path, "f32", None)[0], questions)
    found = []
    for imatrix in (None, tool.from_text(model, calibration), make(model, calibration, silent)):
        path, _ = tool.quantized(model, tmp_path, "q4_k_m", imatrix)
        found.append(tool.divergence(right, tool.log_probabilities(model, path, questions)).mean())
    without, text, images = found
    assert images < 0.7 * min(without, text)
