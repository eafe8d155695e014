"""A LoRA as one file that other tools load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdtune.errors import ModelError
from sdtune.files import atomic_write

METADATA_KEY = "lora_adapter_metadata"  # where diffusers looks for alpha (diffusers/loaders/lora_base.py)


def write_lora(
    path: Path, weights: Mapping[str, Tensor], *, rank: int, alpha: float, about: Mapping[str, Any], part: str = "unet"
) -> None:
    """One adapter in the PEFT layout: `StableDiffusionPipeline.load_lora_weights(path)` reads it, its alpha too.

    `weights`: `<layer>.lora_A` and `<layer>.lora_B` by name. `about` (strings and numbers) is kept in the header under "sdtune".
    `part`: the denoiser's name in diffusers' folders.
    """
    tensors = {f"{part}.{name}.weight": value.detach().cpu().float().contiguous() for name, value in weights.items()}
    layers = sorted({name.rpartition(".")[0] for name in weights})
    lora = {"r": rank, "lora_alpha": alpha, "target_modules": layers, "lora_dropout": 0.0, "bias": "none"}
    metadata = {
        "format": "pt",
        METADATA_KEY: json.dumps({f"{part}.{k}": v for k, v in lora.items()}, sort_keys=True),
        "sdtune": json.dumps(dict(about), sort_keys=True),
    }
    with atomic_write(path) as file:
        file.write(save(tensors, metadata))


def read_lora(path: Path) -> tuple[dict[str, Tensor], float, dict[str, Any]]:
    """An adapter in the PEFT layout: weights by our names, the scale alpha / rank, and what its header says. Raises ModelError."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            raw = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors: {error}") from None
    weights = {
        name.partition(".")[2].removesuffix(".weight"): value.float()
        for name, value in raw.items()
        if name.startswith(("unet.", "transformer.")) and name.endswith((".lora_A.weight", ".lora_B.weight"))
    }
    if not weights:
        raise ModelError(
            f"{path}: no keys of the form unet.<layer>.lora_A.weight; only LoRAs in the PEFT layout are read"
        )
    for name in weights:
        if (other := f"{name[:-1]}{'B' if name[-1] == 'A' else 'A'}") not in weights:
            raise ModelError(f"{path}: {name} has no {other.rpartition('.')[2]} beside it; the file is damaged")
    if bad := [n for n, v in weights.items() if not bool(torch.isfinite(v).all())]:
        raise ModelError(f"{path}: {bad[0]} holds NaN or infinity; the file is damaged")
    rank = len(next(v for n, v in weights.items() if n.endswith("lora_A")))
    header = {k.partition(".")[2]: v for k, v in json.loads(metadata.get(METADATA_KEY, "{}")).items()}
    about: dict[str, Any] = json.loads(metadata.get("sdtune", "{}"))
    return weights, float(header.get("lora_alpha", rank)) / rank, about
