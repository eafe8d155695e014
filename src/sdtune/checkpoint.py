"""Checkpoints: whole or absent, checked when read, pruned only after the new one stands.

checkpoints/step-000250/   weights.safetensors   the trained parameters, fp32, by name
                           optimizer.safetensors the optimiser's moments
                           ema.safetensors       their moving average, if there is one
                           state.json            step, what the run is, best validation loss, the optimiser's numbers
                           manifest.json         size and sha256 of each file, written last
checkpoints/best/          weights.safetensors   those of the lowest validation loss so far (the moving average's, if there is one)
                           state.json, manifest.json
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdtune.errors import RunError
from sdtune.files import write_json
from sdtune.runs import Run

FILES = ("weights.safetensors", "optimizer.safetensors", "ema.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def tensors(self, file: str) -> dict[str, Tensor] | None:
        """The tensors of one of FILES; None if the checkpoint has no such file."""
        return load_file(self.path / file) if (self.path / file).exists() else None


def save(
    run: Run, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], *, keep: int, name: str = ""
) -> Path:
    """Write `tensors` (file name -> tensors by name) and `state` as one checkpoint, then remove all but the newest `keep`.

    It is called step-... unless a `name` is given. A muted run writes nothing.
    Raises RunError if the disk has no room; the earlier checkpoints are intact then.
    """
    final = run.checkpoints / (name or f"step-{state['step']:06d}")
    if run.muted:
        return final
    part = run.checkpoints / f".tmp-{final.name}"
    need = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(run.checkpoints).free) < need * 1.05 + 2**20:
        raise RunError(
            f"{final}: not saved: needs {need / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; earlier checkpoints are intact"
        )
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        for file, group in tensors.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in group.items()}, part / file)
        write_json(part / "state.json", dict(state))
        names = sorted(p.name for p in part.iterdir())
        write_json(part / "manifest.json", {name: _entry(part / name) for name in names})
        for file_path in part.iterdir():
            _flush(file_path)
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        _flush(run.checkpoints)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise RunError(f"{final}: not saved: {error}; earlier checkpoints are intact") from error
    _prune(run, keep)
    return final


def latest(run: Run) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is complete, and what is wrong with newer ones, a line each."""
    faults: list[str] = []
    for path in sorted(_folders(run), reverse=True):
        try:
            return read(path), faults
        except RunError as error:
            faults.append(str(error))
    return None, faults


def read(path: Path) -> Checkpoint:
    """A checkpoint whose every file has the size and hash of its manifest. Raises RunError that names the bad file."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(f"incomplete checkpoint {path}: manifest.json or state.json is missing or damaged") from None
    if "weights.safetensors" not in manifest or "state.json" not in manifest:
        raise RunError(f"incomplete checkpoint {path}: its manifest is empty")
    for name, expected in manifest.items():
        if not (path / name).exists():
            raise RunError(f"incomplete checkpoint {path}: {name} missing")
        if _entry(path / name) != expected:
            raise RunError(f"damaged checkpoint {path}: {name} does not have the size and sha256 of its manifest")
    return Checkpoint(path, state)


def sweep(run: Run) -> None:
    """Remove what a killed process left half-written."""
    for path in run.checkpoints.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def _folders(run: Run) -> Iterator[Path]:
    return (p for p in run.checkpoints.glob("step-*") if p.is_dir())


def _prune(run: Run, keep: int) -> None:
    for path in sorted(_folders(run))[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _entry(path: Path) -> dict[str, object]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
