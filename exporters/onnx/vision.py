"""The vision graph: `pixel_values` float32 `[B, 3, R, R]` to `image_features` float32 `[B, N, H]`.

For an encoder of packed patches (Qwen2-VL): `pixel_values` `[P, V]` of one image, for any P, and `image_grid_thw` int64
`[1, 3]` to `[1, N, H]`. For one that sees an image in P parts (LLaVA-Mini): `pixel_values` `[B, 3, P R, R]`. Where
tokens are chosen by the question: with `text_embeds` `[1, P]`, as `edgevlm.question` makes it. Where tokens are shared
out among an image's tiles: `pixel_values` of all of them and `tile_boxes` float32 `[T, 4]` (`edgevlm.tile_tokens`) to
`image_features` `[T, K, H]` and `token_places` int64 `[T * K]` (`edgevlm.runtimes.base`).

Traced by `torch.onnx.export` (dynamo), attention written as three products; then everything that differs between two
runs or machines is removed (stack traces, scopes), and matrices and kernels move to a data file in the precision asked
for. At fp16 and int8 the graph computes in float32: a Cast or DequantizeLinear stands behind each stored kernel, which
ONNX Runtime folds once when it loads and OpenVINO reads as a compressed constant.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from edgevlm._version import __version__
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.vision_ops import TRANSLATIONS
from edgevlm.models.llava_mini_vision import CompressedVit
from edgevlm.models.qwen2_vision import Qwen2Vision
from edgevlm.models.tiled import TiledVisionModel
from edgevlm.models.vlm import VisionModel
from edgevlm.quant.schemes import half_prefixes, store, vision_scheme
from edgevlm.quant.sizes import VISION_INLINE_BELOW
from edgevlm.quant.tensor import QuantizedTensor
from edgevlm.recipe import Precision

#: 20 brings Gelu; OpenVINO and the runtimes on devices read it.
OPSET = 20


def export_vision(vision: VisionModel, resolution: int, precision: Precision, path: Path, data: ExternalData) -> int:
    """Write the graph to `path` and its big tensors to `data`; returns the bytes of its weights.

    Args:
        vision: encoder and projector, in any float dtype; left as it is.
        resolution: input pixels along one side. The graph is for this size alone, which lets runtimes plan memory.

    Raises:
        ValueError: a weight is not finite or does not fit the precision.
        OSError: a file cannot be written.
    """
    return write_vision(trace_vision(vision, resolution), precision, path, data, half_prefixes(vision))


def write_vision(
    model: ir.Model, precision: Precision, path: Path, data: ExternalData, halves: tuple[str, ...] = ()
) -> int:
    """The second half of `export_vision`: from a traced model, which is altered, to files.

    Weights whose names begin with one of `halves` are stored in float16 at least.
    """
    weight_bytes = 0
    for value in sorted(model.graph.initializers.values(), key=lambda value: value.name or ""):
        assert value.const_value is not None and value.name is not None
        array = value.const_value.numpy()
        if array.nbytes >= VISION_INLINE_BELOW:
            narrow = precision in ("int8", "int4") and value.name.startswith(halves)
            weight_bytes += _store(model, value, array, "fp16" if narrow else precision, data)
        elif array.dtype in (np.float32, np.int8):
            weight_bytes += array.nbytes
    model.producer_name, model.producer_version = "edgevlm", __version__
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return weight_bytes


def trace_vision(vision: VisionModel, resolution: int) -> ir.Model:
    """The first half of `export_vision`: the graph in float32, whose weights are read from `vision` when asked for."""
    parts = encoder.spec.parts if isinstance(encoder := vision.encoder, CompressedVit) else 1
    # A batch of 1 would be taken for a constant wherever it is broadcast.
    inputs: tuple[Tensor, ...] = (torch.zeros(2, 3, parts * resolution, resolution),)
    shapes: tuple[dict[int, Any], ...] = ({0: "batch_size"},)
    names, module = ["pixel_values"], cast(nn.Module, vision)
    if isinstance(encoder, Qwen2Vision):
        side, square = 2 * encoder.spec.merge_size, encoder.spec.merge_size**2
        inputs = torch.zeros(side**2, encoder.spec.patch_values), torch.tensor([[1, side, side]])
        shapes = {0: square * Dim("squares", min=1)}, {}
        names = ["pixel_values", "image_grid_thw"]
    if vision.patches is not None:
        inputs = (*inputs, torch.zeros(1, vision.patches.projection.out_features))
        shapes, names, module = (*shapes, {}), ["pixel_values", "text_embeds"], _Guided(vision)
    outputs = ["image_features"]
    if isinstance(vision, TiledVisionModel):
        inputs = torch.zeros(3, 3, resolution, resolution), torch.zeros(3, 4)
        shapes, names = ({0: "tiles"}, {0: "tiles"}), ["pixel_values", "tile_boxes"]
        outputs = ["image_features", "token_places"]
    return trace(module, inputs, shapes, names, outputs, "vision_encoder")


class _Guided(nn.Module):
    """A vision side with its arguments in the order of the graph's inputs."""

    def __init__(self, vision: VisionModel) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Pixels `[B, 3, R, R]` and a question `[1, P]` to `[B, N, H]`."""
        return self.vision(pixels, text=text)  # type: ignore[no-any-return]


def trace(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    shapes: tuple[dict[int, Any], ...],
    input_names: list[str],
    output_names: list[str],
    name: str,
) -> ir.Model:
    """The graph of a module in float32, whose weights are read from `model` when asked for.

    Args:
        model: in any float dtype; left as it is.
        inputs: examples of its arguments.
        shapes: of each, which axes are free and what they are called.
        input_names: of the arguments.
        output_names: of what it returns.
        name: of the graph.
    """
    module = _without_weights(model, FakeTensorMode(allow_non_fake_inputs=True))
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=shapes,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
            optimize=False,
        )
        assert program is not None
        _bind_weights(program.model, model)
        program.optimize()
    _strip(program.model, name)
    return program.model


def _without_weights(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy in float32 whose tensors have shapes and no values, so that tracing holds no second model."""
    with mode:
        memo: dict[int, Any] = {}
        for tensor in (*module.parameters(), *module.buffers()):
            dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
            empty = torch.empty(tensor.shape, dtype=dtype)
            memo[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
        return copy.deepcopy(module, memo).eval()


def _bind_weights(model: ir.Model, module: nn.Module) -> None:
    """Give the initializers their values: float32, converted when they are read. Transposed matrices stay so."""
    graph, state = model.graph, {**dict(module.named_buffers()), **module.state_dict()}
    for name, value in list(graph.initializers.items()):
        if name not in state:
            continue
        uses = [node for node, _ in value.uses()]
        transposed = len(uses) == 1 and uses[0].op_type == "Transpose" and state[name].ndim == 2
        value.const_value = _lazy(state[name], name, transposed=transposed)
        if transposed:
            value.shape = value.const_value.shape
            ir.convenience.replace_all_uses_with(uses[0].outputs[0], value)
            graph.remove(uses[0], safe=True)


def _lazy(tensor: Tensor, name: str, *, transposed: bool) -> ir.LazyTensor:
    dtype = ir.DataType.FLOAT if tensor.is_floating_point() else ir.DataType.from_numpy(tensor.numpy().dtype)

    def read() -> ir.Tensor:
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return ir.tensor(array.T if transposed else array, name=name)

    shape = tensor.shape[::-1] if transposed else tensor.shape
    return ir.LazyTensor(read, dtype, ir.Shape(shape), name=name)


def _strip(model: ir.Model, name: str) -> None:
    """Remove what describes the trace, not the model."""
    model.metadata_props.clear()
    model.doc_string = None
    graph = model.graph
    graph.metadata_props.clear()
    graph.doc_string, graph.name = None, name
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in [*graph.inputs, *graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None


def _store(model: ir.Model, value: ir.Value, array: NDArray[Any], precision: Precision, data: ExternalData) -> int:
    """Move one initializer to the data file; where it is stored narrower, widen it in the graph under its old name.

    Returns the bytes it takes.
    """
    name, graph = value.name, model.graph
    assert name is not None
    scheme = "float32" if array.dtype != np.float32 else vision_scheme(array.shape, precision)
    if scheme == "float32":
        value.const_value = _append(data, name, array)
        return array.nbytes
    # Matrices of traced products are [K, N], kernels [N, C, h, w]; scales belong to outputs.
    axis = 1 if array.ndim == 2 else 0
    rows = torch.from_numpy(np.array(array.T if axis else array.reshape(array.shape[0], -1)))
    stored = store(rows, scheme)
    if not isinstance(stored, QuantizedTensor):
        half = (stored.T if axis else stored).reshape(array.shape)
        inputs = [_initializer(graph, f"{name}.half", _append(data, f"{name}.half", half))]
        node = ir.node("Cast", inputs, {"to": ir.DataType.FLOAT}, name=f"{name}.widen")
    elif stored.scheme.bits == 8:
        codes, scales = stored.codes.T if axis else stored.codes.reshape(array.shape), stored.scales[:, 0]
        inputs = [
            _initializer(graph, f"{name}.codes", _append(data, f"{name}.codes", codes)),
            _initializer(graph, f"{name}.scale", ir.tensor(scales)),
            _initializer(graph, f"{name}.zero", ir.tensor(np.full(len(scales), 128, np.uint8))),
        ]
        node = ir.node("DequantizeLinear", inputs, {"axis": axis}, name=f"{name}.widen")
    else:
        codes, scales = (stored.codes.T, stored.scales.T) if axis else (stored.codes, stored.scales)
        # What follows the outputs and inputs of a kernel is 1.
        scales = scales.reshape(*scales.shape, *(1,) * (array.ndim - 2))
        inputs = [
            _initializer(graph, f"{name}.codes", _append_int4(data, f"{name}.codes", codes, array.shape)),
            _initializer(graph, f"{name}.scale", _append(data, f"{name}.scale", scales)),
        ]
        blocks = {"axis": 1 - axis, "block_size": stored.scheme.group_size}
        node = ir.node("DequantizeLinear", inputs, blocks, name=f"{name}.widen")
        # Since 21 it has blocks and four bits.
        model.opset_imports[""] = max(21, model.opset_imports[""])
    output = node.outputs[0]
    output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
    ir.convenience.replace_all_uses_with(value, output)
    del graph.initializers[name]
    output.name = name
    graph.insert_before(graph[0], node)
    return sum(input.const_value.nbytes for input in inputs if input.const_value is not None)


def _append_int4(data: ExternalData, name: str, codes: NDArray[np.uint8], shape: tuple[int, ...]) -> ir.ExternalTensor:
    """Codes 0 to 15 as the signed numbers -8 to 7 that they stand for, two a byte, the first in the low half."""
    signed = (codes ^ 8).reshape(-1, 2)
    stored = data.append(signed[:, 0] | signed[:, 1] << 4)
    file = stored.location, stored.offset, stored.length
    return ir.ExternalTensor(*file, ir.DataType.INT4, shape=ir.Shape(shape), name=name, base_dir=data.path.parent)


def _append(data: ExternalData, name: str, array: NDArray[Any]) -> ir.ExternalTensor:
    stored = data.append(array)
    return ir.ExternalTensor(
        stored.location,
        stored.offset,
        stored.length,
        ir.DataType(stored.data_type),
        shape=ir.Shape(array.shape),
        name=name,
        base_dir=data.path.parent,
    )


def _initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    tensor.name = name
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about libraries that are not installed, its own deprecations, and what it does not fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript.optimizer")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
