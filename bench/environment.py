"""What is needed to repeat a report: versions, CPU, governor, memory, load, the state of the source."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from edgevlm._version import __version__
from edgevlm.bench.report import Environment
from edgevlm.targets.sensors.power_mode import power_mode

_PACKAGES = (
    "numpy",
    "pillow",
    "tokenizers",
    "onnxruntime",
    "openvino",
    "llama-cpp-python",
    "tensorrt",
    "torch",
    "psutil",
)
#: CPU features that decide which kernels a runtime picks.
_FEATURES = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "asimdhp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)


def now() -> str:
    """This instant, UTC, ISO 8601 to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def environment(started: str) -> Environment:
    """The machine and the software, at the start of a run; `finished` is filled in at its end."""
    model, features = _cpu()
    return Environment(
        started=started,
        finished=started,
        edgevlm=__version__,
        git_commit=_git_commit(),
        python=platform.python_version(),
        packages=_packages(),
        system=platform.platform(),
        machine=platform.machine(),
        cpu_model=model,
        cpu_features=features,
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count(),
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        governor=_read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        power_mode=power_mode(),
        memory_bytes=psutil.virtual_memory().total,
        load_average=[round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    )


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _cpu() -> tuple[str, list[str]]:
    """Model name and the features that matter, from /proc/cpuinfo (its ARM form too)."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            label, _, value = line.partition(":")
            fields.setdefault(label.strip().lower(), value.strip())
    model = fields.get("model name") or fields.get("model") or platform.processor() or "unknown"
    present = set(fields.get("flags", fields.get("features", "")).split())
    return model, [feature for feature in _FEATURES if feature in present]


def _git_commit() -> str | None:
    """The commit of the checkout this runs from, with `+changes` where files differ; None if installed."""
    folder = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+changes", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip() or None
    except OSError:
        return None
