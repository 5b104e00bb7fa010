"""Write a decoder as GGUF.

In: a `VlmModel`, a folder and the GGUF type. Out: `model-<type>.gguf`. F32 and F16 are written tensor by tensor from
the checkpoint, so that memory never holds more than one; quantized types are made from a temporary F16 file by
llama.cpp itself, so that every bit is what llama.cpp's own tools would write, with an importance matrix where one is
given. Where the model brings codes that an algorithm chose, everything is written here, and those codes as they are.
Tied embeddings are written once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import gguf

from edgevlm.errors import UnsupportedError
from edgevlm.exporters.base import Artifact, Progress
from edgevlm.exporters.gguf.imatrix import Imatrix, read_imatrix
from edgevlm.exporters.gguf.layout import add_hyperparameters, supports
from edgevlm.exporters.gguf.summary import summarize
from edgevlm.exporters.gguf.tokenizer import add_tokenizer
from edgevlm.exporters.gguf.weights import weights
from edgevlm.models.footprint import release
from edgevlm.models.vlm import VlmModel
from edgevlm.runtimes.checks import thread_count
from edgevlm.runtimes.llama_quantize import QuantizeChoice, quantize_gguf

_WRITE_SHARE = 0.4

#: How each quantized type is made. In blocks of 32 the embedding has as many bits as the rest: it is also the head of a
#: tied model, read whole for every token, and llama.cpp's own choice (Q8_0 or Q6_K) would make a 0.5B model a quarter
#: larger and slower. At q4_k_m llama.cpp's mix is kept, because that is what the name stands for.
QUANTIZED = {
    "q8_0": QuantizeChoice(int(gguf.LlamaFileType.MOSTLY_Q8_0), int(gguf.GGMLQuantizationType.Q8_0)),
    "q4_0": QuantizeChoice(int(gguf.LlamaFileType.MOSTLY_Q4_0), int(gguf.GGMLQuantizationType.Q4_0)),
    "q4_1": QuantizeChoice(int(gguf.LlamaFileType.MOSTLY_Q4_1), int(gguf.GGMLQuantizationType.Q4_1)),
    "iq4_nl": QuantizeChoice(int(gguf.LlamaFileType.MOSTLY_IQ4_NL), int(gguf.GGMLQuantizationType.IQ4_NL)),
    "q4_k_m": QuantizeChoice(int(gguf.LlamaFileType.MOSTLY_Q4_K_M), None),
}
#: Types that are written here: their label, and how matrices are stored of which the model does not say otherwise.
DIRECT: dict[str, tuple[gguf.LlamaFileType, Literal["f32", "f16", "q8_0", "q4_0"]]] = {
    "f32": (gguf.LlamaFileType.ALL_F32, "f32"),
    "f16": (gguf.LlamaFileType.MOSTLY_F16, "f16"),
    "q8_0": (gguf.LlamaFileType.MOSTLY_Q8_0, "q8_0"),
    "q4_0": (gguf.LlamaFileType.MOSTLY_Q4_0, "q4_0"),
    "q4_1": (gguf.LlamaFileType.MOSTLY_Q4_1, "q8_0"),
}
#: Types whose scales and codes llama.cpp chooses by an importance matrix; it rounds to Q8_0 without looking at one.
WEIGHED = ("q4_0", "q4_1", "iq4_nl", "q4_k_m")


def export(
    model: VlmModel, out: Path, *, gguf_type: str, imatrix: Path | None = None, progress: Progress
) -> list[Artifact]:
    """Write `out/model-<gguf_type>.gguf`.

    Args:
        model: the decoder's weights may be memory-mapped; they are read once, in order.
        out: an existing folder.
        gguf_type: one of `GGUF_TYPES`.
        imatrix: a file of importances, for types in `WEIGHED`.
        progress: called with a share of 1.

    Raises:
        UnsupportedError: llama.cpp's graph does not compute this decoder, or does not know its tokenizer.
        CheckpointError: a weight is not finite or does not fit float16, or the tokenizer does not fit the weights.
        EngineError: llama.cpp could not quantize.
        InputError: the disk is full, or `imatrix` cannot be read.
    """
    reason = supports(model.spec, gguf_type)
    if reason is not None:
        raise UnsupportedError(reason, f"--format gguf, {model.spec.name}")
    target = out / f"model-{gguf_type}.gguf"
    choice = QUANTIZED.get(gguf_type)
    if choice is None or model.quantized:
        if gguf_type not in DIRECT:
            raise UnsupportedError(
                f"{gguf_type} is rounded by llama.cpp, which takes no codes that are chosen before",
                f"--gguf-type {gguf_type}",
                f"use {', '.join(DIRECT)}, or leave the quantization to llama.cpp",
            )
        _write(model, target, gguf_type, lambda share: progress(share, 1, f"writing {target.name}"))
    else:
        base = out / f"{target.name}.f16"
        weighed = None if imatrix is None else read_imatrix(imatrix)
        try:
            _write(model, base, "f16", lambda share: progress(_WRITE_SHARE * share, 1, "writing float16"), weighed)
            quantize_gguf(
                base,
                target,
                choice,
                importance=None if weighed is None else {name: each.mean for name, each in weighed.entries.items()},
                threads=thread_count(0),
                progress=lambda done, total: progress(
                    _WRITE_SHARE + (1 - _WRITE_SHARE) * done / total, 1, f"quantizing to {gguf_type}"
                ),
            )
        finally:
            base.unlink(missing_ok=True)
    summary = summarize(target)
    fallback = "" if model.quantized else summary.fallback(gguf_type)
    progress(1, 1, fallback or f"wrote {target.name}: {summary.bits_per_weight:.2f} bits per weight")
    return [Artifact(target.name, "decoder", "gguf", gguf_type, summary.bits_per_weight, summary.parameters)]


def _write(
    model: VlmModel, path: Path, gguf_type: str, progress: Callable[[float], None], imatrix: Imatrix | None = None
) -> None:
    spec, (file_type, others) = model.spec, DIRECT[gguf_type]
    tensors = list(weights(model, others))
    writer = gguf.GGUFWriter(path, spec.decoder.architecture)
    try:
        add_hyperparameters(writer, spec)
        writer.add_file_type(int(file_type))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if imatrix is not None:
            # The keys that llama.cpp's own tool leaves.
            writer.add_string("quantize.imatrix.dataset", imatrix.dataset)
            writer.add_int32("quantize.imatrix.entries_count", len(imatrix.entries))
            writer.add_int32("quantize.imatrix.chunks_count", imatrix.samples)
        add_tokenizer(writer, model.tokenizer_files, spec.prompt, spec.decoder.vocab_size)
        for weight in tensors:
            weight.declare(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for index, weight in enumerate(tensors):
            writer.write_tensor_data(weight.data(spec.decoder))
            release(weight.tensor)
            progress((index + 1) / len(tensors))
    finally:
        writer.close()
