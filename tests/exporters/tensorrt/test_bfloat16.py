"""Graphs in bfloat16: the types that stand in them, what tensorrt-rtx says of them, and their numbers without rounding.

ONNX Runtime has no kernels for them; widened in memory they prove weights and structure (`runtimes.onnx_widening`).
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from decoders import QWEN2
from llava_mini_oracle import make_oracle, write_checkpoint
from onnx import TensorProto
from onnx_models import make_decoder
from reducer_models import FASTVITHD, scene_pixels, vision_model, vision_spec
from standard_models import DIALECTS, VERSIONS, StaticCache, exact_session, write_standard

from edgevlm.exporters.lint import Toolkit, lint_graph
from edgevlm.exporters.lint.rtx_parser import parse, parser_version
from edgevlm.exporters.onnx.decoder import DecoderBuilder
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.fusion_standard import DecomposedFusionDialect, FusedFusionDialect, build_fusion
from edgevlm.exporters.onnx.graph import Graph
from edgevlm.exporters.tensorrt.schemes import SCHEMES, bfloat16_scheme
from edgevlm.exporters.tensorrt.vision import export_vision
from edgevlm.models import load
from edgevlm.models.decoder import Decoder
from edgevlm.quant.schemes import store
from edgevlm.quant.tensor import QuantizedTensor
from edgevlm.recipe import Precision
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.device import Device
from edgevlm.runtimes.onnxruntime import OnnxRuntimeFusion
from edgevlm.runtimes.ort_session import open_session

dialects = pytest.mark.parametrize("kind", DIALECTS)
FUSIONS = {"fused": FusedFusionDialect, "decomposed": DecomposedFusionDialect}
#: Of the decomposed form, constants of what is summed in float32: the mask, and the epsilon of norms.
WIDE = {"zero", "unseen", f"eps.{QWEN2.norm_eps}"}


def refusals(path: Path, kind: str) -> list[str]:
    """What the table of the version, and tensorrt-rtx's parser where it is installed, have against a graph."""
    toolkit = Toolkit("tensorrt", VERSIONS[kind], (8, 7))
    found = [f"{each.node}: {each.why}" for each in lint_graph(path, toolkit, ask=False) if each.blocks]
    if parser_version() is not None:
        answer = parse(lambda *_: None, str(path))
        found += [str(each) for each in answer]
    return found


def rounded(values: torch.Tensor) -> torch.Tensor:
    return values.bfloat16().float()


def twin(decoder: Decoder, precision: Precision) -> Decoder:
    """The decoder with the numbers that the graph stores: floats in bfloat16, or codes with scales in bfloat16."""
    result = Decoder(decoder.spec).eval().requires_grad_(False)
    result.load_state_dict(decoder.state_dict())
    for name, parameter in result.named_parameters():
        scheme = bfloat16_scheme(name, "linear", parameter.shape[-1], precision)
        stored = store(parameter, scheme) if parameter.ndim == 2 else None
        if isinstance(stored, QuantizedTensor):
            assert stored.scheme.bits == 4
            codes = torch.from_numpy(stored.codes.astype(np.float32)) - (1 << (stored.scheme.bits - 1))
            scales = rounded(torch.from_numpy(stored.scales)).repeat_interleave(stored.scheme.group_size, dim=1)
            wide = scales[:, : codes.shape[1]]
            # Negative scales are mirrored, and there is no 8.
            parameter.copy_(torch.minimum(codes * wide, 7 * wide.abs()))
        else:
            parameter.copy_(rounded(parameter))
    return result


@dialects
@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_decoder_logits_are_those_of_bfloat16_weights(kind: str, precision: Precision, tmp_path: Path) -> None:
    """What is left is the rounding of cosines and sines; types are bfloat16 throughout, and the parser reads them."""
    decoder = make_decoder(QWEN2)
    path = write_standard(decoder, tmp_path, kind, precision, compute="bfloat16")
    graph = onnx.load(str(path), load_external_data=False).graph
    kinds = Counter(each.data_type for each in graph.initializer)
    assert kinds[TensorProto.BFLOAT16] > 10
    assert TensorProto.FLOAT16 not in kinds
    assert {each.name for each in graph.initializer if each.data_type == TensorProto.FLOAT} <= WIDE
    borders = {each.name: each.type.tensor_type.elem_type for each in (*graph.input, *graph.output)}
    cache = {kind for name, kind in borders.items() if name.startswith(("past_key_values.", "present."))}
    assert cache == {TensorProto.BFLOAT16}
    assert borders["inputs_embeds"] == borders["logits"] == TensorProto.FLOAT
    casts = {each.i for node in graph.node if node.op_type == "Cast" for each in node.attribute}
    assert casts == {TensorProto.BFLOAT16, TensorProto.FLOAT}
    onnx.checker.check_model(str(path), full_check=True)
    assert not refusals(path, kind) + refusals(tmp_path / "embed.onnx", kind)
    run, expected, past, start, errors = StaticCache(path, QWEN2, "bfloat16"), twin(decoder, precision), None, 0, []
    generator = torch.Generator().manual_seed(7)
    for length in (9, 1, 5):
        # Numbers that bfloat16 holds, as the embedding's are.
        embeddings = rounded(torch.randn(1, length, QWEN2.hidden_size, generator=generator))
        logits, past = expected(embeddings, torch.arange(start, start + length)[None], past)
        errors.append(float(np.abs(run(embeddings) - logits[0, -1].numpy()).max()))
        start += length
    assert max(errors) < 1e-3


@dialects
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_scales_are_positive(kind: str, precision: Precision, tmp_path: Path) -> None:
    """TensorRT's parser refuses others, whatever their type; that of tensorrt-rtx takes them of INT4."""
    path = write_standard(make_decoder(QWEN2), tmp_path, kind, precision, compute="bfloat16")
    scales = [each for each in onnx.load(str(path)).graph.initializer if each.name.endswith(".scales")]
    assert scales
    assert all((onnx.numpy_helper.to_array(each) > 0).all() for each in scales)
    assert not refusals(path, kind) + refusals(tmp_path / "embed.onnx", kind)


def test_embedding_rows_are_those_of_the_table(tmp_path: Path) -> None:
    decoder = make_decoder(QWEN2)
    write_standard(decoder, tmp_path, "fused", "fp16", compute="bfloat16")
    ids = np.array([[0, 5, 99]])
    rows = exact_session(tmp_path / "embed.onnx", "bfloat16").run(None, {"input_ids": ids})[0]
    np.testing.assert_array_equal(rows, rounded(decoder.embed_tokens.weight[ids]).numpy())


def test_vision_rounds_weights_and_nothing_else_is_float32(tmp_path: Path) -> None:
    spec = vision_spec(FASTVITHD, 2)
    vision = vision_model(spec)
    path = tmp_path / "vision.onnx"
    with ExternalData(tmp_path / "vision.onnx_data") as data:
        export_vision(vision, spec.image_size, compute="bfloat16", static=None, path=path, data=data)
    graph = onnx.load(str(path), load_external_data=False).graph
    kinds = {each.data_type for each in graph.initializer}
    assert TensorProto.BFLOAT16 in kinds
    assert not kinds & {TensorProto.FLOAT, TensorProto.FLOAT16}
    assert [node.op_type for node in graph.node].count("Cast") == 2
    onnx.checker.check_model(str(path), full_check=True)
    assert not refusals(path, "decomposed")
    pixels = scene_pixels(spec.image_size, 1)
    session = open_session(path, 1, {}, Device("cpu"), compute="bfloat16")
    found = session.run(None, {"pixel_values": pixels.numpy()})[0]
    for parameter in vision.parameters():
        parameter.copy_(rounded(parameter))
    expected = vision(pixels).numpy()
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


@dialects
def test_fusion_rounds_weights(kind: str, tmp_path: Path) -> None:
    model = load(write_checkpoint(make_oracle(kind="qwen", compressor_size=2), tmp_path, kind="qwen"))
    assert model.fusion is not None
    rows, hidden = model.spec.vision.image_tokens, model.spec.decoder.hidden_size
    path = tmp_path / "fusion.onnx"
    with ExternalData(tmp_path / "fusion.onnx_data") as data:
        graph = Graph("fusion", data, opset=FUSIONS[kind].opset, contrib=False)
        dialect = FUSIONS[kind](graph, model.fusion, rows, 48, compute="bfloat16")
        build_fusion(DecoderBuilder(model.fusion, dialect, "fp16", scheme=SCHEMES["bfloat16"]))
    graph.save(path)
    kinds = {each.data_type for each in onnx.load(str(path), load_external_data=False).graph.initializer}
    assert TensorProto.BFLOAT16 in kinds and TensorProto.FLOAT16 not in kinds
    assert not refusals(path, kind)
    engine = OnnxRuntimeFusion(path, model.spec, EngineOptions(threads=1), compute="bfloat16")
    generator = np.random.default_rng(0)
    image, text = (generator.standard_normal((count, hidden), dtype=np.float32) for count in (rows, 7))
    with torch.no_grad():
        for parameter in model.fusion.parameters():
            parameter.copy_(rounded(parameter))
        expected = model.fusion(torch.from_numpy(image)[None], torch.from_numpy(text)[None])[0].numpy()
    found = engine.fuse(image, text)
    engine.close()
    assert (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected) > 0.9999


def test_an_older_gpu_is_refused(tmp_path: Path) -> None:
    """Compute capability 7.5 has no bfloat16; 8.0 has."""
    path = write_standard(make_decoder(QWEN2), tmp_path, "decomposed", "fp16", compute="bfloat16")

    def said(capability: tuple[int, int]) -> set[str]:
        findings = lint_graph(path, Toolkit("rtx", (1, 7), capability), ask=False)
        return {each.why for each in findings if each.blocks}

    assert said((7, 5)) == {"bfloat16 on a GPU older than compute capability 8.0"}
    assert said((8, 0)) == set()
