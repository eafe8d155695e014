"""Sizes from headers: those that Pillow gives, upright, for all that is made here."""

from __future__ import annotations

import io
import itertools
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from sdtune.data import headers, images
from sdtune.data.headers import Header, header
from tests import tiny

SIZE = (34, 21)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = SIZE, **options: Any) -> bytes:
    stream = io.BytesIO()
    tiny.picture(1, size).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int, *, big: int = 0) -> bytes:
    said = Image.Exif()
    said[0x0112] = orientation
    said[0x010E] = "d" * big  # a description, which lies behind the table
    return said.tobytes()


def text(**said: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for key, value in said.items():
        info.add_itxt(key.replace("_", "."), value)
    return info


def made() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of pictures of every kind."""
    for kind, mode in itertools.product(("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"), ("L", "RGB", "1", "P", "RGBA")):
        if not (kind == "JPEG" and mode in ("P", "RGBA")):
            yield f"{kind} {mode}", encoded(kind, mode)
    for n in range(1, 9):
        yield f"jpeg {n}", encoded("JPEG", exif=exif(n))
        yield f"progressive {n}", encoded("JPEG", exif=exif(n, big=30_000), progressive=True)
        yield f"png {n}", encoded("PNG", exif=exif(n))
        yield f"webp {n}", encoded("WEBP", exif=exif(n))
        yield f"webp lossless {n}", encoded("WEBP", exif=exif(n), lossless=True)
        yield f"tiff {n}", encoded("TIFF", exif=exif(n))
    yield "jpeg cmyk", encoded("JPEG", "CMYK")
    yield "jpeg behind a profile", encoded("JPEG", icc_profile=b"p" * 200_000, exif=exif(6))
    yield "jpeg behind comments", encoded("JPEG", comment=b"c" * 60_000, exif=exif(5))
    yield "jpeg by its xmp", encoded("JPEG", xmp=XMP)
    yield "jpeg of two minds", encoded("JPEG", xmp=XMP, exif=exif(1))
    yield "jpeg, filled", (j := encoded("JPEG"))[:2] + b"\xff\xff\xff" + j[2:]
    yield "jpeg, exif nonsense", encoded("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    yield "png behind a profile", encoded("PNG", icc_profile=random.Random(0).randbytes(20_000), exif=exif(6))
    yield "png by its xmp", encoded("PNG", pnginfo=text(XML_com_adobe_xmp=XMP.decode()))
    yield (
        "png, exif at its end",
        (p := encoded("PNG"))[:-12]
        + (q := encoded("PNG", exif=exif(8)))[33:-12][: int.from_bytes(q[33:37], "big") + 12]
        + p[-12:],
    )
    yield "png, large", encoded("PNG", size=(300, 200))
    yield "apng", encoded("PNG", save_all=True, append_images=[tiny.picture(2, SIZE)])
    yield "webp by its xmp", encoded("WEBP", xmp=XMP)
    yield "webp, profile", encoded("WEBP", icc_profile=b"p" * 9001, exif=exif(7))
    yield "webp, moving", encoded("WEBP", save_all=True, append_images=[tiny.picture(2, SIZE)], exif=exif(6))
    yield "webp, clear", encoded("WEBP", "RGBA", lossless=True, exact=True)
    yield "gif, moving", encoded("GIF", save_all=True, append_images=[tiny.picture(2, SIZE)], comment=b"c" * 700)
    small = bytearray(encoded("GIF"))
    small[6:10] = bytes((9, 0, 9, 0))
    yield "gif, larger than its screen", bytes(small)
    upside = bytearray(encoded("BMP"))
    upside[22:26] = (-SIZE[1]).to_bytes(4, "little", signed=True)
    yield "bmp, top down", bytes(upside)
    yield "mpo", encoded("MPO", save_all=True, append_images=[tiny.picture(2, SIZE)], exif=exif(6))


FILES = dict(made())


@pytest.mark.parametrize("name", FILES)
def test_sizes_are_those_of_pillow(name: str, tmp_path: Path) -> None:
    path = tmp_path / "any"
    path.write_bytes(FILES[name])
    checked = images.check(FILES[name], max_pixels=10**6)
    assert header(path) == Header(checked.format, checked.size)


@pytest.mark.parametrize(
    "name", [n for n in FILES if not n.lower().startswith(("tiff", "png by", "png, exif", "jpeg, exif"))]
)
def test_pillow_is_not_asked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "any").write_bytes(FILES[name])
    monkeypatch.delattr(headers, "_by_pillow")
    assert header(tmp_path / "any")


NOTHING = [
    b"", b"some words", b"<html>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF1234WEBPVP8X", b"GIF89a", b"BM",
    b"II*\0 and no more", encoded("PPM"), encoded("ICO"),
]  # fmt: skip


@pytest.mark.parametrize("data", NOTHING)
def test_what_is_no_picture(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "any").write_bytes(data)
    assert header(tmp_path / "any") is None


def test_whatever_is_cut_off_or_changed_raises_nothing(tmp_path: Path) -> None:
    rng, path = random.Random(0), tmp_path / "any"
    for name, data in FILES.items():
        if name.endswith((" L", " 3", "profile", "xmp")):
            for _ in range(8):
                harmed = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.5 else data)
                for _ in range(rng.randrange(4)):
                    harmed[rng.randrange(min(64, len(harmed) or 1))] = rng.randrange(256) if harmed else 0
                path.write_bytes(harmed)
                assert header(path) is None or header(path)


def test_inside_a_tar(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(FILES["jpeg 6"])
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        tar.add(tmp_path / "a.jpg", "a.jpg")
    assert header(tmp_path / "00000.tar" / "a.jpg") == Header("JPEG", SIZE[::-1])


def test_a_large_picture_is_not_decoded_for_its_size(tmp_path: Path) -> None:
    Image.new("1", (14000, 14000)).save(tmp_path / "a.png")
    assert header(tmp_path / "a.png") == Header("PNG", (14000, 14000))
