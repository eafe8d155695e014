"""The loss equals diffusers' formulas."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from sdtune.families.sd1 import Sd1
from sdtune.model import Cond, Prediction
from sdtune.objective import Objective, ObjectiveConfig
from tests import tiny

DDPM = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
ALPHAS, SIGMAS = DDPM.alphas_cumprod.sqrt(), (1 - DDPM.alphas_cumprod).sqrt()


def denoise(x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
    return torch.tanh(x_BCHW * 1.3 + t_B.view(-1, 1, 1, 1) / 1000 + cond.states_BLD.mean((1, 2)).view(-1, 1, 1, 1))


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_equals_diffusers(prediction: Prediction, gamma: float | None) -> None:
    rng = torch.Generator().manual_seed(3)
    x0, cond = torch.randn(6, 4, 8, 8, generator=rng), Cond(torch.randn(6, 5, 7, generator=rng))
    ours = Objective(ALPHAS, SIGMAS, prediction, gamma)(denoise, x0, cond, torch.Generator().manual_seed(1))

    rng = torch.Generator().manual_seed(1)
    t, noise = torch.randint(1000, (6,), generator=rng), torch.randn(x0.shape, generator=rng)
    target = noise if prediction == "epsilon" else DDPM.get_velocity(x0, noise, t)
    theirs = F.mse_loss(denoise(DDPM.add_noise(x0, noise, t), t, cond), target, reduction="none").mean((1, 2, 3))
    if gamma:
        snr = compute_snr(DDPM, t)
        theirs = theirs * snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("kind", "prediction"), [("epsilon", "epsilon"), ("v_prediction", "v")])
def test_the_section_takes_the_schedule_from_the_model(tmp_path: Path, kind: str, prediction: Prediction) -> None:
    model = Sd1(path=str(tiny.sd1_folder(tmp_path / "model", kind))).load()  # type: ignore[arg-type]
    built = ObjectiveConfig(min_snr_gamma=3.0).build(model)
    assert (built.prediction, built.min_snr_gamma) == (prediction, 3.0)
    torch.testing.assert_close(built.alphas_T, ALPHAS)
    torch.testing.assert_close(built.sigmas_T, SIGMAS)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_equals_diffusers(shift: float) -> None:
    """Noising, target and the time that the denoiser is told are those of diffusers' scheduler; no weight but one."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    sigmas = scheduler.sigmas.flip(0)
    rng = torch.Generator().manual_seed(3)
    x0, cond = torch.randn(6, 4, 8, 8, generator=rng), Cond(torch.randn(6, 5, 7, generator=rng))
    ours = Objective(1 - sigmas, sigmas, "flow", 5.0)(denoise, x0, cond, torch.Generator().manual_seed(1))

    rng = torch.Generator().manual_seed(1)
    index, noise = torch.randint(1000, (6,), generator=rng), torch.randn(x0.shape, generator=rng)
    time = scheduler.timesteps.flip(0)[index]
    noisy = scheduler.scale_noise(x0, time, noise)  # finds its sigma by the time
    theirs = F.mse_loss(denoise(noisy, time, cond), noise - x0, reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(ours, theirs)
    # One Euler step from x_t with the true flow is the picture.
    scheduler.set_timesteps(1)
    start = scheduler.scale_noise(x0, scheduler.timesteps[:1], noise)
    torch.testing.assert_close(scheduler.step(noise - x0, scheduler.timesteps[0], start).prev_sample, x0)
