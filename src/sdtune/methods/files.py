"""Adapter files of every kind: read, and put on a model. What a file is, its keys tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sdtune.errors import ModelError
from sdtune.methods import adapters, low_rank, products, together
from sdtune.methods.adapters import Adapter, Layer
from sdtune.methods.lora_file import check_pairs, read_lora
from sdtune.methods.lycoris_file import PREFIXES, read_lycoris

MAKERS: dict[str, Callable[[Layer, Mapping[str, Tensor], float], Adapter]] = {
    "lora_A": low_rank.make,
    "hada_w1_b": products.make_loha,
    "lokr_w1": products.make_lokr,
    "oft_blocks": products.make_oft,
}
"""A tensor that only this kind of layer has -> what makes the layer."""


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter file holds."""

    path: Path
    layers: dict[str, dict[str, Tensor]]
    """For `<part>.<layer>` (or a flat name, where the model is not known), its tensors by short names, fp32."""
    scales: dict[str, float]
    about: dict[str, Any]
    """What sdtune wrote into the header: base, run, steps."""

    def put_on(self, parts: Mapping[str, nn.Module], source: str) -> dict[str, Adapter]:
        """Adapters on `parts` with the file's values, beside those that are there; returns them by layer.

        Raises ModelError, with counts, unless every layer fits."""
        modules = adapters.bare_layers(parts)
        made: dict[str, Adapter] = {}
        for name, tensors in self.layers.items():
            found = next((n for n in (name, *_other_names(name)) if n in modules), None)
            adapter = self._adapter(modules[found], tensors, self.scales[name]) if found else None
            if found and adapter:
                made[found] = adapter
        if len(made) != len(self.layers):
            base = f" (made for {self.about['base']})" if self.about.get("base") else ""
            raise ModelError(
                f"{self.path}: {len(made)} of {len(self.layers)} adapted layers fit {source}: "
                f"it was trained on another kind of model{base}"
            )
        together.add(parts, made)
        return made

    def _adapter(self, layer: nn.Module, tensors: Mapping[str, Tensor], scale: float) -> Adapter | None:
        """The adapter for `layer` with the values of `tensors`; None if shapes or names differ."""
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            return None
        maker = next(make for marker, make in MAKERS.items() if marker in tensors)
        adapter = maker(layer, tensors, scale)
        own = dict(adapter.named_parameters(recurse=False))
        if {n: p.shape for n, p in own.items()} != {n: _shape(t, own.get(n)) for n, t in tensors.items()}:
            return None
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(tensors[name].view(p.shape))
                p.requires_grad_(False)
        return adapter


def _shape(tensor: Tensor, own: Tensor | None) -> torch.Size:
    """Some tools write the matrices of a 1x1 convolution without its two ones, or with them for a Linear layer."""
    if own is not None and tensor.numel() == own.numel() and tensor.squeeze().shape == own.squeeze().shape:
        return own.shape
    return tensor.shape


def _other_names(name: str) -> tuple[str, ...]:
    """transformers 5 dropped `text_model.` from CLIP's names; files from before, and models with a projection, have it."""
    part, _, path = name.partition(".")
    if path.startswith("text_model."):
        return (f"{part}.{path.removeprefix('text_model.')}",)
    return (f"{part}.text_model.{path}",)


def read(path: Path, names: Mapping[str, object] | None = None) -> AdapterFile:
    """An adapter file: LoRA and DoRA in the PEFT layout or by kohya's names, LoHa, LoKr and OFT by LyCORIS' names.

    `names`: the layers of the model, `<part>.<layer>`; without them the flat names of LyCORIS stay. Raises ModelError.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            raw = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors: {error}") from None
    try:
        about = dict(json.loads(metadata.get("sdtune", "{}")))
        lycoris = any(key.startswith(PREFIXES) for key in raw)
        layers, scales = read_lycoris(raw, names or ()) if lycoris else read_lora(raw, metadata)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{path}: its header tells nonsense of the adapter; the file is damaged") from None
    if not layers or (strange := [n for n, x in layers.items() if not x.keys() & MAKERS.keys() and "lora_B" not in x]):
        raise ModelError(
            f"{path}: no keys of the form unet.<layer>.lora_A.weight or lora_unet_<layer>.hada_w1_a; "
            "LoRA, DoRA (PEFT or kohya), LoHa, LoKr and OFT (LyCORIS) are read"
            + (f"; {strange[0]} is none of these" if layers else "")
        )
    if bad := [f"{n}.{s}" for n, x in layers.items() for s, v in x.items() if not bool(torch.isfinite(v).all())]:
        raise ModelError(f"{path}: {bad[0]} holds NaN or infinity; the file is damaged")
    if lone := check_pairs({n: x for n, x in layers.items() if x.keys() & {"lora_A", "lora_B"}}):
        raise ModelError(f"{path}: {lone} has only one of its two matrices; the file is damaged")
    return AdapterFile(path, layers, scales, about)
