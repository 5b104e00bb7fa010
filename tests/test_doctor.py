"""`edgevlm doctor` tells what works on this machine; a runtime that crashes is a line in its table."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import psutil
import pytest
from click.testing import CliRunner, Result
from sensor_trees import alone, orin_nano, write, x86

import edgevlm.doctor
from edgevlm.child import ChildResult
from edgevlm.cli.doctor import command
from edgevlm.doctor import Check, examine
from edgevlm.runtimes.llama_probe import probe_model


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def checks(monkeypatch: pytest.MonkeyPatch, *wanted: str) -> dict[str, Check]:
    """The checks by name, without the runtimes that are not wanted."""
    for name in {"onnxruntime", "openvino", "llama_cpp", "tensorrt"} - set(wanted):
        monkeypatch.setattr(edgevlm.doctor, f"_{name}", lambda name=name: Check(name, "absent", ""))
    return {check.name: check for check in examine()}


@pytest.fixture
def broken_llama(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the llama.cpp probe be another function of `child_targets`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    real = edgevlm.doctor.run_child

    def use(function: str) -> None:
        monkeypatch.setattr(
            edgevlm.doctor, "run_child", lambda _target, arguments, timeout: real(function, arguments, timeout=timeout)
        )

    return use


def test_everything_installed_here_works() -> None:
    result = doctor("--json")
    states = {check["name"]: check["state"] for check in json.loads(result.output)}
    assert result.exit_code == 0, result.output
    assert {states[name] for name in ("python", "onnxruntime", "openvino", "llama.cpp", "export")} <= {"ok", "warning"}


def test_tensorrt_without_a_gpu_builds_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is no runtime: where it is alone, no bundle can run."""
    monkeypatch.setattr(edgevlm.doctor, "installed", lambda library: library == "tensorrt_rtx")
    answer = {"versions": "tensorrt_rtx 1.7.1", "gpu": ""}
    monkeypatch.setattr(edgevlm.doctor, "run_child", lambda *_, **__: ChildResult(answer, 0))
    found = checks(monkeypatch, "tensorrt")
    assert found["tensorrt"].state == "warning"
    assert "runs nothing" in found["tensorrt"].detail
    assert found["runtimes"].state == "broken"
    answer["gpu"] = "Orin (SM 8.7)"
    found = checks(monkeypatch, "tensorrt")
    assert found["tensorrt"] == Check("tensorrt", "ok", "tensorrt_rtx 1.7.1 on Orin (SM 8.7)")
    assert "runtimes" not in found
    monkeypatch.setattr(edgevlm.doctor, "installed", lambda _: False)
    assert checks(monkeypatch, "tensorrt")["tensorrt"].state == "absent"


def test_llama_cpp_crash_is_a_line_with_a_remedy(monkeypatch: pytest.MonkeyPatch, broken_llama: Any) -> None:
    broken_llama("child_targets:crash_in_fast_kernels")
    check = checks(monkeypatch, "llama_cpp")["llama.cpp"]
    assert check.state == "broken"
    assert "SIGSEGV" in check.detail
    assert "plain ones work" in check.detail
    assert "-fno-dse" in check.hint


def test_wrong_kernels_are_noticed(monkeypatch: pytest.MonkeyPatch, broken_llama: Any) -> None:
    broken_llama("child_targets:disagree")
    check = checks(monkeypatch, "llama_cpp")["llama.cpp"]
    assert check.state == "broken"
    assert "disagree" in check.detail


def test_build_without_the_cpus_instructions_is_a_warning(monkeypatch: pytest.MonkeyPatch, broken_llama: Any) -> None:
    broken_llama("child_targets:built_for_less")
    monkeypatch.setattr(edgevlm.doctor, "cpu_features", lambda: ["avx2", "avx512f", "avx512_vnni", "amx_int8"])
    check = checks(monkeypatch, "llama_cpp")["llama.cpp"]
    assert check.state == "warning"
    assert "AVX512, AMX_INT8" in check.detail


@pytest.mark.parametrize("probe", ["segfault_whatever", "refuse_whatever"])
def test_broken_onnxruntime_is_a_line(monkeypatch: pytest.MonkeyPatch, broken_llama: Any, probe: str) -> None:
    broken_llama(f"child_targets:{probe}")
    assert checks(monkeypatch, "onnxruntime")["onnxruntime"].state == "broken"


def test_exit_code_tells_that_something_is_broken(monkeypatch: pytest.MonkeyPatch, broken_llama: Any) -> None:
    broken_llama("child_targets:segfault_whatever")
    checks(monkeypatch, "llama_cpp")
    result = doctor()
    assert result.exit_code == 1
    assert "llama.cpp" in result.output
    assert "Traceback" not in result.output


def test_machine_without_any_runtime_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = checks(monkeypatch)
    assert found["runtimes"].state == "broken"
    assert "pip install" in found["runtimes"].hint


def test_little_memory_and_disk_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    low = psutil.virtual_memory()._replace(available=100 << 20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: low)
    monkeypatch.setattr("shutil.disk_usage", lambda _place: type("Usage", (), {"free": 100 << 20}))
    found = checks(monkeypatch)
    assert (found["memory"].state, found["disk"].state) == ("warning", "warning")


def test_sensors_are_named_and_so_is_why_others_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, tmp_path)
    check = edgevlm.doctor._sensors(orin_nano(tmp_path / "board"))
    assert check.state == "ok"
    assert "ina3221: the whole module (VDD_IN)" in check.detail
    assert "rapl" in check.detail.partition("no ")[2]
    assert edgevlm.doctor._sensors(tmp_path / "nothing").state == "absent"
    broken = write(x86(tmp_path / "pc"), {"sys/class/powercap/intel-rapl:0/energy_uj": "?"})
    check = edgevlm.doctor._sensors(broken)
    assert check.state == "warning"
    assert "rapl broken (energy_uj holds '?' instead of a number)" in check.detail


def test_openvino_telemetry_that_is_on_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / "intel").mkdir()
    (tmp_path / "intel" / "openvino_telemetry").write_text("1")
    check = checks(monkeypatch, "openvino")["openvino"]
    assert (check.state, check.hint) == ("warning", "run: opt_in_out --opt_out")


def test_probe_model_is_a_gguf_as_gguf_py_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "probe.gguf"
    path.write_bytes(probe_model())
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "llama"
    (gate,) = (tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_gate.weight")
    weights = gguf.quants.dequantize(gate.data, gate.tensor_type)
    assert weights.shape == (512, 256)
    assert np.isfinite(weights).all()
    assert 0.5 < weights.std() * 16 < 2


def test_doctor_imports_no_runtime_itself() -> None:
    code = "import sys, edgevlm.cli.doctor; print({'onnxruntime', 'openvino', 'llama_cpp', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
