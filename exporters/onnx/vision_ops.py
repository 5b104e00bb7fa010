"""How operators of the vision side are written in ONNX where torch's own translation is missing or not wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import FLOAT, INT64, opset18, script
from onnxscript import opset20 as op

from edgevlm.pruning.tokens.farthest import SELF_PENALTY


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Unmasked attention of `[B, heads, N, D]` with a static D; torch's own translation asks for shapes at run time."""
    if attn_mask is not None or is_causal or dropout_p or enable_gqa:
        raise NotImplementedError("vision attention is full and unmasked")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = op.MatMul(op.Mul(query, op.Constant(value_float=scale)), op.Transpose(key, perm=[0, 1, 3, 2]))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def sort(values: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """A sort of a static axis, stable: of equal values TopK gives the one with the lower index first."""
    del stable
    return op.TopK(values, op.Constant(value_ints=[values.shape[dim]]), axis=dim, largest=int(descending), sorted=1)


def farthest_points(distances: Any, keep: int) -> Any:
    """`edgevlm.pruning.tokens.farthest` as a Loop, whose body runs once for each point behind the first.

    Unrolled, ONNX Runtime and OpenVINO take the same time for it, and every optimizer goes over three nodes a point.
    """
    rows = op.Squeeze(op.Slice(distances, [0], [1], [0]), [0])
    penalty = op.Mul(op.EyeLike(rows, dtype=1), op.Constant(value_float=SELF_PENALTY))
    neighbours = op.ReduceMin(op.Add(distances, penalty), op.Constant(value_ints=[-1]), keepdims=0)
    nearest = _mark_farthest(op.Sub(distances, penalty), neighbours, op.Constant(value_int=keep - 1))
    _, marked = op.TopK(nearest, op.Constant(value_ints=[keep]), largest=0)
    ascending, _ = op.TopK(marked, op.Constant(value_ints=[keep]), largest=0)
    return ascending


# torch exports in version 18 and converts; a function has to be of that version.
@script()  # type: ignore[untyped-decorator]
def _mark_farthest(apart: FLOAT[...], neighbours: FLOAT[...], steps: INT64) -> FLOAT[...]:
    """Each point's distance to the nearest chosen one, which for a chosen one is itself, far below 0.

    What the loop carries is one value: the order of several would differ from run to run.
    """
    first = opset18.ArgMax(neighbours, axis=1, keepdims=1)
    nearest = opset18.GatherND(apart, first, batch_dims=1)
    for _ in range(steps):
        chosen = opset18.ArgMax(nearest, axis=1, keepdims=1)
        nearest = opset18.Min(nearest, opset18.GatherND(apart, chosen, batch_dims=1))
    return nearest


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: attention,
    torch.ops.aten.sort.stable: sort,
    torch.ops.edgevlm.farthest_points.default: farthest_points,
}
