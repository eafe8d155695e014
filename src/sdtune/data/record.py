"""What a run was trained on, so that a resumed one can say which pictures and captions are no longer the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sdtune.data.dataset import Example, Splits
from sdtune.data.layouts import listed, plural, shown

Record = dict[str, dict[str, str]]
"""Split -> picture (relative to its common folder) -> a hash of its bytes and captions, "+" and one of its mask, if it has one."""


def record(splits: Splits, root: Path) -> Record:
    """The pictures of each split with a short hash of what is in the file and what is written about it."""
    return {
        name: {name_in(e.image, root): _hash(e) for e in examples}
        for name, examples in (("train", splits.train), ("validation", splits.validation))
    }


def changes(old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]]) -> str:
    """In words: which pictures were added, removed, edited (or their captions), got another mask or moved to another split.

    "" if none.
    """
    was, now = ({name: (split, h) for split, files in r.items() for name, h in files.items()} for r in (old, new))
    both = was.keys() & now.keys()
    groups = {
        "added": now.keys() - was.keys(),
        "removed": was.keys() - now.keys(),
        "edited, or their captions": {n for n in both if _parted(was[n][1])[0] != _parted(now[n][1])[0]},
        "with another mask than before": {n for n in both if _parted(was[n][1])[1] != _parted(now[n][1])[1]},
        "moved between training and validation": {n for n in both if was[n][0] != now[n][0]},
    }
    said = (
        f"{plural(len(names), 'picture')} {what}: {listed(sorted(names))}" for what, names in groups.items() if names
    )
    return "; ".join(said)


def _hash(example: Example) -> str:
    picture = hashlib.sha256("\0".join((example.digest, *example.captions)).encode()).hexdigest()[:16]
    return picture if example.mask in (None, example.image) else f"{picture}+{example.mask_digest[:16]}"


def _parted(hashes: str) -> tuple[str, str]:
    """The hash of picture and captions, and that of the mask."""
    picture, _, mask = hashes.partition("+")
    return picture, mask


def name_in(image: Path, root: Path) -> str:
    """What a record calls a picture."""
    return shown(image.relative_to(root) if image.is_relative_to(root) else image)
