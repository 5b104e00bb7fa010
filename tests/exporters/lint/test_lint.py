"""The lint finds what TensorRT does not read, and agrees with the parser of tensorrt-rtx where that can be asked."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tiny import tiny_bundle, tiny_model

from edgevlm.cli import main
from edgevlm.errors import InputError, UnsupportedError
from edgevlm.exporters.lint import Finding, Toolkit, lint, lint_graph
from edgevlm.exporters.lint.patterns import PATTERNS
from edgevlm.exporters.lint.rtx_parser import parse
from edgevlm.exporters.lint.support import read_table
from edgevlm.targets.catalog import load_target

F, F16, I64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
OLD, MIDDLE, NEW = (Toolkit("tensorrt", version, (8, 7)) for version in ((10, 3), (10, 13, 3), (10, 16)))
RTX = Toolkit("rtx", (1, 7), (8, 6))
needs_parser = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'edgevlm[rtx]'"
)


def _model(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Sequence[int]]],
    outputs: dict[str, int],
    constants: dict[str, NDArray[Any] | onnx.TensorProto] | None = None,
    opset: int = 24,
) -> Path:
    """Write a graph of the given nodes."""
    tensors = [
        value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, name)
        for name, value in (constants or {}).items()
    ]
    graph = helper.make_graph(
        list(nodes),
        "case",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        tensors,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def _codes(name: str, kind: int, rows: int, columns: int, code: int = 1) -> onnx.TensorProto:
    """4-bit numbers, all the same, as the raw bytes that an exporter writes."""
    return helper.make_tensor(name, kind, [rows, columns], bytes([code | code << 4]) * (rows * columns // 2), raw=True)


def _int4_weight(path: Path, kind: int = TensorProto.INT4, zero: int | None = None) -> Path:
    """x `[1, 64]` times blocks of 4-bit codes `[64, 16]`."""
    constants: dict[str, Any] = {"codes": _codes("codes", kind, 64, 16), "scales": np.ones((2, 16), np.float16)}
    inputs = ["codes", "scales"]
    if zero is not None:
        constants["zeros"] = _codes("zeros", kind, 2, 16, zero)
        inputs.append("zeros")
    nodes = [
        helper.make_node("DequantizeLinear", inputs, ["weight"], "dequantize", axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "weight"], ["y"], "product"),
    ]
    return _model(path, nodes, {"x": (F16, (1, 64))}, {"y": F16}, constants)


def _activation(path: Path, kind: int, zero: int, scale: float = 0.1) -> Path:
    """x `[4, 64]` rounded to 8 bits and back, times a matrix."""
    numpy_type = np.uint8 if kind == TensorProto.UINT8 else np.int8
    constants = {
        "scale": np.array(scale, np.float32),
        "zero": np.array(zero, numpy_type),
        "weight": np.ones((64, 16), np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequantize"),
        helper.make_node("MatMul", ["d", "weight"], ["y"], "product"),
    ]
    return _model(path, nodes, {"x": (F, (4, 64))}, {"y": F}, constants)


def _attention(path: Path, *, cache: bool = False, lengths: bool = False) -> Path:
    """Attention on `[1, 2, 8, 16]`."""
    heads = (F16, (1, 2, 8, 16))
    inputs = {"q": heads, "k": heads, "v": heads}
    names, outputs = ["q", "k", "v"], {"y": F16}
    if cache:
        inputs |= {"past_key": heads, "past_value": heads}
        names += ["", "past_key", "past_value"]
        outputs |= {"present_key": F16, "present_value": F16}
    if lengths:
        inputs["lengths"] = (I64, (1,))
        names += ["", "", "", "lengths"]
    node = helper.make_node("Attention", names, list(outputs), "attention", is_causal=1)
    return _model(path, [node], inputs, outputs)


def _one(path: Path, op: str, inputs: dict[str, tuple[int, Sequence[int]]], domain: str = "", **more: Any) -> Path:
    """One operator with one output."""
    constants = more.pop("constants", {})
    names = [*inputs, *constants]
    node = helper.make_node(op, names, ["y"], op.lower(), domain=domain, **more)
    return _model(path, [node], inputs, {"y": F16}, constants)


def _found(path: Path, toolkit: Toolkit) -> list[Finding]:
    return lint_graph(path, toolkit, ask=False)


def _blocking(path: Path, toolkit: Toolkit) -> dict[str, str]:
    """Node -> reason of what blocks, by the table alone."""
    return {finding.node: finding.why for finding in _found(path, toolkit) if finding.blocks}


def test_symmetric_int4_weights_are_clean(tmp_path: Path) -> None:
    path = _int4_weight(tmp_path / "m.onnx", zero=0)
    assert [finding for finding in _found(path, RTX) if finding.blocks] == []
    assert _blocking(path, OLD) == {}


def test_zero_points_are_read_not_guessed(tmp_path: Path) -> None:
    assert "zero point" in _blocking(_int4_weight(tmp_path / "m.onnx", zero=1), NEW)["dequantize"]


def test_unsigned_activations_are_refused_even_with_zero_0(tmp_path: Path) -> None:
    found = _blocking(_activation(tmp_path / "m.onnx", TensorProto.UINT8, 0), NEW)
    assert set(found) == {"quantize", "dequantize"}
    assert "without sign" in found["quantize"]


def test_operators_are_known_from_a_version_on(tmp_path: Path) -> None:
    path = _attention(tmp_path / "m.onnx")
    assert "from version 10.14" in _blocking(path, OLD)["attention"]
    assert "from version 10.14" in _blocking(path, MIDDLE)["attention"]
    assert _blocking(path, NEW) == {}


def test_lengths_of_attention_block_where_that_is_known_and_are_a_note_behind(tmp_path: Path) -> None:
    path = _attention(tmp_path / "m.onnx", lengths=True)
    assert "nonpad_kv_seqlen" in _blocking(path, Toolkit("tensorrt", (10, 15), (8, 7)))["attention"]
    assert _blocking(path, NEW) == {}
    assert [finding.why for finding in _found(path, NEW) if "nonpad_kv_seqlen" in finding.why]


def test_types_are_judged_by_the_gpu(tmp_path: Path) -> None:
    path = _one(tmp_path / "m.onnx", "Relu", {"x": (TensorProto.BFLOAT16, (4,))})
    assert "bfloat16" in _blocking(path, Toolkit("rtx", (1, 7), (7, 5)))["relu"]
    assert _blocking(path, RTX) == {}


def test_subgraphs_are_walked(tmp_path: Path) -> None:
    """What stands in a branch is refused as what stands outside; constants around it are seen."""

    def branch(name: str, op: str, *inputs: str) -> onnx.GraphProto:
        node = helper.make_node(op, list(inputs), [f"{name}.y"], f"{name}.node")
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}.y", F, None)])

    node = helper.make_node(
        "If", ["c"], ["y"], "if", then_branch=branch("then", "Relu", "x"), else_branch=branch("else", "Unique", "x")
    )
    inputs = {"c": (TensorProto.BOOL, ()), "x": (F, (4,))}
    path = _model(tmp_path / "m.onnx", [node], inputs, {"y": F})
    assert set(_blocking(path, NEW)) == {"else.node"}


def test_zero_points_beside_the_file_are_read(tmp_path: Path) -> None:
    path = _int4_weight(tmp_path / "m.onnx", zero=1)
    model = onnx.load_model(str(path))
    onnx.save_model(model, str(path), save_as_external_data=True, location="m.onnx_data", size_threshold=0)
    assert (tmp_path / "m.onnx_data").stat().st_size > 0
    assert "zero point" in _blocking(path, NEW)["dequantize"]
    (tmp_path / "m.onnx_data").unlink()
    with pytest.raises(InputError, match="zeros"):
        _found(path, NEW)


def test_every_finding_says_what_removes_it(tmp_path: Path) -> None:
    path = _activation(tmp_path / "m.onnx", TensorProto.UINT8, 128)
    for finding in _found(path, NEW):
        assert finding.node
        assert finding.op
        assert finding.why
        assert "--" in finding.fix
        assert finding.source


def test_the_table_and_the_patterns_are_whole() -> None:
    """Each row names a source and a pattern that exist; each pattern is in the table; no operator is in two rows."""
    table = read_table()
    used = {row.source for row in (*table.operators, *table.patterns, *table.opsets)}
    assert used == set(table.sources)
    assert {row.pattern for row in table.patterns} == set(PATTERNS)
    named = [(row.domain, name) for row in table.operators for line in row.names for name in line]
    assert len(named) == len(set(named))


def test_default_domain_operators_of_the_table_exist() -> None:
    """A misspelt name would let a real operator pass as unknown."""
    known = {schema.name for schema in onnx.defs.get_all_schemas()} | {"Upsample", "Scatter"}
    table = read_table()
    assert {name for row in table.operators if not row.domain for line in row.names for name in line} <= known


_VECTOR = {"x": (F, (1, 64))}
#: What was observed of tensorrt-rtx 1.7 on a machine without GPU; the table must say the same as the parser.
_OBSERVED = {
    "int4": _int4_weight,
    "int4-zero": lambda path: _int4_weight(path, zero=1),
    "uint4": lambda path: _int4_weight(path, TensorProto.UINT4),
    "int8": lambda path: _activation(path, TensorProto.INT8, 0),
    "int8-zero": lambda path: _activation(path, TensorProto.INT8, 3),
    "int8-negative": lambda path: _activation(path, TensorProto.INT8, 0, -0.1),
    "uint8": lambda path: _activation(path, TensorProto.UINT8, 128),
    "attention": _attention,
    "attention-cache": lambda path: _attention(path, cache=True),
    "attention-lengths": lambda path: _attention(path, lengths=True),
    "non-zero": lambda path: _one(path, "NonZero", _VECTOR),
    "unique": lambda path: _one(path, "Unique", {"x": (F, (4,))}),
    "swish": lambda path: _one(path, "Swish", {"x": (F16, (1, 64))}),
    "quick-gelu": lambda path: _one(path, "QuickGelu", {"x": (F16, (1, 64))}, "com.microsoft"),
}
_REFUSED = {
    "int4-zero",
    "uint4",
    "int8-zero",
    "int8-negative",
    "uint8",
    "attention-cache",
    "non-zero",
    "unique",
    "quick-gelu",
}


@needs_parser
@pytest.mark.parametrize("case", _OBSERVED)
def test_the_table_agrees_with_the_parser(case: str, tmp_path: Path) -> None:
    path = _OBSERVED[case](tmp_path / "m.onnx")
    assert bool(parse(print, str(path))) == bool(_blocking(path, RTX)) == (case in _REFUSED)


@needs_parser
def test_the_parsers_own_words_are_added(tmp_path: Path) -> None:
    """What the table does not know of is found by the parser: here a product of shapes that do not fit."""
    inputs = {"a": (F16, (4, 8)), "b": (F16, (9, 2))}
    path = _model(tmp_path / "m.onnx", [helper.make_node("MatMul", ["a", "b"], ["y"], "product")], inputs, {"y": F16})
    assert _blocking(path, RTX) == {}
    found = [finding for finding in lint_graph(path, RTX) if finding.blocks]
    assert [(finding.node, finding.op) for finding in found] == [("product", "MatMul")]
    assert "tensorrt-rtx" in found[0].source


def test_a_bundle_for_cpus_is_refused_with_the_flag_that_helps(tmp_path: Path) -> None:
    """Its decoder is in contrib operators; each of them is named, once a node."""
    bundle = tiny_bundle(tiny_model(), tmp_path / "bundle", "int4")
    toolkit, findings = lint(bundle.path, "jetson-orin-nano")
    assert str(toolkit) == "TensorRT 10.3 on SM 8.7"
    refused = {finding.op: finding.fix for finding in findings if finding.blocks}
    assert {"com.microsoft.GroupQueryAttention", "com.microsoft.MatMulNBits"} <= set(refused)
    assert all("--format tensorrt" in fix for fix in refused.values())
    assert {finding.file for finding in findings} <= {"decoder.onnx", "embed.onnx", "vision.onnx"}


def test_a_jetpack_chooses_the_version() -> None:
    profile = load_target("jetson-orin-nano")
    assert Toolkit.of(profile).version == profile.tensorrt[0]
    assert Toolkit.of(profile, least=(10, 15)).version >= (10, 15)
    newest = profile.software[-1]
    assert newest.jetpack is not None
    assert Toolkit.of(profile, newest.jetpack).version == profile.tensorrt_of(newest.jetpack)
    with pytest.raises(InputError, match=r"JetPack 1\.0"):
        Toolkit.of(profile, "1.0")
    assert Toolkit.of(load_target("rtx-4060")).kind == "rtx"
    with pytest.raises(UnsupportedError, match="no TensorRT"):
        Toolkit.of(load_target("raspberry-pi-5"))


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"not a model"])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError):
        lint(tmp_path / "m.onnx", "jetson-orin-nano")


def _exit(*arguments: object) -> object:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code


def test_exit_codes_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 where nothing blocks, 1 where something does, 2 for what cannot be linted."""
    clean = _attention(tmp_path / "clean.onnx")
    spoiled = _int4_weight(tmp_path / "spoiled.onnx", zero=1)
    assert _exit("lint", clean, "--target", "jetson-agx-thor", "--jetpack", "7.2") == 0
    assert "nothing found" in capsys.readouterr().out
    assert _exit("lint", spoiled, "--target", "jetson-orin-nano") == 1
    assert "zero point" in capsys.readouterr().out
    assert _exit("lint", spoiled, "--target", "jetson-orin-nano", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert "10.3" in answer["toolkit"]
    assert [finding["node"] for finding in answer["findings"] if finding["blocks"]] == ["dequantize"]
    assert _exit("lint", spoiled, "--target", "jetson-orin-nona") == 2
    assert "jetson-orin-nano" in capsys.readouterr().err
    assert _exit("lint", tmp_path / "absent.onnx", "--target", "jetson-orin-nano") == 2
