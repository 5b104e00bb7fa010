"""A decoder as int4 ONNX graphs, without the rest of a bundle."""

from __future__ import annotations

from pathlib import Path

from edgevlm.exporters.onnx.decoder import DecoderBuilder
from edgevlm.exporters.onnx.dialect_ort import OrtDialect
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.graph import Graph
from edgevlm.exporters.onnx.table import build_embedding, write_table
from edgevlm.models.decoder import Decoder
from edgevlm.quant.schemes import scheme_for, store


def write_int4(decoder: Decoder, folder: Path) -> None:
    """Write the graphs `embed` and `decoder` into `folder`."""
    table = decoder.embed_tokens.weight
    with ExternalData(folder / "embed_data") as embed_data, ExternalData(folder / "decoder_data") as data:
        stored = write_table(
            store(table, scheme_for("embed_tokens.weight", "embedding", table.shape[1], "int4")), embed_data
        )
        embedding, graph = Graph("embed", embed_data), Graph("decoder", data)
        build_embedding(embedding, stored, image_token_id=0)
        embedding.save(folder / "embed")
        DecoderBuilder(decoder, OrtDialect(graph, decoder.spec), "int4").build(stored)
        graph.save(folder / "decoder")
