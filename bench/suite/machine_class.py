"""Which machines have figures that may be put beside each other: the same processor family, instructions and cores."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgevlm.targets.isa import cpu_features, cpu_model

#: What a processor's name holds beside its family: trade marks, filler words, and the clock.
_NOISE = re.compile(
    r"\((?:r|tm)\)|\b(?:cpu|processor|genuine)\b|@.*|\b[0-9.]+ ?[gm]hz\b|\b[0-9]+-core\b", re.IGNORECASE
)


class MachineClass(BaseModel):
    """A class of machines.

    Attributes:
        family: the processor's name without its clock, in small letters joined by `-`.
        features: instruction sets that decide kernels, as `edgevlm.targets.isa` names them.
        cores: that a process may run on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    features: tuple[str, ...]
    cores: int

    @property
    def name(self) -> str:
        """One word that is a file name: `intel-xeon-2c-avx2+f16c+avx512f+avx512_vnni`."""
        return "-".join([self.family, f"{self.cores}c", *(["+".join(self.features)] if self.features else [])])


def this_class(cpuinfo: Path = Path("/proc/cpuinfo")) -> MachineClass:
    """The class of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return MachineClass(family=family(cpu_model(cpuinfo)), features=tuple(cpu_features(cpuinfo)), cores=cores)


def family(model: str) -> str:
    """`Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz` as `intel-xeon-platinum-8488c`; `unknown` for no name."""
    words = re.findall(r"[a-z0-9]+", _NOISE.sub(" ", model).lower())
    return "-".join(words)[:80] or "unknown"
