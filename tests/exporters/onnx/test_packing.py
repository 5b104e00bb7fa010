"""Codes as ONNX Runtime's kernel reads them: its products equal those of the dequantized matrix."""

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgevlm.exporters.onnx.packing import pack_codes, pack_zero_points
from edgevlm.quant import rtn
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme, stack


def product(x: np.ndarray, tensor: QuantizedTensor) -> np.ndarray:
    """x times the matrix, by MatMulNBits in float32."""
    scheme, (rows, columns) = tensor.scheme, tensor.codes.shape
    weights = {"codes": pack_codes(tensor), "scales": tensor.scales}
    zeros = pack_zero_points(tensor)
    if zeros is not None:
        weights["zeros"] = zeros
    node = helper.make_node(
        "MatMulNBits", ["x", *weights], ["y"], domain="com.microsoft", N=rows, K=columns,
        bits=scheme.storage_bits, block_size=scheme.group_size, accuracy_level=0,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, rows])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("columns", "group"), [(128, 32), (96, 64), (40, 16), (512, 256)])
def test_the_kernel_computes_with_these_numbers(bits: int, symmetric: bool, columns: int, group: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, columns, generator=generator) + 0.2
    tensor = rtn.quantize(weight, QuantScheme(bits, group, symmetric))  # type: ignore[arg-type]
    x = torch.randn(5, columns, generator=generator).numpy()
    np.testing.assert_allclose(product(x, tensor), x @ tensor.dequantize().T, rtol=1e-4, atol=1e-4)


def test_stacked_matrices_keep_their_numbers() -> None:
    parts = [rtn.quantize(torch.randn(n, 64), QuantScheme(4, 32, symmetric=False)) for n in (3, 5)]
    expected = np.concatenate([part.dequantize() for part in parts])
    assert np.array_equal(stack(parts).dequantize(), expected)
    with pytest.raises(ValueError, match="schemes"):
        stack([parts[0], replace(parts[1], scheme=QuantScheme(4, 32))])
