"""How operators of the vision side are written in ONNX where torch's own translation is missing or not wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
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
    """`edgevlm.pruning.tokens.farthest`, three nodes a point.

    A Loop over the points takes the same time in ONNX Runtime, and not every runtime has one.
    """
    rows = op.Squeeze(op.Slice(distances, [0], [1], [0]), [0])
    penalty = op.Mul(op.EyeLike(rows, dtype=1), op.Constant(value_float=SELF_PENALTY))
    apart = op.Sub(distances, penalty)
    nearest = op.ReduceMin(op.Add(distances, penalty), op.Constant(value_ints=[-1]), keepdims=0)
    found = []
    for index in range(keep):
        chosen = op.ArgMax(nearest, axis=1, keepdims=1)
        found.append(chosen)
        row = op.GatherND(apart, chosen, batch_dims=1)
        nearest = op.Min(nearest, row) if index else row
    ascending, _ = op.TopK(op.Concat(*found, axis=1), op.Constant(value_ints=[keep]), largest=0)
    return ascending


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: attention,
    torch.ops.aten.sort.stable: sort,
    torch.ops.edgevlm.farthest_points.default: farthest_points,
}
