"""The fusion graph: `image_embeds` `[1, V, H]` and `text_embeds` `[1, L, H]` to `fused_embeds` `[1, Q + L, H]`.

In: a `Fusion` (weights in any float dtype, perhaps memory-mapped) and the precision, that of the decoder: its layers
are like the decoder's and written by the same builder, without a cache. L is free. Rotary tables are computed for the
positions at hand, since a table of all positions of the model would take a seventh of what the int4 weights take.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgevlm.exporters.onnx.decoder import DecoderBuilder
from edgevlm.exporters.onnx.dialect_ort import OrtDialect
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.graph import CONTRIB, FLOAT, INT32, Graph
from edgevlm.models.decoder import rotary_periods
from edgevlm.models.fusion import Fusion
from edgevlm.recipe import Precision
from edgevlm.spec import DecoderSpec


class OrtFusionDialect(OrtDialect):
    """The decoder's steps for a sequence that is whole from the start, with other inputs and outputs."""

    def __init__(self, graph: Graph, spec: DecoderSpec, rows: int, image_tokens: int) -> None:
        super().__init__(graph, spec)
        self.rows = rows
        self.image_tokens = image_tokens

    def inputs(self) -> str:
        """Declare the inputs and what all layers share; returns image and text in one sequence `[1, S, H]`."""
        graph, spec = self.graph, self.spec
        image = graph.input("image_embeds", FLOAT, [1, self.rows, spec.hidden_size])
        text = graph.input("text_embeds", FLOAT, [1, "text_length", spec.hidden_size])
        x = graph.op("Concat", [image, text], "sequence", axis=1)
        shape = graph.op("Shape", [text], "text.length", start=1, end=2)
        total = graph.op("Add", [shape, graph.integers(self.rows)], "total.length")
        graph.op("Cast", [graph.op("Sub", [total, graph.integers(1)], "last")], "seqlens_k", to=INT32)
        scalar = graph.op("Squeeze", [total, graph.integers(0)], "total.scalar")
        graph.op("Cast", [scalar], "total_sequence_length", to=INT32)
        self._rotary(scalar)
        kept = graph.op("Add", [shape, graph.integers(self.image_tokens)], "keep.count")
        graph.op("Neg", [kept], "keep.starts")
        return x

    def _rotary(self, length: str) -> None:
        graph, spec = self.graph, self.spec
        periods = rotary_periods(spec.rotary_dim, spec.rope_theta, spec.rope_scaling)
        zero, one = (graph.constant(name, np.array(value)) for name, value in (("zero", 0), ("one", 1)))
        positions = graph.op("Cast", [graph.op("Range", [zero, length, one], "places")], "places.float", to=FLOAT)
        column = graph.op("Unsqueeze", [positions, graph.integers(1)], "places.column")
        angles = graph.op("Div", [column, graph.tensor("rotary.periods", periods.numpy())], "rotary.angles")
        graph.op("Cos", [angles], "rotary.cos")
        graph.op("Sin", [angles], "rotary.sin")

    def attention(self, query: str, key: str, value: str, index: int, name: str) -> str:
        """Causal grouped-query attention over the whole sequence, without a cache: `[1, S, heads * D]`."""
        spec = self.spec
        inputs = [query, key, value, "", "", "seqlens_k", "total_sequence_length", "rotary.cos", "rotary.sin"]
        present = [f"layers.{index}.{kind}" for kind in ("key", "value")]
        self.graph.ops(
            "GroupQueryAttention",
            inputs,
            [name, *present],
            domain=CONTRIB,
            num_heads=spec.num_attention_heads,
            kv_num_heads=spec.num_key_value_heads,
            do_rotary=1,
        )
        return name


def export_fusion(fusion: Fusion, rows: int, precision: Precision, path: Path, data: ExternalData) -> int:
    """Write the graph to `path` and its big tensors to `data`; returns the bytes of its weights.

    Args:
        fusion: left as it is; its matrices are converted one at a time.
        rows: V, embeddings that leave the vision graph.
        precision: of the matrices; activations are float32.
        path: the graph's file.
        data: the file of its tensors.

    Raises:
        ValueError: a weight is not finite or does not fit the precision.
        OSError: a file cannot be written.
    """
    graph = Graph("fusion", data)
    builder = DecoderBuilder(fusion, OrtFusionDialect(graph, fusion.spec, rows, fusion.image_tokens), precision)
    x, normed = builder.begin()
    for index in range(len(fusion.layers)):
        x, normed = builder.layer(index, x, normed)
    graph.op("Identity", [x], "fused_embeds")
    graph.output("fused_embeds", FLOAT, [1, "fused_length", fusion.spec.hidden_size])
    graph.save(path)
    return graph.weight_bytes
