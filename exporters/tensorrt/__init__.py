"""TensorRT: graphs of standard operators and the plan of the build."""

from edgevlm.exporters.tensorrt.exporter import export
from edgevlm.exporters.tensorrt.versions import TensorRtOptions, supports, tensorrt_options

__all__ = ["TensorRtOptions", "export", "supports", "tensorrt_options"]
