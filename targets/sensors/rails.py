"""Which rails of a Jetson add up to the whole module.

Some boards measure their input, and the other rails are parts of it; others measure parts that have to be added. Rails
that no rule knows are not added up: a wrong total is worse than none.
"""

from __future__ import annotations

from collections.abc import Collection

#: Rails that measure the input of the module or board: Thor's carrier; Orin Nano, Orin NX, TX2; Nano and TX1.
_INPUTS = ("VIN", "VDD_IN", "POM_5V_IN")
#: Rails that add up to the module: AGX Orin; AGX Xavier.
_SUMS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)


def total_rails(rails: Collection[str]) -> tuple[str, ...]:
    """The rails whose sum is the module's power; empty where no rule knows these rails."""
    for name in _INPUTS:
        if name in rails:
            return (name,)
    for names in _SUMS:
        if all(name in rails for name in names):
            return names
    return ()


def covers(rails: Collection[str]) -> str:
    """What the total is the power of."""
    total = total_rails(rails)
    if total:
        return f"the whole module ({' + '.join(total)})"
    return "single rails; no rule says which of them add up to the module"
