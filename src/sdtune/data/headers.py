"""Size and format of a picture file from its first bytes, many thousand a second: nothing is decoded. Imports no torch."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sdtune.data import archives
from sdtune.data.images import FORMATS, QUIET, kind_of, orientation_of

HEAD = 4096
"""Bytes that are read at once: the whole header of nearly every file."""
TAIL = 2**16
"""A PNG may say behind its pixels that it lies on its side: so many of its last bytes are looked through for that."""
MOST_PARTS = 200
"""Headers of more parts than that are left to Pillow."""

_ON_ITS_SIDE = (5, 6, 7, 8)
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_SAID_ELSEWHERE = (b"eXIf", b"tiff:Orientation", b"Raw profile type exif")

At = Callable[[int, int], bytes]
"""So many bytes of a file from an offset; fewer at its end."""


class Header(NamedTuple):
    format: str
    """One of `images.FORMATS`."""
    size: tuple[int, int]
    """Width and height in pixels, upright."""


LARGEST = 2**20
"""Bytes of one part that are read: what claims to be longer is left to Pillow."""


class _Unclear(Exception):
    """Left to Pillow."""


def header(path: Path) -> Header | None:
    """What a file, or one inside an archive, says it is; None if that is no picture. Raises OSError."""
    if archives.archive_of(path) is not None:
        data = archives.read_bytes(path)
        return _header(lambda offset, count: data[offset : offset + max(0, count)], data[:HEAD], len(data), path)
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        head = os.read(file, HEAD)

        def at(offset: int, count: int) -> bytes:
            if not 0 <= count <= LARGEST or offset < 0:
                raise _Unclear
            if offset + count <= len(head):
                return head[offset : offset + count]
            os.lseek(file, offset, os.SEEK_SET)
            return os.read(file, count)

        return _header(at, head, len(head) if len(head) < HEAD else os.fstat(file).st_size, path)
    finally:
        os.close(file)


def _header(at: At, head: bytes, length: int, path: Path) -> Header | None:
    if not (kind := kind_of(head)):
        return None
    try:
        width, height, orientation = _read(kind, at, head, length)
    except (_Unclear, struct.error, IndexError):
        return _by_pillow(path)
    if not (width and height):
        return _by_pillow(path)
    return Header(kind, (height, width) if orientation in _ON_ITS_SIDE else (width, height))


def _read(kind: str, at: At, head: bytes, length: int) -> tuple[int, int, int]:
    """Width, height and orientation as a format has them."""
    match kind:
        case "JPEG":
            return _jpeg(at)
        case "PNG":
            return _png(at, length)
        case "WEBP":
            return _webp(at, head)
        case "GIF":
            return _gif(head)
        case "BMP":
            return _bmp(head)
    raise _Unclear


def _by_pillow(path: Path) -> Header | None:
    try:
        source = path if archives.archive_of(path) is None else io.BytesIO(archives.read_bytes(path))
        with QUIET, Image.open(source, formats=FORMATS) as im:
            turned = im.format != "TIFF" and orientation_of(im) in _ON_ITS_SIDE  # a TIFF's size is upright already
            size = im.size[::-1] if turned else im.size
            return Header("JPEG" if im.format == "MPO" else str(im.format), (size[0], size[1]))
    except Exception:  # decoders raise nearly anything on damaged files
        return None


# ---- formats: width, height and EXIF orientation as stored


def _jpeg(at: At) -> tuple[int, int, int]:
    """Segments up to the first scan (ITU-T T.81, annex B)."""
    place, size, exif, xmp = 2, (0, 0), b"", b""
    for _ in range(MOST_PARTS):
        start = at(place, 20)
        if start[0] != 0xFF:
            raise _Unclear
        kind = start[1]
        if kind == 0xFF:  # fill byte
            place += 1
            continue
        if kind in (0x01, 0xD8) or 0xD0 <= kind <= 0xD7:  # alone, without a length
            place += 2
            continue
        if kind in (0xDA, 0xD9):
            break
        length = start[2] << 8 | start[3]
        if kind == 0xE1 and start[4:10] == b"Exif\0\0":
            exif += at(place + (10 if exif else 4), length - (8 if exif else 2))
        elif kind == 0xE1 and start[4:20] == b"http://ns.adobe.":
            xmp = at(place + 4, length - 2)
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            size = struct.unpack_from(">HH", start, 5)
        place += 2 + length
    else:
        raise _Unclear
    return size[1], size[0], _orientation(exif, xmp)


def _png(at: At, length: int) -> tuple[int, int, int]:
    """Chunks up to the pixels, and the file's end (PNG 3rd edition, 5.3 and 11.3)."""
    if at(12, 4) != b"IHDR":
        raise _Unclear
    width, height = struct.unpack(">II", at(16, 8))
    place, exif = 33, b""
    for _ in range(MOST_PARTS):
        size, kind = struct.unpack(">I4s", at(place, 8))
        if kind == b"IDAT":
            break
        if kind == b"eXIf":
            exif = at(place + 8, size)
        elif kind in (b"iTXt", b"zTXt", b"tEXt") and at(place + 8, 21).startswith(
            (b"XML:com.adobe.xmp", b"Raw profile")
        ):
            raise _Unclear
        place += 12 + size
    else:
        raise _Unclear
    if not exif:
        last = at(max(place + 8, length - TAIL), TAIL)
        if any(mark in last for mark in _SAID_ELSEWHERE):
            raise _Unclear
    return width, height, _orientation(exif)


def _webp(at: At, head: bytes) -> tuple[int, int, int]:
    """RFC 9649: simple files hold no EXIF; of extended ones the canvas counts."""
    kind = head[12:16]
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF, 1
    if kind == b"VP8L" and head[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", head, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 1
    if kind != b"VP8X":
        raise _Unclear
    flags, width, height = head[20], int.from_bytes(head[24:27], "little"), int.from_bytes(head[27:30], "little")
    said = dict(_chunks(at, 12 + 18, (b"EXIF", b"XMP "))) if flags & 0x0C else {}
    return width + 1, height + 1, _orientation(said.get(b"EXIF", b""), said.get(b"XMP ", b""))


def _chunks(at: At, place: int, wanted: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
    """Those of a RIFF file that are `wanted`."""
    for _ in range(MOST_PARTS):
        start = at(place, 8)
        if len(start) < 8:
            return
        kind, size = struct.unpack("<4sI", start)
        if kind in wanted:
            yield kind, at(place + 8, size)
        place += 8 + size + size % 2
    raise _Unclear


def _gif(head: bytes) -> tuple[int, int, int]:
    """The screen, or its first picture where that is larger, as Pillow has it (GIF89a, 18 to 24)."""
    if b"XMP DataXMP" in head:
        raise _Unclear
    width, height, flags = struct.unpack_from("<HHB", head, 6)
    place = 13 + (3 << (flags & 7) + 1) * (flags >> 7)
    while head[place] == 0x21:  # an extension: its blocks, each with its length before it
        place += 2
        while head[place]:
            place += 1 + head[place]
        place += 1
    if head[place] != 0x2C:
        raise _Unclear
    left, top, across, down = struct.unpack_from("<HHHH", head, place + 1)
    return max(width, left + across), max(height, top + down), 1


def _bmp(head: bytes) -> tuple[int, int, int]:
    (kind,) = struct.unpack_from("<I", head, 14)
    if kind not in (40, 52, 56, 64, 108, 124):
        raise _Unclear
    width, height = struct.unpack_from("<ii", head, 18)
    return width, abs(height), 1


def _orientation(exif: bytes, xmp: bytes = b"") -> int:
    """What EXIF says (CIPA DC-008, 4.6.5), else XMP."""
    said = _in_exif(exif.removeprefix(b"Exif\0\0")) if exif else None
    if said is None and (match := _XMP.search(xmp)):
        return int(match[1])
    return 1 if said is None else said


def _in_exif(tiff: bytes) -> int | None:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        raise _Unclear
    (place,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, place)
    for tag, kind, number, value in struct.iter_unpack(order + "HHIH2x", tiff[place + 2 : place + 2 + 12 * count]):
        if tag == 0x0112:
            if (kind, number) != (3, 1):
                raise _Unclear
            return int(value)
    return None
