"""The standard dialect in ONNX Runtime against torch and against the `ort` dialect, and what stands in its graphs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from decoders import DECODERS, QWEN2
from onnx_models import GrowingCache, make_decoder, write_decoder
from standard_models import DIALECTS, KV_LENGTH, VERSIONS, StaticCache, exact_session, operators, write_standard

from edgevlm.errors import UnsupportedError
from edgevlm.exporters.lint import Toolkit, lint_graph
from edgevlm.exporters.onnx.dialect_standard import FusedDialect
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.graph import Graph
from edgevlm.exporters.tensorrt.schemes import tensorrt_scheme
from edgevlm.models.decoder import Decoder
from edgevlm.quant.schemes import store
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme
from edgevlm.recipe import Precision
from edgevlm.runtimes.build_plan import ComputeType
from edgevlm.spec import DecoderSpec

#: All kinds of decoder; the widths of Llama's MLP here are whole blocks of 16.
SPECS = {
    **DECODERS,
    "qk_rms": replace(DECODERS["llama"], qk_norm="rms", rotary_dim=8),
    "mrope": replace(QWEN2, rope_sections=(2, 3, 3)),
}
families = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
dialects = pytest.mark.parametrize("kind", DIALECTS)
#: Precisions that are no codes, and what they compute in.
FLOATS: tuple[tuple[Precision, ComputeType], ...] = (("fp32", "float32"), ("fp16", "float16"))
#: A prompt, single tokens, and a second turn of several positions.
STEPS = (9, 1, 1, 5, 1)


def largest_error(decoder: Decoder, run: StaticCache) -> float:
    generator = torch.Generator().manual_seed(7)
    past, start, errors = None, 0, []
    for length in STEPS:
        embeddings = torch.randn(1, length, decoder.spec.hidden_size, generator=generator)
        positions = torch.arange(start, start + length)[None]
        if decoder.spec.rope_sections:
            positions = torch.stack([positions, positions // 2, positions // 3])
        logits, past = decoder(embeddings, positions, past)
        found = run(embeddings, positions if decoder.spec.rope_sections else None)
        errors.append(float(np.abs(found - logits[0, -1].numpy()).max()))
        start += length
    return max(errors)


def on_grid(decoder: Decoder, precision: Precision) -> Decoder:
    """The decoder whose matrices are what the graph stores."""
    twin = Decoder(decoder.spec).eval().requires_grad_(False)
    twin.load_state_dict(decoder.state_dict())
    for name, parameter in twin.named_parameters():
        if parameter.ndim == 2:
            stored = store(parameter, tensorrt_scheme(name, "linear", parameter.shape[1], precision))
            assert isinstance(stored, QuantizedTensor)
            # TensorRT takes no negative scale, and a mirrored one has no 128, or 8.
            largest = ((1 << (stored.scheme.bits - 1)) - 1) * np.abs(stored.scales)
            limits = np.repeat(largest, stored.scheme.group_size, axis=1)[:, : parameter.shape[1]]
            parameter.copy_(torch.from_numpy(np.minimum(stored.dequantize(), limits)))
    return twin


@families
@dialects
def test_float_logits_equal_torch(spec: DecoderSpec, kind: str, tmp_path: Path) -> None:
    decoder = make_decoder(spec)
    assert largest_error(decoder, StaticCache(write_standard(decoder, tmp_path, kind, "fp32"), spec)) < 1e-4


@families
@dialects
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_quantized_logits_equal_torch_on_the_same_grid(
    spec: DecoderSpec, kind: str, precision: Precision, tmp_path: Path
) -> None:
    """Codes and scales are laid out as DequantizeLinear reads them."""
    decoder = make_decoder(spec)
    run = StaticCache(write_standard(decoder, tmp_path, kind, precision), spec)
    assert largest_error(on_grid(decoder, precision), run) < 1e-4


@families
@dialects
def test_half_precision_rounds_and_no_more(spec: DecoderSpec, kind: str, tmp_path: Path) -> None:
    """Logits are about 1 in size; the cache, the products and the sums are float16."""
    decoder = make_decoder(spec)
    path = write_standard(decoder, tmp_path, kind, "fp16", compute="float16")
    assert largest_error(decoder, StaticCache(path, spec)) < 1e-2
    onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize("name", ["qwen2", "llama", "phi2", "tinygptv"])
def test_greedy_tokens_are_those_of_the_ort_dialect(name: str, tmp_path: Path) -> None:
    """All variants: fused and decomposed, float32 and float16."""
    spec = replace(SPECS[name], tied_embeddings=False, vocab_size=512)
    decoder = make_decoder(spec)
    # Attention strong enough, and biases weak enough, for what came before to decide.
    for parameter_name, parameter in decoder.named_parameters():
        if parameter_name.endswith(("q_proj.weight", "v_proj.weight")):
            parameter.mul_(4)
        elif parameter_name.endswith("bias"):
            parameter.mul_(0.1)
    prompt = torch.tensor([[3, 14, 15, 92, 65]])

    def tokens(run: GrowingCache | StaticCache) -> list[int]:
        embeddings, found = decoder.embed_tokens(prompt), []
        for _ in range(16):
            found.append(int(np.asarray(run(embeddings)).reshape(-1, spec.vocab_size)[-1].argmax()))
            embeddings = decoder.embed_tokens(torch.tensor([[found[-1]]]))
        return found

    ort = tmp_path / "ort"
    ort.mkdir()
    expected = tokens(GrowingCache(write_decoder(decoder, ort, "fp32"), spec))
    assert len(set(expected)) > 3, "this decoder says nothing"
    for kind in DIALECTS:
        for precision, compute in FLOATS:
            folder = tmp_path / f"{kind}-{precision}"
            folder.mkdir()
            path = write_standard(decoder, folder, kind, precision, compute=compute)
            assert tokens(StaticCache(path, spec)) == expected, (kind, precision)


@pytest.mark.parametrize(("name", "ask"), [("qwen2", True), ("tinygptv", True), ("qk_rms", False), ("mrope", False)])
@dialects
def test_graphs_hold_what_their_version_reads(name: str, ask: bool, kind: str, tmp_path: Path) -> None:
    """No contrib operators, no zero points, and nothing that the table of this TensorRT, or RTX's parser, refuses."""
    spec = SPECS[name]
    path = write_standard(make_decoder(spec), tmp_path, kind, "int4", compute="float16")
    for file in (path, tmp_path / "embed.onnx"):
        model = onnx.load(str(file), load_external_data=False)
        assert [entry.domain for entry in model.opset_import] == [""]
        assert {domain for domain, _ in operators(file)} == {""}
        for toolkit in (Toolkit("tensorrt", VERSIONS[kind], (8, 7)), Toolkit("rtx", (1, 7), (8, 6))):
            assert not [finding for finding in lint_graph(file, toolkit, ask=ask) if finding.blocks]
        for node in model.graph.node:
            assert node.op_type != "DequantizeLinear" or len(node.input) == 2


def test_older_versions_do_not_read_the_fused_operators(tmp_path: Path) -> None:
    """Why there are two ways to write a decoder; and that the lint above can fail."""
    path = write_standard(make_decoder(QWEN2), tmp_path, "fused", "fp16", compute="float16")
    refused = {finding.op for finding in lint_graph(path, Toolkit("tensorrt", (10, 3), (8, 7)), ask=False)}
    assert {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"} <= refused


@dialects
@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_a_tied_table_is_written_once(kind: str, precision: Precision, tmp_path: Path) -> None:
    path = write_standard(make_decoder(QWEN2), tmp_path, kind, precision, compute="float16")
    files = {
        item.value
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer
        for item in tensor.external_data
        if item.key == "location"
    }
    assert files == {"decoder.onnx_data", "embed.onnx_data"}


def test_embedding_rows_are_those_of_the_table(tmp_path: Path) -> None:
    decoder = on_grid(make_decoder(QWEN2), "int4")
    write_standard(make_decoder(QWEN2), tmp_path, "decomposed", "int4")
    ids = np.array([[0, 5, 99]])
    rows = exact_session(tmp_path / "embed.onnx").run(None, {"input_ids": ids})[0]
    np.testing.assert_allclose(rows, decoder.embed_tokens.weight[ids].numpy(), atol=1e-7)


@pytest.mark.parametrize(
    ("scheme", "zeros", "said"),
    [
        (QuantScheme(4, 32, symmetric=False), True, "zero points"),
        (QuantScheme(8, 32), False, "one a group"),
        (QuantScheme(4, 24), False, "24 does not divide 64"),
    ],
)
def test_codes_that_tensorrt_does_not_read_are_refused(
    scheme: QuantScheme, zeros: bool, said: str, tmp_path: Path
) -> None:
    groups = -(-64 // scheme.group_size)
    tensor = QuantizedTensor(
        np.zeros((8, 64), np.uint8),
        np.ones((8, groups), np.float32),
        np.zeros((8, groups), np.uint8) if zeros else None,
        scheme,
    )
    with ExternalData(tmp_path / "data") as data:
        dialect = FusedDialect(Graph("decoder", data, opset=24, contrib=False), QWEN2, KV_LENGTH, compute="float16")
        with pytest.raises(UnsupportedError, match=said):
            dialect.linear("x", tensor, None, "layers.0.mlp.up_proj")


@pytest.mark.parametrize(("columns", "group"), [(4864, 128), (960, 64), (112, 16), (64, 32), (896, 128)])
def test_int4_blocks_are_whole(columns: int, group: int) -> None:
    assert tensorrt_scheme("x.weight", "linear", columns, "int4") == QuantScheme(4, group)


def test_what_no_block_divides_stays_in_float() -> None:
    assert tensorrt_scheme("x.weight", "linear", 40, "int4") == "float16"
    assert tensorrt_scheme("x.weight", "linear", 40, "int8") == QuantScheme(8, 40)
