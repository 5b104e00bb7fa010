"""From what the user calls a model to a folder on this disk: a folder, a `zoo:` name, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from edgevlm.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.md", "LICENSE*"]


def resolve(model: str) -> Path:
    """The folder that holds the checkpoint.

    Args:
        model: a folder, `zoo:NAME`, or a hub id `owner/name[@revision]` (downloaded: safetensors and JSON only).

    Raises:
        CheckpointError: no such folder or zoo model, or the download failed.
    """
    if model.startswith("zoo:"):
        from edgevlm.zoo import resolve as resolve_zoo

        return resolve_zoo(model)
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError("the model is a file, not a folder", model, "give the folder that holds config.json")
    if not _HUB_ID.fullmatch(model) or model.startswith((".", "/")):
        raise CheckpointError("there is no such model", model, "give a folder, a zoo: name, or a hub id owner/name")
    return _download(model)


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = model.partition("@")
    hint = "connect to the network, or download the folder elsewhere and give its path"
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_PATTERNS))
    except LocalEntryNotFoundError as error:
        raise CheckpointError("no such folder, and the model hub cannot be reached", model, hint) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"the model cannot be downloaded: {reason}", model, hint) from error
