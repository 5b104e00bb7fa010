"""Models and data that come with EdgeVLM: the accuracy set `scenes`, small trained checkpoints, synthetic ones."""

from pathlib import Path

from edgevlm.errors import InputError

_MODELS = Path(__file__).parent / "models"
_PREFIX = "zoo:"
# What tells a checkpoint's folder: a configuration, or the list of the sources that make one.
_CHECKPOINTS = ("config.json", "edgevlm-sources.yaml")


def models() -> list[str]:
    """Names of the checkpoints that ship with EdgeVLM, for use as `zoo:NAME`."""
    return sorted(path.parent.name for file in _CHECKPOINTS for path in _MODELS.glob(f"*/{file}"))


def resolve(name: str) -> Path:
    """The folder of `zoo:NAME`.

    Raises:
        InputError: no such model ships.
    """
    wanted = name.removeprefix(_PREFIX)
    if wanted not in models():
        raise InputError(
            f"there is no zoo model {wanted!r:.60}", name, f"use one of {', '.join(_PREFIX + m for m in models())}"
        )
    return _MODELS / wanted
