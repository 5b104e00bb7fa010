"""Images from strangers become RGB Pillow images here, or one clear error.

In: a path, encoded bytes, a Pillow image, or a uint8 array `[H, W, 3]`. Out: an upright `RGB` image, decoded. The
header alone decides whether an image is too large, so a decompression bomb costs nothing; only five raster formats are
opened, the first frame of each. Transparent pixels are composited on white, as a viewer shows them (dropping the alpha
channel would turn dark text on a transparent ground into black on black); 16-bit greyscale keeps its top eight bits.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgevlm.errors import InputError

ImageInput: TypeAlias = "str | Path | bytes | Image.Image | NDArray[np.uint8]"

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
#: Pillow's own threshold for a suspicious image, about 89 megapixels.
MAX_PIXELS = 89_478_485
#: A longer strip, padded to a square, would take minutes to resize.
MAX_SIDE = 16_384
BACKGROUND = (255, 255, 255)

_HINT = f"give a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image of at most {MAX_PIXELS // 1_000_000} megapixels"
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def load_image(source: ImageInput) -> Image.Image:
    """Decode `source` to an upright RGB image.

    Raises:
        InputError: there is no such file; it is empty, truncated, too large or no image; or an array of another shape.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "image")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes):
        return _decode(_open(io.BytesIO(source), len(source), "image bytes"), "image bytes")
    if isinstance(source, str | Path):
        path = Path(source)
        try:
            if path.is_dir() or (path.exists() and not path.is_file()):
                raise InputError("the image is not a plain file", str(path), _HINT)
            with path.open("rb") as file:
                return _decode(_open(file, path.stat().st_size, str(path)), str(path))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"the image cannot be read: {reason}", str(path), _HINT) from error
    raise InputError(
        f"an image cannot be a {type(source).__name__}",
        "image",
        "give a path, bytes, a Pillow image, or a uint8 array [H, W, 3]",
    )


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        shape = "x".join(str(size) for size in array.shape)
        raise InputError(f"the image array is {array.dtype} [{shape}]", "image", "give a uint8 array [H, W, 3] in RGB")
    _check_size(array.shape[1], array.shape[0], "image")
    return Image.fromarray(np.ascontiguousarray(array))


def _check_size(width: int, height: int, where: str) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(f"the image is too large: {width} x {height} pixels", where, _HINT)


def _open(file: io.BufferedReader | io.BytesIO, size: int, where: str) -> Image.Image:
    """Read the header only."""
    if size == 0:
        raise InputError("the image is empty (0 bytes)", where, _HINT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError("the image is too large: its header announces too many pixels", where, _HINT) from error
    # Pillow's readers raise whatever a damaged header makes them trip over.
    except Exception as error:
        raise InputError("this is not an image, or of a format that is not read", where, _HINT) from error


def _decode(image: Image.Image, where: str) -> Image.Image:
    """Decode the first frame, upright, as RGB."""
    _check_size(*image.size, where)
    try:
        image.load()
        return _to_rgb(_upright(image))
    # Damaged data makes Pillow raise OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error and
    # whatever the next version adds; there is no class above them, and to us they mean the same.
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"the image cannot be decoded: {reason}", where, "it is damaged or truncated") from error


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a viewer shows a photo whose EXIF block is damaged, and so do we."""
    try:
        return ImageOps.exif_transpose(image)
    # The EXIF reader trips over a damaged block in as many ways as the decoders do over damaged data.
    except Exception:
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT:
        samples = np.clip(np.asarray(image), 0, 65_535).astype(np.uint16)
        return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opaque = Image.new("RGB", image.size, BACKGROUND)
        opaque.paste(image, mask=image.getchannel("A"))
        return opaque
    return image.convert("RGB")
