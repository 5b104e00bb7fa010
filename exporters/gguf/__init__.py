"""GGUF, the format of llama.cpp: the decoder as one file, its tokenizer inside. The vision side stays ONNX."""

from edgevlm.exporters.gguf.exporter import export
from edgevlm.exporters.gguf.layout import supports

__all__ = ["export", "supports"]
