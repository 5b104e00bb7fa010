"""How operators of the vision side are written in ONNX where torch's own translation is missing or not wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import FLOAT, INT64, opset18, script
from onnxscript import opset20 as op

from edgevlm.pruning.tokens.dpp import CHOSEN, LEAST
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
    """Attention of `[B, heads, N, D]` with a static D, full, or causal over a whole sequence.

    torch's own translation asks for shapes at run time.
    """
    if attn_mask is not None or dropout_p or enable_gqa:
        raise NotImplementedError("vision attention is unmasked")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = op.MatMul(op.Mul(query, op.Constant(value_float=scale)), op.Transpose(key, perm=[0, 1, 3, 2]))
    if is_causal:
        behind = op.Trilu(op.Expand(op.Constant(value_float=-1e9), op.Shape(scores)), op.Constant(value_int=1), upper=1)
        scores = op.Add(scores, behind)
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


def dpp_greedy(kernel: Any, keep: int) -> Any:
    """`edgevlm.pruning.tokens.dpp` as a Loop, whose body runs once for each token.

    A state of one value `[B, N, keep + 1]` holds the rows of the factor, and last the pivots.
    """
    size = kernel.shape[-1]
    numbers = np.eye(keep + 1, dtype=np.float32)
    of_factor, of_pivots = (op.Constant(value=ir.tensor(row)) for row in (1 - numbers[keep], numbers[keep]))
    on_diagonal = op.EyeLike(op.Squeeze(op.Slice(kernel, [0], [1], [0]), [0]), dtype=1)
    pivots = op.ReduceSum(op.Mul(kernel, on_diagonal), op.Constant(value_ints=[-1]), keepdims=1)
    steps = op.Constant(value=ir.tensor(numbers))
    places = op.Constant(value=ir.tensor(np.arange(size)))
    state = _add_pivots(kernel, op.Mul(pivots, of_pivots), of_factor, of_pivots, steps, places)
    left = op.Squeeze(op.Slice(state, [keep], [keep + 1], [2]), [2])
    _, marked = op.TopK(left, op.Constant(value_ints=[keep]), largest=0)
    ascending, _ = op.TopK(marked, op.Constant(value_ints=[keep]), largest=0)
    return ascending


@script()  # type: ignore[untyped-decorator]
def _add_pivots(
    kernel: FLOAT[...],
    begin: FLOAT[...],
    of_factor: FLOAT[...],
    of_pivots: FLOAT[...],
    rows: FLOAT[...],
    places: INT64[...],
) -> FLOAT[...]:
    """The state behind all steps: pivots of chosen tokens are far below 0."""
    state = begin
    count = opset18.Sub(opset18.Squeeze(opset18.Shape(rows, start=0, end=1)), 1)
    for step in range(count):
        pivots = opset18.ReduceSum(opset18.Mul(state, of_pivots), [-1], keepdims=0)
        chosen = opset18.ArgMax(pivots, axis=1, keepdims=1)
        row = opset18.GatherND(kernel, chosen, batch_dims=1)
        held = opset18.GatherND(state, chosen, batch_dims=1)
        pivot = opset18.GatherND(pivots, chosen, batch_dims=1)
        known = opset18.Unsqueeze(opset18.Mul(held, of_factor), [2])
        done = opset18.Squeeze(opset18.MatMul(state, known), [2])
        root = opset18.Sqrt(opset18.Max(pivot, LEAST))
        new = opset18.Div(opset18.Sub(row, done), opset18.Unsqueeze(root, [1]))
        mark = opset18.Mul(opset18.Cast(opset18.Equal(places, chosen), to=1), CHOSEN)
        less = opset18.Add(opset18.Mul(new, new), mark)
        added = opset18.Mul(opset18.Unsqueeze(new, [2]), opset18.Gather(rows, step, axis=0))
        state = opset18.Sub(opset18.Add(state, added), opset18.Mul(opset18.Unsqueeze(less, [2]), of_pivots))
    return state


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: attention,
    torch.ops.aten.sort.stable: sort,
    torch.ops.edgevlm.farthest_points.default: farthest_points,
    torch.ops.edgevlm.dpp_greedy.default: dpp_greedy,
}
