"""The samplers by name, with their usual settings. Imports torch and diffusers in `build_scheduler` only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sdtune.errors import ConfigError

if TYPE_CHECKING:
    from sdtune.model import Model


@dataclass(frozen=True)
class Sampler:
    """A way from noise to a picture."""

    title: str
    """What web UIs call it."""
    kind: str
    """diffusers' class."""
    good_for: str
    steps: str
    """How many are usual."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Settings of that class which differ from its defaults."""
    noisy: bool = False
    """Whether it adds noise on the way, from the picture's seed."""
    zero_snr: bool = True
    """Whether it can begin at pure noise (arXiv:2305.08891)."""
    flow: bool = False
    """Whether it draws with flow models, too."""


_LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_KARRAS = {"use_karras_sigmas": True}

SAMPLERS: Mapping[str, Sampler] = {
    "dpm++2m": Sampler("DPM++ 2M", "DPMSolverMultistepScheduler", "most things; few steps, deterministic", "15-30"),
    "dpm++2m-karras": Sampler(
        "DPM++ 2M Karras", "DPMSolverMultistepScheduler", "the same with more steps at little noise: finer detail", "15-30", _KARRAS
    ),
    "dpm++2m-sde": Sampler(
        "DPM++ 2M SDE", "DPMSolverMultistepScheduler", "rich texture; adds noise, never quite settles", "25-40", _SDE, noisy=True
    ),
    "dpm++2m-sde-karras": Sampler(
        "DPM++ 2M SDE Karras", "DPMSolverMultistepScheduler", "the same with Karras' steps; usual for photographs", "25-40",
        {**_SDE, **_KARRAS}, noisy=True,
    ),
    "unipc": Sampler("UniPC", "UniPCMultistepScheduler", "very few steps, deterministic", "8-20"),
    "euler": Sampler("Euler", "EulerDiscreteScheduler", "plain and steady; the one for Stable Diffusion 3", "20-40", flow=True),
    "euler-a": Sampler(
        "Euler a", "EulerAncestralDiscreteScheduler", "soft and varied; adds noise, another picture at other steps", "20-40", noisy=True
    ),
    "heun": Sampler(
        "Heun", "HeunDiscreteScheduler", "exact; two looks of the model a step, so twice the time", "10-25", zero_snr=False
    ),
    "ddim": Sampler(
        "DDIM", "DDIMScheduler", "the classic, deterministic; what papers compare with", "30-50",
        {"clip_sample": False, "set_alpha_to_one": False, **_LEADING},
    ),
    "ddpm": Sampler(
        "DDPM", "DDPMScheduler", "the training's own process; wants many steps", "100-1000",
        {"clip_sample": False, **_LEADING}, noisy=True,
    ),
    "pndm": Sampler(
        "PLMS", "PNDMScheduler", "Stable Diffusion 1's first default", "30-50",
        {"skip_prk_steps": True, "set_alpha_to_one": False, **_LEADING}, zero_snr=False,
    ),
    "lcm": Sampler(
        "LCM", "LCMScheduler", 'models distilled to few steps (objective.type="consistency"), with guidance 1', "2-8", noisy=True
    ),
}  # fmt: skip


def titled(title: str) -> str | None:
    """Our name of what web UIs call so, in upper or lower case; of our own names the name itself."""
    known = {sampler.title.lower(): name for name, sampler in SAMPLERS.items()} | {name: name for name in SAMPLERS}
    return known.get(title.strip().lower())


def build_scheduler(model: Model, name: str) -> Any:
    """diffusers' sampler of this name for the model's noise schedule. Raises ConfigError if they do not go together."""
    import diffusers
    import torch

    sampler = SAMPLERS[name]
    if model.prediction == "flow":
        if not sampler.flow:
            known = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.flow)
            raise ConfigError(
                f"sample.scheduler: {name!r} does not draw with a flow model ({model.family}); known: {known}"
            )
        return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=len(model.sigmas_T), shift=model.shift)

    betas = 1 - (model.alphas_T**2) / torch.cat([model.alphas_T.new_ones(1), model.alphas_T[:-1] ** 2])
    settings = {
        "trained_betas": betas.cpu().double().numpy(),
        "num_train_timesteps": len(betas),
        "prediction_type": "v_prediction" if model.prediction == "v" else "epsilon",
        **sampler.own,
    }
    if model.alphas_T[-1] == 0:
        if not sampler.zero_snr:
            raise ConfigError(
                f"sample.scheduler: {name!r} cannot begin at pure noise, as this model does (zero terminal SNR); "
                "dpm++2m and most others can"
            )
        # Begin at the last timestep, where no trace of a picture is left: arXiv:2305.08891, section 3.3.
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return getattr(diffusers, sampler.kind)(**settings)
