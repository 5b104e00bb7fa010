"""What happens to an image and a conversation before the model sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgevlm.spec.tiles import ImageLayout, StackedTiles, TileSpec


@dataclass(frozen=True)
class PatchesSpec:
    """An image at about its own size, cut into patches that the encoder takes in any number (Qwen2-VL).

    Attributes:
        patch_size: pixels along one side of a patch.
        merge_size: both sides of the image are multiples of so many patches.
        frames: a patch holds so many frames; an image is one, repeated.
        min_pixels, max_pixels: the image is scaled into these bounds.
    """

    patch_size: int
    merge_size: int
    frames: int
    min_pixels: int
    max_pixels: int


@dataclass(frozen=True)
class PreprocessSpec:
    """From a decoded RGB image to pixels: made square, scaled by 1/255, normalised.

    Attributes:
        fit: `pad` to a square and resize, resize and `crop` the centre, or `stretch` without regard to the shape.
        tiles: how the image is cut into several squares of `image_size`; None is one square.
        patches: the image keeps its shape and is cut into patches, instead of being made square.
    """

    image_size: int
    fit: Literal["pad", "crop", "stretch"] = "pad"
    pad_colour: tuple[int, int, int] = (0, 0, 0)
    resample: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    tiles: TileSpec | StackedTiles | None = None
    patches: PatchesSpec | None = None


@dataclass(frozen=True)
class PromptSpec:
    """How a conversation becomes token ids.

    `chat_template` is Jinja over `messages` (role, content as text that may hold `image_marker`) and
    `add_generation_prompt`. The rendered text is cut at each `image_marker`, every piece tokenised on its own without
    special tokens added, and image embeddings go where the marker stood. `image_token_id` stands for one image
    embedding in formats that want ids throughout; it may lie outside the vocabulary.

    Before a message's text stands `image_text` (which holds the marker) once for each of its images, then
    `after_images`. A conversation may hold `max_images` images; 0 is any number. `image_layout` says what takes the
    marker's place; None is the embeddings of all tiles, one after the other. An answer ends before the first of
    `stop_strings`, or at one of `stop_token_ids`.
    """

    chat_template: str
    image_marker: str = "<image>"
    image_token_id: int = 0
    bos_token_id: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    default_system: str = ""
    image_text: str = "<image>\n"
    after_images: str = ""
    max_images: int = 0
    image_layout: ImageLayout | None = None
    stop_strings: tuple[str, ...] = ()
