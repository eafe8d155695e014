"""The fields of AUTOMATIC1111's API: those that are meant here, and those that may be there as long as they ask for nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from sdtune.samplers import SAMPLERS, titled
from sdtune.serve.errors import ApiError

NO, NONE, ZERO = (False, None), (None, "", "None"), (0, None)
NEUTRAL: Mapping[str, tuple[Sequence[Any], str]] = {
    "styles": ((None, []), "there are no styles"),
    "subseed_strength": (ZERO, "there are no variations of a seed"),
    "seed_resize_from_h": ((-1, 0, None), "seeds are of one size"),
    "seed_resize_from_w": ((-1, 0, None), "seeds are of one size"),
    "restore_faces": (NO, "there is no face restorer"),
    "tiling": (NO, "pictures do not tile"),
    "enable_hr": (NO, "there is no second pass"),
    "refiner_checkpoint": (NONE, "there is no refiner"),
    "eta": ((None, 0, 1), "a sampler's own is used"),
    "s_churn": (ZERO, "a sampler's own is used"),
    "s_tmin": (ZERO, "a sampler's own is used"),
    "s_tmax": (ZERO, "a sampler's own is used"),
    "s_noise": ((None, 1), "a sampler's own is used"),
    "s_min_uncond": (ZERO, "guidance is of all steps"),
    "script_name": (NONE, "there are no scripts"),
    "script_args": ((None, []), "there are no scripts"),
    "alwayson_scripts": ((None, {}), "there are no scripts"),
    "controlnet_units": ((None, []), "there is no ControlNet"),
    "disable_extra_networks": (NO, "<lora:...> is always read"),
    "infotext": (NONE, "send the fields themselves"),
    "clip_skip": ((None, 0, 1), "the text encoder's own layer is used"),
    "firstphase_width": (ZERO, "there is no second pass"),
    "firstphase_height": (ZERO, "there is no second pass"),
}
"""Fields that may have these values, which ask for nothing; any other is refused, with this reason."""
NEUTRAL_OF_PICTURES: Mapping[str, tuple[Sequence[Any], str]] = {
    "latent_mask": ((None,), "send mask"),
    "inpainting_fill": ((0, 1, None), "what is painted anew begins with the picture (1)"),
    "initial_noise_multiplier": ((None, 0, 1), "noise is as it is"),
    "include_init_images": (NO, "pictures are not sent back"),
    "mask_blur_x": ((None, 4), "send mask_blur"),
    "mask_blur_y": ((None, 4), "send mask_blur"),
}
IGNORED = (
    "subseed", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name", "hr_sampler_name",
    "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_additional_modules", "hr_cfg", "hr_distilled_cfg", "refiner_switch_at",
    "distilled_cfg_scale", "do_not_save_samples", "do_not_save_grid", "save_images", "comments", "force_task_id", "url", "auth",
)  # fmt: skip
"""Belong to what is off here, or to clients themselves: any value, no effect."""
IGNORED_OF_PICTURES = ("image_cfg_scale", "inpaint_full_res", "inpaint_full_res_padding", "mask_round")
OPTIONS: Mapping[str, Sequence[Any]] = {
    "sd_checkpoint_hash": ("", None), "sd_vae": ("Automatic", "None", "", None), "CLIP_stop_at_last_layers": (1, 0, None),
    "samples_format": ("png",), "eta_noise_seed_delta": ZERO, "forge_additional_modules": ([], None), "enable_pnginfo": (True,),
    "send_seed": (True,), "live_previews_enable": (True, False),
}  # fmt: skip
"""Settings beside sd_model_checkpoint: what may be sent for each, what is told of it first."""
NAMES = {
    "negative": "negative_prompt", "guidance": "cfg_scale", "scheduler": "sampler_name", "seeds": "seed", "adapters": "prompt",
    "model": "override_settings.sd_model_checkpoint", "image": "init_images", "strength": "prompt",
}  # fmt: skip
"""Our fields, and theirs of the same meaning."""
_TAG = re.compile(r"<(?:lora|lyco):([^<>:]{0,200})(?::([^<>]{0,200}))?>")


class Asked(BaseModel):
    """What txt2img and img2img have in common. Defaults are AUTOMATIC1111's, but for the size."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    prompt: str = ""
    negative_prompt: str | None = ""
    seed: int | None = Field(-1, description="-1: by chance. The pictures have seed, seed + 1, ...")
    sampler_name: str | None = Field(None, max_length=100, description="As GET /sdapi/v1/samplers lists. Unset: Euler.")
    sampler_index: str | None = Field(None, max_length=100, description="An old name of sampler_name.")
    scheduler: str | None = Field(
        None, max_length=100, description="Automatic, or Karras with the samplers that have it."
    )
    batch_size: int = Field(1, ge=1)
    n_iter: int = Field(1, ge=1)
    steps: int | None = 50
    cfg_scale: float | None = 7.0
    width: int | None = Field(None, description="Unset: the model's own size.")
    height: int | None = Field(None, description="Unset: the model's own size.")
    denoising_strength: float | None = None
    override_settings: dict[str, Any] | None = Field(None, description="sd_model_checkpoint: which model draws.")
    override_settings_restore_afterwards: bool | None = Field(
        True, description="False: later calls use that model, too."
    )
    send_images: bool | None = True

    @model_validator(mode="after")
    def _asks_for_nothing_else(self) -> Self:
        for name, (values, why) in {**NEUTRAL, **NEUTRAL_OF_PICTURES}.items():
            value = getattr(self, name, None)
            if not any(value == allowed for allowed in values):
                raise ValueError(f"{name}: is not supported: {why}")
        return self


def _with(
    base: type[Asked], name: str, neutral: Mapping[str, tuple[Sequence[Any], str]], ignored: Sequence[str]
) -> Any:
    fields: dict[str, Any] = {
        key: (Any, Field(None, description=f"Nothing but this: {why}.", json_schema_extra={"enum": list(values)}))
        for key, (values, why) in neutral.items()
    }
    fields |= {key: (Any, Field(None, description="Without effect.")) for key in ignored}
    return create_model(name, __base__=base, __doc__=base.__doc__, **fields)


class _Pictured(Asked):
    """A picture that is changed, where the mask is white or as a whole."""

    init_images: list[str] = Field(
        min_length=1, description="One picture: base64, or a data: URL. Addresses are not opened."
    )
    mask: str | None = Field(None, description="White: painted anew. As large as the picture.")
    mask_blur: int | None = Field(4, ge=0, le=64, description="Pixels.")
    inpainting_mask_invert: int | None = Field(0, ge=0, le=1, description="1: black is painted anew.")
    resize_mode: int = Field(
        0, ge=0, le=3, description="0: stretched to the size. 1: its middle. Others are not supported."
    )


Txt2Img: type[Asked] = _with(Asked, "Txt2Img", NEUTRAL, IGNORED)
Img2Img: type[_Pictured] = _with(
    _Pictured, "Img2Img", {**NEUTRAL, **NEUTRAL_OF_PICTURES}, (*IGNORED, *IGNORED_OF_PICTURES)
)
Pictured = _Pictured


def sampler(asked: Asked) -> str:
    """Our name of the sampler. Raises ApiError."""
    title = asked.sampler_name or asked.sampler_index or "Euler"
    schedule = (asked.scheduler or "automatic").strip().lower()
    if (name := titled(title)) is None:
        known = ", ".join(sampler.title for sampler in SAMPLERS.values())
        raise ApiError(422, "invalid", f"sampler_name: unknown; known: {known}", field="sampler_name")
    karras = SAMPLERS[name].title.lower().endswith(" karras")
    if (
        schedule == "automatic"
        or (schedule == "karras" and karras)
        or (schedule in ("uniform", "normal") and not karras)
    ):
        return name
    if whole := titled(f"{title} {schedule}"):
        return whole
    raise ApiError(422, "invalid", f"scheduler: not with {SAMPLERS[name].title}; take Automatic", field="scheduler")


def networks(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """The prompt without `<lora:id:weight>`, and what these name. Raises ApiError."""
    found = [(tag[1].strip(), _weight(tag[2])) for tag in _TAG.finditer(prompt)]
    return (_TAG.sub("", prompt).strip() if found else prompt), found


def _weight(text: str | None) -> float:
    try:
        weight = float(text) if text is not None else 1.0
    except ValueError:
        weight = float("nan")
    if not -4 <= weight <= 4:
        raise ApiError(422, "invalid", "prompt: <lora:id:weight> has one weight, -4 to 4", field="prompt")
    return weight


def setting(key: str, value: Any, field: str) -> None:
    """Refuse a setting that would change something here. Raises ApiError."""
    if key not in OPTIONS:
        raise ApiError(422, "invalid", f"{field}: no such setting; GET /sdapi/v1/options lists them", field=field)
    if not any(value == allowed for allowed in OPTIONS[key]):
        raise ApiError(422, "invalid", f"{field}: cannot be changed here", field=field)
