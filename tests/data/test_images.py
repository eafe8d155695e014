"""Colour modes by golden pixels, orientation, damage, and how a picture becomes a square."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdtune.data import images
from sdtune.errors import DataError
from tests import tiny


def encoded(im: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    im.save(file, kind, **options)
    return file.getvalue()


def flat(mode: str, value: Any, size: tuple[int, int] = (4, 3)) -> Image.Image:
    return Image.new(mode, size, value)


def array(values: Any, dtype: Any) -> Image.Image:
    return Image.fromarray(np.full((3, 4), values, dtype))


def cmyk_profile() -> bytes:
    """A CMYK profile in which all inks but four full ones are mid grey: nothing but the profile can give that colour."""
    grey, black = bytes([136, 128, 128]), bytes([0, 128, 128])  # CIE L*, a*, b*
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])  # 4 inks in, Lab out, 2 grid points
    table += struct.pack(">9i", *[65536 if i % 4 == 0 else 0 for i in range(9)])
    table += bytes(range(256)) * 4 + grey * 15 + black + bytes(range(256)) * 3
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"desc": text + bytes(-len(text) % 4), b"wtpt": white, b"A2B0": table + bytes(-len(table) % 4)}
    directory, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        directory += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    size = offset + len(body)
    header = struct.pack(">I", size) + bytes(4) + bytes([2, 0x40, 0, 0]) + b"prtrCMYKLab " + bytes(12) + b"acsp"
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return header + directory + body


GREY = (128, 128, 128)
GOLDEN = {
    "rgb": (encoded(flat("RGB", (10, 200, 30)), "PNG"), (10, 200, 30)),
    "grey": (encoded(flat("L", 77), "PNG"), (77, 77, 77)),
    "1-bit": (encoded(flat("1", 1), "PNG"), (255, 255, 255)),
    "1-bit black": (encoded(flat("1", 0), "TIFF"), (0, 0, 0)),
    "palette": (encoded(flat("RGB", (250, 3, 9)).quantize(4), "PNG"), (250, 3, 9)),
    "palette, one colour clear": (encoded(flat("P", 0), "PNG", transparency=0), (0, 0, 255)),
    "grey, half clear": (encoded(flat("LA", (0, 128)), "PNG"), (0, 0, 127)),
    "red, half clear": (encoded(flat("RGBA", (255, 0, 0, 128)), "PNG"), (128, 0, 127)),
    "clear": (encoded(flat("RGBA", (255, 0, 0, 0)), "WEBP", lossless=True, exact=True), (0, 0, 255)),
    "rgb, one colour clear": (encoded(flat("RGB", (1, 2, 3)), "PNG", transparency=(1, 2, 3)), (0, 0, 255)),
    "16 bit": (encoded(array(0x8080, np.uint16), "PNG"), GREY),
    "16 bit, low byte": (encoded(array(0x80FF, np.uint16), "PNG"), GREY),
    "16 bit tiff": (encoded(array(65535, np.uint16), "TIFF"), (255, 255, 255)),
    "16 bit, clear": (encoded(array(7, np.uint16), "PNG", transparency=7), (0, 0, 255)),
    "32 bit": (encoded(array(0x8080, np.int32), "TIFF"), GREY),
    "float": (encoded(array(0.5, np.float32), "TIFF"), GREY),
    "cmyk tiff": (encoded(flat("CMYK", (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "cmyk jpeg": (encoded(flat("CMYK", (0, 0, 0, 255), (16, 16)), "JPEG", quality=100), (0, 0, 0)),
    "cmyk jpeg by its profile": (
        encoded(flat("CMYK", (0, 255, 255, 0), (16, 16)), "JPEG", icc_profile=cmyk_profile()),
        (127, 127, 127),  # CIE L* = 53.3
    ),
    "gif": (encoded(flat("L", 3), "GIF"), (3, 3, 3)),
    "bmp": (encoded(flat("RGB", (9, 8, 7)), "BMP"), (9, 8, 7)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_every_mode_has_its_colours(name: str) -> None:
    data, expected = GOLDEN[name]
    im = images.decode(data, background="blue")
    assert im.mode == "RGB"
    assert im.getpixel((1, 1)) == pytest.approx(expected, abs=1 if "profile" in name else 0)
    assert np.ptp(np.asarray(im), (0, 1)).max() == 0
    assert images.check(data).size == im.size


def test_a_profile_is_converted_to_srgb() -> None:
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # the same curves with red and green primaries exchanged: (255, 0, 0) means green
    swapped = srgb.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    im = images.decode(encoded(flat("RGB", (255, 0, 0)), "PNG", icc_profile=swapped))
    assert im.getpixel((0, 0)) == pytest.approx((0, 255, 0), abs=2)
    for useless in (wide.tobytes(), b"no profile"):
        data = encoded(flat("RGB", (255, 0, 0)), "PNG", icc_profile=useless)
        assert images.decode(data).getpixel((0, 0)) == (255, 0, 0)
        assert "colour profile" in images.check(data).remarks[0].text


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_give_the_same_picture(orientation: int, kind: str) -> None:
    upright = np.asarray(tiny.picture(3, (48, 32)))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **lossless.get(kind, {}))
    im = images.decode(data)
    assert im.size == images.check(data).size == (48, 32)
    assert np.abs(np.asarray(im).astype(int) - upright).max() <= (6 if kind == "JPEG" else 0)


def test_unreadable_exif_does_not_matter() -> None:
    data = encoded(flat("RGB", (1, 2, 3)), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    assert images.decode(data).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames(kind: str) -> None:
    frames = [flat("RGB", c) for c in ("red", "lime", "blue")]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert images.decode(data).getpixel((0, 0)) == (255, 0, 0)
    assert ("animated", "animated or with several pages: its first frame is used") in images.check(data).remarks


def test_remarks_only_where_there_is_something_to_say() -> None:
    assert images.check(encoded(flat("RGBA", (1, 2, 3, 255)), "PNG")).remarks == ()
    assert "drawn on red" in images.check(encoded(flat("RGBA", (1, 2, 3, 9)), "PNG"), background="red").remarks[0].text


JPEG = encoded(tiny.picture(1, (256, 256)), "JPEG")
PNG = encoded(tiny.picture(1, (256, 256)), "PNG")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "the file is empty"),
        (b"just some words", "text, not a picture"),
        (b"\n<!DOCTYPE html><html>404", "a web page, not a picture"),
        (b"\0\1\2\3" * 9, "not a picture in a known format (JPEG, PNG, WEBP, GIF, TIFF, BMP)"),
        (JPEG[: len(JPEG) // 2], "damaged or cut off"),
        (JPEG[:-200], "damaged or cut off"),
        (PNG[: len(PNG) // 2], "damaged or cut off"),
        (PNG[:700] + b"\xff" * 8 + PNG[708:], "damaged or cut off"),
        (encoded(tiny.picture(1, (64, 64)), "WEBP")[:-50], "damaged or cut off"),
        (encoded(tiny.picture(1, (64, 64)), "BMP")[:-50], "damaged or cut off"),
        (encoded(tiny.picture(1, (64, 64)), "TIFF")[:-50], "damaged or cut off"),
        (encoded(flat("RGB", 0), "PPM"), "not a picture in a known format"),
        (encoded(flat("RGB", 0), "ICO"), "not a picture in a known format"),
        (encoded(array(np.nan, np.float32), "TIFF"), "grey values from nan to nan, read as 0 to 1"),
        (encoded(array(300.0, np.float32), "TIFF"), "grey values from 300 to 300, read as 0 to 1"),
        (encoded(array(-1, np.int32), "TIFF"), "grey values from -1 to -1, read as 0 to 65535"),
    ],
)
def test_what_is_wrong_with_a_file(data: bytes, message: str) -> None:
    for function in (images.check, images.decode):
        with pytest.raises(DataError, match=re.escape(message)):
            function(data)


def bomb(width: int, height: int) -> bytes:
    """A 1-bit PNG of any size, a few bytes long: its pixels are not even there."""
    chunks = b"\x89PNG\r\n\x1a\n"
    for name, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return chunks


@pytest.mark.parametrize("size", [(1001, 1000), (9500, 9500), (20000, 20000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", forbidden)
    with pytest.raises(DataError, match="pixels"):
        images.check(bomb(*size), max_pixels=1_000_000)


def test_load_image_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png: the file is empty"):
        images.load_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"b\.png: no such file"):
        images.load_image(tmp_path / "b.png")
    flat("RGB", (1, 2, 3)).save(tmp_path / "c.png")
    assert images.load_image(tmp_path / "c.png").getpixel((0, 0)) == (1, 2, 3)


def test_background_must_be_a_colour() -> None:
    assert images.colour("#0a0b0c") == (10, 11, 12)
    with pytest.raises(DataError, match=r"data\.background: 'whit' is no colour"):
        images.colour("whit")


# ---- squares


def test_center_crop_takes_the_middle() -> None:
    assert images.crop_boxes((100, 60), "center", 4, "x") == [(20, 0, 80, 60)]
    assert images.crop_boxes((60, 101), "center", 4, "x") == [(0, 20, 60, 80)]
    stripes = Image.fromarray(np.repeat(np.arange(9, dtype=np.uint8)[None, :, None] * 20, 3, 2).repeat(3, 0))
    square = images.to_frame(stripes, (3, 3), box=(3, 0, 6, 3))
    assert square[:, :, 0].tolist() == [[60, 80, 100]] * 3


def test_random_crops_are_spread_fixed_and_inside() -> None:
    boxes = images.crop_boxes((1060, 60), "random", 4, "some hash")
    assert boxes == images.crop_boxes((1060, 60), "random", 4, "some hash")
    assert boxes != images.crop_boxes((1060, 60), "random", 4, "other hash")
    assert [left // 251 for left, *_ in boxes] == [0, 1, 2, 3]  # 1001 places in four stretches
    assert all(b - t == r - left == 60 and r <= 1060 for left, t, r, b in boxes)
    edges = {images.crop_boxes((61, 60), "random", 1, str(i))[0][0] for i in range(40)}
    assert edges == {0, 1}


def test_squash_changes_proportions_and_pad_adds_background() -> None:
    box = (0, 0, 40, 20)
    white = flat("RGB", "white", (40, 20))
    assert images.crop_boxes((40, 20), "squash", 4, "x") == images.crop_boxes((40, 20), "pad", 4, "x") == [box]
    assert images.to_frame(white, (8, 8), box=box).min() == 255
    padded = images.to_frame(white, (8, 8), box=box, pad=True, background="#010203")
    assert padded.shape == (8, 8, 3)
    assert padded[:, 0].tolist() == [[1, 2, 3]] * 2 + [[255] * 3] * 4 + [[1, 2, 3]] * 2


def test_a_large_picture_is_averaged_not_picked_from() -> None:
    checks = np.indices((512, 512)).sum(0) % 2 * 255
    square = images.to_frame(Image.fromarray(checks.astype(np.uint8)).convert("RGB"), (16, 16), box=(0, 0, 512, 512))
    assert square.min() >= 126
    assert square.max() <= 129


def test_pixels_are_between_minus_one_and_one() -> None:
    squares = [np.full((2, 2, 3), v, np.uint8) for v in (0, 255)]
    squares[0][0, 1] = (51, 102, 204)
    pixels_BCHW = images.pixels_from(squares)
    assert pixels_BCHW.shape == (2, 3, 2, 2)
    assert pixels_BCHW[1].min() == 1
    assert pixels_BCHW[0, :, 0, 1].tolist() == pytest.approx([-0.6, -0.2, 0.6])
    assert pixels_BCHW[0, :, 1, 1].tolist() == [-1, -1, -1]
