"""Training, validation and test pictures by content: copies dropped, look-alikes and groups kept together. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from sdtune.data import archives, images, likeness, looking
from sdtune.data.config import DataConfig
from sdtune.data.convert import Read, check_place, not_kept, read_source
from sdtune.data.dataset import judge
from sdtune.data.layouts import Entry, Fault, listed, plural
from sdtune.data.write import Wish, Written, named, write
from sdtune.errors import ConfigError
from sdtune.happened import Happened

NAMES = ("validation", "test", "train")
"""In the order of the shares that they take of 0 to 1."""
LARGE = 0.2
"""A group of more than this share of the pictures is worth a word."""


@dataclass(frozen=True)
class Rule:
    """What decides where a picture goes."""

    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    group: str = ""
    """"folder", a column of the metadata, or a regular expression of the path; "": none."""
    alike: bool = True
    """Whether pictures that look alike stay together."""
    keep_copies: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for name, share in (("--validation", self.validation), ("--test", self.test)):
            if not 0 <= share < 1:
                raise ConfigError(f"{name}: {share:g} is not a share from 0 to 1, such as 0.1")
        if self.validation + self.test >= 1:
            raise ConfigError("--validation and --test: together they leave nothing to train on")
        if not self.validation and not self.test:
            raise ConfigError("--validation and --test: both are 0; `sdtune data convert` copies without a split")


@dataclass(frozen=True)
class Seen:
    """How far the pictures have been looked at."""

    done: int
    total: int


@dataclass(frozen=True)
class Share:
    split: str
    pictures: int
    groups: int
    """Pictures without a group are one each."""
    share: float
    """Of the pictures."""
    wanted: float


@dataclass(frozen=True)
class Divided(Happened):
    """What goes where."""

    source: str
    shares: list[Share]
    where: dict[str, str]
    """Picture (its path in the source) -> split."""
    copies: int
    """Exact copies, left out unless they are to be kept."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Picture:
    entry: Entry
    path: str
    digest: str
    checked: images.Checked


def split(config: DataConfig, rule: Rule, wish: Wish, *, dry_run: bool = False) -> Iterator[Seen | Divided | Written]:
    """Look at the pictures, tell what goes where, write it unless it is a `dry_run`. Raises DataError, ConfigError.

    A group's place is a number from 0 to 1, the hash of the seed and of its smallest digest (sha256 of a file's bytes), and the
    splits are stretches of 0 to 1: thresholds, not ranks. Ranked, each new picture would push others over an edge, and pictures that
    were trained on would be validated with. So a picture stays where it is when others are added or taken away, whatever they
    are called, unless they join its group and one has a smaller digest. The price: shares are met on average only, and told.
    """
    if not dry_run:
        check_place(wish.out, config)
    read = read_source(config)
    pictures, faults = [], list[Fault]()
    for done, seen in enumerate(_look(read, config), 1):
        if isinstance(seen, Fault):
            faults.append(seen)
        else:
            pictures.append(seen)
        yield Seen(done, len(read.entries))
    notes = [*read.notes, *judge(faults, config, config.path)]
    if any(name for name, *_ in read.entries):
        notes.append("the source's own splits are not kept: all of its pictures are divided anew")
    kept, copies, said = _without_copies(pictures, rule)
    groups, told = _groups(kept, rule)
    places = _places(kept, groups, rule)
    divided = Divided(
        config.path, _shares(groups, places, rule), {p.path: places[i] for i, p in enumerate(kept)}, copies,
        [*notes, *said, *told],
    )  # fmt: skip
    items = named([(places[i], p.entry, p.path) for i, p in enumerate(kept)])
    yield replace(divided, notes=[*divided.notes, *not_kept(items)])
    if not dry_run:
        yield from write(items, wish, f"{config.path}, divided")


# ---- what the pictures are


def _look(read: Read, config: DataConfig) -> Iterator[_Picture | Fault]:
    """Each picture as training looks at it, or what is wrong with it."""
    looks = looking.look([entry.image for _, entry, _ in read.entries], config)
    for (_, entry, path), looked in zip(read.entries, looks, strict=True):
        if isinstance(looked, images.Unusable):
            yield Fault(path, str(looked), True, looked.kind)
        else:
            yield _Picture(entry, path, looked.digest, looked.checked)


def _without_copies(pictures: list[_Picture], rule: Rule) -> tuple[list[_Picture], int, list[str]]:
    """The pictures with one of each content, the first; how many there were more; and what is lost with them."""
    first: dict[str, _Picture] = {}
    other = []
    for picture in pictures:
        kept = first.setdefault(picture.digest, picture)
        if kept is not picture and kept.entry.captions != picture.entry.captions:
            other.append(picture.path)
    copies = len(pictures) - len(first)
    if rule.keep_copies:
        return pictures, copies, []
    notes = []
    if other:
        notes.append(
            f"{_copies(len(other))} left out had other captions than the picture that is kept: {listed(other)}"
        )
    return list(first.values()), copies, notes


def _copies(number: int) -> str:
    return "1 copy" if number == 1 else f"{number} copies"


# ---- groups


def _groups(pictures: Sequence[_Picture], rule: Rule) -> tuple[list[list[int]], list[str]]:
    """The places of the pictures that stay together, those alone too; and what is worth telling."""
    together = likeness.Together(len(pictures))
    same: dict[str, list[int]] = defaultdict(list)
    for i, picture in enumerate(pictures):
        same[picture.digest].append(i)
    keys, notes = _keys(pictures, rule.group)
    of_key: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        if key is not None:
            of_key[key].append(i)
    alike = likeness.linked([p.checked for p in pictures]) if rule.alike else []
    for places in [*same.values(), *of_key.values(), *alike]:
        together.join(places)
    groups = together.groups()
    if alike:
        notes.append(
            f"{sum(map(len, alike))} pictures look like another ({plural(len(alike), 'group')}); each group is in one split"
        )
    largest = max(groups, key=len, default=[])
    if len(largest) > max(2, LARGE * len(pictures)):
        names = listed([pictures[i].path for i in largest], 3)
        ways = [f"another --group than {rule.group}"] * bool(rule.group) + ["--no-alike"] * bool(alike)
        remedy = f"; {' or '.join(ways)} makes smaller ones" if ways else ""
        notes.append(f"one group has {len(largest)} of {plural(len(pictures), 'picture')} ({names}){remedy}")
    return groups, notes


def _keys(pictures: Sequence[_Picture], group: str) -> tuple[list[str | None], list[str]]:
    """What each picture is grouped by, None for nothing. Raises ConfigError."""
    if not group:
        return [None] * len(pictures), []
    columns = {name for p in pictures for name in p.entry.row}
    if group == "folder":
        keys = [_folder_of(p) for p in pictures]
        if not any(keys):
            raise ConfigError("--group folder: no picture lies in a folder inside the source; leave it out")
    elif group in columns:
        values = [p.entry.row.get(group) for p in pictures]
        keys = [None if value in (None, "") else str(value) for value in values]
    else:
        keys = [_matched(_pattern(group, columns), p.path) for p in pictures]
        if not any(keys):
            raise ConfigError(
                f"--group {group}: {_no_such(columns)}, and as a regular expression it is in no picture's path"
            )
    number, bare = len({k for k in keys if k is not None}), sum(key is None for key in keys)
    notes = [f"--group {group}: {plural(number, 'group')}"]
    if bare:
        notes.append(f"{plural(bare, 'picture')} without a {group if group in columns else 'group'}: each for itself")
    return keys, notes


def _folder_of(picture: _Picture) -> str | None:
    """The folder that it lies in, in a tar file the one there; that of the source itself is none, and neither is a file of rows."""
    image, parent = picture.entry.image, PurePosixPath(picture.path).parent
    if (archive := archives.archive_of(image)) is not None:
        parent = PurePosixPath(image.relative_to(archive).as_posix()).parent
    return None if str(parent) == "." else str(parent)


def _pattern(group: str, columns: set[str]) -> re.Pattern[str]:
    try:
        return re.compile(group)
    except re.error as error:
        raise ConfigError(f"--group {group}: {_no_such(columns)}, and no regular expression ({error})") from None


def _no_such(columns: set[str]) -> str:
    return f"no column of the metadata ({f'it has {listed(sorted(columns), 12)}' if columns else 'it has no others'})"


def _matched(pattern: re.Pattern[str], path: str) -> str | None:
    """The first group of the expression, or all that it matches; None for no match."""
    match = pattern.search(path)
    return None if match is None else str(match[1] if pattern.groups and match[1] is not None else match[0])


# ---- splits


def place_of(digest: str, seed: int) -> float:
    """From 0 to 1 by the hash that training ranks pictures by, too, where a folder has no validation pictures."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{digest}".encode()).digest()[:6]) / 2**48


def _places(pictures: Sequence[_Picture], groups: Sequence[Sequence[int]], rule: Rule) -> dict[int, str]:
    """The split of each picture, by the smallest digest of its group."""
    edges = (rule.validation, rule.validation + rule.test, 1.0)
    out: dict[int, str] = {}
    for group in groups:
        at = place_of(min(pictures[i].digest for i in group), rule.seed)
        name = next(name for name, edge in zip(NAMES, edges, strict=True) if at < edge)
        out |= dict.fromkeys(group, name)
    return out


def _shares(groups: Sequence[Sequence[int]], places: dict[int, str], rule: Rule) -> list[Share]:
    pictures = Counter(places.values())
    number = Counter(places[group[0]] for group in groups)
    wanted = {"train": 1 - rule.validation - rule.test, "validation": rule.validation, "test": rule.test}
    return [
        Share(name, pictures[name], number[name], pictures[name] / max(1, len(places)), wanted[name])
        for name in wanted
        if wanted[name]
    ]
