"""What a reader needs to repeat a report, as pairs of label and text."""

from __future__ import annotations

import shlex

from edgevlm.bench.report import Engine, Report, Row


def facts(report: Report) -> list[tuple[str, str]]:
    """Command, machine, software, settings, engines, hashes."""
    pairs = [("Command", shlex.join(report.settings.command_line)), *setting(report)]
    for row in report.rows:
        pairs += engines(row)
        pairs += [(f"{row.name}: {file.path}", f"sha256 {file.sha256}") for file in row.files if file.parameters]
        if row.accuracy is not None:
            pairs.append((f"{row.name}: predictions", f"sha256 {row.accuracy.predictions_sha256}"))
    return pairs


def setting(report: Report) -> list[tuple[str, str]]:
    """Machine, software and settings."""
    machine, asked = report.environment, report.settings
    cores = f"{machine.physical_cores or '?'} physical, {machine.logical_cores or '?'} logical"
    if machine.usable_cores is not None:
        cores += f", {machine.usable_cores} usable"
    load = ", ".join(f"{value:g}" for value in machine.load_average) if machine.load_average else "unknown"
    commit = f" (source {machine.git_commit})" if machine.git_commit else ""
    pairs = [
        ("Time", f"{machine.started} to {machine.finished}"),
        ("CPU", f"{machine.cpu_model}; {cores}"),
        ("CPU features", " ".join(machine.cpu_features) or "unknown"),
        ("Governor", machine.governor or "not exposed by this system"),
        ("Memory", f"{machine.memory_bytes / 1e9:.1f} GB"),
        ("Load average before", load),
        ("System", machine.system),
        ("EdgeVLM", f"{machine.edgevlm}{commit}, Python {machine.python}"),
        ("Libraries", ", ".join(f"{name} {version}" for name, version in machine.packages.items())),
        ("Threads", ", ".join(map(_threads, asked.thread_counts or [asked.threads]))),
        (
            "Latency plan",
            f"{asked.scenario}, "
            f"warm-up {asked.warmup}, at least {asked.iterations} answers and {asked.min_time_s:g} s, "
            f"cached {0 if asked.scenario == 'offline' else asked.cached}, {asked.max_tokens} tokens each, "
            f"JPEG images of {asked.image_width}x{asked.image_height}",
        ),
        ("Seed", str(asked.seed)),
    ]
    if asked.resolutions:
        pairs.append(("Resolutions", ", ".join(f"{side} px" for side in asked.resolutions)))
    if machine.power_mode is not None:
        pairs.append(("Power mode", machine.power_mode))
    if report.sensors:
        read = [f"{each.name}: {each.detail}" for each in report.sensors if each.state == "ok"]
        rest = [f"{each.name} {each.state}" for each in report.sensors if each.state != "ok"]
        pairs.append(("Sensors", "; ".join([*read, *rest])))
    if asked.task is not None:
        pairs.append(("Accuracy plan", _accuracy_plan(report)))
    return pairs


def _threads(count: int) -> str:
    return str(count) if count else "the engines' own choice"


def _accuracy_plan(report: Report) -> str:
    asked = report.settings
    done = next((row.accuracy for row in report.rows if row.accuracy is not None), None)
    if done is None:
        return f"{asked.task}, split {asked.split or 'as usual'}, {asked.items or 'all'} items, greedy decoding"
    parts = [f"{asked.task}, split {done.split or asked.split}, {done.n + done.skipped} items"]
    if done.total is not None:
        parts[0] += f" of {done.total}"
    if done.skipped:
        parts.append(f"{done.skipped} skipped")
    parts += [f"scorer {done.scorer}"] if done.scorer else []
    parts += [f"prompt {done.template!r}"] if done.template else []
    parts += [f"questions sha256 {done.data_sha256}"] if done.data_sha256 else []
    return ", ".join([*parts, "greedy decoding"])


def engines(row: Row) -> list[tuple[str, str]]:
    """The engines of one row, with their settings."""
    found = (("vision", row.vision_engine), ("decoder", row.decoder_engine))
    return [(f"{row.name}: {label} engine", _engine(engine)) for label, engine in found if engine is not None]


def _engine(engine: Engine) -> str:
    details = ", ".join(f"{key} {value}" for key, value in engine.details.items())
    return f"{engine.name} ({details})" if details else engine.name
