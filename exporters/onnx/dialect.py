"""What a dialect is: the steps of a decoder, each as nodes in one set of operators.

`decoder.py` says which steps make a model and in which order; a dialect adds the nodes of one step to its graph and
returns the name of the result. Steps that are the same operator everywhere are here. `dialect_ort.py` writes for ONNX
Runtime's fused operators, `dialect_standard.py` for ONNX's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UnsupportedError
from edgevlm.exporters.onnx.graph import Graph
from edgevlm.exporters.onnx.table import StoredTable
from edgevlm.exporters.onnx.token_drop import Seen
from edgevlm.quant.schemes import StoredMatrix
from edgevlm.spec import DecoderSpec

Float32 = NDArray[np.float32]


class Dialect(ABC):
    """Steps of a decoder, added to `graph`.

    Attributes:
        logits: what the product of the head is called; `outputs` makes the graph's output of it.
    """

    logits = "logits"

    def __init__(self, graph: Graph, spec: DecoderSpec) -> None:
        self.graph = graph
        self.spec = spec

    @abstractmethod
    def inputs(self) -> str:
        """Declare the graph's inputs and what all layers share; returns the embeddings `[B, S, H]`."""

    @abstractmethod
    def outputs(self) -> None:
        """Declare the graph's outputs: logits and the updated cache."""

    @abstractmethod
    def linear(self, x: str, matrix: StoredMatrix, bias: Float32 | None, name: str) -> str:
        """`[B, S, K]` times a matrix `[N, K]`, plus a bias."""

    @abstractmethod
    def tied_head(self, x: str, table: StoredTable, bias: Float32 | None, name: str) -> str:
        """`[B, S, H]` times the embedding table `[V, H]`, reading the bytes that the embedding graph wrote."""

    @abstractmethod
    def norm(self, x: str, kind: str, weight: Float32, bias: Float32 | None, eps: float, name: str) -> str:
        """RMS or layer normalisation of the last axis."""

    @abstractmethod
    def keep_last(self, x: str, name: str) -> str:
        """`[B, S, C]` to the positions whose results are wanted."""

    @abstractmethod
    def attention(self, query: str, key: str, value: str, index: int, name: str) -> str:
        """Rotation, cache update and causal grouped-query attention: `[B, S, heads * D]`.

        `query` alone may hold queries, keys and values side by side; then `key` and `value` are empty.
        """

    @abstractmethod
    def silu(self, x: str, name: str) -> str:
        """x * sigmoid(x)."""

    def drop_tokens(self, stage: int, seen: Seen, normed: str) -> tuple[str, str]:
        """States `[B, S, H]` behind a layer and their norm, of the tokens that go on behind a stage.

        Raises:
            UnsupportedError: this dialect cannot.
        """
        del stage, normed
        raise UnsupportedError("these operators cannot drop image tokens", f"layer {seen.layer}", "use --format onnx")

    @abstractmethod
    def add_norm(
        self, a: str, b: str, kind: str, weight: Float32, bias: Float32 | None, eps: float, name: str
    ) -> tuple[str, str]:
        """a + b, and that sum normalised."""

    def add(self, a: str, b: str, name: str) -> str:
        """Elementwise sum."""
        return self.graph.op("Add", [a, b], name)

    def multiply(self, a: str, b: str, name: str) -> str:
        """Elementwise product."""
        return self.graph.op("Mul", [a, b], name)

    def gelu_tanh(self, x: str, name: str) -> str:
        """The tanh form of GELU."""
        return self.graph.op("Gelu", [x], name, approximate="tanh")

    def halves(self, x: str, name: str) -> tuple[str, str]:
        """The first and the second half of the channels of `[B, S, 2 C]`."""
        first, second = f"{name}.first", f"{name}.second"
        self.graph.ops("Split", [x], [first, second], axis=-1, num_outputs=2)
        return first, second

    def head_norm(
        self, x: str, heads: int, kind: str, weight: Float32, bias: Float32 | None, eps: float, name: str
    ) -> str:
        """Normalise each head of `[B, S, heads * D]` with one weight `[D]`."""
        graph, spec = self.graph, self.spec
        split = graph.op("Reshape", [x, graph.integers(0, 0, heads, spec.head_dim)], f"{name}.heads")
        normed = self.norm(split, kind, weight, bias, eps, f"{name}.normed")
        return graph.op("Reshape", [normed, graph.integers(0, 0, heads * spec.head_dim)], name)
