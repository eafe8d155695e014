"""Single-file checkpoints (.safetensors in the layout of Stability's own tools), part by part, into diffusers' modules."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.loaders import single_file_utils as ldm
from safetensors import safe_open
from torch import Tensor

from sdtune.errors import ModelError

State = dict[str, Tensor]


@dataclass(frozen=True)
class Place:
    """Where a part lies in a file, and how its names become diffusers'."""

    prefix: str
    """Of its names."""
    convert: Callable[[State, str, Any], State]
    """(weights, prefix, module) -> weights by the module's names: one of the functions below."""

    def is_in(self, keys: Collection[str]) -> bool:
        """Whether a file with these keys holds the part."""
        return any(key.startswith(self.prefix) for key in keys)


def read(file: Path, part: str, place: Place, cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The module `part` of the file, made by the settings in `folder`. Raises ModelError where the two do not fit."""
    state = _state(file, place.prefix)
    if not issubclass(cls, transformers.PreTrainedModel):
        settings = cls.load_config(folder / part)
        if "in_channels" in settings and part == "unet":  # inpainting variants have nine, the usual settings four
            settings["in_channels"] = int(state[place.prefix + "input_blocks.0.0.weight"].shape[1])
        with torch.device("meta"):
            module = cls.from_config(settings)
        converted = place.convert(state, place.prefix, module)
        module.load_state_dict(_fitting(module, converted, folder, dtype), assign=True)
        return module
    settings = cls.config_class.from_pretrained(folder / part)
    with torch.device("meta"):
        module = cls(settings)
    fitting = _fitting(module, place.convert(state, place.prefix, module), folder, dtype)
    # Unlike load_state_dict, this also sets buffers that are not saved and ties what is tied.
    return cls.from_pretrained(None, config=settings, state_dict=fitting, dtype=dtype)


def _state(file: Path, prefix: str) -> State:
    with safe_open(file, "pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys() if key.startswith(prefix)}  # noqa: SIM118


def _fitting(module: Any, state: State, folder: Path, dtype: torch.dtype) -> State:
    """The weights that the module has, checked. Position ids, logit scale, unused last layers and the like are left out."""
    own = module.state_dict()
    tied = getattr(module, "_tied_weights_keys", None) or {}
    for name in own:
        if name in tied:
            continue
        if name not in state:
            raise ModelError(f"it lacks {name}, which the settings in {folder} ask for; name others as model.config")
        if state[name].shape != own[name].shape:
            raise ModelError(
                f"{name} is {tuple(state[name].shape)}, the settings in {folder} ask for {tuple(own[name].shape)}; name "
                "others as model.config"
            )
    return {name: state[name].to(dtype) for name in own if name in state}


# ---- from the file's names to diffusers' names: (weights, prefix of their names, module) -> weights


def unet(state: State, prefix: str, module: Any) -> State:
    converted: State = ldm.convert_ldm_unet_checkpoint(state, module.config)
    return converted


def vae(state: State, prefix: str, module: Any) -> State:
    converted: State = ldm.convert_ldm_vae_checkpoint(state, module.config)
    return converted


def transformer(state: State, prefix: str, module: Any) -> State:
    converted: State = ldm.convert_sd3_transformer_checkpoint_to_diffusers(dict(state))
    return converted


def clip(state: State, prefix: str, module: Any) -> State:
    """transformers' own names; with or without `text_model.`, which some of its classes and older files lack."""
    bare = {key.removeprefix(prefix).removeprefix("text_model."): value for key, value in state.items()}
    return {name: bare[plain] for name in module.state_dict() if (plain := name.removeprefix("text_model.")) in bare}


def clip_of_sd3(state: State, prefix: str, module: Any) -> State:
    """SD 3 takes CLIP-L's vector as it is: its projection is the identity, and not in every file."""
    width = module.config.hidden_size
    return {**clip(state, prefix, module), "text_projection.weight": torch.eye(width)}


def open_clip(state: State, prefix: str, module: Any) -> State:
    converted: State = ldm.convert_open_clip_checkpoint(module, state, prefix=prefix)
    return clip({prefix + key: value for key, value in converted.items()}, prefix, module)


def t5(state: State, prefix: str, module: Any) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items()}
