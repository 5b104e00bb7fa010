"""The token embedding: a table in a data file and the graph that looks rows up in it.

`embed_tokens` takes `input_ids` int64 `[B, L]` and gives `inputs_embeds` float32 `[B, L, H]`. Where the head is tied,
the decoder graph refers to the same bytes (`StoredTable`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevlm.exporters.onnx.external import ExternalData, StoredTensor
from edgevlm.exporters.onnx.graph import CONTRIB, FLOAT, INT64, Graph
from edgevlm.exporters.onnx.packing import pack_codes, pack_zero_points
from edgevlm.quant.schemes import StoredMatrix
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme


@dataclass(frozen=True)
class StoredTable:
    """A matrix `[rows, columns]` in a data file. Without a scheme `data` holds floats, else codes `[rows, bytes]`."""

    rows: int
    columns: int
    data: StoredTensor
    scheme: QuantScheme | None = None
    scales: StoredTensor | None = None
    zero_points: StoredTensor | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of codes or floats, scales and zero points."""
        return sum(tensor.length for tensor in (self.data, self.scales, self.zero_points) if tensor is not None)


def write_table(matrix: StoredMatrix, data: ExternalData) -> StoredTable:
    """Append the table to a data file."""
    if not isinstance(matrix, QuantizedTensor):
        rows, columns = matrix.shape
        return StoredTable(rows, columns, data.append(matrix))
    rows, columns = matrix.codes.shape
    zeros = pack_zero_points(matrix)
    return StoredTable(
        rows,
        columns,
        data.append(pack_codes(matrix).reshape(rows, -1)),
        matrix.scheme,
        data.append(matrix.scales),
        None if zeros is None else data.append(zeros),
    )


def build_embedding(graph: Graph, table: StoredTable, image_token_id: int) -> None:
    """Fill `graph` with the lookup.

    An image token outside the vocabulary stands for embeddings that replace it afterwards; callers that look it up all
    the same (transformers.js does) get some row instead of an error.
    """
    ids = graph.input("input_ids", INT64, ["batch_size", "sequence_length"])
    if image_token_id >= table.rows:
        ids = graph.op("Min", [ids, graph.constant("last_row", np.array(table.rows - 1))], "rows")
    scheme = table.scheme
    if scheme is None:
        weight = graph.stored("embed_tokens.weight", table.data)
        half = table.data.data_type != FLOAT
        graph.op("Gather", [weight, ids], "embed_tokens.half" if half else "inputs_embeds", axis=0)
        if half:
            graph.op("Cast", ["embed_tokens.half"], "inputs_embeds", to=FLOAT)
    else:
        assert table.scales is not None
        inputs = [
            graph.stored("embed_tokens.codes", table.data),
            ids,
            graph.stored("embed_tokens.scales", table.scales),
        ]
        if table.zero_points is not None:
            inputs.append(graph.stored("embed_tokens.zero_points", table.zero_points))
        padded = -(-table.columns // scheme.group_size) * scheme.group_size != table.columns
        graph.op(
            "GatherBlockQuantized",
            inputs,
            "embed_tokens.padded" if padded else "inputs_embeds",
            domain=CONTRIB,
            gather_axis=0,
            quantize_axis=1,
            block_size=scheme.group_size,
            bits=scheme.storage_bits,
        )
        if padded:
            bounds = [graph.integers(0), graph.integers(table.columns), graph.integers(2)]
            graph.op("Slice", ["embed_tokens.padded", *bounds], "inputs_embeds")
    graph.output("inputs_embeds", FLOAT, ["batch_size", "sequence_length", table.columns])
