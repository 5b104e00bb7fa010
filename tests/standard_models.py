"""Decoder graphs in the standard dialect, and a loop that runs them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edgevlm.exporters.onnx import standard_weights as weights
from edgevlm.exporters.onnx.decoder import DecoderBuilder
from edgevlm.exporters.onnx.dialect_standard import DecomposedDialect, FusedDialect, StandardDialect
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.graph import Graph
from edgevlm.exporters.tensorrt.schemes import SCHEMES
from edgevlm.models.decoder import Decoder
from edgevlm.quant.schemes import store
from edgevlm.recipe import Precision
from edgevlm.runtimes.build_plan import ComputeType
from edgevlm.runtimes.device import Device
from edgevlm.runtimes.ort_session import open_session
from edgevlm.spec import DecoderSpec

KV_LENGTH = 48
DIALECTS: dict[str, type[StandardDialect]] = {"fused": FusedDialect, "decomposed": DecomposedDialect}
#: A TensorRT version that has the operators of each.
VERSIONS = {"fused": (10, 15), "decomposed": (10, 3)}


def write_standard(
    decoder: Decoder, folder: Path, kind: str, precision: Precision, *, compute: ComputeType = "float32"
) -> Path:
    """Embedding and decoder graphs in `folder`; returns the decoder's."""
    dialect = DIALECTS[kind]
    table = decoder.embed_tokens.weight
    with ExternalData(folder / "embed.onnx_data") as embed_data, ExternalData(folder / "decoder.onnx_data") as data:
        scheme = SCHEMES[compute]("embed_tokens.weight", "embedding", table.shape[1], precision)
        stored = weights.write_table(store(table, scheme), embed_data, weights.numpy_dtype(compute))
        embedding = Graph("embed", embed_data, opset=dialect.opset, contrib=False)
        weights.build_embedding(embedding, stored, image_token_id=0)
        embedding.save(folder / "embed.onnx")
        graph = Graph("decoder", data, opset=dialect.opset, contrib=False)
        steps = dialect(graph, decoder.spec, KV_LENGTH, compute=compute)
        builder = DecoderBuilder(decoder, steps, precision, scheme=SCHEMES[compute])
        x, normed = builder.begin()
        for index in range(decoder.spec.num_hidden_layers):
            x, normed = builder.layer(index, x, normed)
        builder.head(normed, stored)
        graph.save(folder / "decoder.onnx")
    return folder / "decoder.onnx"


def exact_session(path: Path, compute: ComputeType = "float32") -> Any:
    """One that computes products with INT4 weights in float32, not with rounded activations; on one CPU thread."""
    level = {"session.qdq_matmulnbits_accuracy_level": "1"}
    return open_session(path, 1, level, Device("cpu"), compute=compute)


class StaticCache:
    """Runs a decoder graph whose cache has a fixed length."""

    def __init__(self, path: Path, spec: DecoderSpec, compute: ComputeType = "float32") -> None:
        self.session = exact_session(path, compute)
        dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        # Stale values: a graph that reads beyond the sequence gives nonsense.
        self.past = {
            item.name: np.full(item.shape, 1e3, dtypes[item.type])
            for item in self.session.get_inputs()
            if item.name.startswith("past")
        }
        assert self.past["past_key_values.0.key"].shape == (1, spec.num_key_value_heads, KV_LENGTH, spec.head_dim)
        self.axes = 3 if spec.rope_sections else 0
        self.length = 0

    def __call__(self, embeddings: torch.Tensor, positions: torch.Tensor | None = None) -> NDArray[np.float32]:
        """Logits `[V]` of the last position of `[1, S, H]`."""
        feed = {"inputs_embeds": embeddings.numpy(), "write_indices": np.array([self.length]), **self.past}
        if positions is not None:
            feed["position_ids"] = positions.numpy()
        names = [item.name for item in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, feed), strict=True))
        self.past = {name: outputs[name.replace("past_key_values", "present")] for name in self.past}
        self.length += embeddings.shape[1]
        assert outputs["logits"].shape[:2] == (1, 1)
        return np.asarray(outputs["logits"][0, 0])


def operators(path: Path) -> set[tuple[str, str]]:
    """Domain and type of a graph's nodes."""
    return {(node.domain, node.op_type) for node in onnx.load(str(path), load_external_data=False).graph.node}
