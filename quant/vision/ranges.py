"""Ranges of activations: a histogram of magnitudes, and which of its percentiles becomes the largest number.

In: tensors, image after image; nothing of them is kept but counts. Out: the threshold that int8's 127 stands for.
onnxruntime's own calibrators give the same percentiles, but hold all watched tensors of an image at once (1.6 GB for
FastViTHD at 1024 pixels) and a graph with as many outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.quant.vision.plan import LARGEST

BINS = 4096
#: Shares of all magnitudes, in percent, that may be taken for the whole range.
PERCENTILES = (100.0, 99.999, 99.99, 99.9)
#: `torch.histc` counts in float32, which holds whole numbers up to 2^24.
_ELEMENTS_AT_ONCE = 1 << 22


class MagnitudeHistogram:
    """Counts of |x| in equal bins between 0 and the largest."""

    def __init__(self, largest: float) -> None:
        """`largest` is above 0, and the largest magnitude there will be."""
        self.largest = largest
        self.counts = torch.zeros(BINS, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Count the magnitudes of a tensor of any shape."""
        for part in torch.split(values.reshape(-1), _ELEMENTS_AT_ONCE):
            self.counts += torch.histc(part.abs(), BINS, 0, self.largest).long()

    def percentile(self, percent: float) -> float:
        """The upper edge of the first bin up to which `percent` of all magnitudes lie."""
        total = self.counts.cumsum(0)
        place = int(torch.searchsorted(total.double(), float(total[-1]) * percent / 100))
        return self.largest * (min(place, BINS - 1) + 1) / BINS

    def squared_error(self, threshold: float) -> float:
        """Expected squared error, summed, where `threshold` is the largest number that has a code.

        A magnitude m below the threshold t is rounded to a multiple of t / 127, with the variance (t / 127)^2 / 12 of a
        uniform error; beyond it the error is m - t. Bins count as if all their magnitudes were in the middle.
        """
        middles = (torch.arange(BINS, dtype=torch.float64) + 0.5) * (self.largest / BINS)
        errors = torch.where(middles <= threshold, (threshold / LARGEST) ** 2 / 12, (middles - threshold) ** 2)
        return float((errors * self.counts).sum())

    def threshold(self) -> float:
        """Of `PERCENTILES`, the one whose squared error is least."""
        return min((self.percentile(percent) for percent in PERCENTILES), key=self.squared_error)
