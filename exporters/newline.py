"""The embedding that ends a row of image features, as a file of its own: the session adds it, no graph does.

In: a `VlmModel`. Out: `image_newline.npy`, a float32 vector `[H]` in NumPy's format, for models that have one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgevlm.errors import CheckpointError
from edgevlm.exporters.base import Artifact
from edgevlm.feature_rows import NEWLINE_ROLE
from edgevlm.models.vlm import VlmModel

_FILE = "image_newline.npy"


def write_newline(model: VlmModel, out: Path) -> list[Artifact]:
    """Write the file into `out`, or nothing for a model without a newline.

    Raises:
        CheckpointError: the newline is not finite.
    """
    if model.image_newline is None:
        return []
    values = model.image_newline.float().numpy()
    if not np.isfinite(values).all():
        raise CheckpointError("image_newline is not finite", model.spec.name, "download the checkpoint again")
    np.save(out / _FILE, values, allow_pickle=False)
    return [Artifact(_FILE, NEWLINE_ROLE, "npy", "fp32", bits_per_weight=32.0, parameters=values.size)]
