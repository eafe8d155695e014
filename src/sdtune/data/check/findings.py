"""What is found in pictures that can be used: sizes, captions, copies, leaks. The scan before training and `sdtune data check` share
it. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sdtune.data import likeness
from sdtune.data.caption import cut_off
from sdtune.data.config import DataConfig
from sdtune.data.frames import Frame, Frames, cropped, scale
from sdtune.data.layouts import Fault, listed, plural

if TYPE_CHECKING:
    from sdtune.data.dataset import Example

ELONGATED = 3
"""Longer than so many times the shorter side."""
TINY = 4
"""Enlarged more than so many times."""
CUT_AWAY = 1 / 3
"""A picture of 3:2, as cameras make them, loses that much to a square, and nothing is said of it."""
SQUARE = Frame(1, 1)
CUTS = 1000
"""For so many captions the text that is cut off is looked for; of more than that only the tokens are counted."""

Name = Callable[[Path], str]


class Tokens(Protocol):
    """The tokenizer of a model; a `Model` is one, too."""

    @property
    def max_tokens(self) -> int: ...

    def token_counts(self, prompts: Sequence[str]) -> list[int]: ...


@dataclass(frozen=True)
class Fit:
    """What pictures and captions have to fit. Of what is not known nothing is found."""

    resolutions: tuple[int, ...] = ()
    """Sides in pixels that are trained at."""
    grid: int = 1
    """Pixels per latent (and patch), of which the sides of frames are multiples."""
    tokens: Tokens | None = None

    def frames(self, config: DataConfig) -> list[Frames]:
        """The frames at each resolution, the smallest first. Raises DataError."""
        return [Frames(side, config, grid=self.grid) for side in sorted(self.resolutions)]


def of_sizes(examples: Sequence[Example], config: DataConfig, fit: Fit, name: Name) -> Iterator[Fault]:
    """Pictures that are small for what is trained at, long, or lose much to the crop."""
    families = fit.frames(config)
    lost = {"squash": "squashed", "pad": "mostly background"}.get(config.crop, "mostly cut away")
    for e in examples:
        size, where = f"{e.size[0]}x{e.size[1]}", name(e.image)
        if small := next(filter(None, (_small(e, frames) for frames in families)), None):
            yield Fault(where, small[1], True, small[0], (e.image,), detail=size)
        frame = (families[-1].of(e.size) if families else None) or SQUARE
        away, ratio = cropped(e.size, frame), max(e.size) / min(e.size)
        if ratio > ELONGATED and away > CUT_AWAY:
            what = f"more than three times as long as wide, {lost}"
            yield Fault(where, what, True, "elongated", (e.image,), detail=size)
        elif config.crop == "center" and away > CUT_AWAY + 0.01:
            what = "of which more than a third is cut away"
            yield Fault(where, what, True, "cropped", (e.image,), detail=f"{away:.0%} of {size}")


def _small(e: Example, frames: Frames) -> tuple[str, str] | None:
    """Kind and text for a picture that is small for its frame at one resolution."""
    frame, side = frames.of(e.size), frames.resolution
    if frame is None:
        return "enlarged", f"too small for {side} pixels, and left out there (data.enlarge=false)"
    times = scale(e.size, frame)
    if times > TINY:
        return "tiny", f"smaller than a quarter of {side} pixels, mostly invented"
    return ("enlarged", f"smaller than {side} pixels, enlarged") if times > 1 else None


def small_frames(examples: Sequence[Example], families: Sequence[Frames], batch: int) -> Iterator[Fault]:
    """Frames of fewer pictures than a batch."""
    for frames in families if len(examples) >= batch else ():
        inside: dict[Frame, list[Path]] = defaultdict(list)
        for e in examples:
            if frame := frames.of(e.size):
                inside[frame].append(e.image)
        for frame, images in inside.items():
            if len(images) < batch:
                what = f"holds {plural(len(images), 'picture')}, fewer than a batch of {batch}"
                yield Fault(str(frame), what, True, "small_frame", tuple(images))


def of_captions(examples: Sequence[Example], fit: Fit, name: Name) -> Iterator[Fault]:
    """Captions that the text encoder does not read to their end, and what of them is cut off."""
    if fit.tokens is None:
        return
    limit, count = fit.tokens.max_tokens, fit.tokens.token_counts
    texts = list(dict.fromkeys(c for e in examples for c in e.captions))
    long = {text: n for text, n in zip(texts, count(texts) if texts else (), strict=True) if n > limit}
    cuts = {text: cut_off(text, count, limit) for text in list(long)[:CUTS]}
    what = f"with a caption of more than the {limit} tokens that the text encoder reads"
    for e in examples:
        for text in filter(long.__contains__, e.captions):
            cut = f", of which this is cut off: {cuts[text]!r}" if text in cuts else ""
            yield Fault(name(e.image), what, True, "long_caption", (e.image,), detail=f"{long[text]} tokens{cut}")
            break


def copies(examples: Sequence[Example], name: Name) -> Iterator[Fault]:
    """Pictures that are there more than once, byte for byte."""
    same: dict[str, dict[Path, None]] = defaultdict(dict)  # two sources may name one file
    for e in examples:
        same[e.digest][e.image] = None
    for images in (list(paths) for paths in same.values() if len(paths) > 1):
        where = " = ".join(map(name, images))
        what = "exact copies, seen more often than the others"
        yield Fault(where, what, True, "copies", tuple(images), out=tuple(images[1:]))


def near_copies(examples: Sequence[Example], name: Name) -> Iterator[Fault]:
    """Pictures that look alike and are no exact copies. The largest of each lot is named first, and is the one that stays."""
    once = list({e.digest: e for e in examples}.values())
    for places in likeness.lots(once):
        lot = sorted((once[i] for i in places), key=lambda e: -e.size[0] * e.size[1])
        images = tuple(e.image for e in lot)
        what = "near copies (another size, format or quality of the same)"
        yield Fault(" ~ ".join(map(name, images)), what, True, "near_copies", images, out=images[1:])


def leaks(train: Sequence[Example], validation: Sequence[Example], name: Name) -> Iterator[Fault]:
    """Pictures that are trained on and validated with, byte for byte."""
    known = {e.digest: e.image for e in train}
    for e in validation:
        if (twin := known.get(e.digest)) is not None:
            what = f"the same picture as {name(twin)}, which is trained on; remove one of them"
            yield Fault(name(e.image), what, True, "leak", (twin, e.image), out=(twin,))


def near_leaks(train: Sequence[Example], validation: Sequence[Example], name: Name) -> Iterator[Fault]:
    """Training pictures that look like a validation picture, and are no exact copies."""
    kept = {e.digest for e in validation}
    rest = [e for e in train if e.digest not in kept and e.look]
    looks = np.asarray([e.look for e in rest], np.uint64)
    for e in validation if rest else ():
        if not e.look:
            continue
        for i in likeness.near(e.look, looks, likeness.BROAD):
            if likeness.tone(e, rest[i]) <= likeness.TONE:
                where = f"{name(rest[i].image)} ~ {name(e.image)}"
                pair = (rest[i].image, e.image)
                yield Fault(where, "much like one that is validated with", True, "near_leak", pair, out=pair[:1])


def triggers(examples: Sequence[Example], words: Sequence[str], name: Name) -> Iterator[Fault]:
    """Pictures none of whose captions, or not all, have a trigger word (whatever its case)."""
    for word in words:
        for e in examples:
            if not all(word.lower() in caption.lower() for caption in e.captions):
                yield Fault(name(e.image), lacks(word), True, "no_trigger", (e.image,), detail=repr(e.captions[0]))


def lacks(word: str) -> str:
    return f"with a caption that lacks the trigger word {word!r}"


LEADS = {"copies": "with ", "near_copies": "with "}


def told(faults: Sequence[Fault]) -> list[str]:
    """Notes on findings that are let pass, one for all of a kind that say the same."""
    same: dict[tuple[str, str], list[Fault]] = defaultdict(list)
    for fault in faults:
        same[fault.kind, fault.what].append(fault)
    notes = []
    for (kind, what), some in same.items():
        text = f"{plural(len(some), 'picture')} {LEADS.get(kind, '')}{what}: {listed([f.where for f in some])}"
        if kind == "long_caption":
            text += f"; the first has {some[0].detail}"
        notes.append(text)
    return notes
