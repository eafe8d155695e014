"""LoRA and DoRA as one file in the PEFT layout, which diffusers and other tools load."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sdtune.files import atomic_write
from sdtune.methods.targets import matches

METADATA_KEY = "lora_adapter_metadata"  # where diffusers looks for alpha (diffusers/loaders/lora_base.py)
ENDINGS = {".lora_A.weight": "lora_A", ".lora_B.weight": "lora_B", ".lora_magnitude_vector": "lora_magnitude_vector"}


def write_lora(
    path: Path, layers: Mapping[str, Mapping[str, Tensor]], scales: Mapping[str, float], about: Mapping[str, Any]
) -> None:
    """One adapter in the PEFT layout: `load_lora_weights(path)` of diffusers' pipelines reads it, each layer's alpha too.

    `layers`: for `<part>.<layer>`, `lora_A`, `lora_B` and for DoRA `lora_magnitude_vector`. `scales`: alpha / rank of each.
    `about` (strings and numbers) is kept in the header under "sdtune".
    """
    tensors = {
        _key(name, ending): layer[short].detach().cpu().float().contiguous()
        for name, layer in layers.items()
        for ending, short in ENDINGS.items()
        if short in layer
    }
    settings: dict[str, Any] = {}
    for part in sorted({name.partition(".")[0] for name in layers}):
        inside = {name.partition(".")[2]: layer for name, layer in layers.items() if name.startswith(f"{part}.")}
        found = _settings(inside, {name: scales[f"{part}.{name}"] for name in inside})
        settings |= {f"{part}.{key}": value for key, value in found.items()}
    metadata = {
        "format": "pt",
        METADATA_KEY: json.dumps(settings, sort_keys=True),
        "sdtune": json.dumps(dict(about), sort_keys=True),
    }
    with atomic_write(path) as file:
        file.write(save(tensors, metadata))


def _key(name: str, ending: str) -> str:
    """transformers, which loads adapters of text encoders, overlooks a magnitude without `.weight`; peft's own name has none."""
    late = ending == ".lora_magnitude_vector" and name.startswith("text_encoder")
    return f"{name}{ending}{'.weight' if late else ''}"


def _settings(layers: Mapping[str, Mapping[str, Tensor]], scales: Mapping[str, float]) -> dict[str, Any]:
    """What peft.LoraConfig is made of: the usual rank and alpha, and those of the layers that have others."""
    ranks = {name: len(layer["lora_A"]) for name, layer in layers.items()}
    alphas = {name: scales[name] * rank for name, rank in ranks.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    out = {
        "r": rank, "lora_alpha": alpha, "target_modules": sorted(layers), "lora_dropout": 0.0, "bias": "none",
        "use_dora": any("lora_magnitude_vector" in layer for layer in layers.values()),
    }  # fmt: skip
    if rest := {name: r for name, r in ranks.items() if r != rank}:
        out["rank_pattern"] = rest
    if rest_alpha := {name: a for name, a in alphas.items() if a != alpha}:
        out["alpha_pattern"] = rest_alpha
    return out


def read_lora(
    raw: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """The inverse of `write_lora`, from the tensors and the header of a file; also for files of diffusers and peft."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in raw.items():
        key = key.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")
        for ending, short in ENDINGS.items():
            if key.endswith(ending):
                layers.setdefault(key.removesuffix(ending), {})[short] = value.float()
    settings: dict[str, Any] = json.loads(metadata.get(METADATA_KEY, "{}"))
    return layers, {name: _scale(name, layer, settings) for name, layer in layers.items()}


def _scale(name: str, layer: Mapping[str, Tensor], settings: Mapping[str, Any]) -> float:
    """A file without settings has alpha = rank, as everywhere."""
    part, _, path = name.partition(".")
    rank = len(layer.get("lora_A", ()))
    patterns = settings.get(f"{part}.alpha_pattern") or {}
    alpha = next((a for p, a in patterns.items() if matches(path, p)), settings.get(f"{part}.lora_alpha", rank))
    return float(alpha) / (rank**0.5 if settings.get(f"{part}.use_rslora") else rank) if rank else 1.0


def check_pairs(layers: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """The first layer that lacks one of its two matrices."""
    return next((name for name, x in sorted(layers.items()) if not {"lora_A", "lora_B"} <= x.keys()), None)


def size(layer: Mapping[str, Tensor]) -> float:
    """|B A|, without the product: |B A|^2 = trace((B^T B) (A A^T))."""
    a_RI, b_OR = layer["lora_A"].flatten(1).double(), layer["lora_B"].flatten(1).double()
    square: Tensor = ((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).sum().clamp(min=0)
    return float(torch.sqrt(square))
