"""What captioners that write word by word share: reading their weights and words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from sdtune import devices
from sdtune.captioners import places
from sdtune.errors import ModelError
from sdtune.families.places import json_of


def place(device: str, precision: str) -> tuple[torch.device, torch.dtype]:
    """Where torch computes, and in what. Raises ConfigError for a device that is not there."""
    devices.set_up_cpu(None)
    return devices.pick(device, precision, key="--device")


def read(cls: Any, kind: str, folder: Path, name: str, dtype: torch.dtype) -> Any:
    """The model of class `cls` in `folder`, whose config.json must say `kind`; every weight comes from the file. Raises ModelError."""
    found = json_of(places.needed(folder, name, "config.json"))
    if found.get("model_type") != kind:
        raise ModelError(f"{name}: is a model of type {found.get('model_type')!r}, not {kind!r}")
    if found.get("auto_map"):
        raise ModelError(
            f"{name}: brings code of its own, which is not run; take the repository in transformers' own form"
        )
    places.weights_of(folder, name)
    transformers.utils.logging.disable_progress_bar()
    try:
        model, loaded = cls.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{name}: cannot be read as {cls.__name__}: {_line(error)}") from error
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(f"{name}: {len(missing)} weights of {cls.__name__} are missing, such as {missing[0]}")
    return model.eval()


def words(folder: Path, name: str) -> Any:
    """The tokenizer of the folder. Raises ModelError."""
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a damaged tokenizer.json raises a bare Exception
        raise ModelError(f"{name}: its tokenizer cannot be read: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
