"""What the ONNX parser of tensorrt-rtx itself says of each node; it needs no GPU.

In: an ONNX file. Out: the nodes that it refuses, with its reasons. The parser runs in a child process, since a file
that it does not expect can end the process that called it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.child import ChildError, Json, Send, run_child

_TIMEOUT_S = 600.0
_LONGEST = 300


@dataclass(frozen=True)
class Refusal:
    """A node that the parser refuses."""

    node: str
    op: str
    reason: str


def parser_version() -> str | None:
    """The version of tensorrt-rtx installed here, or None."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return None
    return importlib.metadata.version("tensorrt-rtx")


def ask_parser(path: Path) -> list[Refusal]:
    """The nodes of a file that the parser refuses; a crash of the parser is a refusal of the whole file."""
    try:
        answer = run_child("edgevlm.exporters.lint.rtx_parser:parse", {"path": str(path)}, timeout=_TIMEOUT_S).value
    except ChildError as error:
        return [Refusal("(model)", "model", f"the parser ended without an answer: {error.what}")]
    return [Refusal(entry["node"], entry["op"], entry["reason"]) for entry in answer]


def parse(send: Send, path: str) -> Json:  # noqa: ARG001 (the signature of a child's function)
    """Child entry point: node, operator and reason of each refusal."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    # The parser writes into the network as long as it lives.
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if parser.supports_model_v2(Path(path).read_bytes(), path):
        return []
    refusals = [_refusal(parser.get_error(index)) for index in range(parser.num_errors)]
    return refusals or [{"node": "(model)", "op": "model", "reason": "the parser refuses the model without a word"}]


def _refusal(error: Any) -> dict[str, str]:
    code = str(error.code()).rsplit(".", 1)[-1]
    reason = " ".join(error.desc().split())[:_LONGEST]
    return {
        "node": error.node_name() or "(model)",
        "op": error.node_operator() or "model",
        "reason": f"{code}: {reason}",
    }
