"""Pictures that are drawn once: kept in a folder by all that they depend on, and drawn again only where that has changed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sdtune.config import OF_PICTURES, SAME_PICTURES, SampleConfig
from sdtune.files import write_json

if TYPE_CHECKING:
    from torch import nn

    from sdtune.model import Model

T = TypeVar("T")
INDEX = "index.json"


class Progress(NamedTuple):
    """`done` of `total` of what is being done."""

    what: str
    done: int
    total: int


def run_through(parts: Generator[Progress, None, T], progress: Callable[[Progress], None] | None = None) -> T:
    """Run the generator to its end, telling its steps; what it returns."""
    while True:
        try:
            step = next(parts)
        except StopIteration as end:
            result: T = end.value
            return result
        if progress:
            progress(step)


def draw_missing(
    model: Model, config: SampleConfig, jobs: Sequence[tuple[str, int, Path]], what: str
) -> Iterator[Progress]:
    """Draw (prompt, seed, file) with the model as it is, into one folder; what is there whole, of the same weights and settings, stays,
    and what belongs to none of the jobs goes. INDEX beside them has key, checksum and flaw of each."""
    from sdtune.sample import sample, save_png

    folder = jobs[0][2].parent
    index_file, weights = folder / INDEX, _digest(model.denoiser) + model.fingerprint
    passed = ("prompts", "seeds", *SAME_PICTURES, *OF_PICTURES)
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in passed}
    common = [weights, str(model.dtype), model.resolution, settings, *([model.chunks] if model.chunks > 1 else [])]
    keys = {path: hashlib.sha256(json.dumps([*common, p, s]).encode()).hexdigest() for p, s, path in jobs}
    kept = {path.name: row for path, row in _read_index(index_file, keys).items()}
    _sweep(folder, set(kept))
    done = len(kept)
    yield Progress(what, done, len(jobs))
    for seed in dict.fromkeys(s for _, s, _ in jobs):
        missing = {p: path for p, s, path in jobs if s == seed and path.name not in kept}
        for picture in sample(model, config, prompts=list(missing), seeds=(seed,)) if missing else ():
            path = missing[picture.prompt]
            save_png(picture, path)
            kept[path.name] = {"key": keys[path], "sha256": _file_digest(path)}
            kept[path.name] |= {"flaw": picture.flaw} if picture.flaw else {}
            write_json(index_file, kept)
            done += 1
            yield Progress(what, done, len(jobs))


def _read_index(file: Path, keys: dict[Path, str]) -> dict[Path, dict[str, str]]:
    """The pictures that are whole and were drawn with the same key."""
    try:
        rows: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    good = {}
    for path, key in keys.items():
        row = rows.get(path.name)
        if (
            isinstance(row, dict)
            and row.get("key") == key
            and path.exists()
            and row.get("sha256") == _file_digest(path)
        ):
            good[path] = row
    return good


def _sweep(folder: Path, keep: set[str]) -> None:
    """Remove pictures of earlier prompts or weights, so that the folder holds one comparison only."""
    for path in [*folder.glob("*.png"), *folder.glob("*-*.json")]:
        if path.with_suffix(".png").name not in keep:
            path.unlink()


def _digest(module: nn.Module) -> str:
    import torch

    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
