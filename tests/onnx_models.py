"""Tiny seeded decoders of four families, their ONNX graphs, and a loop that runs those graphs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from edgevlm.exporters.onnx.decoder import DecoderBuilder
from edgevlm.exporters.onnx.dialect_ort import OrtDialect
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.graph import Graph
from edgevlm.exporters.onnx.table import build_embedding, write_table
from edgevlm.models.decoder import Decoder
from edgevlm.quant import rtn
from edgevlm.quant.cache_scales import CacheScales
from edgevlm.quant.schemes import scheme_for, store
from edgevlm.quant.tensor import QuantScheme
from edgevlm.recipe import Precision
from edgevlm.spec import DecoderSpec


def make_decoder(spec: DecoderSpec, seed: int = 0) -> Decoder:
    """Random weights that keep activations near 1 and make every norm and bias matter."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(spec).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(values / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.5 + 0.3 * values)
    return decoder


def write_decoder(
    decoder: Decoder,
    folder: Path,
    precision: Precision,
    accuracy_level: int = 4,
    cache: Sequence[CacheScales] = (),
) -> Path:
    """Embedding and decoder graphs in `folder`; returns the decoder's."""
    table = decoder.embed_tokens.weight
    with ExternalData(folder / "embed.onnx_data") as embed_data, ExternalData(folder / "decoder.onnx_data") as data:
        scheme = scheme_for("embed_tokens.weight", "embedding", table.shape[1], precision)
        stored = write_table(store(table, scheme), embed_data)
        embedding = Graph("embed", embed_data)
        build_embedding(embedding, stored, image_token_id=0)
        embedding.save(folder / "embed.onnx")
        graph = Graph("decoder", data)
        dialect = OrtDialect(graph, decoder.spec, accuracy_level=accuracy_level, cache=cache)
        builder = DecoderBuilder(decoder, dialect, precision)
        x, normed = builder.begin()
        for index in range(decoder.spec.num_hidden_layers):
            x, normed = builder.layer(index, x, normed)
        builder.head(normed, stored)
        graph.save(folder / "decoder.onnx")
    return folder / "decoder.onnx"


def rounded(decoder: Decoder, precision: Precision) -> Decoder:
    """The decoder whose matrices are what a quantized graph stores."""
    twin = Decoder(decoder.spec).eval().requires_grad_(False)
    twin.load_state_dict(decoder.state_dict())
    for name, parameter in twin.named_parameters():
        if parameter.ndim == 2:
            scheme = scheme_for(name, "linear", parameter.shape[1], precision)
            assert isinstance(scheme, QuantScheme)
            parameter.copy_(torch.from_numpy(rtn.quantize(parameter, scheme).dequantize()))
    return twin


def session(path: Path) -> onnxruntime.InferenceSession:
    """On one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class GrowingCache:
    """Runs a decoder graph as transformers.js does: each step's present is the next step's past."""

    def __init__(self, path: Path, spec: DecoderSpec) -> None:
        self.session = session(path)
        shape = (1, spec.num_key_value_heads, 0, spec.head_dim)
        names = [item.name for item in self.session.get_inputs() if item.name.startswith("past")]
        self.past = {name: np.zeros(shape, np.float32) for name in names}

    def __call__(self, embeddings: torch.Tensor, keep: int = 0) -> NDArray[np.float32]:
        """Logits of the last `keep` positions of `[1, S, H]`, or of all."""
        total = self.past["past_key_values.0.key"].shape[2] + embeddings.shape[1]
        feed = {
            "inputs_embeds": embeddings.numpy(),
            "attention_mask": np.ones((1, total), np.int64),
            "num_logits_to_keep": np.array(keep),
            **self.past,
        }
        names = [item.name for item in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, feed), strict=True))
        self.past = {name: outputs[name.replace("past_key_values", "present")] for name in self.past}
        return np.asarray(outputs["logits"])


class SharedCache:
    """Runs a decoder graph with past and present bound to one buffer of the whole context length."""

    def __init__(self, path: Path, spec: DecoderSpec) -> None:
        self.session = session(path)
        shape = (1, spec.num_key_value_heads, spec.max_position_embeddings, spec.head_dim)
        # Stale values: a graph that reads beyond the sequence gives nonsense.
        self.cache = {
            f"{layer}.{kind}": onnxruntime.OrtValue.ortvalue_from_numpy(np.full(shape, 1e3, np.float32))
            for layer in range(spec.num_hidden_layers)
            for kind in ("key", "value")
        }
        self.length = 0

    def __call__(self, embeddings: torch.Tensor, keep: int = 0) -> NDArray[np.float32]:
        """Logits of the last `keep` positions of `[1, S, H]`, or of all."""
        self.length += embeddings.shape[1]
        binding = self.session.io_binding()
        binding.bind_cpu_input("inputs_embeds", embeddings.numpy())
        binding.bind_cpu_input("attention_mask", np.ones((1, self.length), np.int64))
        binding.bind_cpu_input("num_logits_to_keep", np.array(keep))
        binding.bind_output("logits", "cpu")
        for name, buffer in self.cache.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", buffer)
            binding.bind_ortvalue_output(f"present.{name}", buffer)
        self.session.run_with_iobinding(binding)
        return np.asarray(binding.get_outputs()[0].numpy())
