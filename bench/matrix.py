"""The cells of a matrix: each bundle with every number of threads and every resolution that was asked for.

A bundle's vision graph takes one resolution, but for models whose images keep their shape; a cell that it cannot do is
skipped with the reason, and the others go on.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.bench.report import Settings
from edgevlm.bundle import Bundle
from edgevlm.errors import InputError
from edgevlm.patches import scaled_size


@dataclass(frozen=True)
class Cell:
    """One bundle in one way.

    Attributes:
        suffix: of the row's name; empty where there is only one way.
        settings: with this cell's threads and image size.
        resolution: that was asked for; None takes the bundle as it is.
        skip: why it cannot be measured; empty if it can.
    """

    suffix: str
    settings: Settings
    resolution: int | None = None
    skip: str = ""


def cells(bundle: Bundle, settings: Settings) -> list[Cell]:
    """The cells of one bundle, threads within resolutions."""
    found = []
    resolutions: list[int | None] = [*settings.resolutions] or [None]
    for resolution in resolutions:
        for threads in settings.thread_counts or [settings.threads]:
            changes: dict[str, object] = {"threads": threads, "thread_counts": [], "resolutions": []}
            if resolution is not None and bundle.spec.preprocess.patches is not None:
                changes |= {"image_width": resolution, "image_height": resolution}
            named = [f"{threads} thread{'s' * (threads != 1)}"] if settings.thread_counts else []
            named += [f"{resolution} px"] if resolution is not None else []
            skip = "" if resolution is None else _why_not(bundle, resolution)
            suffix = f" ({', '.join(named)})" if named else ""
            found.append(Cell(suffix, settings.model_copy(update=changes), resolution, skip))
    return found


def _why_not(bundle: Bundle, resolution: int) -> str:
    """Why the bundle cannot take images of so many pixels a side; empty if it can."""
    patches, own = bundle.spec.preprocess.patches, bundle.spec.vision.image_size
    if patches is None:
        return "" if resolution == own else f"its vision graph takes {own} px a side; export it with that resolution"
    try:
        if scaled_size(resolution, resolution, patches) == (resolution, resolution):
            return ""
    except InputError as error:
        return error.what
    unit = patches.patch_size * patches.merge_size
    return f"its images have multiples of {unit} px a side, {patches.min_pixels} to {patches.max_pixels} px in all"
