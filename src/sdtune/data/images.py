"""Any picture file to upright 8-bit sRGB, and to the size that is trained at. Imports torch in `pixels_from` only."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageCms, ImageColor, ImageStat, UnidentifiedImageError

from sdtune.data import archives
from sdtune.data.chance import uniform
from sdtune.data.likeness import coarse, dhash
from sdtune.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

KINDS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "WEBP": (".webp",), "GIF": (".gif",), "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
}  # fmt: skip
"""Formats, and the suffixes of their files, the usual one first."""
FORMATS = tuple(KINDS)
"""What is opened, whatever the file is called. Few, common, and well tested: each decoder is a door for strangers."""
SUFFIXES = frozenset(suffix for suffixes in KINDS.values() for suffix in suffixes)
_BEGINNINGS = {
    "JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "WEBP": b"RIFF....WEBP", "GIF": b"GIF8[79]a", "TIFF": b"II|MM", "BMP": b"BM",
}  # fmt: skip
_BEGINS = re.compile(
    b"|".join(b"(?P<%s>%s)" % (kind.encode(), start) for kind, start in _BEGINNINGS.items()), re.DOTALL
)
FOREIGN_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        "heic",
        "heif",
        "avif",
        "jxl",
        "jp2",
        "psd",
        "svg",
        "tga",
        "exr",
        "hdr",
        "ico",
        "ppm",
        "pgm",
        "raw",
        "dng",
        "cr2",
        "nef",
        "arw",
        "eps",
        "pdf",
    )
)
"""Pictures too, but not opened: said aloud instead of passed over."""

Crop = Literal["center", "random", "squash", "pad"]
Box = tuple[int, int, int, int]
Size = tuple[int, int]
"""Width and height in pixels."""
Pixels = NDArray[np.uint8]
T = TypeVar("T")
MAX_PIXELS = 178_956_970
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_DRAFT = (36, 32)
"""A quick look keeps at least so much of a picture: four pixels for each field of its hash."""
_PLAIN = ("RGB", "RGBA", "L", "LA", "1")
_MODES = {
    "P": "a palette", "PA": "a palette", "CMYK": "CMYK", "F": "32-bit floats", "I": "32-bit integers", "I;16": "16-bit grey",
    "I;16B": "16-bit grey", "I;16L": "16-bit grey", "YCbCr": "YCbCr", "LAB": "Lab", "HSV": "HSV",
}  # fmt: skip


class Unusable(DataError):
    """A picture file that cannot be used; `kind` is one of `sdtune.data.check.kinds`."""

    def __init__(self, text: str, kind: str = "unreadable") -> None:
        super().__init__(text)
        self.kind = kind


class Remark(NamedTuple):
    """Something worth saying about a picture that can be used; `kind` is one of `sdtune.data.check.kinds`."""

    kind: str
    text: str


@dataclass(frozen=True)
class Checked:
    """A picture that can be read to its end: width and height upright, and what is worth saying about it."""

    size: tuple[int, int]
    remarks: tuple[Remark, ...]
    opacity: float = 1.0
    """The mean over the picture, 0 to 1."""
    format: str = ""
    """One of `FORMATS`."""
    look: int = 0
    """Its difference hash, see `likeness`."""
    colours: bytes = b""
    """Its coarse colours, see `likeness`."""


def load_image(path: Path, *, background: str = "white", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture upright in 8-bit sRGB, its transparent parts on `background`. Raises DataError."""
    try:
        return decode(archives.read_bytes(path), background=background, max_pixels=max_pixels)
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def decode(data: bytes, *, background: str = "white", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`load_image` of a file's bytes. The DataError says what is wrong, without a name."""
    return _read(data, partial(_finish, background=background, max_pixels=max_pixels, quick=False)).rgb


def check(data: bytes, *, background: str = "white", max_pixels: int = MAX_PIXELS) -> Checked:
    """Read a picture to its end, as cheaply as its format allows. Raises DataError."""
    done = _read(data, partial(_finish, background=background, max_pixels=max_pixels, quick=True))
    (width, height), few = done.rgb.size, _DRAFT  # the hashes are of the one decode, made smaller by whole blocks first
    small = done.rgb.reduce((max(1, width // (4 * few[0])), max(1, height // (4 * few[1]))))
    return Checked(done.size, tuple(done.remarks), done.opacity, done.format, dhash(small), coarse(small))


def mislabelled(name: str, kind: str) -> str:
    """What is wrong with a file's name, its content being of the format `kind`; "" if nothing is."""
    suffix = Path(name).suffix.lower()
    wrong = kind and suffix in SUFFIXES and suffix not in KINDS[kind]
    return f"{kind}, which the name does not say" if wrong else ""


def kind_of(start: bytes) -> str:
    """The format of a file by its first twelve bytes, one of `FORMATS`; "" for none of them."""
    match = _BEGINS.match(start)
    return str(match.lastgroup) if match else ""


def read_mask(data: bytes, *, opacity: bool = False, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The brightness of a picture file, on black where it is transparent; or its opacity: (H, W), 0 to 255, upright.

    Colour profiles are passed over, since a mask's values are no colours. Raises DataError without a name.
    """
    return _read(data, partial(_mask, opacity=opacity, max_pixels=max_pixels))


def colour(name: str) -> tuple[int, int, int]:
    """Red, green, blue of a name or #rrggbb. Raises DataError."""
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError:
        raise DataError(f'data.background: {name!r} is no colour; use a name such as "white" or #rrggbb') from None


def crop_boxes(size: Size, crop: Crop, crops: int, key: str, frame: Size = (1, 1)) -> list[Box]:
    """The part (left, top, right, bottom) that each variant shows of a picture of `size` (width, height).

    It has the proportions of `frame`, to a pixel, and is as large as can be. Random cuts are one in each of `crops` equal stretches,
    placed by a hash of `key`.
    """
    width, height = size
    if crop in ("squash", "pad"):
        return [(0, 0, width, height)]
    wide = width * frame[1] > height * frame[0]
    if wide:
        width = max(1, round(height * frame[0] / frame[1]))
    else:
        height = max(1, round(width * frame[1] / frame[0]))
    slack = size[0] - width if wide else size[1] - height
    offsets = [slack // 2]
    if crop == "random":
        offsets = [int((slack + 1) * (j + uniform(f"{key}/{j}")) / crops) for j in range(crops)]
    return [(o, 0, o + width, height) if wide else (0, o, width, o + height) for o in offsets]


def placed(box: Box, frame: Size, *, pad: bool) -> tuple[Size, tuple[int, int]]:
    """Where the part `box` of a picture lies in the frame: (width, height), (left, top)."""
    width, height = box[2] - box[0], box[3] - box[1]
    if not pad:
        return (frame[0], frame[1]), (0, 0)
    scale = min(frame[0] / width, frame[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return size, ((frame[0] - size[0]) // 2, (frame[1] - size[1]) // 2)


def to_frame(im: Image.Image, frame: Size, *, box: Box, pad: bool = False, background: str = "white") -> Pixels:
    """The part `box` of `im` as (height, width, 3); its proportions change unless they are the frame's or `pad` is set."""
    size, corner = placed(box, frame, pad=pad)
    # reducing_gap: large pictures are first averaged over whole blocks, then resampled; the eye sees no difference
    im = im.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    if size != tuple(frame):
        canvas = Image.new("RGB", (frame[0], frame[1]), colour(background))
        canvas.paste(im, corner)
        im = canvas
    return np.asarray(im)


def pixels_from(pictures: Sequence[Pixels]) -> Tensor:
    """Arrays (H, W, 3) of 0..255 to one tensor (B, 3, H, W) in [-1, 1]."""
    import torch

    pixels_BHWC = torch.from_numpy(np.stack(pictures))
    return pixels_BHWC.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


class _Quiet:
    """No warnings while any thread is inside. What Python has for that puts the filters of one thread back in the midst of another."""

    def __init__(self) -> None:
        self._lock, self._inside, self._caught = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


QUIET = _Quiet()


def _read(data: bytes, finish: Callable[[Image.Image], T]) -> T:
    """What `finish` makes of the opened file. Raises DataError for whatever goes wrong."""
    if not data:
        raise Unusable("the file is empty; copy it again", "empty_file")
    with QUIET:  # Pillow warns of half its size limit and of odd metadata
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as im:
                return finish(im)
        except DataError:
            raise
        except UnidentifiedImageError:
            raise Unusable(_not_a_picture(data)) from None
        except Image.DecompressionBombError:
            raise Unusable(f"more than {MAX_PIXELS} pixels; make it smaller", "too_large") from None
        except Exception as error:  # decoders raise nearly anything on damaged files
            raise Unusable(f"damaged or cut off ({_line(error)}); copy or export it again") from None


class _Finished(NamedTuple):
    rgb: Image.Image
    size: tuple[int, int]
    remarks: list[Remark]
    opacity: float
    format: str


def _finish(im: Image.Image, background: str, max_pixels: int, quick: bool) -> _Finished:
    """Picture, upright size, remarks, mean opacity. `quick` decodes a JPEG at an eighth of its size, to its last byte."""
    bounded(im.size, max_pixels)
    remarks, opacity, mode = [], 1.0, im.mode
    if im.format != "MPO" and getattr(im, "n_frames", 1) > 1:  # an MPO is a camera's JPEG with a preview behind it
        remarks.append(Remark("animated", "animated or with several pages: its first frame is used"))
    colours, alpha, size = _upright(im, quick)
    if (turned := orientation_of(im)) in _UPRIGHT:
        remarks.append(Remark("turned", f"stored on its side or mirrored (EXIF orientation {turned}): set upright"))
    if mode not in _PLAIN:
        remarks.append(Remark("odd_mode", f"stored as {_MODES.get(mode, mode)}: made 8-bit RGB"))
    rgb, understood = _to_srgb(colours, im.info.get("icc_profile"))
    if not understood:
        remarks.append(Remark("colour_profile", "its colour profile cannot be used: colours are read as sRGB"))
    if alpha is not None and alpha.getextrema() != (255, 255):
        remarks.append(Remark("transparent", f"transparent in part: drawn on {background} (data.background)"))
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, colour(background)), alpha)
        opacity = ImageStat.Stat(alpha).mean[0] / 255
    return _Finished(rgb, size, remarks, opacity, "JPEG" if im.format == "MPO" else str(im.format))


def _mask(im: Image.Image, opacity: bool, max_pixels: int) -> Pixels:
    bounded(im.size, max_pixels)
    colours, alpha, _ = _upright(im)
    if opacity:
        return np.asarray(alpha) if alpha is not None else np.full(colours.size[::-1], 255, np.uint8)
    grey = colours.convert("RGB").convert("L")
    return np.asarray(grey if alpha is None else ImageChops.multiply(grey, alpha))


def bounded(size: tuple[int, int], max_pixels: int) -> None:
    """Raises Unusable for a picture that is too large."""
    if size[0] * size[1] > max_pixels:
        what = f"{size[0]}x{size[1]} is more than data.max_pixels={max_pixels}; make it smaller or raise the limit"
        raise Unusable(what, "too_large")


def _upright(im: Image.Image, quick: bool = False) -> tuple[Image.Image, Image.Image | None, tuple[int, int]]:
    """Colours in an 8-bit mode and the opacity, as EXIF turns them, and the size that the whole picture then has."""
    size = im.size
    drafted = quick and im.format in ("JPEG", "MPO") and im.draft(None, _DRAFT) is not None
    im.load()
    orientation = orientation_of(im)
    colours, alpha = _parts(im.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else im)
    if drafted:
        return colours, alpha, size[::-1] if orientation in (5, 6, 7, 8) else size
    return colours, alpha, colours.size


def orientation_of(im: Image.Image) -> int:
    try:
        return int(im.getexif().get(_ORIENTATION, 1))
    except Exception:  # unreadable EXIF says nothing about the picture
        return 1


def _parts(im: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours in an 8-bit mode, and the opacity (mode L) if the picture has one."""
    if im.mode.startswith("I") or im.mode == "F":
        return _deep(im)
    if im.mode == "La":
        im = im.convert("LA")
    if im.has_transparency_data:
        rgba = im.convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel("A")
    return im if im.mode in ("L", "RGB", "CMYK") else im.convert("RGB"), None


def _deep(im: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Grey of more than 8 bits: integers mean 0..65535, floats 0..1."""
    values, top = np.asarray(im, np.float64), 1.0 if im.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > top:
        raise DataError(
            f"grey values from {values.min():g} to {values.max():g}, read as 0 to {top:g}; export it with 8 or 16 bits"
        )
    alpha = None
    if isinstance(hole := im.info.get("transparency"), int):
        alpha = Image.fromarray(np.where(values == hole, 0, 255).astype(np.uint8))
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8)), alpha


def _to_srgb(im: Image.Image, profile: bytes | None) -> tuple[Image.Image, bool]:
    """RGB by the picture's colour profile, and False if there is one that cannot be used."""
    if not profile:
        return im.convert("RGB"), True
    try:
        transform = _transform(profile, im.mode)
    except (OSError, ValueError, ImageCms.PyCMSError):
        return im.convert("RGB"), False
    if transform is None:
        return im.convert("RGB"), True
    return ImageCms.applyTransform(im, transform) or im, True


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile's colours to sRGB; None where nothing is to be done."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "srgb" in ImageCms.getProfileDescription(source).lower():
        return None
    if {"RGB": "RGB ", "CMYK": "CMYK", "L": "GRAY"}[mode] != source.profile.xcolor_space:
        raise ValueError(f"the profile is not one for {mode}")
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")


def _not_a_picture(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "a web page, not a picture; download the picture itself"
    if not any(b < 9 for b in start):
        return "text, not a picture; remove or replace it"
    return f"not a picture in a known format ({', '.join(FORMATS)}), or damaged; convert or replace it"


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:120] or type(error).__name__
