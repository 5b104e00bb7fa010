"""The `ort` dialect: what one step of a decoder is in ONNX Runtime's fused operators.

Activations are float32; quantized products use MatMulNBits at accuracy level 4 (activations rounded to int8 per block
inside the kernel), without which int4 is slower than float. Contrib operators: onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from edgevlm.exporters.onnx.dialect import Dialect, Float32
from edgevlm.exporters.onnx.graph import CONTRIB, FLOAT, INT8, INT32, INT64, INT64_MAX, Graph
from edgevlm.exporters.onnx.packing import pack_codes, pack_zero_points
from edgevlm.exporters.onnx.table import StoredTable
from edgevlm.exporters.onnx.token_drop import Seen, declare_images, kept_places, part_suffix
from edgevlm.models.decoder import rotary_tables
from edgevlm.quant.cache_scales import CacheScales
from edgevlm.quant.schemes import StoredMatrix
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme
from edgevlm.spec import DecoderSpec

#: The place of the cache's scales among the inputs of GroupQueryAttention.
_CACHE_SCALES = 12


class OrtDialect(Dialect):
    """Steps of a decoder in contrib operators, added to `graph`."""

    def __init__(
        self, graph: Graph, spec: DecoderSpec, *, accuracy_level: int = 4, cache: Sequence[CacheScales] = ()
    ) -> None:
        """`cache` has the scales of each layer's keys and values where these are int8; else they are float32."""
        super().__init__(graph, spec)
        self.accuracy_level = accuracy_level
        self.cache = cache
        self._cache_type = INT8 if cache else FLOAT

    def inputs(self) -> str:
        """Declare the graph's inputs and what all layers share; returns the embeddings `[B, S, H]`.

        `attention_mask` `[B, T]` covers past and present positions; only its length and its sums are used, so that a
        key/value buffer longer than the sequence works (past and present may then be one buffer). Axis names are
        those that transformers.js resolves.
        """
        graph, spec = self.graph, self.spec
        embeds = graph.input("inputs_embeds", FLOAT, ["batch_size", "sequence_length", spec.hidden_size])
        mask = graph.input("attention_mask", INT64, ["batch_size", "total_sequence_length"])
        graph.input("num_logits_to_keep", INT64, [])
        for index in range(spec.num_hidden_layers):
            for kind in ("key", "value"):
                past = self._cache_shape(index, "past_sequence_length")
                graph.input(f"past_key_values.{index}.{kind}", self._cache_type, past)
        self._lengths(mask, 0)
        for part in range(1, 1 + len(spec.token_drop.stages) if spec.token_drop else 0):
            name = part_suffix(part)
            shape: list[str | int] = ["batch_size", f"total_sequence_length{name}"]
            self._lengths(graph.input(f"attention_mask{name}", INT64, shape), part)
        if spec.token_drop:
            declare_images(graph)
        if spec.rope_sections:
            self._rotary_of_positions()
        else:
            positions = torch.arange(spec.max_position_embeddings)
            cos, sin = rotary_tables(positions, spec.rotary_dim, spec.rope_theta, spec.rope_scaling)
            graph.tensor("rotary.cos", cos.numpy())
            graph.tensor("rotary.sin", sin.numpy())
        keep = graph.op("Neg", ["num_logits_to_keep"], "keep.start")
        graph.op("Reshape", [keep, graph.integers(1)], "keep.starts")
        return embeds

    def _lengths(self, mask: str, part: int) -> None:
        """What attention is told of the sequence's length in a part of the layers."""
        graph, suffix = self.graph, part_suffix(part)
        lengths = graph.op("ReduceSum", [mask, graph.integers(1)], f"mask.lengths{suffix}", keepdims=0)
        last = graph.op("Sub", [lengths, graph.integers(1)], f"mask.last{suffix}")
        graph.op("Cast", [last], f"seqlens_k{suffix}", to=INT32)
        shape = graph.op("Shape", [mask], f"mask.total{suffix}", start=1, end=2)
        total = graph.op("Squeeze", [shape, graph.integers(0)], f"mask.total_scalar{suffix}")
        graph.op("Cast", [total], f"total_sequence_length{suffix}", to=INT32)

    def _part(self, layer: int) -> str:
        """What ends the names that belong to a layer's part."""
        drop = self.spec.token_drop
        return part_suffix(drop.part(layer)) if drop else ""

    def _rotary_of_positions(self) -> None:
        """M-RoPE: cosine and sine `[B, S, D / 2]` of the positions `[3, B, S]` on three axes, which are an input.

        Each frequency belongs to one axis, so a product with `[3, D / 2]`, zero elsewhere, gives all angles exactly.
        """
        graph, spec = self.graph, self.spec
        frequencies = spec.rope_theta ** (-np.arange(0, spec.rotary_dim, 2, dtype=np.float64) / spec.rotary_dim)
        axis = np.repeat(np.arange(len(spec.rope_sections)), spec.rope_sections)
        table = np.where(np.arange(3)[:, None] == axis, frequencies, 0.0).astype(np.float32)
        ids = graph.input("position_ids", INT64, [3, "batch_size", "sequence_length"])
        positions = graph.op("Cast", [ids], "rotary.positions", to=FLOAT)
        last = graph.op("Transpose", [positions], "rotary.positions_last", perm=[1, 2, 0])
        angles = graph.op("MatMul", [last, graph.tensor("rotary.frequencies", table)], "rotary.angles")
        graph.op("Cos", [angles], "rotary.cos")
        graph.op("Sin", [angles], "rotary.sin")

    def _rotate(self, x: str, heads: int, name: str) -> str:
        """Turn the heads of `[B, S, heads * D]` by the positions given as an input."""
        inputs = [x, "rotary.cos", "rotary.sin"]
        return self.graph.op(
            "RotaryEmbedding", inputs, name, num_heads=heads, rotary_embedding_dim=self.spec.rotary_dim
        )

    def _cache_shape(self, layer: int, length: str) -> list[str | int]:
        return ["batch_size", self.spec.num_key_value_heads, f"{length}{self._part(layer)}", self.spec.head_dim]

    def drop_tokens(self, stage: int, seen: Seen, normed: str) -> tuple[str, str]:
        """States `[B, S, H]` behind a layer and their norm, of the tokens that go on behind a stage."""
        drop, graph = self.spec.token_drop, self.graph
        assert drop is not None
        kept = kept_places(graph, self.spec, drop, stage, seen)
        return (
            graph.op("Gather", [seen.states, kept], f"drop.{stage + 1}.states", axis=1),
            graph.op("Gather", [normed, kept], f"drop.{stage + 1}.normed", axis=1),
        )

    def keep_last(self, x: str, name: str) -> str:
        """`[B, S, C]` to its last `num_logits_to_keep` positions; all of them for 0, since -0 is the start."""
        graph = self.graph
        return graph.op("Slice", [x, "keep.starts", graph.integers(INT64_MAX), graph.integers(1)], name)

    def linear(self, x: str, matrix: StoredMatrix, bias: Float32 | None, name: str) -> str:
        """`[B, S, K]` times a matrix `[N, K]`, plus a bias."""
        graph = self.graph
        if not isinstance(matrix, QuantizedTensor):
            weight = graph.weight(f"{name}.weight", matrix)
            return self._float_product(x, weight, half=matrix.dtype == np.float16, bias=bias, name=name)
        inputs = [
            x,
            graph.weight(f"{name}.weight.codes", pack_codes(matrix)),
            graph.weight(f"{name}.weight.scales", matrix.scales),
        ]
        zeros = pack_zero_points(matrix)
        inputs.append("" if zeros is None else graph.weight(f"{name}.weight.zero_points", zeros))
        rows, columns = matrix.codes.shape
        return self._quantized_product(inputs, rows, columns, matrix.scheme, bias, name)

    def tied_head(self, x: str, table: StoredTable, bias: Float32 | None, name: str) -> str:
        """`[B, S, H]` times the embedding table `[V, H]`, reading the bytes that the embedding graph wrote."""
        graph = self.graph
        if table.scheme is None:
            weight = graph.stored(f"{name}.weight", table.data)
            half = table.data.data_type != FLOAT
            return self._float_product(x, weight, half=half, bias=bias, name=name)
        scheme = table.scheme
        groups = -(-table.columns // scheme.group_size)
        blocks = (table.rows, groups, scheme.group_size * scheme.storage_bits // 8)
        assert table.scales is not None
        inputs = [
            x,
            graph.stored(f"{name}.weight.codes", table.data, blocks),
            graph.stored(f"{name}.weight.scales", table.scales),
        ]
        if table.zero_points is not None:
            inputs.append(graph.stored(f"{name}.weight.zero_points", table.zero_points))
        return self._quantized_product(inputs, table.rows, table.columns, scheme, bias, name)

    def _quantized_product(
        self, inputs: list[str], rows: int, columns: int, scheme: QuantScheme, bias: Float32 | None, name: str
    ) -> str:
        if bias is not None:
            inputs = [*inputs, *[""] * (5 - len(inputs)), self.graph.weight(f"{name}.bias", bias)]
        while not inputs[-1]:
            inputs = inputs[:-1]
        return self.graph.op(
            "MatMulNBits",
            inputs,
            name,
            domain=CONTRIB,
            N=rows,
            K=columns,
            bits=scheme.storage_bits,
            block_size=scheme.group_size,
            accuracy_level=self.accuracy_level,
        )

    def _float_product(self, x: str, weight: str, *, half: bool, bias: Float32 | None, name: str) -> str:
        """transB reads the matrix as published. Half weights are widened once, when the session folds constants."""
        graph = self.graph
        if half:
            weight = graph.op("Cast", [weight], f"{name}.weight.float", to=FLOAT)
        product = name if bias is None else f"{name}.product"
        graph.op("FusedMatMul", [x, weight], product, domain=CONTRIB, transB=1)
        if bias is not None:
            graph.op("Add", [product, graph.weight(f"{name}.bias", bias)], name)
        return name

    def norm(self, x: str, kind: str, weight: Float32, bias: Float32 | None, eps: float, name: str) -> str:
        """RMS or layer normalisation of the last axis."""
        graph = self.graph
        inputs = [x, graph.weight(f"{name}.weight", weight)]
        if kind == "rms":
            return graph.op("RMSNormalization", inputs, name, axis=-1, epsilon=eps)
        if bias is not None:
            inputs.append(graph.weight(f"{name}.bias", bias))
        return graph.op("LayerNormalization", inputs, name, axis=-1, epsilon=eps)

    def add_norm(
        self, a: str, b: str, kind: str, weight: Float32, bias: Float32 | None, eps: float, name: str
    ) -> tuple[str, str]:
        """a + b, and that sum normalised, in one pass over memory."""
        graph = self.graph
        inputs = [a, b, graph.weight(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(graph.weight(f"{name}.bias", bias))
        op = "SkipSimplifiedLayerNormalization" if kind == "rms" else "SkipLayerNormalization"
        graph.ops(op, inputs, [name, "", "", f"{name}.sum"], domain=CONTRIB, epsilon=eps)
        return f"{name}.sum", name

    def attention(self, query: str, key: str, value: str, index: int, name: str) -> str:
        """GroupQueryAttention, which turns queries and keys by their places unless the positions are an input."""
        if self.spec.rope_sections:
            path = f"layers.{index}.self_attn"
            query = self._rotate(query, self.spec.num_attention_heads, f"{path}.q_rotated")
            key = self._rotate(key, self.spec.num_key_value_heads, f"{path}.k_rotated")
        spec, past, part = self.spec, f"past_key_values.{index}", self._part(index)
        lengths = [f"seqlens_k{part}", f"total_sequence_length{part}"]
        inputs = [query, key, value, f"{past}.key", f"{past}.value", *lengths]
        inputs += [] if spec.rope_sections else ["rotary.cos", "rotary.sin"]
        present = [f"present.{index}.key", f"present.{index}.value"]
        attributes: dict[str, int | str] = {}
        if self.cache:
            scales = self.cache[index]
            inputs += [""] * (_CACHE_SCALES - len(inputs))
            inputs += [
                self.graph.tensor(f"{name}.key_scale", scales.key.reshape(-1)),
                self.graph.tensor(f"{name}.value_scale", scales.value.reshape(-1)),
            ]
            attributes = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        self.graph.ops(
            "GroupQueryAttention",
            inputs,
            [name, *present],
            domain=CONTRIB,
            num_heads=spec.num_attention_heads,
            kv_num_heads=spec.num_key_value_heads,
            do_rotary=0 if spec.rope_sections else 1,
            **attributes,
        )
        return name

    def silu(self, x: str, name: str) -> str:
        """x * sigmoid(x): QuickGelu with alpha 1."""
        return self.graph.op("QuickGelu", [x], name, domain=CONTRIB, alpha=1.0)

    def outputs(self) -> None:
        """Declare the graph's outputs: `logits` `[B, kept, V]` and the updated cache."""
        graph, spec = self.graph, self.spec
        graph.output("logits", FLOAT, ["batch_size", "num_logits", spec.vocab_size])
        for index in range(spec.num_hidden_layers):
            for kind in ("key", "value"):
                shape = self._cache_shape(index, "total_sequence_length")
                graph.output(f"present.{index}.{kind}", self._cache_type, shape)
        for number in range(1, 1 + len(spec.token_drop.stages) if spec.token_drop else 0):
            graph.output(f"kept_positions.{number}", INT64, [f"kept_length.{number}"])
