"""What to say of a checkpoint that no family loads: its task, as optimum knows it, tells the user what went wrong."""

from __future__ import annotations

import difflib
from typing import Any

from edgevlm.errors import CheckpointError

WANTED_TASK = "image-text-to-text"
#: Model types that a known family resembles, and what of theirs it does not compute.
_SUCCESSORS = {
    "qwen2_5_vl": "its vision tower attends within windows",
    "qwen3_vl": "its vision features enter several decoder layers (DeepStack), and its rotary sections interleave",
    "qwen3_vl_moe": "its decoder is a mixture of experts, and its vision features enter several layers (DeepStack)",
}


def infer_task(architecture: str) -> str | None:
    """The task of a transformers class (`text-generation`, `image-text-to-text`, ...), or None if it has none."""
    import transformers
    from optimum.exporters.tasks import TasksManager

    model_class = getattr(transformers, architecture, None)
    if not isinstance(model_class, type) or not issubclass(model_class, transformers.PreTrainedModel):
        return None
    try:
        task: str = TasksManager.infer_task_from_model(model_class)
    except ValueError:
        return None
    return task


def unknown_model(config: dict[str, Any], where: str, known: list[str]) -> CheckpointError:
    """The error for a `config.json` whose model type no family loads."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in _SUCCESSORS:
        what = f"model_type {model_type!r} is not supported: {_SUCCESSORS[model_type]}"
        return CheckpointError(what, where, "`edgevlm models` lists what is known, among them qwen2_vl")
    architectures = config.get("architectures")
    named = isinstance(architectures, list) and architectures and isinstance(architectures[0], str)
    task = infer_task(architectures[0]) if isinstance(architectures, list) and named else None
    what = f"unknown model_type {config.get('model_type')!r:.60}"
    if task is not None and task != WANTED_TASK:
        what += f": this is a {task} model, not an {WANTED_TASK} one"
    nearest = difflib.get_close_matches(str(config.get("model_type")), known, n=1)
    if nearest:
        return CheckpointError(what, where, f"did you mean {nearest[0]}? `edgevlm models` lists what is known")
    return CheckpointError(what, where, f"known types: {', '.join(known)}")
