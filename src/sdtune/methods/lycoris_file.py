"""LoHa, LoKr and OFT as one file with LyCORIS' names, which lycoris-lora loads. LoRA by kohya's names is read, too.

`lora_unet_down_blocks_0_..._to_q.hada_w1_a`: the layer's name with _ for each dot, behind a prefix that tells the part. The dots
cannot be found again without the model, so reading needs its layers' names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sdtune.files import atomic_write

PREFIXES = ("lora_unet", "lora_te", "lora_te1", "lora_te2", "lora_te3")
KOHYA = {"lora_down.weight": "lora_A", "lora_up.weight": "lora_B", "dora_scale": "lora_magnitude_vector"}


def write_lycoris(
    path: Path, layers: Mapping[str, Mapping[str, Tensor]], scales: Mapping[str, float], about: Mapping[str, Any]
) -> None:
    """`layers`: for `<part>.<layer>`, tensors by LyCORIS' names. `about` is kept in the header under "sdtune"."""
    encoders = len({name.partition(".")[0] for name in layers if name.startswith("text_encoder")})
    several = encoders > 1 or any(name.startswith("text_encoder_") for name in layers)
    tensors = dict[str, Tensor]()
    for name, layer in layers.items():
        key = flat_name(name, numbered=several or about.get("family") == "sdxl")
        tensors |= {f"{key}.{short}": value.detach().cpu().float().contiguous() for short, value in layer.items()}
        tensors[f"{key}.alpha"] = torch.tensor(_alpha(layer, scales[name]), dtype=torch.float64)
    metadata = {"format": "pt", "sdtune": json.dumps(dict(about), sort_keys=True)}
    with atomic_write(path) as file:
        file.write(save(tensors, metadata))


def flat_name(name: str, *, numbered: bool) -> str:
    """`<part>.<layer>` by kohya's rules; `numbered`: the first of several text encoders is te1, a single one te."""
    part, _, path = name.partition(".")
    if not part.startswith("text_encoder"):
        return f"lora_unet_{path}".replace(".", "_")
    number = part.removeprefix("text_encoder").removeprefix("_") or ("1" if numbered else "")
    return f"lora_te{number}_text_model_{path.removeprefix('text_model.')}".replace(".", "_")


def _rank(layer: Mapping[str, Tensor]) -> int:
    """What alpha is divided by. LyCORIS divides by nothing where LoKr is whole, and gives OFT's alpha another meaning."""
    if "hada_w1_b" in layer:
        return len(layer["hada_w1_b"])
    if "lora_A" in layer:
        return len(layer["lora_A"])
    return layer["lokr_w2_a"].shape[1] if "lokr_w2_a" in layer else 1


def _alpha(layer: Mapping[str, Tensor], scale: float) -> float:
    return 0.0 if "oft_blocks" in layer else scale * _rank(layer)  # OFT: how far blocks may turn, 0 for no bound


def _scale(layer: Mapping[str, Tensor], alpha: float | None) -> float:
    return 1.0 if alpha is None or "oft_blocks" in layer else alpha / _rank(layer)


def read_lycoris(
    raw: Mapping[str, Tensor], names: Iterable[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """The inverse of `write_lycoris`; `names` are the model's layers. A layer that is not among them keeps its flat name."""
    known = {flat_name(name, numbered=numbered): name for name in names for numbered in (False, True)}
    layers: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, value in raw.items():
        flat, _, short = key.partition(".")
        name = known.get(flat, flat)
        if short == "alpha":
            alphas[name] = float(value)
        else:
            layers.setdefault(name, {})[KOHYA.get(short, short)] = value.float()
    layers = {name: _whole(layer) for name, layer in layers.items()}
    return layers, {name: _scale(x, alphas.get(name)) for name, x in layers.items()}


def _whole(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """LoKr files of others may hold W1 as two factors: here it is one matrix. A magnitude is brought into peft's shape."""
    if {"lokr_w1_a", "lokr_w1_b"} <= layer.keys():
        layer["lokr_w1"] = layer.pop("lokr_w1_a") @ layer.pop("lokr_w1_b")
    if (scale := layer.get("lora_magnitude_vector")) is not None:
        layer["lora_magnitude_vector"] = scale.flatten() if scale.dim() == 2 else scale.view(1, -1, 1, 1)
    return layer
