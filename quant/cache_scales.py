"""How far the codes of a narrow key/value cache lie apart: a scale for each channel of each head of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CacheScales:
    """Of one layer, float32 `[KV heads, D]` each: what one step of an int8 code of a key (turned) or value is."""

    key: NDArray[np.float32]
    value: NDArray[np.float32]
