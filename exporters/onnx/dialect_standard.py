"""The `standard` dialect: the steps of a decoder in ONNX's own operators, for TensorRT.

In: a spec, the length of the key/value cache, and the type to compute in. Out: nodes without contrib
operators, for one sequence. The graph takes `inputs_embeds` float32 `[1, S, H]`, `write_indices` int64 `[1]` (how many
positions the cache holds) and the whole cache `past_key_values.*` `[1, heads, L, D]`; it gives `logits` float32
`[1, 1, V]` of the last position and the cache with S more positions, `present.*`, which may be the same memory.

Two ways to write the same: `FusedDialect` in Attention, RotaryEmbedding, RMSNormalization and TensorScatter (opset 24,
TensorRT 10.15), `DecomposedDialect` in products, sums and ScatterND (opset 20, or 21 where INT4 needs it). Both mask by
an explicit comparison of places: which corner `is_causal` counts from differs among runtimes where S is not L, and some
read no `nonpad_kv_seqlen` (docs/tensorrt.md). 1/sqrt(D) is multiplied into the queries.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch

from edgevlm.exporters.onnx import standard_weights as weights
from edgevlm.exporters.onnx.dialect import Dialect, Float32
from edgevlm.exporters.onnx.graph import FLOAT, FLOAT_TYPES, INT64, INT64_MAX, Graph
from edgevlm.exporters.onnx.table import StoredTable
from edgevlm.models.decoder import rotary_tables
from edgevlm.quant.schemes import StoredMatrix
from edgevlm.runtimes.build_plan import ComputeType
from edgevlm.spec import DecoderSpec

#: What is added to scores of places that are not seen; its exponential is 0, and sums with it stay finite.
_UNSEEN = np.float32(-1e30)


class StandardDialect(Dialect):
    """What both ways have in common."""

    logits = "logits.narrow"
    opset: ClassVar[int]

    def __init__(self, graph: Graph, spec: DecoderSpec, kv_length: int, *, compute: ComputeType) -> None:
        super().__init__(graph, spec)
        self.kv_length = kv_length
        self.float_type = FLOAT_TYPES[compute]
        self.dtype: np.dtype[np.floating] = weights.numpy_dtype(compute)

    @abstractmethod
    def _mask(self, seen: str) -> None:
        """Prepare what attention is told of which places `[S, L]` are seen."""

    @abstractmethod
    def _rotate(self, x: str, heads: int, name: str) -> str:
        """Turn the leading channels of `[1, heads, S, D]` by `rotary.cos` and `rotary.sin` `[1, S, R / 2]`."""

    @abstractmethod
    def _update(self, past: str, new: str, present: str) -> str:
        """The cache `[1, heads, L, D]` with `[1, heads, S, D]` behind what it holds."""

    @abstractmethod
    def _mix(self, query: str, key: str, value: str, name: str) -> str:
        """Scaled queries `[1, heads, S, D]` and the whole cache to `[1, heads, S, D]`."""

    def inputs(self) -> str:
        """Declare the graph's inputs and what all layers share; returns the embeddings `[1, S, H]`."""
        graph, spec = self.graph, self.spec
        embeds = graph.input("inputs_embeds", FLOAT, [1, "sequence_length", spec.hidden_size])
        graph.input("write_indices", INT64, [1])
        if spec.rope_sections:
            graph.input("position_ids", INT64, [3, 1, "sequence_length"])
        for name in self._cache_names("past_key_values"):
            graph.input(name, self.float_type, self._cache_shape())
        length = graph.op("Shape", [embeds], "sequence.length", start=1, end=2)
        places = graph.tensor("cache.places", np.arange(self.kv_length))
        begin = graph.op("Slice", [places, graph.integers(0), length, graph.integers(0)], "sequence.places")
        graph.op("Add", [begin, "write_indices"], "sequence.positions")
        column = graph.op("Unsqueeze", ["sequence.positions", graph.integers(1)], "sequence.column")
        self._mask(graph.op("LessOrEqual", [places, column], "cache.seen"))
        self._rotary()
        return graph.op("Cast", [embeds], "inputs_embeds.narrow", to=self.float_type)

    def _rotary(self) -> None:
        """Cosine and sine `[1, S, R / 2]` of the positions, for all layers."""
        for name, rows in zip(("rotary.cos", "rotary.sin"), self._rotary_tables(), strict=True):
            self.graph.op("Unsqueeze", [rows, self.graph.integers(0)], name)

    def _rotary_tables(self) -> tuple[str, str]:
        """Cosine and sine `[S, R / 2]` of the positions."""
        graph, spec = self.graph, self.spec
        if not spec.rope_sections:
            tables = rotary_tables(torch.arange(self.kv_length), spec.rotary_dim, spec.rope_theta, spec.rope_scaling)
            names = ("rotary.cos", "rotary.sin")
            rows = [
                graph.op(
                    "Gather",
                    [graph.tensor(f"{name}.table", self._narrow(table.numpy())), "sequence.positions"],
                    f"{name}.rows",
                    axis=0,
                )
                for name, table in zip(names, tables, strict=True)
            ]
            return rows[0], rows[1]
        # M-RoPE: a frequency belongs to one of three axes. Summed, not multiplied as matrices, which TensorRT may do in
        # TF32 with 10 bits for a position.
        frequencies = spec.rope_theta ** (-np.arange(0, spec.rotary_dim, 2, dtype=np.float64) / spec.rotary_dim)
        axis = np.repeat(np.arange(3), spec.rope_sections)
        by_axis = np.where(np.arange(3)[:, None] == axis, frequencies, 0.0).astype(np.float32)
        positions = graph.op("Cast", ["position_ids"], "rotary.positions", to=FLOAT)
        flat = graph.op("Reshape", [positions, graph.integers(3, -1, 1)], "rotary.positions.flat")
        turns = graph.op("Mul", [flat, graph.tensor("rotary.frequencies", by_axis[:, None])], "rotary.turns")
        angles = graph.op("ReduceSum", [turns, graph.integers(0)], "rotary.angles", keepdims=0)
        cos, sin = (graph.op(kind, [angles], f"rotary.{kind}.wide") for kind in ("Cos", "Sin"))
        return (
            graph.op("Cast", [cos], "rotary.cos.rows", to=self.float_type),
            graph.op("Cast", [sin], "rotary.sin.rows", to=self.float_type),
        )

    def outputs(self) -> None:
        """Declare the graph's outputs: `logits` `[1, 1, V]` and the updated cache."""
        graph = self.graph
        graph.op("Cast", [self.logits], "logits", to=FLOAT)
        graph.output("logits", FLOAT, [1, 1, self.spec.vocab_size])
        for name in self._cache_names("present"):
            graph.output(name, self.float_type, self._cache_shape())

    def linear(self, x: str, matrix: StoredMatrix, bias: Float32 | None, name: str) -> str:
        """`[1, S, K]` times a matrix `[N, K]`, plus a bias.

        Raises:
            UnsupportedError: the matrix has codes that TensorRT does not read.
        """
        return self._product(x, weights.matrix(self.graph, matrix, f"{name}.weight", self.dtype), bias, name)

    def tied_head(self, x: str, table: StoredTable, bias: Float32 | None, name: str) -> str:
        """`[1, S, H]` times the embedding table `[V, H]`, reading the bytes that the embedding graph wrote."""
        rows = weights.table(self.graph, table, f"{name}.weight")
        return self._product(x, self.graph.op("Transpose", [rows], f"{name}.columns", perm=[1, 0]), bias, name)

    def _product(self, x: str, right: str, bias: Float32 | None, name: str) -> str:
        if bias is None:
            return self.graph.op("MatMul", [x, right], name)
        product = self.graph.op("MatMul", [x, right], f"{name}.product")
        return self.graph.op("Add", [product, self.graph.weight(f"{name}.bias", self._narrow(bias))], name)

    def norm(self, x: str, kind: str, weight: Float32, bias: Float32 | None, eps: float, name: str) -> str:
        """RMS or layer normalisation of the last axis; sums are float32."""
        factor = self.graph.weight(f"{name}.weight", self._narrow(weight))
        if kind == "rms":
            return self._rms_norm(x, factor, eps, name)
        inputs = [x, factor]
        if bias is not None:
            inputs.append(self.graph.weight(f"{name}.bias", self._narrow(bias)))
        return self.graph.op("LayerNormalization", inputs, name, axis=-1, epsilon=eps)

    @abstractmethod
    def _rms_norm(self, x: str, weight: str, eps: float, name: str) -> str:
        """RMS normalisation of the last axis."""

    def add_norm(
        self, a: str, b: str, kind: str, weight: Float32, bias: Float32 | None, eps: float, name: str
    ) -> tuple[str, str]:
        """a + b, and that sum normalised."""
        total = self.add(a, b, f"{name}.sum")
        return total, self.norm(total, kind, weight, bias, eps, name)

    def keep_last(self, x: str, name: str) -> str:
        """`[1, S, C]` to its last position."""
        graph = self.graph
        bounds = [graph.integers(-1), graph.integers(INT64_MAX), graph.integers(1)]
        return graph.op("Slice", [x, *bounds], name)

    def silu(self, x: str, name: str) -> str:
        """x * sigmoid(x)."""
        return self.graph.op("Mul", [x, self.graph.op("Sigmoid", [x], f"{name}.sigmoid")], name)

    def attention(self, query: str, key: str, value: str, index: int, name: str) -> str:
        """Rotation, cache update and causal grouped-query attention: `[1, S, heads * D]`."""
        graph, spec = self.graph, self.spec
        if not key:
            sizes = graph.integers(spec.query_size, spec.key_value_size, spec.key_value_size)
            joint, (query, key, value) = query, (f"{name}.{kind}" for kind in ("query", "key", "value"))
            graph.ops("Split", [joint, sizes], [query, key, value], axis=-1)
        queries = self._heads(query, spec.num_attention_heads, f"{name}.query")
        keys = self._heads(key, spec.num_key_value_heads, f"{name}.key")
        values = self._heads(value, spec.num_key_value_heads, f"{name}.value")
        turned = self._rotate(queries, spec.num_attention_heads, f"{name}.query.turned")
        scale = graph.constant("attention.scale", np.array(spec.head_dim**-0.5, self.dtype))
        scaled = graph.op("Mul", [turned, scale], f"{name}.query.scaled")
        new = self._rotate(keys, spec.num_key_value_heads, f"{name}.key.turned"), values
        cache = [
            self._update(f"past_key_values.{index}.{kind}", each, f"present.{index}.{kind}")
            for kind, each in zip(("key", "value"), new, strict=True)
        ]
        mixed = self._mix(scaled, cache[0], cache[1], f"{name}.heads")
        rows = graph.op("Transpose", [mixed], f"{name}.rows", perm=[0, 2, 1, 3])
        return graph.op("Reshape", [rows, graph.integers(0, 0, spec.query_size)], name)

    def _heads(self, x: str, heads: int, name: str) -> str:
        """`[1, S, heads * D]` to `[1, heads, S, D]`."""
        graph = self.graph
        split = graph.op("Reshape", [x, graph.integers(0, 0, heads, self.spec.head_dim)], f"{name}.split")
        return graph.op("Transpose", [split], f"{name}.split.turned", perm=[0, 2, 1, 3])

    def _narrow(self, values: Float32) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]]:
        return values.astype(self.dtype)

    def _cache_names(self, prefix: str) -> list[str]:
        return [f"{prefix}.{layer}.{kind}" for layer in range(self.spec.num_hidden_layers) for kind in ("key", "value")]

    def _cache_shape(self) -> list[str | int]:
        return [1, self.spec.num_key_value_heads, self.kv_length, self.spec.head_dim]


class FusedDialect(StandardDialect):
    """One operator each for attention, rotation, normalisation and the cache."""

    opset = 24

    def _mask(self, seen: str) -> None:
        self.graph.op("Unsqueeze", [seen, self.graph.integers(0, 1)], "attention.mask")

    def _rotate(self, x: str, heads: int, name: str) -> str:
        del heads
        # 0 stands for all channels.
        dim = self.spec.rotary_dim % self.spec.head_dim
        return self.graph.op("RotaryEmbedding", [x, "rotary.cos", "rotary.sin"], name, rotary_embedding_dim=dim)

    def _update(self, past: str, new: str, present: str) -> str:
        return self.graph.op("TensorScatter", [past, new, "write_indices"], present, axis=-2, mode="linear")

    def _mix(self, query: str, key: str, value: str, name: str) -> str:
        return self.graph.op("Attention", [query, key, value, "attention.mask"], name, scale=1.0)

    def _rms_norm(self, x: str, weight: str, eps: float, name: str) -> str:
        return self.graph.op("RMSNormalization", [x, weight], name, axis=-1, epsilon=eps)


class DecomposedDialect(StandardDialect):
    """Products, sums and ScatterND. Scores and their exponentials are float32."""

    opset = 20

    def inputs(self) -> str:
        """As in both, and the places in the cache that a layer writes: `[1, heads, S, 3]`."""
        graph, heads = self.graph, self.spec.num_key_value_heads
        embeds = super().inputs()
        whole = graph.op(
            "Concat", [graph.integers(1, heads), "sequence.length", graph.integers(1)], "cache.rows.shape", axis=0
        )
        numbers = graph.constant("cache.heads", np.arange(heads).reshape(1, heads, 1, 1))
        positions = graph.op("Reshape", ["sequence.positions", graph.integers(1, 1, -1, 1)], "cache.rows")
        zero = graph.constant("cache.sequence", np.zeros((1, 1, 1, 1), np.int64))
        parts = [
            graph.op("Expand", [part, whole], f"cache.indices.{axis}")
            for axis, part in enumerate((zero, numbers, positions))
        ]
        graph.op("Concat", parts, "cache.indices", axis=-1)
        return embeds

    def _mask(self, seen: str) -> None:
        graph = self.graph
        zero, unseen = graph.constant("zero", np.zeros((), np.float32)), graph.constant("unseen", np.array(_UNSEEN))
        graph.op("Where", [seen, zero, unseen], "attention.mask")

    def _rotate(self, x: str, heads: int, name: str) -> str:
        del heads
        graph, dim, rest = self.graph, self.spec.rotary_dim, self.spec.head_dim - self.spec.rotary_dim
        sizes = [dim // 2, dim // 2, *([rest] if rest else [])]
        parts = [f"{name}.{place}" for place in ("first", "second", "rest")][: len(sizes)]
        graph.ops("Split", [x, graph.integers(*sizes)], parts, axis=-1)
        first, second = parts[:2]

        def product(part: str, table: str) -> str:
            return graph.op("Mul", [part, f"rotary.{table}"], f"{part}.{table}")

        turned = [
            graph.op("Sub", [product(first, "cos"), product(second, "sin")], f"{first}.turned"),
            graph.op("Add", [product(second, "cos"), product(first, "sin")], f"{second}.turned"),
        ]
        return graph.op("Concat", [*turned, *parts[2:]], name, axis=-1)

    def _update(self, past: str, new: str, present: str) -> str:
        return self.graph.op("ScatterND", [past, "cache.indices", new], present)

    def _mix(self, query: str, key: str, value: str, name: str) -> str:
        """Queries that share keys lie below each other, so that no key is repeated."""
        graph, spec = self.graph, self.spec
        shared = spec.num_key_value_heads
        group = spec.num_attention_heads // shared
        stacked = graph.op("Reshape", [query, graph.integers(1, shared, -1, spec.head_dim)], f"{name}.stacked")
        columns = graph.op("Transpose", [key], f"{name}.columns", perm=[0, 1, 3, 2])
        scores = graph.op("MatMul", [stacked, columns], f"{name}.scores")
        apart = graph.op("Reshape", [scores, graph.integers(shared, group, -1, self.kv_length)], f"{name}.scores.apart")
        wide = graph.op("Cast", [apart], f"{name}.scores.wide", to=FLOAT)
        masked = graph.op("Add", [wide, "attention.mask"], f"{name}.scores.masked")
        shares = graph.op("Softmax", [masked], f"{name}.shares.wide", axis=-1)
        narrow = graph.op("Cast", [shares], f"{name}.shares", to=self.float_type)
        below = graph.op("Reshape", [narrow, graph.integers(1, shared, -1, self.kv_length)], f"{name}.shares.below")
        mixed = graph.op("MatMul", [below, value], f"{name}.mixed")
        shape = graph.integers(1, spec.num_attention_heads, -1, spec.head_dim)
        return graph.op("Reshape", [mixed, shape], name)

    def _rms_norm(self, x: str, weight: str, eps: float, name: str) -> str:
        graph = self.graph
        wide = graph.op("Cast", [x], f"{name}.wide", to=FLOAT)
        squares = graph.op("Mul", [wide, wide], f"{name}.squares")
        mean = graph.op("ReduceMean", [squares, graph.integers(-1)], f"{name}.mean", keepdims=1)
        shifted = graph.op("Add", [mean, graph.constant(f"eps.{eps}", np.array(eps, np.float32))], f"{name}.shifted")
        unit = graph.op("Div", [wide, graph.op("Sqrt", [shifted], f"{name}.root")], f"{name}.unit.wide")
        narrow = graph.op("Cast", [unit], f"{name}.unit", to=self.float_type)
        return graph.op("Mul", [narrow, weight], name)
