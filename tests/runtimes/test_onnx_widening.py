"""bfloat16 graphs widened in memory: the same values in float32, and files that are not what they say."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgevlm.errors import BundleError
from edgevlm.runtimes.device import Device
from edgevlm.runtimes.onnx_widening import widen
from edgevlm.runtimes.ort_session import open_session

ROWS, COLUMNS = 6, 5


def write_graph(folder: Path, location: str = "weights", offset: int = 64) -> Path:
    """y = x W + b in bfloat16; W `[6, 5]` lies in a file, b in the graph, in a branch that is always taken."""
    weight = torch.arange(ROWS * COLUMNS, dtype=torch.float32).reshape(ROWS, COLUMNS).div(7).bfloat16()
    (folder / "weights").write_bytes(b"\0" * 64 + weight.view(torch.int16).numpy().tobytes())
    outside = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=[ROWS, COLUMNS])
    outside.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(2 * ROWS * COLUMNS))):
        outside.external_data.add(key=key, value=value)
    narrow = onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    bias = numpy_helper.from_array(np.full(COLUMNS, 1 / 3, np.float32).astype(narrow), "b")
    value = helper.make_tensor_value_info("biased", TensorProto.BFLOAT16, [2, COLUMNS])
    branch = helper.make_graph([helper.make_node("Add", ["product", "b"], ["biased"])], "branch", [], [value], [bias])
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["narrow", "w"], ["product"]),
        helper.make_node("If", ["always"], ["sum"], then_branch=branch, else_branch=branch),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, ROWS])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, COLUMNS])
    always = numpy_helper.from_array(np.array(True), "always")
    graph = helper.make_graph(nodes, "small", [x], [y], [outside, always])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "small.onnx").write_bytes(model.SerializeToString())
    return folder / "small.onnx"


def test_values_stay_and_nothing_is_bfloat16_any_more(tmp_path: Path) -> None:
    """Tensors in a file and in a branch; casts; and the session still has them when only it is left."""
    path = write_graph(tmp_path)
    model, stored = widen(path)
    assert "bfloat16" not in str(onnx.load_model_from_string(model)).lower()
    (weight,) = stored
    expected = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS) / 7
    wanted = torch.from_numpy(expected).bfloat16().float().numpy()
    np.testing.assert_array_equal(weight.read(), wanted)
    x = np.linspace(-1, 1, 2 * ROWS, dtype=np.float32).reshape(2, ROWS)
    session = open_session(path, 1, {}, Device("cpu"), compute="bfloat16")
    third = torch.tensor(1 / 3).bfloat16().item()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ wanted + third, atol=1e-5)


@pytest.mark.parametrize(
    ("location", "offset", "said"),
    [
        ("../weights", 64, "another folder"),
        ("/etc/passwd", 0, "another folder"),
        ("..", 0, "another folder"),
        ("missing", 0, "cannot be read"),
        ("weights", -1, "larger than its file"),
        ("weights", 66, "ends within"),
        ("weights", 10**30, "cannot be read"),
    ],
)
def test_tensors_that_lie_elsewhere_are_refused(location: str, offset: int, said: str, tmp_path: Path) -> None:
    path = write_graph(tmp_path, location, offset)
    with pytest.raises(BundleError, match=said):
        open_session(path, 1, {}, Device("cpu"), compute="bfloat16")


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_graph(tmp_path)
    whole = path.read_bytes()
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            widen(path)
        except BundleError as error:
            assert error.where == str(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match="cannot be read"):
        widen(path)
