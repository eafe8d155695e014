"""The kinds of finding in a data set: what each means, what mends it, and what may be done about it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from sdtune.schema import Section, field_help

Policy = Literal["fail", "skip", "warn", "ignore"]
"""Stop before training; leave the picture out and say so; say so; say it in `sdtune data check` alone."""
Unusable = Literal["fail", "skip"] | None
Doubtful = Literal["fail", "skip", "warn", "ignore"]


@dataclass(frozen=True, kw_only=True)
class On(Section):
    """What to do about each kind of finding. "fail" stops before training, "skip" leaves the picture out and says so, "warn" says
    so, "ignore" says it in `sdtune data check` alone."""

    unreadable: Unusable = None
    """Files that are damaged, cut off, no pictures, or may not be read. Unset: as `data.on_bad` says."""
    empty_file: Unusable = None
    """Files of zero bytes. Unset: as `data.on_bad` says."""
    too_large: Unusable = None
    """Pictures of more than `data.max_pixels`; they are not decoded. Unset: as `data.on_bad` says."""
    other_format: Unusable = None
    """Pictures in formats that are not opened, such as HEIC or SVG. Unset: as `data.on_bad` says."""
    no_caption: Unusable = None
    """Pictures whose caption is missing or empty, where no prefix or suffix stands for it. Unset: as `data.on_bad` says."""
    not_utf8: Unusable = None
    """Captions that are not UTF-8, or hold a NUL character. Unset: as `data.on_bad` says."""
    unlisted: Unusable = None
    """Pictures that the metadata file does not name. Unset: as `data.on_bad` says."""
    missing: Unusable = None
    """Rows of metadata whose picture is not there. Unset: as `data.on_bad` says."""
    row: Unusable = None
    """Records that say nothing usable about their picture. Unset: as `data.on_bad` says."""
    bad_mask: Unusable = None
    """Masks that are damaged, of another size than their picture, or black all over. Unset: as `data.on_bad` says."""
    leak: Literal["fail", "skip"] = "fail"
    """The same picture in training and validation, which makes the validation worthless. "skip" leaves the one for training out."""
    near_leak: Doubtful = "warn"
    """A training picture that looks like a validation picture: another size, format or quality of it. "skip" leaves it out of
    training."""
    copies: Doubtful = "warn"
    """The same picture several times, so that it is seen more often than the others. "skip" keeps the first."""
    near_copies: Doubtful = "warn"
    """Pictures that look alike: another size, format or quality of the same. "skip" keeps the largest."""
    mislabelled: Doubtful = "warn"
    """Files whose name says another format than they have; they are read as what they are."""
    animated: Doubtful = "warn"
    """Animations, and files with several pages: the first frame is used."""
    transparent: Doubtful = "warn"
    """Pictures that are transparent in part: `data.background` shows through."""
    colour_profile: Doubtful = "warn"
    """Pictures whose colour profile cannot be used, so that their colours may be off."""
    odd_mode: Doubtful = "ignore"
    """CMYK, palettes, 16 bits and floats: made 8-bit RGB in a defined way."""
    turned: Doubtful = "ignore"
    """Pictures that their EXIF data turn or mirror: they are set upright."""
    no_mask: Doubtful = "warn"
    """Pictures without a mask where others have one: they count in full."""
    bare: Doubtful = "warn"
    """Pictures without a caption of their own, shown with the prefix and suffix alone."""
    long_caption: Doubtful = "warn"
    """Captions of more tokens than the text encoder reads: the end is cut off and not learned."""
    tiny: Doubtful = "warn"
    """Pictures whose shorter side is less than a quarter of what is trained at: mostly invented pixels."""
    enlarged: Doubtful = "warn"
    """Pictures that are smaller than what is trained at, and enlarged: blur is learned with them."""
    elongated: Doubtful = "warn"
    """Pictures more than three times as long as wide, or wide as long, that lose more than a third to their frame."""
    cropped: Doubtful = "warn"
    """Pictures of which more than a third is cut away."""


@dataclass(frozen=True)
class Kind:
    name: str
    """In `data.on`, where it stands there."""
    about: str
    remedy: str
    default: Policy | None
    """None: as `data.on_bad` says."""
    policies: tuple[Policy, ...]
    """What may be chosen; one alone where there is no choice."""


REMEDIES = {
    "unreadable": "copy or export them again, or take them away",
    "empty_file": "copy them again",
    "too_large": "make them smaller, or raise data.max_pixels if they are yours",
    "other_format": "convert them to PNG or JPEG",
    "no_caption": "write captions (`sdtune data caption`), or set data.caption_prefix",
    "not_utf8": "save the text as UTF-8",
    "unlisted": "add rows for them, or take them away",
    "missing": "remove the rows, or add the pictures",
    "row": "mend the records",
    "bad_mask": "make masks of the pictures' size, white where they count",
    "leak": "remove one of each pair",
    "near_leak": "remove one of each pair, or keep such pictures on one side",
    "copies": "remove them; to show a picture more often, use repeats",
    "near_copies": "keep the best of each",
    "mislabelled": "rename them; other tools go by the name",
    "animated": "save the frame that you want as a picture",
    "transparent": "set data.background, or flatten them yourself",
    "colour_profile": "export them as sRGB",
    "odd_mode": "nothing to do; export them as 8-bit RGB to choose the colours yourself",
    "turned": "nothing to do",
    "no_mask": "add masks, or take these pictures away",
    "bare": "write captions (`sdtune data caption`)",
    "long_caption": "put the important words first, or shorten them",
    "tiny": "find larger ones, or leave them out (data.on.tiny=skip)",
    "enlarged": "find larger ones, lower data.resolution, or leave them out (data.on.enlarged=skip)",
    "elongated": "crop them yourself",
    "cropped": "crop them yourself, or set data.buckets=true",
}
FIXED = {
    "dataset": ("fail", "What says which picture has which caption cannot be read, or contradicts itself.", "mend it"),
    "outside": ("fail", "Names and links that lead out of the folder: they are never followed.", "copy the files into it"),
    "name_clash": ("fail", "One caption or mask for several pictures, or one picture in several rows.", "rename them"),
    "no_trigger": ("warn", "Captions without the trigger word: they teach it nothing.", "add the word, or data.caption_prefix"),
    "small_frame": ("warn", "Frames (data.buckets) of fewer pictures than a batch.", "crop them yourself, or lower train.batch_size"),
}  # fmt: skip
"""Kinds about which nothing can be chosen: policy, what it is, remedy."""


@cache
def kinds() -> dict[str, Kind]:
    """All kinds by name, the worst first."""
    helps, hints, found, usual = field_help(On), get_type_hints(On), dict[str, Kind](), On()
    for name in ("outside", "dataset", "name_clash"):
        found[name] = _fixed(name)
    for f in fields(On):
        choices = tuple(_choices(hints[f.name]))
        about = helps[f.name].replace("\n", " ").removesuffix(" Unset: as `data.on_bad` says.")
        found[f.name] = Kind(f.name, about, REMEDIES[f.name], getattr(usual, f.name), choices)
    for name in ("no_trigger", "small_frame"):
        found[name] = _fixed(name)
    return found


def _fixed(name: str) -> Kind:
    policy, about, remedy = FIXED[name]
    assert policy in ("fail", "warn")
    return Kind(name, about, remedy, policy, (policy,))  # type: ignore[arg-type]


def _choices(hint: Any) -> Iterator[Policy]:
    for part in get_args(hint):
        if isinstance(part, str):
            yield part  # type: ignore[misc]
        else:
            yield from _choices(part)


def policy(kind: str, on: On, on_bad: Policy, *, skippable: bool = True) -> tuple[Policy, str]:
    """What is done about a finding of `kind`, and the key that says so ("" where there is no choice).

    `skippable`: whether leaving a picture out would be a cure.
    """
    if kind == "dataset" and skippable:  # one entry of the file that says what there is
        return on_bad, "data.on_bad"
    if kind in FIXED or not skippable:
        return FIXED.get(kind, ("fail",))[0], ""  # type: ignore[return-value]
    chosen: Policy | None = getattr(on, kind)
    return (on_bad, "data.on_bad") if chosen is None else (chosen, f"data.on.{kind}")
