"""What this CPU is: its name, its cores, and the instruction sets that decide which kernels a runtime uses."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

_FEATURES = (
    *("avx2", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve"),
)


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Instruction sets that this CPU has, as Linux names them; empty where the system does not tell."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    present = {
        word
        for line in text.splitlines()
        if line.startswith(("flags", "Features"))
        for word in line.partition(":")[2].split()
    }
    return [feature for feature in _FEATURES if feature in present]


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as far as the system tells."""
    with contextlib.suppress(OSError):
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        fields = {label.strip(): " ".join(value.split()) for label, _, value in (line.partition(":") for line in lines)}
        # x86 has a name beside a number called model; a Raspberry Pi has its Model.
        for label in ("model name", "Model"):
            if fields.get(label):
                return fields[label]
    return platform.processor() or platform.machine()


def hardware() -> str:
    """Processor model, its features and core count, as far as the system tells: what measurements are kept by."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "flags", "Features")):
                model += line
                if not line.startswith("model name"):
                    break
    return f"{model} x {os.cpu_count()}"
