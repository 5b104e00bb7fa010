"""Images from strangers: every readable kind becomes RGB, every other one a single clear error."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.imageio import load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def test_every_kind_of_input_gives_the_same_pixels(tmp_path: Path) -> None:
    png = encoded(Image.fromarray(PIXELS))
    file = tmp_path / "a.png"
    file.write_bytes(png)
    for source in (file, str(file), png, Image.fromarray(PIXELS), PIXELS, PIXELS[:, ::-1][:, ::-1]):
        image = load_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_the_five_formats_are_read(kind: str) -> None:
    assert load_image(encoded(Image.fromarray(PIXELS), kind)).size == (7, 5)


def test_a_format_outside_the_list_is_refused() -> None:
    with pytest.raises(InputError, match="not an image"):
        load_image(encoded(Image.fromarray(PIXELS), "TIFF"))


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(gif).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int) -> None:
    rotate: dict[int, list[Any]] = {
        1: [],
        2: ["m"],
        3: [180],
        4: ["m", 180],
        5: ["m", 90],
        6: [270],
        7: ["m", 270],
        8: [90],
    }
    expected = Image.fromarray(PIXELS)
    for step in rotate[orientation]:
        mirrored = Image.Transpose.FLIP_LEFT_RIGHT
        expected = expected.transpose(mirrored) if step == "m" else expected.rotate(step, expand=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(encoded(Image.fromarray(PIXELS), exif=exif))
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(expected))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_not_cost_the_photo() -> None:
    jpeg = encoded(Image.fromarray(PIXELS), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 20)
    assert load_image(jpeg).size == (7, 5)


def test_transparency_shows_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (10, 20, 30, 255))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 0
    for image in (rgba, palette, rgba.convert("LA")):
        assert load_image(image).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(rgba).getpixel((1, 0)) == (10, 20, 30)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGBA", "HSV"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert load_image(Image.fromarray(PIXELS).convert(mode)).mode == "RGB"


def test_sixteen_bit_greyscale_keeps_its_top_bits() -> None:
    png = encoded(Image.fromarray(np.array([[0, 256, 65_535]], np.uint16)))
    assert [load_image(png).getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (1, 1, 1), (255, 255, 255)]


JPEG = encoded(Image.fromarray(np.zeros((64, 64, 3), np.uint8)), "JPEG")
HOSTILE: list[tuple[Any, str]] = [
    (b"", "empty"),
    (b"not an image at all", "not an image"),
    (JPEG[:-40], "cannot be decoded"),
    (JPEG[:20], "not an image"),
    (png_header(60_000, 60_000), "too large"),
    (png_header(10_000, 10_000), "too large"),
    (png_header(70_000, 1), "too large"),
    (png_header(8, 8), "cannot be decoded"),
    (np.zeros((4, 4), np.uint8), "array"),
    (np.zeros((4, 4, 3), np.float32), "array"),
    (np.zeros((0, 4, 3), np.uint8), "array"),
    (3, "cannot be a int"),
]


@pytest.mark.parametrize(("source", "message"), HOSTILE, ids=[str(index) for index in range(len(HOSTILE))])
def test_hostile_input_is_refused_in_three_lines(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_image(source)
    assert caught.value.where
    assert caught.value.hint
    assert "\n" not in caught.value.what + caught.value.where + caught.value.hint


def test_a_bomb_is_refused_from_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("the image was decoded"))
    file = tmp_path / "bomb.png"
    file.write_bytes(png_header(60_000, 60_000))
    with pytest.raises(InputError, match="too large") as caught:
        load_image(file)
    assert caught.value.where == str(file)


def test_a_path_that_is_no_image_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.png", Path("/dev/zero"), "\0"):
        with pytest.raises(InputError):
            load_image(path)
