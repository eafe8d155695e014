"""Where a captioner lies: a folder, or the local copy of a Hub repository. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdtune.captioners.config import Source
from sdtune.errors import ModelError

SETTINGS = ("*.json", "*.txt")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def locate(source: Source, wanted: Sequence[str]) -> tuple[Path, str]:
    """The folder that holds the files `wanted` (patterns), and its name for messages and records. Raises ModelError."""
    folder, name = Path(source.path).expanduser(), source.path
    if folder.is_dir():
        return folder, name
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(f"{name}: no such folder; give a folder with the model's files, or a Hub id (owner/name)")
    folder = _hub_folder(source, wanted)
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


def _hub_folder(source: Source, wanted: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    revision = source.revision or source.usual_revisions.get(source.path)
    try:
        found = snapshot_download(
            source.path, revision=revision, allow_patterns=list(wanted), local_files_only=not source.download
        )
    except LocalEntryNotFoundError:
        at = f" (revision {revision})" if revision else ""
        raise ModelError(
            f"{source.path}{at}: neither a folder nor in the local Hub cache; --download fetches it "
            "(HF_TOKEN for gated models, HF_HOME for the cache's place)"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(f"{source.path}: cannot be fetched from the Hub: {str(error).splitlines()[0]}") from error
    return Path(found)
