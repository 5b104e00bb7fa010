"""The targets by name: the profiles of this package, and files that a user wrote.

In: what `--target` was given. Out: a `TargetProfile`, or an error with the nearest names.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from edgevlm.errors import InputError
from edgevlm.targets.profile import TargetProfile, read_profile

_FOLDER = Path(__file__).parent / "profiles"
_ENDINGS = (".yaml", ".yml")


def target_names() -> list[str]:
    """Names of the profiles of this package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_target(name: str) -> TargetProfile:
    """The profile of a name, or of a file that ends in .yaml.

    Raises:
        InputError: there is no such target, or its file is wrong.
    """
    if name.endswith(_ENDINGS):
        return read_profile(Path(name))
    if name in target_names():
        return read_profile(_FOLDER / f"{name}.yaml")
    raise InputError(f"there is no target {name[:60]!r}", "--target", _suggestion(name))


def _suggestion(name: str) -> str:
    known = target_names()
    wanted = name.lower().replace("_", "-").replace(" ", "-")
    nearest = [other for other in known if wanted and (wanted in other or other in wanted)]
    nearest += [other for other in difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) if other not in nearest]
    if not nearest:
        return "`edgevlm targets list` shows them; a path must end in .yaml"
    return f"did you mean {', '.join(nearest[:3])}? `edgevlm targets list` shows all"
