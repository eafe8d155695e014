"""That the folder's table and its files agree, and that old pictures make room for new ones. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sdtune.serve.queue import Job, Picture, Queue
from sdtune.serve.store import Store, is_id, picture_id


def settle(queue: Queue, store: Store, most: int) -> Iterator[str]:
    """After whatever ended the last server, while nobody writes: remarks on what was not as it should be."""
    store.tidy()
    for job in queue.begun():
        adopt(queue, store, job)
    known, there = queue.kinds(), store.names()
    if lost := [name for name, kind in known.items() if not store.path(name, kind).is_file()]:
        queue.drop_pictures(lost)
        yield f"{len(lost)} pictures are not on the disk any more; what has begun is drawn again, the rest is forgotten"
    if strange := [(name, kind) for name, kind in there if name not in known]:
        for name, kind in strange:
            store.remove(name, kind)
        yield f"{len(strange)} files were of no picture that is known, and are removed"
    prune(queue, store, most)


def adopt(queue: Queue, store: Store, job: Job) -> list[Picture]:
    """The pictures of a job that lie whole on the disk, and of which the worker had no time to tell."""
    known, found = {picture.number for picture in queue.pictures_of(job.id)}, list[Picture]()
    for number in range(job.pictures):
        name = picture_id(job.id, number)
        if number not in known and (record := _record(store, name)) is not None:
            kind = "tuned" if record.get("tuned") or record.get("adapters") else "original"
            queue.add_picture(name, job.id, number, kind, record)
            found += [picture] if (picture := queue.picture(name)) else []
    return found


def _record(store: Store, name: str) -> dict[str, Any] | None:
    """What `sample.save_png` wrote beside the picture, after it."""
    path = store.path(name, "drawn")
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if path.is_file() and isinstance(record, dict) else None


def prune(queue: Queue, store: Store, most: int) -> None:
    """Let the oldest pictures beyond `most` go that no open job needs, and with them the ended jobs that are as old."""
    old = queue.beyond(most)
    queue.drop_pictures([picture.id for picture in old])
    queue.forget_jobs(most, all_before=bool(old))
    for picture in old:  # of the table first: what is then left behind is no picture, and goes at the next start
        if is_id(picture.id):
            store.remove(picture.id, picture.kind)
