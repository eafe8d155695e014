"""WebDataset's tar files: what shares a name up to the first dot is one sample, a picture and its .txt or .json."""

from __future__ import annotations

import json
import tarfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

from sdtune.data import archives
from sdtune.data.images import SUFFIXES
from sdtune.data.layouts import AUTO_COLUMN, Entry, Folder, Found, captions_of, listed, not_utf8, outside, plural
from sdtune.data.masks import Mask
from sdtune.data.readers.base import Reader
from sdtune.data.readers.named import chosen, tell_of_missing

LARGEST_TEXT = 2**20
OTHERS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Compressed: nothing in them can be read alone."""


class WebDataset(Reader):
    """Shards in the folder, or those that a pattern such as {00000..00009}.tar names; as img2dataset writes them, too.

    A picture KEY.mask.png is the mask of the sample's own.

    The caption is the .txt, one a line; else "caption" of the .json, or what data.caption_column names there.
    """

    name = "webdataset"
    has_rows = True
    file = "*.tar"

    def recognises(self, folder: Folder) -> bool:
        return bool(_shards(folder) or _others(folder)) and (folder.file is not None or not folder.pictures)

    def read(self, folder: Folder, found: Found) -> None:
        shards, others = _shards(folder), _others(folder)
        for path in others:
            what = (
                "rename it to .tar"
                if path.suffix.lower() == archives.SUFFIX
                else "unpack it to .tar, to be read where it lies"
            )
            found.fault(folder.name(path), f"not of the name or kind that is read; {what}")
        if not shards and not others:
            name = folder.file.name if folder.file else folder.path.name
            return found.fault(
                name, "no .tar file here; give the folder of the shards, or a pattern such as shards/*.tar"
            )
        tell_of_missing(folder, shards, found)
        without = []
        for shard in shards:
            try:
                members = archives.inside(shard)
            except (tarfile.TarError, OSError, EOFError) as error:
                found.fault(folder.name(shard), f"not an uncompressed tar file, or damaged ({error}); write it again")
                continue
            without += _read_shard(folder, shard, list(members), found)
        if without:
            found.notes.append(f"{plural(len(without), 'sample')} without a picture: {listed(without)}")
        said = f"{plural(len(found.entries), 'picture')} in {plural(len(shards), 'tar file')}"
        return found.notes.insert(0, f"WebDataset: {said}")


def _shards(folder: Folder) -> list[Path]:
    """Those that are named; of a folder those in it, or else those below."""
    inside = chosen(folder, (archives.SUFFIX,))
    return inside or ([p for p in folder.files if p.suffix == archives.SUFFIX] if folder.file is None else [])


def _others(folder: Folder) -> list[Path]:
    """Tar files of other names, and compressed ones."""
    if folder.file is not None:
        return [folder.file] if folder.file.is_file() and _is_other(folder.file) else []
    return [path for path in folder.files if _is_other(path)]


def _is_other(path: Path) -> bool:
    return path.name.lower().endswith(OTHERS) or (path.suffix.lower() == archives.SUFFIX != path.suffix)


def _read_shard(folder: Folder, shard: Path, names: list[str], found: Found) -> list[str]:
    """Entries of one shard; returns the samples without a picture."""
    samples: dict[str, list[str]] = defaultdict(list)
    without = []
    for name in names:
        if PurePosixPath(name).name.startswith("."):  # what macOS puts beside each file
            continue
        if why := outside(name):
            found.fault(folder.name(shard), f"its member {name!a:.80} {why}; write the file again")
            continue
        path = PurePosixPath(name)
        samples[str(path.with_name(path.name.partition(".")[0]))].append(name)
    for key, parts in samples.items():
        pictures = [n for n in parts if PurePosixPath(n).suffix.lower() in SUFFIXES]
        given = [n for n in pictures if len(pictures) > 1 and _end(n).startswith("mask.")]
        pictures = [n for n in pictures if n not in given]
        where = f"{folder.name(shard)}/{key}"
        if len(pictures) > 1:
            found.fault(where, f"has {len(pictures)} pictures ({listed(pictures)}); one is needed", skippable=True)
        elif not pictures:
            without.append(where)
        elif (captions := _captions(folder, shard, parts, where, found)) is not None:
            mask = Mask(shard / given[0], ".mask.png") if given and folder.masked else None
            row = _row(folder, shard, parts) if folder.rows else {}
            found.entries.append(Entry(shard / pictures[0], captions, where, mask, row=row))
    return without


def _end(name: str) -> str:
    """What makes a member a part of a sample: all after the first dot."""
    return PurePosixPath(name).name.partition(".")[2].lower()


def _row(folder: Folder, shard: Path, parts: list[str]) -> dict[str, object]:
    """What the .json says beside the caption; nothing if it cannot be read: where the caption is in it, that is a fault."""
    name = next((n for n in parts if _end(n) == "json"), None)
    if name is None or archives.size(shard / name) > LARGEST_TEXT:
        return {}
    try:
        row = json.loads(archives.read_bytes(shard / name))
    except (ValueError, RecursionError):
        return {}
    column = "caption" if folder.column == AUTO_COLUMN else folder.column
    return {key: value for key, value in row.items() if key != column} if isinstance(row, dict) else {}


def _captions(folder: Folder, shard: Path, parts: list[str], where: str, found: Found) -> tuple[str, ...] | None:
    """The captions of a sample; None if its text cannot be read, which is then a fault."""
    ends = {_end(n): n for n in parts}
    name = ends.get("txt", ends.get("caption", ends.get("json")))
    if name is None:
        return ()
    if archives.size(shard / name) > LARGEST_TEXT:
        found.fault(where, "its text is larger than a megabyte; write it again", skippable=True)
        return None
    raw = archives.read_bytes(shard / name).removeprefix(b"\xef\xbb\xbf")
    try:
        text = raw.decode("utf-8")
        if not name.lower().endswith(".json"):
            return captions_of(text.splitlines())
        row = json.loads(text)
    except UnicodeDecodeError as error:
        found.fault(where, f"its text {not_utf8(raw, error)}", skippable=True, kind="not_utf8")
        return None
    except (ValueError, RecursionError) as error:
        found.fault(where, f"its .json is not valid: {error}; write it again", skippable=True)
        return None
    column = "caption" if folder.column == AUTO_COLUMN else folder.column
    captions = captions_of(row.get(column)) if isinstance(row, dict) else None
    if captions is None:
        found.fault(where, f"{column!r} in its .json is no text or list of texts; write it again", skippable=True)
    return captions
