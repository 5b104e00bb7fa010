"""Write a decoder as GGUF.

In: a `VlmModel`, a folder and the GGUF type. Out: `model-<type>.gguf`. F32 and F16 are written tensor by tensor from
the checkpoint, so that memory never holds more than one; quantized types are made from a temporary F16 file by
llama.cpp itself, so that every bit is what llama.cpp's own tools would write. Tied embeddings are written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

from edgevlm.errors import UnsupportedError
from edgevlm.exporters.base import Artifact, Progress
from edgevlm.exporters.gguf.layout import add_hyperparameters, reorder_rotary, rope_factors, supports, tensor_name
from edgevlm.exporters.gguf.summary import summarize
from edgevlm.exporters.gguf.tokenizer import add_tokenizer
from edgevlm.exporters.gguf.values import gguf_values
from edgevlm.models.footprint import release
from edgevlm.models.vlm import VlmModel
from edgevlm.runtimes.checks import thread_count
from edgevlm.runtimes.llama_quantize import QuantizeChoice, quantize_gguf

_WRITE_SHARE = 0.4

#: How each quantized type is made. At q4_0 the embedding is 4-bit as well: it is also the head of a tied model, read
#: whole for every token, and llama.cpp's own choice (Q8_0 or Q6_K) would make a 0.5B model a quarter larger and slower.
#: At q4_k_m llama.cpp's mix is kept, because that is what the name stands for.
QUANTIZED = {
    "q8_0": QuantizeChoice(int(gguf.LlamaFileType.MOSTLY_Q8_0), int(gguf.GGMLQuantizationType.Q8_0)),
    "q4_0": QuantizeChoice(int(gguf.LlamaFileType.MOSTLY_Q4_0), int(gguf.GGMLQuantizationType.Q4_0)),
    "q4_k_m": QuantizeChoice(int(gguf.LlamaFileType.MOSTLY_Q4_K_M), None),
}


@dataclass(frozen=True)
class _Weight:
    """One tensor to write: where it comes from and what it is called."""

    source: str
    name: str
    tensor: Tensor
    dtype: np.dtype[Any]


def export(model: VlmModel, out: Path, *, gguf_type: str, progress: Progress) -> list[Artifact]:
    """Write `out/model-<gguf_type>.gguf`.

    Args:
        model: the decoder's weights may be memory-mapped; they are read once, in order.
        out: an existing folder.
        gguf_type: `f32`, `f16`, `q8_0`, `q4_0` or `q4_k_m`.
        progress: called with a share of 1.

    Raises:
        UnsupportedError: llama.cpp's graph does not compute this decoder, or does not know its tokenizer.
        CheckpointError: a weight is not finite or does not fit float16, or the tokenizer does not fit the weights.
        EngineError: llama.cpp could not quantize.
        InputError: the disk is full.
    """
    reason = supports(model.spec, gguf_type)
    if reason is not None:
        raise UnsupportedError(reason, f"--format gguf, {model.spec.name}")
    target = out / f"model-{gguf_type}.gguf"
    choice = QUANTIZED.get(gguf_type)
    if choice is None:
        _write(model, target, gguf_type, lambda share: progress(share, 1, f"writing {target.name}"))
    else:
        base = out / f"{target.name}.f16"
        try:
            _write(model, base, "f16", lambda share: progress(_WRITE_SHARE * share, 1, "writing float16"))
            quantize_gguf(
                base,
                target,
                choice,
                threads=thread_count(0),
                progress=lambda done, total: progress(
                    _WRITE_SHARE + (1 - _WRITE_SHARE) * done / total, 1, f"quantizing to {gguf_type}"
                ),
            )
        finally:
            base.unlink(missing_ok=True)
    summary = summarize(target)
    progress(1, 1, summary.fallback(gguf_type) or f"wrote {target.name}")
    return [Artifact(target.name, "decoder", "gguf", gguf_type, summary.bits_per_weight, summary.parameters)]


def _write(model: VlmModel, path: Path, gguf_type: str, progress: Callable[[float], None]) -> None:
    spec = model.spec
    weights = list(_weights(model, gguf_type == "f32"))
    writer = gguf.GGUFWriter(path, spec.decoder.architecture)
    try:
        add_hyperparameters(writer, spec)
        file_type = gguf.LlamaFileType.ALL_F32 if gguf_type == "f32" else gguf.LlamaFileType.MOSTLY_F16
        writer.add_file_type(int(file_type))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_tokenizer(writer, model.tokenizer_files, spec.prompt, spec.decoder.vocab_size)
        for weight in weights:
            size = weight.tensor.numel() * weight.dtype.itemsize
            writer.add_tensor_info(weight.name, tuple(weight.tensor.shape), weight.dtype, size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for index, weight in enumerate(weights):
            values = gguf_values(weight.tensor, weight.dtype, weight.source)
            writer.write_tensor_data(reorder_rotary(weight.name, values, spec.decoder))
            del values
            release(weight.tensor)
            progress((index + 1) / len(weights))
    finally:
        writer.close()


def _weights(model: VlmModel, full: bool) -> Iterator[_Weight]:
    """Every parameter of the decoder and the factors of its rotary frequencies.

    Vectors stay float32: llama.cpp computes norms and biases in it.
    """
    for source, tensor in model.decoder.state_dict().items():
        name = tensor_name(source)
        if name is None:
            raise UnsupportedError("GGUF has no name for this tensor", source)
        matrix = tensor.dim() > 1
        yield _Weight(source, name, tensor, np.dtype(np.float16 if matrix and not full else np.float32))
    factors = rope_factors(model.spec.decoder)
    if factors is not None:
        yield _Weight("rope_scaling", "rope_freqs.weight", factors, np.dtype(np.float32))
