"""Lint: will the ONNX parser of a TensorRT version read these graphs, and if not, which flag removes the reason?"""

from edgevlm.exporters.lint.lint import Finding, lint, lint_graph
from edgevlm.exporters.lint.support import Toolkit

__all__ = ["Finding", "Toolkit", "lint", "lint_graph"]
