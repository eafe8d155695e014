"""What is to be encoded: of which picture which part, in which frame, mirrored or not, and which captions. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

from sdtune.data import archives
from sdtune.data.caption import cut_off
from sdtune.data.config import DataConfig
from sdtune.data.dataset import Example
from sdtune.data.frames import Frame, Frames, resolutions, scale
from sdtune.data.images import Box, crop_boxes
from sdtune.data.layouts import listed, plural, shown
from sdtune.errors import DataError


class View(NamedTuple):
    """One picture as it is encoded: which part of it, mirrored or not."""

    example: int
    frame: int
    box: Box
    mirrored: bool
    key: str


@dataclass
class Plan:
    """All views and captions of a set of pictures.

    An item is a picture in a frame: with several resolutions a picture has several. Every item has equally many views; variant v is
    its cut v % crops, mirrored if v // crops is odd.
    """

    examples: list[Example]
    frames: list[Frame] = field(default_factory=list)
    """Those in use."""
    views_NV: list[list[View]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Each caption once; the first is the empty one."""
    captions_N: list[list[int]] = field(default_factory=list)
    """The captions of each example, by their place in `texts`."""
    crops: int = 1
    flips: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def views(self) -> Iterator[View]:
        return (view for row in self.views_NV for view in row)


def plan(examples: Sequence[Example], config: DataConfig, *, usual: int, grid: int, augment: bool) -> Plan:
    """The plan of `examples`; `usual` is the model's resolution, `grid` the pixels that its sides are multiples of.

    Without `augment` (validation) each item has one view: not mirrored, cut in its centre instead of anywhere, and each picture has
    one item, at the first resolution. Raises DataError where that leaves nothing.
    """
    sizes = resolutions(config, usual)
    at = [Frames(resolution, config, grid=grid) for resolution in (sizes if augment else sizes[:1])]
    crop = config.crop if augment or config.crop != "random" else "center"
    out = Plan(list(examples), flips=config.flip and augment)
    numbers, left, small, long = dict[Frame, int](), list[str](), list[str](), list[str]()
    for i, example in enumerate(out.examples):
        name = shown(Path(example.image.name))
        frames = list(dict.fromkeys(frame for frames in at if (frame := frames.of(example.size))))
        if not frames:
            left.append(name)
        if any(scale(example.size, frame) > 1 for frame in frames):
            small.append(name)
        if not config.buckets and max(example.size) > 3 * min(example.size):
            long.append(name)
        for frame in frames:
            digest = example.digest or hashlib.sha256(archives.read_bytes(example.image)).hexdigest()
            boxes = crop_boxes(example.size, crop, config.crops, digest, frame)
            how = f"{_side(frame)}/{crop == 'pad'}/{config.background}"
            number, row = (
                numbers.setdefault(frame, len(numbers)),
                product((False, True) if out.flips else (False,), boxes),
            )
            keyed = ((box, mirrored, key_of(digest, how, *map(str, box), str(mirrored))) for mirrored, box in row)
            out.views_NV.append([View(i, number, *parts) for parts in keyed])
            out.crops = len(boxes)
    if left and not out.views_NV:
        raise DataError(
            f"{plural(len(left), 'picture')}, and all are smaller than data.resolution={min(sizes)} and not to be enlarged "
            "(data.enlarge=false): nothing is left to train on; lower the resolution"
        )
    out.frames = list(numbers)
    _plan_texts(out)
    out.notes = list(_size_notes(left, small, long, sizes, crop))
    return out


def key_of(*parts: str) -> str:
    """A hash by which something in the cache is found."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def long_captions(texts: Sequence[str], count: Callable[[Sequence[str]], list[int]], limit: int) -> Iterator[str]:
    """A note on the captions of more than `limit` tokens; `count` gives the number of each text's."""
    if long := [t for t, n in zip(texts, count(texts), strict=True) if n > limit]:
        yield (
            f"{plural(len(long), 'caption')} of more than the {limit} tokens that the text encoder reads; "
            f"of the first, this is cut off: {cut_off(long[0], count, limit)!r}"
        )


def told_size(plan: Plan, view: View) -> tuple[float, ...]:
    """Height, width before; top, left of the cut after scaling; height, width after: what SDXL is told (arXiv:2307.01952, 2.2)."""
    (width, height), (left, top, right, bottom) = plan.examples[view.example].size, view.box
    frame = plan.frames[view.frame]
    cut_left = width - right if view.mirrored else left
    down, across = frame.height / (bottom - top), frame.width / (right - left)
    return (height, width, round(top * down), round(cut_left * across), frame.height, frame.width)


def _side(frame: Frame) -> str:
    return str(frame.width) if frame.width == frame.height else str(frame)


def _plan_texts(plan: Plan) -> None:
    rows = {"": 0}
    for example in plan.examples:
        plan.captions_N.append([rows.setdefault(caption, len(rows)) for caption in example.captions])
    plan.texts = list(rows)


def _size_notes(
    left: Sequence[str], small: Sequence[str], long: Sequence[str], sizes: Sequence[int], crop: str
) -> Iterator[str]:
    pixels = f"{max(sizes)} pixels"
    if left:
        yield f"{plural(len(left), 'picture')} smaller than {min(sizes)} pixels, left out (data.enlarge=false): {listed(left)}"
    if small:
        yield f"{plural(len(small), 'picture')} smaller than {pixels}, enlarged: {listed(small)}"
    if long:
        lost = {"squash": "squashed", "pad": "mostly background"}.get(crop, "mostly cut away")
        yield f"{plural(len(long), 'picture')} more than three times as long as wide, {lost} (data.buckets=true keeps more): {listed(long)}"
