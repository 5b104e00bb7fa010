"""ONNX for ONNX Runtime and transformers.js."""

from edgevlm.exporters.onnx.exporter import export, export_vision_part, supports

__all__ = ["export", "export_vision_part", "supports"]
