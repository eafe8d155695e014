"""Where a captioner lies: a folder, or the local copy of a Hub repository. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdtune.captioners.config import Source
from sdtune.errors import ModelError
from sdtune.families.places import PICKLED, is_hub_id
from sdtune.hub import snapshot

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
FILES = ("*.json", "*.txt", "*.safetensors")
"""What is wanted of a repository whose model transformers reads."""
PARTS = (
    ("config.json",),
    WEIGHTS,
    ("preprocessor_config.json", "processor_config.json"),
    ("tokenizer.json", "vocab.txt", "vocab.json"),
)
"""And of each of these at least one."""


def locate(source: Source, wanted: Sequence[str] = FILES, parts: Sequence[Sequence[str]] = PARTS) -> tuple[Path, str]:
    """The folder that holds the files `wanted` (patterns), and its name for messages and records. Raises ModelError."""
    folder, name = Path(source.path).expanduser(), source.path
    if folder.is_dir():
        return folder, name
    if not is_hub_id(name):
        raise ModelError(f"{name}: no such folder; give a folder with the model's files, or a Hub id (owner/name)")
    revision = source.revision or source.usual_revisions.get(name)
    folder = snapshot(name, wanted, revision=revision, download=source.download, remedy="--download fetches it")
    lacking = [part[0] for part in parts if not any((folder / file).is_file() for file in part)]
    if lacking and not source.download:  # other tools may have fetched some of its files
        raise ModelError(
            f"{name}: only a part of it is in the local Hub cache (no {lacking[0]}); --download fetches the rest"
        )
    return folder, f"{name}@{folder.name}"


def weights_of(folder: Path, name: str) -> None:
    """Refuse a folder without safetensors. Raises ModelError."""
    if any((folder / file).is_file() for file in WEIGHTS):
        return
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    there = f"; {pickled[0]} is pickle, which is not opened" if pickled else ""
    raise ModelError(
        f"{name}: no {WEIGHTS[0]}{there}. Many repositories have one under a revision such as refs/pr/7 (--revision)"
    )


def needed(folder: Path, name: str, file: str) -> Path:
    """`file` of the folder. Raises ModelError if it is not there."""
    if not (folder / file).is_file():
        raise ModelError(f"{name}: no {file} there; this is no such model, or a part of it is missing")
    return folder / file
