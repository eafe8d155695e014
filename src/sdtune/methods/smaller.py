"""U-Nets with fewer blocks than the one they are made of, and how one takes another's place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdtune.errors import ConfigError, ModelError
from sdtune.model import Model

PER_STAGE = (
    "block_out_channels", "down_block_types", "layers_per_block", "attention_head_dim", "num_attention_heads",
    "cross_attention_dim", "transformer_layers_per_block", "only_cross_attention",
)  # fmt: skip
UNET = "UNet2DConditionModel"
SHAPE = ("layers_per_block", "mid_block_type", "down_block_types")
"""What `smaller` changes."""


@torch.no_grad()
def smaller(unet: Any, size: str) -> nn.Module:
    """A U-Net of fewer blocks with the weights of those of `unet` that it keeps: of the layers of a stage the first on the way down,
    the first and the last on the way up (arXiv:2305.15798, section 3.1). Raises ConfigError where there is nothing to take away.
    """
    config = _config(unet)
    fewer = settings(config, size)
    student = type(unet).from_config(fewer)
    gone = len(config["block_out_channels"]) - len(fewer["block_out_channels"])
    theirs = unet.state_dict()
    student.load_state_dict({n: theirs[_origin(n, config["layers_per_block"], gone)] for n in student.state_dict()})
    return _like(student, unet).train(unet.training)


def settings(config: Mapping[str, Any], size: str) -> dict[str, Any]:
    """The settings of the student of a U-Net with the settings `config`. Raises ConfigError."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    if not isinstance(layers, int):
        raise ConfigError(f"method.size: the U-Net's stages have different numbers of layers, {layers}; not supported")
    if layers == 1 and size == "base":
        raise ConfigError("method.size: 'base' takes layers away, and each stage has one only; take 'small'")
    if size == "tiny" and (len(widths) < 3 or widths[-1] != widths[-2]):
        raise ConfigError(f"method.size: 'tiny' needs two innermost stages of one width, and these have {list(widths)}")
    changed: dict[str, Any] = {"layers_per_block": 1}
    if size != "base":
        changed["mid_block_type"] = None
    if size == "tiny":
        changed |= {k: list(config[k])[:-1] for k in PER_STAGE if isinstance(config.get(k), list | tuple)}
        changed["up_block_types"] = list(config["up_block_types"])[1:]
    return {**config, **changed}


def _like(other: Any, unet: Any) -> nn.Module:
    """`other` on the device and with the attention of `unet`, in its type."""
    like = next(unet.parameters())
    nn.Module.to(other, like.device, like.dtype)
    if like.device.type == "cpu":
        other.set_attn_processor(next(iter(unet.attn_processors.values())))
    made: nn.Module = other
    return made


def _config(unet: Any) -> dict[str, Any]:
    if type(unet).__name__ != UNET:
        raise ConfigError(
            f"method.type: 'student' takes blocks out of a U-Net, and this model has a {type(unet).__name__}"
        )
    return {k: v for k, v in dict(unet.config).items() if not k.startswith("_")}


def _origin(name: str, layers: int, gone: int) -> str:
    """The teacher's name of a student's weight."""
    if found := re.match(r"up_blocks\.(\d+)\.(.*)", name):
        stage, rest = int(found[1]) + gone, found[2]
        rest = re.sub(r"^(resnets|attentions)\.1\.", rf"\1.{layers}.", rest)
        return f"up_blocks.{stage}.{rest}"
    return name


class Replaced:
    """Another denoiser in the place of a model's own: 0 is the base, 1 the other; there is nothing between them."""

    def __init__(self, model: Model, other: nn.Module) -> None:
        self._model, self._own, self._other = model, model.denoiser, other.requires_grad_(False).eval()

    def set_strength(self, strength: float) -> None:
        if strength not in (0, 1):
            raise ConfigError(f"sample.strength: {strength:g}: a network of another shape is there or not; give 0 or 1")
        self._model.denoiser = self._own if strength == 0 else self._other

    def close(self) -> None:
        self.set_strength(0.0)


def of_other_shape(unet: Any, settings: Mapping[str, Any]) -> bool:
    """Whether the config.json `settings` of a U-Net say that it has fewer of the blocks of `unet`, and no others."""
    if not type(unet).__name__ == settings.get("_class_name") == UNET:
        return False
    own, widths = dict(unet.config), list(settings.get("block_out_channels") or ())
    if not widths or widths != list(own["block_out_channels"])[: len(widths)]:
        return False
    return any(_plain(own.get(key)) != _plain(settings.get(key, own.get(key))) for key in SHAPE)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def read(folder: Path, unet: Any) -> nn.Module:
    """The U-Net in `folder`, of the type and on the device of `unet`. Raises ModelError if it does not fit in its place."""
    try:
        other: Any = type(unet).from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be read as a U-Net: {str(error).splitlines()[0]}") from None
    for key in ("in_channels", "out_channels", "cross_attention_dim", "addition_embed_type"):
        if other.config[key] != unet.config[key]:
            raise ModelError(
                f"{folder}: {key} is {other.config[key]!r}, the base's {unet.config[key]!r}; it was made from another model"
            )
    return _like(other, unet)
