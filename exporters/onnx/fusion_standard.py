"""The fusion graph in the standard dialect: inputs and output of `fusion.py`, operators of `dialect_standard.py`.

Its layers see a whole sequence at once and have no cache. As in the decoder, float32 is at the borders alone.
"""

from __future__ import annotations

import numpy as np

from edgevlm.exporters.onnx.decoder import DecoderBuilder
from edgevlm.exporters.onnx.dialect_standard import DecomposedDialect, FusedDialect, StandardDialect
from edgevlm.exporters.onnx.graph import FLOAT, INT64_MAX, Graph
from edgevlm.models.fusion import Fusion
from edgevlm.runtimes.build_plan import ComputeType


class WholeDialect(StandardDialect):
    """A sequence that is whole from the start: image, then text.

    Attributes:
        rows: V, embeddings that leave the vision graph.
        image_tokens: Q, embeddings of the image that go on in front of the text.
    """

    def __init__(self, graph: Graph, fusion: Fusion, rows: int, longest_text: int, *, compute: ComputeType) -> None:
        super().__init__(graph, fusion.spec, rows + longest_text, compute=compute)
        self.rows = rows
        self.image_tokens = fusion.image_tokens

    def inputs(self) -> str:
        """Declare the inputs and what all layers share; returns image and text in one sequence `[1, S, H]`."""
        graph, hidden = self.graph, self.spec.hidden_size
        image = graph.input("image_embeds", FLOAT, [1, self.rows, hidden])
        text = graph.input("text_embeds", FLOAT, [1, "text_length", hidden])
        sequence = graph.op("Concat", [image, text], "sequence", axis=1)
        length = graph.op("Shape", [sequence], "sequence.length", start=1, end=2)
        places = graph.tensor("sequence.places", np.arange(self.kv_length))
        bounds = [graph.integers(0), length, graph.integers(0)]
        positions = graph.op("Slice", [places, *bounds], "sequence.positions")
        column = graph.op("Unsqueeze", [positions, graph.integers(1)], "sequence.column")
        self._mask(graph.op("LessOrEqual", [positions, column], "sequence.seen"))
        self._rotary()
        kept = graph.op("Shape", [text], "text.length", start=1, end=2)
        kept = graph.op("Add", [kept, graph.integers(self.image_tokens)], "keep.count")
        graph.op("Neg", [kept], "keep.starts")
        return graph.op("Cast", [sequence], "sequence.narrow", to=self.float_type)

    def keep_last(self, x: str, name: str) -> str:
        """`[1, V + L, C]` to the last `Q + L` positions."""
        graph = self.graph
        return graph.op("Slice", [x, "keep.starts", graph.integers(INT64_MAX), graph.integers(1)], name)

    def _update(self, past: str, new: str, present: str) -> str:
        del past, present
        return new


class FusedFusionDialect(WholeDialect, FusedDialect):
    """In one operator each."""


class DecomposedFusionDialect(WholeDialect, DecomposedDialect):
    """In products and sums."""

    def _mix(self, query: str, key: str, value: str, name: str) -> str:
        """Keys are shared by broadcasting, since no length is fixed."""
        graph, spec = self.graph, self.spec
        shared = spec.num_key_value_heads
        group = spec.num_attention_heads // shared
        apart = graph.op("Reshape", [query, graph.integers(1, shared, group, -1, spec.head_dim)], f"{name}.apart")
        turned = graph.op("Transpose", [key], f"{name}.columns", perm=[0, 1, 3, 2])
        columns = graph.op("Unsqueeze", [turned, graph.integers(2)], f"{name}.columns.shared")
        wide = graph.op("Cast", [graph.op("MatMul", [apart, columns], f"{name}.scores")], f"{name}.wide", to=FLOAT)
        masked = graph.op("Add", [wide, "attention.mask"], f"{name}.masked")
        shares = graph.op("Softmax", [masked], f"{name}.shares.wide", axis=-1)
        narrow = graph.op("Cast", [shares], f"{name}.shares", to=self.float_type)
        values = graph.op("Unsqueeze", [value, graph.integers(2)], f"{name}.values.shared")
        mixed = graph.op("MatMul", [narrow, values], f"{name}.mixed")
        return graph.op("Reshape", [mixed, graph.integers(1, spec.num_attention_heads, -1, spec.head_dim)], name)


def build_fusion(builder: DecoderBuilder) -> None:
    """Fill the graph of a builder whose dialect is one of the above."""
    graph = builder.dialect.graph
    x, normed = builder.begin()
    for index in range(len(builder.layers)):
        x, normed = builder.layer(index, x, normed)
    graph.op("Cast", [x], "fused_embeds", to=FLOAT)
    graph.output("fused_embeds", FLOAT, [1, "fused_length", builder.spec.hidden_size])
