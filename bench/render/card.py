"""The card of a device: what was measured on, in the order in which a reader asks."""

from __future__ import annotations

from edgevlm.bench.report import Report


def card(report: Report) -> list[tuple[str, str]]:
    """Labels and what stands behind them; what the system does not tell is left out."""
    machine = report.environment
    cores = [f"{machine.physical_cores} physical"] if machine.physical_cores else []
    cores += [f"{machine.logical_cores} logical"] if machine.logical_cores else []
    if machine.usable_cores is not None and machine.usable_cores != machine.logical_cores:
        cores.append(f"{machine.usable_cores} usable")
    load = ", ".join(f"{value:g}" for value in machine.load_average) if machine.load_average else ""
    power = [each.name for each in report.sensors if each.state == "ok" and each.power]
    pairs = [
        ("CPU", machine.cpu_model),
        ("Cores", ", ".join(cores)),
        ("Instructions", " ".join(machine.cpu_features)),
        ("Memory", f"{machine.memory_bytes / 1e9:.1f} GB"),
        ("Power mode", machine.power_mode or ""),
        ("Governor", machine.governor or ""),
        ("Power sensor", ", ".join(power) or ("none that can be read" if report.sensors else "")),
        ("System", f"{machine.system}, {machine.machine}"),
        ("Load before", load),
        ("Engines", ", ".join(_engines(report))),
    ]
    return [(label, text) for label, text in pairs if text]


def _engines(report: Report) -> list[str]:
    """The engines of all rows, each once."""
    found = (engine for row in report.rows for engine in (row.vision_engine, row.decoder_engine) if engine is not None)
    return list(dict.fromkeys(engine.name for engine in found))
