"""Pictures from sources into a folder: one after another, each looked at before it is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sdtune.data import images, likeness
from sdtune.data.collect.fetch import Client, FetchError, Halted
from sdtune.data.collect.folder import Folder
from sdtune.data.collect.sources import Found, Source
from sdtune.errors import ConfigError, DataError
from sdtune.happened import Happened

MB = 2**20
MAX_PIXELS = 89_000_000
"""More is no picture to train on, and a burden to decode."""
USUAL = 100
"""Pictures of a search on the network, unless told otherwise."""
LOOKED_AT = 20
"""So many times the limit are looked at in search of pictures that can be kept."""


@dataclass(frozen=True)
class Wish:
    """What is to be collected."""

    query: str = ""
    limit: int | None = None
    """Pictures that the folder is to have of this query and these sources; None: 100, but all of a file or folder."""
    min_side: int = 0
    max_bytes: int = 30 * MB
    captions: str = "auto"
    """query; source: what the source says of a picture, be it a title; auto: its description where it has one, else the query."""
    retry: bool = False
    """Try again what an earlier run could not have, or left."""
    distance: int = likeness.DISTANCE
    """Bits of 64 in which pictures may differ that count as the same; -1: only the same bytes."""

    def __post_init__(self) -> None:
        if self.captions not in ("auto", "query", "source"):
            raise ConfigError(f"--captions {self.captions}: auto, query or source")

    def most(self, sources: Sequence[Source]) -> int | None:
        """Pictures to be had of these sources; None: all there are."""
        return USUAL if self.limit is None and any(s.endless for s in sources) else self.limit


@dataclass(frozen=True)
class Outcome(Happened):
    """What became of one picture, or of a source that broke off."""

    what: Literal["kept", "there", "left", "failed", "ended"]
    """there: it was here before; left: not wanted; failed: could not be had; ended: the source broke off."""
    source: str
    found: Found | None = None
    why: str = ""
    file: str = ""
    done: int = 0
    """Pictures that are there now of what was wished."""


def expected(wish: Wish, sources: Sequence[Source]) -> int:
    """How many pictures there will be at most; 0 where nobody knows."""
    sizes = [s.size for s in sources]
    known = None if None in sizes else sum(filter(None, sizes))
    return min(filter(None, (wish.most(sources), known)), default=0)


def collect(wish: Wish, sources: Sequence[Source], out: Path, client: Client) -> Generator[Outcome, None, None]:
    """Fill `out`, taking from the sources in turn. Ends early, with all in order, when the client is told to stop.

    Raises ConfigError for a folder that cannot be used or pictures that would have no captions, DataError for a damaged folder.
    """
    wish = _checked(wish, sources)
    folder = Folder(out)
    done = folder.count(wish.query, {s.name for s in sources})
    closed: set[str] = set()
    try:
        for found in _candidates(wish, sources, closed) if _open(wish, done) else ():
            if isinstance(found, Outcome):
                yield found
                continue
            outcome = _standing(found, wish, folder) or _fetch(found, wish, folder, client, done)
            done += outcome.what == "kept"
            yield outcome
            if outcome.what == "kept" and (ended := _reported(found, sources)):
                closed.add(found.source)
                yield ended
            if not _open(wish, done):
                return
    except Halted:
        return
    finally:
        folder.write()


def preview(wish: Wish, sources: Sequence[Source], out: Path) -> Generator[Outcome, None, None]:
    """What `collect` would try to fetch, by what the sources say: nothing is written, no picture fetched. Raises the same."""
    wish = _checked(wish, sources)
    folder = Folder(out)
    done = folder.count(wish.query, {s.name for s in sources})
    try:
        for found in _candidates(wish, sources) if _open(wish, done) else ():
            if isinstance(found, Outcome):
                yield found
            elif _standing(found, wish, folder) is None:
                done += 1
                yield Outcome("kept", found.source, found, done=done)
            if not _open(wish, done):
                return
    except Halted:
        return


def _checked(wish: Wish, sources: Sequence[Source]) -> Wish:
    """The wish with its limit. Raises ConfigError where pictures would have no captions."""
    if not wish.query and wish.captions == "query" and not all(s.captioned for s in sources):
        raise ConfigError("no QUERY: give one, or leave out --captions query")
    return replace(wish, limit=wish.most(sources))


def _open(wish: Wish, done: int) -> bool:
    return wish.limit is None or done < wish.limit


def _candidates(wish: Wish, sources: Sequence[Source], closed: Collection[str] = ()) -> Iterator[Found | Outcome]:
    """What the sources find, one from each in turn, each picture once; no more from those in `closed`."""
    bound = 10**9 if wish.limit is None else LOOKED_AT * max(wish.limit, 10)
    searches = [(source.name, source.search(wish.query, bound)) for source in sources]  # two may have one name
    seen: set[str] = set()
    while searches:
        for turn in list(searches):
            name, search = turn
            try:
                found = None if name in closed else next(search, None)
            except DataError as error:  # FetchError is one
                searches.remove(turn)
                yield Outcome("ended", name, why=str(error))
                continue
            if found is None:
                searches.remove(turn)
            elif found.key not in seen and found.url and found.id:
                seen.add(found.key)
                yield found


def _standing(found: Found, wish: Wish, folder: Folder) -> Outcome | None:
    """What is known of a picture without fetching it; None if it is to be fetched."""
    if found.key in folder.keys or found.url in folder.urls:
        return Outcome("there", found.source, found)
    if (why := folder.left.get(found.key)) and not wish.retry:
        return Outcome("left", found.source, found, f"{why}, in an earlier run")
    if why := _too_small((found.width, found.height), wish.min_side):
        return Outcome("left", found.source, found, why)
    if found.width * found.height > MAX_PIXELS:
        return Outcome("left", found.source, found, f"{found.width}x{found.height} is more than {MAX_PIXELS} pixels")
    if not _text(found, wish):
        return Outcome("left", found.source, found, "no caption, and no QUERY to take as one")
    return None


def _text(found: Found, wish: Wish) -> str:
    """The caption that a picture will have; "" for none."""
    said = found.caption or found.title
    match wish.captions:
        case _ if found.own:
            return found.caption
        case "query":
            return wish.query
        case "source":
            return said or wish.query
    return found.description or wish.query or said


def _fetch(found: Found, wish: Wish, folder: Folder, client: Client, done: int) -> Outcome:
    try:
        data = client.file(found.url, wish.max_bytes)
        suffix, size, hashed = look(data)
    except DataError as error:  # FetchError is one
        folder.leave(found, str(error))
        return Outcome("failed", found.source, found, str(error), done=done)
    digest = hashlib.sha256(data).hexdigest()
    if why := _too_small(size, wish.min_side) or folder.twin(digest, hashed, wish.distance):
        folder.leave(found, why)
        return Outcome("left", found.source, found, why, done=done)
    name = folder.add(found, wish.query, _text(found, wish), data, suffix, hashed)
    return Outcome("kept", found.source, found, file=name, done=done + 1)


def look(data: bytes) -> tuple[str, tuple[int, int], int]:
    """Suffix, upright size and likeness of a picture that can be read to its end. Raises DataError."""
    try:
        seen = images.check(data, max_pixels=MAX_PIXELS)
    except DataError as error:
        raise DataError(str(error).partition(";")[0]) from None  # the rest is for those whose file it is
    return images.KINDS[seen.format][0], seen.size, seen.look


def _too_small(size: tuple[int, int], least: int) -> str:
    """Why it is too small, by a size that may be unknown (0)."""
    return f"{size[0]}x{size[1]} is smaller than --min-side {least}" if 0 < min(size) < least else ""


def _reported(found: Found, sources: Sequence[Source]) -> Outcome | None:
    try:
        next(s for s in sources if s.name == found.source).fetched(found)
    except FetchError as error:
        return Outcome("ended", found.source, why=str(error))
    return None
