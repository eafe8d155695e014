"""Folders of captioned pictures to examples: read, checked to the last byte, split. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TypeVar

from sdtune import hub
from sdtune.data import images, looking, masks, readers
from sdtune.data.caption import every_variant, variants
from sdtune.data.check import findings
from sdtune.data.check.findings import Fit
from sdtune.data.check.kinds import policy
from sdtune.data.config import DataConfig, Source
from sdtune.data.images import Remark
from sdtune.data.layouts import Entry, Fault, Found, called, listed, plural
from sdtune.data.looking import Looked, MaskLooked
from sdtune.data.places import PREFIX, hub_copy
from sdtune.data.readers import arrow
from sdtune.data.readers.imagefolder import METADATA
from sdtune.data.wildcards import balanced
from sdtune.errors import DataError

VALIDATION = ("validation", "valid", "val", "dev")
TEST = ("test", "testing", "eval")
TRAIN = ("train", "training")
TOLD_S = 0.3
"""How often it is told how many files and captions there are so far."""
_SHOWN = 200
"""So many faults are told one by one."""


@dataclass(frozen=True)
class Example:
    """A picture with its captions, prefix and suffix included. Empty captions stand for no caption."""

    image: Path
    captions: tuple[str, ...]
    size: tuple[int, int]
    """Width and height in pixels, upright."""
    weight: float = 1.0
    mask: Path | None = None
    """Picture file that is white where this one counts; or `image` itself, whose opacity says that. None: it counts in full."""
    mask_digest: str = ""
    """sha256 of the mask's file."""
    mask_mean: float = 1.0
    """Mean of the mask, 0 to 1."""
    digest: str = ""
    """sha256 of the file."""
    repeats: int = 1
    """How often an epoch shows it."""
    look: int = 0
    """Its difference hash, see `likeness`."""
    colours: bytes = b""
    """Its coarse colours, see `likeness`."""
    group: int = 0
    """Batches take from the groups in turn, so that each gets the same share. 1: class pictures of prior preservation."""


@dataclass(frozen=True)
class Splits:
    train: list[Example]
    validation: list[Example]
    notes: list[str]
    """What was recognised, left out or changed: for the user to read."""
    warned: list[Fault] = field(default_factory=list)
    """The findings among them that are let pass."""


Progress = Callable[[int, int], object]
"""Told how many pictures of a folder are read, and of how many."""
T = TypeVar("T")
Reading = Generator[tuple[int, int], None, T]
"""Yields what `Progress` is told, before each picture, and gives what was found. While it is not known how many there are, the total
is 0 and what is counted are files and captions."""


def read_through(reading: Reading[T], progress: Progress | None = None) -> T:
    """What `reading` ends with."""
    while True:
        try:
            done, total = next(reading)
        except StopIteration as end:
            found: T = end.value
            return found
        if progress:
            progress(done, total)


@dataclass
class Survey:
    """What is there, before it is judged: the pictures without those that `data.on` leaves out, and all that was found."""

    config: DataConfig
    train: list[Example]
    validation: list[Example]
    faults: list[Fault]
    notes: list[str]
    """How the folder was read."""
    root: Path
    """What names are relative to."""

    def decided(self) -> list[tuple[Fault, str, str]]:
        """Each finding with its policy and the key that says so."""
        return _decided(self.faults, self.config)


@dataclass
class _Collected:
    """What a folder gives before it is known whether its faults are let pass."""

    examples: list[Example] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    """What is wrong, and what is worth saying."""
    notes: list[str] = field(default_factory=list)
    masked: bool = False
    """Whether there are masks, be they right or wrong."""


def resolve(path: str, *, download: bool = False) -> Path:
    """The folder meant by `path`: "embedded:NAME" is a set that comes with sdtune, "hf:NAME" one of the Hub. Raises DataError."""
    if path.startswith("embedded:"):
        sets = Path(str(resources.files("sdtune"))) / "demo" / "sets"
        name = path.removeprefix("embedded:")
        known = sorted(p.name for p in sets.iterdir() if p.is_dir()) if sets.is_dir() else []
        if name not in known:
            raise DataError(f"{path}: no such embedded set; known: {', '.join(known) or 'none'}")
        return sets / name
    folder = hub_copy(path, download=download) if path.startswith(PREFIX) else Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file; give the folder that holds the pictures" if folder.exists() else "no such folder"
        raise DataError(f"{path}: {what}")
    return folder


def locate(path: str, *, download: bool = False) -> Path:
    """What a source names: a folder as `resolve` knows it, a dataset file, or a pattern of tar files. Raises DataError."""
    if path.startswith(PREFIX):
        return hub_copy(path, download=download)
    named = Path(path).expanduser()
    if path.startswith("embedded:") or named.is_dir():
        return resolve(path)
    pattern = any(c in named.name for c in "*?{[") and named.parent.is_dir()
    if not pattern and not named.is_file():
        wild = any(c in str(named.parent) for c in "*?{[") and not named.parent.exists()
        what = "a pattern may stand in the name of the files alone; name each folder in data.sources"
        raise DataError(f"{path}: {what if wild else 'no such folder'}")
    if not pattern and named.suffix.lower() in images.SUFFIXES:
        raise DataError(f"{path}: is a file; give the folder that holds the pictures")
    return named.parent if named.name in METADATA else named


def root_of(config: DataConfig) -> Path:
    """The folder that pictures are named by: the first source's, or the one of its file or pattern."""
    place = locate(config.places()[0].path, download=config.download)
    return place if place.is_dir() else place.parent


def scan(config: DataConfig, *, seed: int = 0, fit: Fit | None = None) -> Splits:
    """What `scanning` ends with."""
    return read_through(scanning(config, seed=seed, fit=fit))


def scanning(config: DataConfig, *, seed: int = 0, fit: Fit | None = None) -> Reading[Splits]:
    """The training and validation pictures of `config`. Raises DataError that lists everything that is wrong.

    Without a validation folder, the pictures with the lowest hash of `seed` and their bytes are kept for validation:
    the choice does not depend on names or order, and a copy of a picture goes where the picture goes.
    `fit`: what the model reads; captions and sizes are looked at only with it.
    """
    found = yield from surveying(config, seed=seed, fit=fit)
    notes = found.notes + judge(found.faults, config, config.label)
    if not found.train:
        raise DataError("\n".join([f"{config.label}: no picture is left to train on", *notes]))
    if not found.validation:
        notes.append("no validation pictures: no validation loss, and nothing held out to compare with")
    warned = [fault for fault, what, _ in found.decided() if what == "warn"]
    return Splits(found.train, found.validation, notes, warned)


def survey(
    config: DataConfig, *, seed: int = 0, fit: Fit | None = None, quick: bool = False, progress: Progress | None = None
) -> Survey:
    """What `surveying` ends with."""
    return read_through(surveying(config, seed=seed, fit=fit, quick=quick), progress)


def surveying(config: DataConfig, *, seed: int = 0, fit: Fit | None = None, quick: bool = False) -> Reading[Survey]:
    """What `scan` finds, judged by nobody yet. Raises DataError only if there is nothing to be read.

    `quick`: of pictures only their headers are read, and nothing is known of damage, copies, look-alikes and masks.
    """
    images.colour(config.background)
    places, root, fit = config.places(), root_of(config), fit or Fit()
    all_of, validation = _Collected(), list[Example]()
    for place in places:
        part, held_out = yield from _scan_place(place, config, first=place is places[0], quick=quick)
        name = f"{place.path}: " if len(places) > 1 else ""
        all_of.examples += part.examples
        all_of.faults += [replace(f, where=name + f.where) for f in part.faults]
        all_of.notes += [name + note for note in part.notes]
        all_of.masked |= part.masked
        validation += held_out

    def look(found: Iterable[Fault]) -> None:
        """Take note of what was found, and leave out what it says."""
        new = list(found)
        all_of.faults += new
        all_of.examples, validation[:] = (_without(part, new, config) for part in (all_of.examples, validation))

    def called(path: Path) -> str:
        return _relative(path, root)

    look(_nothing_masked(all_of, config))
    all_of.faults, first = [], all_of.faults
    look(first)
    look(findings.of_sizes([*all_of.examples, *validation], config, fit, called))
    look(findings.of_captions([*all_of.examples, *validation], fit, called))
    look(findings.copies(all_of.examples, called))
    look(findings.copies(validation, called))
    look(findings.near_copies(all_of.examples, called))
    look(findings.leaks(all_of.examples, validation, called))
    if not validation:
        validation += _by_hash(all_of, config, seed)
    look(findings.near_leaks(all_of.examples, validation, called))
    if config.varies_captions:  # held-out pictures are judged by their caption as it stands
        validation = [replace(e, captions=e.captions[:1]) for e in validation]
    return Survey(config, all_of.examples, validation, all_of.faults, all_of.notes, root)


def _scan_place(
    place: Source, config: DataConfig, *, first: bool, quick: bool
) -> Reading[tuple[_Collected, list[Example]]]:
    """What one source gives to train on, with its faults and notes; and what it holds out itself."""
    root = locate(place.path, download=config.download)
    if root.is_dir():
        train_folder, validation_folder, skip, notes = split_folders(root, config, first=first)
    else:
        train_folder, validation_folder, skip, notes = root, None, (), []
        validation_folder = (
            resolve(config.validation, download=config.download) if first and config.validation else None
        )
    train = yield from _collect(train_folder, config, skip, layout=place.layout, masked=True, quick=quick)
    parts, validation = [(train_folder, train)], list[Example]()
    if train_folder == root:
        validation = _by_row(train, train_folder)
    if validation_folder:
        inside = validation_folder.is_relative_to(root)
        layout = place.layout if inside else "auto"
        part = yield from _collect(validation_folder, config, layout=layout, masked=True, quick=quick)
        parts.append((validation_folder, part))
        validation = part.examples
    faults = [replace(f, where=_within(folder, root, f.where)) for folder, part in parts for f in part.faults]
    for folder, part in parts:
        notes += [n if len(parts) == 1 else f"{folder.name}/: {n}" for n in part.notes]
    examples = train.examples
    if (place.repeats, place.weight) != (1, 1):
        examples = [replace(e, repeats=e.repeats * place.repeats, weight=e.weight * place.weight) for e in examples]
    if place.repeats > 1:
        notes.append(f"each picture {place.repeats} times in an epoch")
    if place.weight != 1:
        notes.append(f"the loss of its pictures counts {place.weight:g}")
    return _Collected(examples, faults, notes, any(part.masked for _, part in parts)), validation


def scan_class(folder: Path, config: DataConfig) -> tuple[list[Example], list[str]]:
    """Class pictures for prior preservation: all with the class prompt, a group and a weight of their own, and no masks. And notes.

    Raises DataError.
    """
    assert config.class_prompt
    # the prefix serves those without a caption, which is as it should be here
    on = replace(config.on, bare="ignore")
    plain = replace(config, caption_prefix=config.class_prompt, caption_suffix="", on=on)
    examples, notes = scan_folder(folder, plain)
    return [replace(e, captions=(config.class_prompt,), weight=config.prior_weight, group=1) for e in examples], notes


def scan_folder(
    folder: Path, config: DataConfig, *, layout: str = "auto", masked: bool = False
) -> tuple[list[Example], list[str]]:
    """The examples of one folder, and notes; masks only if asked for. Raises DataError that lists everything that is wrong."""
    images.colour(config.background)
    part = read_through(_collect(folder, config, layout=layout, masked=masked))
    part.faults += findings.copies(part.examples, lambda path: _relative(path, folder))
    notes = part.notes + judge(part.faults, config, folder)
    part.examples = _without(part.examples, part.faults, config)
    if not part.examples:
        raise DataError("\n".join([f"{folder}: no picture is left", *notes]))
    return part.examples, notes


# ---- folders and splits


def split_folders(
    root: Path, config: DataConfig, *, first: bool = True
) -> tuple[Path, Path | None, tuple[str, ...], list[str]]:
    """Training folder, validation folder if there is one, subfolders that are not for training, notes."""
    given = resolve(config.validation, download=config.download) if config.validation and first else None
    if any((root / name).is_file() for name in METADATA):  # its rows say what belongs to which split
        return root, given, (), []
    train = next((root / n for n in TRAIN if (root / n).is_dir()), root)
    inside = next((root / n for n in VALIDATION if (root / n).is_dir()), None)
    tests = [n for n in TEST if (root / n).is_dir()]
    for folder in filter(None, (train, inside)):
        if not folder.resolve().is_relative_to(root.resolve()):
            raise DataError(
                f"{folder}: a link that leaves {root}; name the folder itself in data.validation or data.path"
            )
    notes = []
    if train != root or inside:
        names = [f"{f.name}/" for f in (train, inside) if f and f != root]
        notes.append(f"split folders: {', '.join(names)}")
    if given and inside and given.resolve() != inside.resolve():
        notes.append(f"{inside.name}/ is left alone: data.validation names another folder")
    if tests:
        notes.append(f"{', '.join(f'{t}/' for t in tests)} is left alone: neither trained on nor validated with")
    if train != root and (loose := [p.name for p in sorted(root.iterdir()) if p.suffix.lower() in images.SUFFIXES]):
        notes.append(f"{plural(len(loose), 'picture')} beside {train.name}/, left alone: {listed(loose)}")
    skip = (*VALIDATION, *TEST) if train == root else ()
    return train, given or inside, skip, notes


def held_out_part(root: Path) -> Path:
    """The held-out test pictures of a set, where it has such a folder; else the set itself."""
    return next((root / name for name in TEST if (root / name).is_dir()), root)


def _by_row(train: _Collected, folder: Path) -> list[Example]:
    """Take the pictures out of `train` that lie in split folders, as rows of one metadata file can have them."""
    split = {e.image: split_of(e.image, folder) for e in train.examples}
    validation = [e for e in train.examples if split[e.image] in VALIDATION]
    kept = [e for e in train.examples if split[e.image] not in VALIDATION + TEST]
    if test := len(train.examples) - len(kept) - len(validation):
        train.notes.append(f"{plural(test, 'picture')} in {TEST[0]}/: neither trained on nor validated with")
    if validation:
        train.notes.append(f"split by folders: {len(kept)} train, {len(validation)} validation")
    train.examples = kept
    return validation


def split_of(image: Path, folder: Path) -> str:
    """The split folder inside `folder` that a picture lies in, or what the file of its row is called after; "" or another name for none."""
    if named := arrow.split_of(image, folder):
        return named
    depth = len(folder.parts)
    return image.parts[depth] if image.parts[:depth] == folder.parts else ""


def _by_hash(train: _Collected, config: DataConfig, seed: int) -> list[Example]:
    """Take a share of the pictures out of `train`, at least one and never all, copies of one picture together."""
    ranked = sorted({e.digest for e in train.examples}, key=lambda d: hashlib.sha256(f"{seed}/{d}".encode()).digest())
    count = min(max(1, round(config.validation_share * len(ranked))), config.validation_most, len(ranked) - 1)
    count = count if config.validation_share and ranked else 0
    held = set(ranked[:count])
    validation = [e for e in train.examples if e.digest in held]
    train.examples = [e for e in train.examples if e.digest not in held]
    if validation:
        train.notes.append(f"{plural(len(validation), 'picture')} kept for validation (data.validation_share)")
    return validation


def _within(folder: Path, root: Path, where: str) -> str:
    return where if folder == root else f"{_relative(folder, root)}/{where}"


def _relative(path: Path, root: Path) -> str:
    return called(path, root)


def _decided(faults: Sequence[Fault], config: DataConfig) -> list[tuple[Fault, str, str]]:
    return [(f, *policy(f.kind, config.on, config.on_bad, skippable=f.skippable)) for f in faults]


def _without(examples: list[Example], faults: Sequence[Fault], config: DataConfig) -> list[Example]:
    """The examples that no finding leaves out."""
    out = {path for f, what, _ in _decided(faults, config) if what == "skip" for path in f.out or f.pictures}
    return [e for e in examples if e.image not in out] if out else examples


def judge(faults: Sequence[Fault], config: DataConfig, root: Path | str) -> list[str]:
    """Notes for the faults that are let pass; raises DataError with all faults if one is not."""
    decided = _decided(faults, config)
    stopping = [(f, key) for f, what, key in decided if what == "fail"]
    if stopping:
        lines = [f"{root}: {plural(len(stopping), 'fault')}", *(str(f) for f, _ in stopping[:_SHOWN]), *_more(stopping)]
        keys = dict.fromkeys(key for _, key in stopping)
        if "" not in keys and "data.on.leak" not in keys:
            lines.append(f"mend them, or set {', '.join(f'{key}=skip' for key in keys)} to leave them out")
        raise DataError("\n".join(lines))
    notes = findings.told([f for f, what, _ in decided if what == "warn"])
    for key in dict.fromkeys(key for _, what, key in decided if what == "skip"):
        left = [f for f, what, other in decided if what == "skip" and other == key]
        notes.append(f"{len(left)} left out ({key}=skip)")
        notes += [f"left out ({key}=skip): {f}" for f in left[:_SHOWN]] + _more(left)
    return notes


def _more(faults: Sequence[object]) -> list[str]:
    return [f"... and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []


# ---- one folder


def _collect(
    folder: Path, config: DataConfig, skip: Collection[str] = (), *, layout: str = "auto", masked: bool = False,
    quick: bool = False,
) -> Reading[_Collected]:  # fmt: skip
    """Read one folder (or file, or pattern) and check every picture in it, and its mask if it is `masked`; or `quick` see `surveying`."""
    found = yield from _reading(partial(
        readers.read, folder, config.caption_column, skip, layout=layout, roots=roots_of(folder, config),
        masked=masked and config.mask == "files", mask_folder=mask_folder_of(config, folder) if masked else None,
    ))  # fmt: skip
    folder = folder if folder.is_dir() else folder.parent
    if not found.entries and not found.faults:
        found.fault(folder.name, "no pictures here; give a folder of pictures with captions")
    out = _Collected(faults=found.faults, notes=found.notes)
    pictures = [entry.image for entry in found.entries]
    with_mask = [] if quick else [entry.mask.file for entry in found.entries if entry.mask]
    with (
        closing(looking.glance(pictures, config) if quick else looking.look(pictures, config)) as seen,
        closing(looking.look_at_masks(with_mask, config)) as seen_masks,
    ):
        for done, (entry, looked) in enumerate(zip(found.entries, seen, strict=True)):
            yield done, len(found.entries)
            image, mask = entry.image, next(seen_masks) if with_mask and entry.mask else None
            try:
                if isinstance(looked, images.Unusable):
                    raise looked
                example, said = _example(entry, looked, mask, folder, config, masked and not quick)
            except images.Unusable as error:
                out.faults.append(Fault(_relative(image, folder), str(error), True, error.kind, (image,)))
                continue
            out.faults += [Fault(_relative(image, folder), remark.text, True, remark.kind, (image,)) for remark in said]
            if example.captions or config.caption_prefix.strip() or config.caption_suffix.strip():
                out.examples.append(example)
            else:
                out.faults.append(_captionless(entry, folder))
    out.examples = [_decorated(e, config) for e in out.examples]
    out.masked = quick or any(e.mask for e in found.entries) or any(e.mask for e in out.examples)
    if masked and config.mask != "none" and not quick:
        out.notes += _mask_notes(found.entries, out.examples, config)
        out.faults += _without_mask(out.examples, folder)
    kept = {e.image for e in out.examples}
    if several := sum(len(e.captions) > 1 for e in found.entries if e.image in kept):
        out.notes.append(f"{plural(several, 'picture')} with several captions: one is drawn at each visit")
    out.notes += _variant_notes(found.entries, config) if config.varies_captions else []
    out.faults += _bare(found.entries, out.examples, folder, config)
    return out


def _reading(read: Callable[..., Found]) -> Reading[Found]:
    """What `read` finds, in another thread; meanwhile how many files and captions there are so far, of nobody knows how many (0)."""
    found = Found()
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(read, found=found)
        try:
            while not wait([begun], timeout=TOLD_S).done:
                yield found.listed + len(found.entries), 0
        except BaseException:
            found.stopped = True
            raise
    return begun.result()


def roots_of(folder: Path, config: DataConfig) -> list[Path]:
    """Where the files of `folder` may lead beside itself: data.roots, and the store of the Hub's cache if it is a copy there."""
    return [*map(resolve, config.roots), *hub.blobs(folder)]


def mask_folder_of(config: DataConfig, folder: Path) -> Path | None:
    """The folder of masks that is named, if one is. Raises DataError if it is that of the pictures."""
    if not config.mask_path:
        return None
    named = resolve(config.mask_path)
    if folder.resolve().is_relative_to(named.resolve()):
        raise DataError(
            f"data.mask_path: {config.mask_path} holds the pictures, too; masks beside their pictures are found without it"
        )
    return named


def _example(
    entry: Entry,
    looked: Looked,
    mask: MaskLooked | images.Unusable | None,
    folder: Path,
    config: DataConfig,
    masked: bool,
) -> tuple[Example, tuple[Remark, ...]]:
    """The entry with its picture and its checked mask, and remarks on it. Raises Unusable without a name."""
    digest, checked = looked
    example = Example(
        entry.image, entry.captions, checked.size, digest=digest, repeats=entry.repeats, look=checked.look,
        colours=checked.colours,
    )  # fmt: skip
    if masked and config.mask == "alpha" and checked.opacity < 1:
        if not checked.opacity:
            what = 'transparent everywhere, so that nothing of it counts (data.mask="alpha"); take it away'
            raise images.Unusable(what, "bad_mask")
        example = replace(example, mask=entry.image, mask_digest=example.digest, mask_mean=checked.opacity)
    elif entry.mask and mask:
        try:
            if isinstance(mask, images.Unusable):
                raise mask
            mean = masks.check(mask.measured, checked.size)
        except DataError as error:
            raise images.Unusable(f"its mask {_relative(entry.mask.file, folder)}: {error}", "bad_mask") from None
        example = replace(example, mask=entry.mask.file, mask_digest=mask.digest, mask_mean=mean)
    if wrong := images.mislabelled(entry.image.name, checked.format):
        return example, (*checked.remarks, Remark("mislabelled", wrong))
    return example, checked.remarks


def _captionless(entry: Entry, folder: Path) -> Fault:
    where = _relative(entry.image, folder)
    what = f"no caption in {entry.where}; write one"
    if ":" not in entry.where:
        state = "is empty" if (folder / entry.where).exists() else "is missing"
        what = f"no caption: {entry.where} {state}; write one"
    return Fault(where, what, True, "no_caption", (entry.image,))


def _decorated(example: Example, config: DataConfig) -> Example:
    captions = every_variant(example.captions, config)
    return example if captions == example.captions else replace(example, captions=captions)


def _bare(entries: Sequence[Entry], examples: Sequence[Example], folder: Path, config: DataConfig) -> Iterable[Fault]:
    """Pictures that have the prefix and suffix for a caption."""
    used, what = {e.image for e in examples}, f"without a caption, shown with {variants('', config)[0]!r} alone"
    for entry in entries:
        if entry.image in used and not entry.captions:
            yield Fault(_relative(entry.image, folder), what, True, "bare", (entry.image,))


def _variant_notes(entries: Sequence[Entry], config: DataConfig) -> list[str]:
    """An example of a caption's versions, and captions whose braces cannot be read."""
    captions = list(dict.fromkeys(caption for e in entries for caption in e.captions or ("",)))
    varied = [versions for caption in captions if len(versions := variants(caption, config)) > 1]
    keys = ", ".join(f"data.{key}" for key in ("shuffle_tags", "tag_dropout", "wildcards") if getattr(config, key))
    notes = [f"{keys}: no effect, no caption has anything to vary"]
    if varied:
        example = min(varied, key=lambda versions: len(versions[0]))
        many = (
            f"{len(varied)} of {plural(len(captions), 'caption')} in up to {config.caption_variants} versions ({keys})"
        )
        notes = [f"{many}; the first is {example[0]!r}, then {example[1]!r}"]
    if config.wildcards and (odd := [c for c in captions if not balanced(c)]):
        notes.append(
            f"{plural(len(odd), 'caption')} with a brace too many, left as it stands: {listed([repr(c) for c in odd])}"
        )
    return notes


def _without_mask(examples: Sequence[Example], folder: Path) -> Iterable[Fault]:
    """Pictures without a mask where others have one."""
    if any(e.mask for e in examples):
        for e in examples:
            if not e.mask:
                what = "without a mask, counted in full"
                yield Fault(_relative(e.image, folder), what, True, "no_mask", (e.image,))


def _mask_notes(entries: Sequence[Entry], examples: Sequence[Example], config: DataConfig) -> list[str]:
    """How many pictures have a mask, where the masks are from, and how much of the pictures they let count."""
    means = [e.mask_mean for e in examples if e.mask]
    kinds = ["opacity"] if config.mask == "alpha" else sorted({e.mask.kind for e in entries if e.mask})
    said = f"{len(means)} of {plural(len(examples), 'picture')} {'has' if len(means) == 1 else 'have'} a mask"
    if not means:
        return [said]
    average = sum(means) / len(means)
    return [
        f"{said} ({', '.join(kinds)}); what counts is {min(means):.0%} to {max(means):.0%} of a picture, {average:.0%} on average"
    ]


def _nothing_masked(train: _Collected, config: DataConfig) -> list[Fault]:
    """A fault if masks are asked for and no picture has one: it would be trained as if nothing had been asked."""
    stopped = any(not fault.skippable for fault in train.faults)  # by what may be the reason
    if config.mask == "none" or train.masked or stopped or not train.examples:
        return []
    if config.mask == "alpha":
        return [Fault('data.mask="alpha"', "no picture is transparent anywhere; JPEG, for one, cannot be")]
    name = train.examples[0].image.stem
    where = f'{name}{masks.LABEL}.png beside {train.examples[0].image.name}, masks/{name}.png, a column "mask", data.mask_path'
    return [Fault('data.mask="files"', f"no picture has a mask; looked for: {where}")]
