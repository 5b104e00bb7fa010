"""File names of an ONNX bundle, as transformers.js and the onnx-community models use them.

Each component's name ends in a suffix for its precision; its big tensors are in `<file>_data` beside it.
"""

from __future__ import annotations

from edgevlm.recipe import StoredPrecision, VisionPrecision

FOLDER = "onnx"
VISION = "vision_encoder"
EMBEDDING = "embed_tokens"
DECODER = "decoder_model_merged"
FUSION = "fusion"
TEXT = "text_model"
#: The text tower's own tokenizer, beside the decoder's.
TEXT_TOKENIZER = "text_tokenizer.json"

_SUFFIX: dict[StoredPrecision, str] = {
    "fp32": "",
    "fp16": "_fp16",
    "bf16": "_bf16",
    "int8": "_int8",
    "int4": "_q4",
    "w8a8": "_quantized",
}
#: What transformers.js calls the precision that a suffix stands for.
JS_DTYPE: dict[VisionPrecision, str] = {"fp32": "fp32", "fp16": "fp16", "int8": "int8", "int4": "q4", "w8a8": "q8"}


def graph_file(component: str, precision: StoredPrecision) -> str:
    """The component's file name: `decoder_model_merged_q4.onnx`."""
    return f"{component}{_SUFFIX[precision]}.onnx"


def data_file(component: str, precision: StoredPrecision) -> str:
    """The file of its external data: `decoder_model_merged_q4.onnx_data`."""
    return graph_file(component, precision) + "_data"
