"""From a folder in diffusers layout or a single file to modules: what the families' loading shares."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import DDPMScheduler
from safetensors import SafetensorError
from torch import Tensor, nn

from sdtune.errors import ModelError
from sdtune.families import single_file
from sdtune.families.places import Source, header, json_of, locate, settings_folder
from sdtune.families.recognition import check_family
from sdtune.families.single_file import Place
from sdtune.model import Prediction

Parts = Mapping[str, Any]
"""Parts of a model by the names of diffusers' folders, and their classes. A family names them, and a model_index.json may name no
others: a file from a stranger chooses no code to run."""


@dataclass(frozen=True)
class Loaded:
    """The parts of a model by the names of diffusers' folders, still where they were read to."""

    source: str
    source_is_folder: bool
    title: str
    """The family's name for messages."""
    modules: dict[str, Any]
    tokenizers: tuple[Any, ...]
    schedule: dict[str, Any]
    """The scheduler's settings, with what a single file's keys say."""
    index: dict[str, Any]
    """model_index.json."""


def load_parts(
    config: Source,
    wanted: Parts,
    *,
    optional: Collection[str] = (),
    places: Mapping[str, Place],
    dtypes: Mapping[str, torch.dtype],
) -> Loaded:
    """Read the parts `wanted`, those in `optional` where the model has them. Raises ModelError.

    `places`: where parts lie in a single file. `dtypes`: of the parts that are not to be fp32.
    """
    path, source = locate(config)
    check_family(path, source, type(config))
    keys = header(path) if path.is_file() else {}
    folder = path if path.is_dir() else settings_folder(config)
    index = check_index(folder, source if path.is_dir() else str(folder), config.type, wanted, optional)
    present = {part: cls for part, cls in wanted.items() if part not in optional or _is_named(index, part)}
    inside = {part for part in present if part in places and places[part].is_in(keys)}
    if keys and (lacking := [part for part, cls in present.items() if _has_weights(cls) and part not in inside]):
        folder = settings_folder(config, weights=lacking)
    transformers.utils.logging.disable_progress_bar()
    modules, tokenizers = dict[str, Any](), list[Any]()
    for part, cls in present.items():
        dtype = dtypes.get(part, torch.float32)
        try:
            if part in inside:
                modules[part] = single_file.read(path, part, places[part], cls, folder, dtype)
            elif _has_weights(cls):
                modules[part] = _read(folder, part, cls, dtype, None if keys else config.variant)
            else:
                tokenizers.append(cls.from_pretrained(folder / part))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            fault = error if isinstance(error, ModelError) else str(error).strip().splitlines()[0]
            raise ModelError(f"{source}: cannot be read as {config.title}: {part}: {fault}") from error
    _check_finite(source, modules)
    return Loaded(
        source,
        source == config.path != "embedded",
        config.title,
        modules,
        tuple(tokenizers),
        _schedule(folder, keys),
        index,
    )


def _has_weights(cls: Any) -> bool:
    """Or is a tokenizer."""
    return issubclass(cls, nn.Module)


def _read(folder: Path, part: str, cls: Any, dtype: torch.dtype, variant: str | None) -> Any:
    if issubclass(cls, transformers.PreTrainedModel):
        return cls.from_pretrained(folder / part, variant=variant, dtype=dtype, use_safetensors=True)
    module = cls.from_pretrained(folder, subfolder=part, variant=variant, dtype=dtype, use_safetensors=True)
    module.register_to_config(_name_or_path="")  # or diffusers would write where it lay beside what is trained on it
    return module


def check_index(
    folder: Path, source: str, family: str, wanted: Parts, optional: Collection[str] = ()
) -> dict[str, Any]:
    """What model_index.json says. Refuses a folder that lacks a part, or names other classes than the family's."""
    index = json_of(folder / "model_index.json")
    if not (folder / "model_index.json").exists():
        raise ModelError(f"{source}: no model_index.json; this is not a model folder in diffusers layout")
    if not index:
        raise ModelError(f"{source}: model_index.json is not a JSON object; the file is damaged")
    for part, cls in wanted.items():
        if part in optional and not _is_named(index, part):
            continue
        named, expected = index.get(part), cls.__name__
        if not (isinstance(named, list) and len(named) == 2 and named[1] in (expected, expected + "Fast")):
            raise ModelError(f"{source}: model_index.json names {named!r} as {part}; {family} needs {expected}")
    for part in (*(p for p in wanted if _is_named(index, p)), "scheduler"):
        if not (folder / part).is_dir():
            raise ModelError(f"{source}: the folder {part}/ is missing")
    return index


def _is_named(index: Mapping[str, Any], part: str) -> bool:
    return any(index.get(part) or ())


def _check_finite(source: str, modules: Mapping[str, nn.Module]) -> None:
    for part, module in modules.items():
        for name, value in module.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ModelError(f"{source}: {part}: {name} holds NaN or infinity; the file is damaged")


# ---- the noise schedule


def _schedule(folder: Path, keys: Collection[str]) -> dict[str, Any]:
    """The scheduler's settings; marks in a single file's keys, which other tools set, go before them."""
    schedule = json_of(folder / "scheduler" / "scheduler_config.json")
    if not schedule:
        raise ModelError(f"{folder}: scheduler/scheduler_config.json is missing or damaged")
    marks: dict[str, dict[str, Any]] = {
        "v_pred": {"prediction_type": "v_prediction"},
        "ztsnr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    }
    for mark, settings in marks.items():
        schedule.update(settings if mark in keys else {})
    return schedule


def prediction(schedule: Mapping[str, Any], source: str) -> Prediction:
    kind = schedule.get("prediction_type", "epsilon")
    known: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v"}
    if kind not in known or str(schedule.get("_class_name")).startswith("EDM"):
        raise ModelError(
            f"{source}: scheduler/scheduler_config.json: prediction_type {kind!r} of {schedule.get('_class_name')} is not "
            "supported; known: epsilon, v_prediction"
        )
    return known[kind]


def alphas_cumprod(schedule: Mapping[str, Any]) -> Tensor:
    """The cumulative product of 1 - beta over the training timesteps, shape (T,), by diffusers' own schedule."""
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    alphas: Tensor = DDPMScheduler(**{k: schedule[k] for k in keys if schedule.get(k) is not None}).alphas_cumprod
    return alphas
