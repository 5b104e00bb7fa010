"""What was found out about this machine's engines, remembered between runs in the user's cache folder (XDG).

In: a key that names hardware, artefact and engine versions, and a short answer. Out: the answer, or None. A cache that
is missing, damaged or not writable is no error: it is measured again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json

from edgevlm.atomic import write_text
from edgevlm.errors import InputError
from edgevlm.longrun import cache_folder
from edgevlm.targets.isa import hardware


def key(*parts: str) -> str:
    """One key for this hardware and `parts`."""
    return hashlib.sha256("\n".join((hardware(), *parts)).encode()).hexdigest()


def recall(name: str) -> str | None:
    """What was remembered under `name`."""
    return _read().get(name)


def remember(name: str, value: str) -> None:
    """Keep `value` under `name`; the newest 256 stay."""
    entries = {**_read(), name: value}
    newest = dict(list(entries.items())[-256:])
    with contextlib.suppress(InputError, RuntimeError):
        write_text(cache_folder() / "engines.json", json.dumps(newest, indent=1) + "\n")


def _read() -> dict[str, str]:
    try:
        loaded = json.loads((cache_folder() / "engines.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    if not isinstance(loaded, dict):
        return {}
    return {name: value for name, value in loaded.items() if isinstance(value, str)}
