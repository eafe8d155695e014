"""A trained adapter or model on its base, at any strength."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sdtune.errors import ConfigError, ModelError, RunError, SdtuneError
from sdtune.families.places import json_of
from sdtune.methods import adapters, files, smaller
from sdtune.methods.blend import Blend
from sdtune.methods.installed import Change, InstalledAdapters, Several, installed
from sdtune.methods.word_file import FOLDER, add_words, is_word_file, load_words
from sdtune.model import Model
from sdtune.runs import Run

MOST = 4.0
"""Beyond, an adapter breaks the model; below 0 it draws away from what it was trained on."""


class Tuned:
    """`set_strength(0)` is the base byte for byte, 1 as trained, between and beyond them a blend. `close()` takes it off."""

    def __init__(self, model: Model, change: Change) -> None:
        self.model, self._change = model, change
        self.set_strength(1.0)

    def set_strength(self, strength: float) -> None:
        self._change.set_strength(strength)

    def close(self) -> None:
        self._change.close()


@dataclass(frozen=True)
class Named:
    """An adapter as `sample.adapters` names it: FILE, or FILE:STRENGTH; a run's folder stands for its result."""

    path: Path
    strength: float

    @classmethod
    def read(cls, text: str) -> Self:
        """Raises ConfigError."""
        name, colon, number = text.rpartition(":")
        if not colon or Path(text).expanduser().exists():
            return cls(Path(text).expanduser(), 1.0)
        try:
            strength = float(number)
        except ValueError:
            return cls(Path(text).expanduser(), 1.0)
        if not name or not abs(strength) <= MOST:
            raise ConfigError(
                f"sample.adapters: {text!r}: write FILE or FILE:STRENGTH, a strength from -{MOST:g} to {MOST:g}"
            )
        return cls(Path(name).expanduser(), strength)

    @property
    def files(self) -> list[Path]:
        """The adapter's and its words' files. Raises ModelError."""
        if self.path.is_file():
            return [self.path]
        run = Run(self.path)
        folder = run.final if run.exists() else self.path
        if run.exists() and not folder.is_dir():
            raise ModelError(f"{self.path}: not finished, there is no final/; finish it with `sdtune train`")
        found = sorted([*folder.glob("*.safetensors"), *(folder / FOLDER).glob("*.safetensors")])
        if folder.is_dir() and (not found or (folder / "config.json").exists()):
            raise ModelError(
                f"{self.path}: holds no adapter; only LoRA, DoRA, LoHa, LoKr, OFT and words add up, and a whole model is drawn "
                "with by itself: sdtune sample RUN"
            )
        if not found:
            raise ModelError(f"{self.path}: no such adapter file or run")
        return found

    @property
    def record(self) -> dict[str, Any]:
        """For pictures: the name without the path to it, and the SHA-256 of its files, one after the other."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.read_bytes())
        return {"name": self.path.resolve().name, "strength": self.strength, "sha256": digest.hexdigest()}


def add(model: Model, named: Named) -> Change:
    """Put an adapter on `model` beside what is there, at its strength. Its changes add up with those of others.

    Raises ModelError if it was trained on another kind of model; the model is then as it was.
    """
    changes = list[Change]()
    try:
        words = list[Path]()
        for file in named.files:
            if is_word_file(file):
                words.append(file)
                continue
            change = InstalledAdapters(
                model, files.read(file, adapters.bare_layers(model.parts)).put_on(model.parts, model.source)
            )
            change.set_strength(named.strength)
            changes.append(change)
        if words and named.strength:
            changes.append(add_words(model, words))
    except SdtuneError:
        for put_on in changes:
            put_on.close()
        raise
    return Several(*reversed(changes))


def base_of(named: Named) -> str:
    """The base that an adapter was trained on, as its file says; "" if it says nothing."""
    for file in named.files:
        with safe_open(file, "pt") as opened:
            told = (opened.metadata() or {}).get("sdtune", "{}")
        with suppress(ValueError, AttributeError):  # of another program: it only costs a remark
            if base := json.loads(told).get("base"):
                return str(base)
    return ""


def load(model: Model, path: Path) -> Tuned:
    """Put what lies at `path` on `model`: the file of an adapter or of a new word, a `unet/` folder, or a folder that holds these.

    Raises ModelError if it was trained on another kind of model.
    """
    words = sorted((path / FOLDER).glob("*.safetensors")) if path.is_dir() else []
    if path.is_dir() and not (words and not list(path.glob("*.safetensors"))):
        path = _inside(model, path)
    if path.is_dir() and not words:
        return Tuned(model, _denoiser(model, path))
    if any(adapters.adapters_of(model.parts)) or model.new_words:
        raise ModelError(f"{path}: there is an adapter on {model.source} already; close it first")
    if path.is_file() and is_word_file(path):
        words = [path]
    elif path.is_file():
        files.read(path, adapters.layers_of(model.parts)).put_on(model.parts, model.source)
    if words:
        try:
            load_words(model, words)
        except SdtuneError:
            adapters.detach(model.parts)
            raise
    return Tuned(model, installed(model))


def _denoiser(model: Model, folder: Path) -> Change:
    """The trained denoiser in `folder`, in the place of the model's own or as its weights."""
    own = folder / model.denoiser_name if (folder / model.denoiser_name).is_dir() else folder
    if smaller.of_other_shape(model.denoiser, json_of(own / "config.json")):
        return smaller.Replaced(model, smaller.read(own, model.denoiser))
    return Blend(model.parts, _weights(model, folder))


def of_run(model: Model, run: Run, which: str = "final") -> Tuned:
    """The run's result on `model`: "final", "best" (lowest validation loss), or a checkpoint such as "step-000250"."""
    if which == "final":
        if not run.final.is_dir():
            raise RunError(
                f"{run.path}: not finished, there is no final/; finish it with `sdtune train`, or name a checkpoint"
            )
        return load(model, run.final)
    from sdtune import checkpoint

    folder = run.checkpoints / which
    if which == "best" and not folder.is_dir():
        raise RunError(f"{run.path}: no best checkpoint: the run has no validation loss after its beginning")
    if not folder.is_dir():
        known = ", ".join(sorted(p.name for p in run.checkpoints.glob("step-*"))) or "none"
        raise RunError(f"{run.path}: no checkpoint {which!r}; there are: {known}")
    found, config = checkpoint.read(folder), run.config()
    weights = found.tensors("ema.safetensors") or found.tensors("weights.safetensors") or {}
    try:
        return Tuned(model, config.method.apply(model, weights, seed=config.train.seed))
    except (KeyError, RuntimeError):  # a name that is not there, a shape that differs
        raise ModelError(f"{folder}: does not fit {model.source}: it was trained on another kind of model") from None


def _inside(model: Model, folder: Path) -> Path:
    """The folder with the trained parts' folders, the denoiser's own folder, or the adapter file in `folder`."""
    if (folder / model.denoiser_name / "config.json").exists():
        return folder
    if (folder / "config.json").exists() and list(folder.glob("diffusion_pytorch_model*.safetensors")):
        return folder
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise ModelError(
            f"{folder}: expected one .safetensors adapter or a {model.denoiser_name}/ folder, "
            f"found {[f.name for f in found] or 'neither'}"
        )
    return found[0]


def _weights(model: Model, folder: Path) -> dict[str, Tensor]:
    """The weights of the denoiser, and of the text encoders that lie beside it. Raises ModelError unless all of them fit."""
    denoiser = folder / model.denoiser_name
    folders = {model.denoiser_name: denoiser if denoiser.is_dir() else folder}
    folders |= {part: folder / part for part in model.parts if (folder / part).is_dir() and denoiser.is_dir()}
    return {f"{part}.{k}": v for part, place in folders.items() for k, v in _part_weights(model, part, place).items()}


def _part_weights(model: Model, part: str, folder: Path) -> dict[str, Tensor]:
    own, fixed = dict(model.parts[part].named_parameters()), dict(model.parts[part].named_buffers())
    paths = sorted(folder.glob("*model*.safetensors"))
    raw = {k: v for path in paths for k, v in load_file(path).items() if k not in fixed}
    # transformers 5 writes CLIP's names with `text_model.` and calls them without
    weights = {k if k in own else k.removeprefix("text_model."): v for k, v in raw.items()}
    if weights.keys() != own.keys() or any(weights[n].shape != p.shape for n, p in own.items()):
        matching = sum(n in own and own[n].shape == w.shape for n, w in weights.items())
        raise ModelError(
            f"{folder}: {matching} of {len(weights)} weights fit {model.source}: it was made from another kind of model"
        )
    return weights
