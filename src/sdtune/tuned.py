"""A trained adapter or denoiser on its base model, at any strength."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sdtune.errors import ModelError, RunError
from sdtune.methods import adapters
from sdtune.model import Model
from sdtune.runs import Run


class Tuned:
    """`set_strength(0)` is the base byte for byte, 1 as trained, between and beyond them a blend. `close()` takes it off."""

    def __init__(self, model: Model, *, full: Mapping[str, Tensor] | None = None) -> None:
        self.model = model
        self._full = dict(full) if full is not None else None
        self._base = {n: p.detach().clone() for n, p in model.denoiser.named_parameters()} if full is not None else {}
        self.set_strength(1.0)

    @torch.no_grad()
    def set_strength(self, strength: float) -> None:
        if self._full is None:
            adapters.set_strength(self.model.denoiser, strength)
            return
        for name, p in self.model.denoiser.named_parameters():
            base, tuned = self._base[name].float(), self._full[name].to(p.device, torch.float32)
            blend = self._base[name] if strength == 0 else tuned if strength == 1 else base + strength * (tuned - base)
            p.copy_(blend)

    def close(self) -> None:
        if self._full is None:
            adapters.detach(self.model.denoiser)
        else:
            self.set_strength(0.0)


def load(model: Model, path: Path) -> Tuned:
    """Put what lies at `path` on `model`: a LoRA file, a folder with one, a `unet/` folder, or a folder that holds one.

    Raises ModelError if it was trained on another kind of model.
    """
    if path.is_dir():
        path = _inside(path)
    if path.is_dir():
        return _load_full(model, path)
    return _load_lora(model, path)


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
    found = checkpoint.read(folder)
    weights = found.tensors("ema.safetensors") or found.tensors("weights.safetensors") or {}
    if found.state["method"] == "full":
        return Tuned(model, full=weights)
    return _on_adapters(model, weights, float(found.state["scale"]), folder)


def _inside(folder: Path) -> Path:
    for part in ("unet", "transformer"):
        if (folder / part / "config.json").exists():
            return folder / part
    if (folder / "config.json").exists() and list(folder.glob("diffusion_pytorch_model*.safetensors")):
        return folder
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise ModelError(
            f"{folder}: expected one .safetensors adapter or a unet/ folder, found {[f.name for f in files] or 'neither'}"
        )
    return files[0]


def _load_full(model: Model, folder: Path) -> Tuned:
    weights = {
        k: v for file in sorted(folder.glob("diffusion_pytorch_model*.safetensors")) for k, v in load_file(file).items()
    }
    own, buffers = dict(model.denoiser.named_parameters()), dict(model.denoiser.named_buffers())
    weights = {name: value for name, value in weights.items() if name not in buffers}
    if weights.keys() != own.keys() or any(weights[n].shape != p.shape for n, p in own.items()):
        matching = sum(n in own and own[n].shape == w.shape for n, w in weights.items())
        raise ModelError(
            f"{folder}: {matching} of {len(weights)} weights fit {model.source}: it was made from another kind of model"
        )
    return Tuned(model, full=weights)


def _load_lora(model: Model, path: Path) -> Tuned:
    from sdtune.methods.lora_file import read_lora

    weights, scale, _ = read_lora(path)
    return _on_adapters(model, weights, scale, path)


def _on_adapters(model: Model, weights: Mapping[str, Tensor], scale: float, source: Path) -> Tuned:
    names = sorted({name.rpartition(".")[0] for name in weights})
    modules = dict(model.denoiser.named_modules())
    fitting = [n for n in names if n in modules and _fits(modules[n], weights[f"{n}.lora_A"], weights[f"{n}.lora_B"])]
    if len(fitting) != len(names):
        raise ModelError(
            f"{source}: {len(fitting)} of {len(names)} adapted layers fit {model.source}: it was trained on another kind of model"
        )
    for name in names:
        rank = len(weights[f"{name}.lora_A"])
        parameters = adapters.attach_one(model.denoiser, name, modules[name], rank=rank, scale=scale)
        with torch.no_grad():
            parameters.lora_A.copy_(weights[f"{name}.lora_A"])
            parameters.lora_B.copy_(weights[f"{name}.lora_B"])
    return Tuned(model)


def _fits(module: torch.nn.Module, a: Tensor, b: Tensor) -> bool:
    weight = getattr(module, "weight", None)
    return (
        weight is not None
        and weight.dim() == a.dim()
        and weight.shape[1:] == a.shape[1:]
        and b.shape[:2] == (weight.shape[0], len(a))
    )
