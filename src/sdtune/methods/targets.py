"""Which layers a method trains: named sets and patterns of layer names."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from sdtune.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from sdtune.model import Model

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

_JOINT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Those of the prompt's tokens where they and the picture's attend to all (Stable Diffusion 3)."""

TARGETS: dict[str, tuple[str, ...]] = {
    "attention": tuple(f"*.{layer}" for layer in (*_ATTENTION, *_JOINT)),
    "cross-attention": tuple(f"*.attn2.{layer}" for layer in _ATTENTION),
    "transformer": ("*.transformer_blocks.*", "*.proj_in", "*.proj_out"),
    "all-linear": ("*",),
    "many": (
        "*.transformer_blocks.*", "*.proj_in", "*.proj_out", "*.conv1", "*.conv2", "*.conv_shortcut", "*.time_emb_proj",
        "*.downsamplers.0.conv", "*.upsamplers.0.conv",
    ),
    "style": tuple(f"up_blocks.0.attentions.1.*.{layer}" for layer in _ATTENTION),
    "content": tuple(f"up_blocks.0.attentions.0.*.{layer}" for layer in _ATTENTION),
}  # fmt: skip
"""Named sets of the denoiser's layers. "all-linear" is every Linear layer, the others take convolutions too. "style" and
"content" are the two blocks of SDXL that B-LoRA (arXiv:2403.14572) found to hold them."""

TEXT_TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("*.q_proj", "*.k_proj", "*.v_proj", "*.out_proj"),
    "transformer": ("*.q_proj", "*.k_proj", "*.v_proj", "*.out_proj", "*.fc1", "*.fc2"),
}
"""Named sets of a CLIP text encoder's layers: q, k, v, out; and the two layers between attentions."""


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` fits the layer `name` from its beginning or from after any of its dots."""
    return fnmatch.fnmatchcase("." + name, "*." + pattern.removeprefix("*."))


def select(
    root: nn.Module, targets: str | tuple[str, ...], sets: Mapping[str, tuple[str, ...]] = TARGETS, key: str = "targets"
) -> dict[str, nn.Module]:
    """The Linear and Conv2d layers of `root` that `targets` names. Raises ConfigError if there is none."""
    from torch import nn

    from sdtune.methods.quant import QuantConv2d, QuantLinear

    if isinstance(targets, str) and targets not in sets:
        raise ConfigError(f"method.{key}: no such set {targets!r}; known: {', '.join(sets)}, or a list of patterns")
    linear, all_kinds = (nn.Linear, QuantLinear), (nn.Linear, nn.Conv2d, QuantLinear, QuantConv2d)
    if sets is TARGETS and (why := _senseless(root, targets)):
        raise ConfigError(f"method.{key}: {targets!r} {why}")
    patterns = sets[targets] if isinstance(targets, str) else targets
    layers: dict[str, nn.Module] = {
        name: layer
        for name, layer in root.named_modules()
        if type(layer) in (linear if targets == "all-linear" else all_kinds)
        and getattr(layer, "groups", 1) == 1
        and any(matches(name, pattern) for pattern in patterns)
    }
    if not layers:
        raise ConfigError(
            f"method.{key}: {targets!r} matches no Linear or Conv2d layer; `sdtune inspect MODEL` lists them"
        )
    return layers


def _senseless(root: nn.Module, targets: str | tuple[str, ...]) -> str:
    """Why a set would find layers of another meaning in this denoiser, or nothing."""
    if (
        targets in ("style", "content")
        and getattr(getattr(root, "config", None), "addition_embed_type", "") != "text_time"
    ):
        return "is a block of SDXL, and this is another denoiser; use attention, or patterns of names"
    if targets == "cross-attention" and any(name.rpartition(".")[2] in _JOINT for name, _ in root.named_modules()):
        return (
            "is not there: prompt and picture attend to all together; use attention, or patterns such as *.add_k_proj"
        )
    return ""


def is_unread(model: Model, name: str) -> bool:
    """Whether nothing depends on the layer or weight `<part>.<name>`, so that it cannot be trained."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in model.unread)


def encoders(model: Model, wanted: bool | Sequence[int]) -> list[str]:
    """Names of the text encoders that `method.text_encoders` asks for; true is all of CLIP's kind. Raises ConfigError for others."""
    names = [name for name in model.parts if name != model.denoiser_name]
    clip = [i for i, name in enumerate(names, 1) if not type(model.parts[name]).__name__.startswith("T5")]
    numbers = clip if wanted is True else sorted(set(wanted or ()))
    for number in numbers:
        if not 1 <= number <= len(names):
            has = f"{len(names)} text encoder{'s' if len(names) != 1 else ''}"
            raise ConfigError(f"method.text_encoders: there is no text encoder {number}; {model.source} has {has}")
        if number not in clip:
            raise ConfigError(f"method.text_encoders: text encoder {number} is a T5, which is not trained; name {clip}")
    return [names[number - 1] for number in numbers]
