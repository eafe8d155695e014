"""The loss equals diffusers' formulas, the papers', and kohya's scripts' where they are the reference."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from sdtune.errors import ConfigError
from sdtune.families.sd1 import Sd1
from sdtune.model import Cond, Prediction
from sdtune.objective import Objective, ObjectiveConfig, pyramid
from tests import tiny

DDPM = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
ALPHAS, SIGMAS = DDPM.alphas_cumprod.sqrt(), (1 - DDPM.alphas_cumprod).sqrt()
ALL = torch.arange(1000)


def denoise(x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
    return torch.tanh(x_BCHW * 1.3 + t_B.view(-1, 1, 1, 1) / 1000 + cond.states_BLD.mean((1, 2)).view(-1, 1, 1, 1))


def example(B: int = 6) -> tuple[Tensor, Cond]:
    rng = torch.Generator().manual_seed(3)
    return torch.randn(B, 4, 8, 8, generator=rng), Cond(torch.randn(B, 5, 7, generator=rng))


def objective(prediction: Prediction = "epsilon", **options: Any) -> Objective:
    return Objective(ALPHAS, SIGMAS, prediction, ObjectiveConfig(**{"weighting": "none", **options}))


class Seen:
    """A denoiser that remembers what it was shown, and says 0."""

    def __call__(self, x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        self.x_BCHW, self.t_B = x_BCHW, t_B
        return torch.zeros_like(x_BCHW)


def seen(B: int = 6, **options: Any) -> tuple[Seen, Tensor]:
    """What a step shows the network, and the loss (of the prediction 0: the mean square of the target)."""
    x0, cond = example(B)
    network = Seen()
    loss_B = objective(**options)(network, x0, cond, torch.Generator().manual_seed(1))
    return network, loss_B


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_equals_diffusers(prediction: Prediction, gamma: float | None) -> None:
    x0, cond = example()
    ours = objective(prediction, weighting="min-snr", min_snr_gamma=gamma)
    loss = ours(denoise, x0, cond, torch.Generator().manual_seed(1))

    rng = torch.Generator().manual_seed(1)
    t, noise = torch.randint(1000, (6,), generator=rng), torch.randn(x0.shape, generator=rng)
    target = noise if prediction == "epsilon" else DDPM.get_velocity(x0, noise, t)
    theirs = F.mse_loss(denoise(DDPM.add_noise(x0, noise, t), t, cond), target, reduction="none").mean((1, 2, 3))
    if gamma:
        snr = compute_snr(DDPM, t)
        theirs = theirs * snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)
    torch.testing.assert_close(loss, theirs)


@pytest.mark.parametrize(("kind", "prediction"), [("epsilon", "epsilon"), ("v_prediction", "v")])
def test_the_section_takes_the_schedule_from_the_model(tmp_path: Path, kind: str, prediction: Prediction) -> None:
    model = Sd1(path=str(tiny.sd1_folder(tmp_path / "model", kind))).load()  # type: ignore[arg-type]
    built = ObjectiveConfig(min_snr_gamma=3.0).build(model)
    assert (built.prediction, built.options.min_snr_gamma) == (prediction, 3.0)
    torch.testing.assert_close(built.alphas_T, ALPHAS)
    torch.testing.assert_close(built.sigmas_T, SIGMAS)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_equals_diffusers(shift: float) -> None:
    """Noising, target and the time that the denoiser is told are those of diffusers' scheduler; no weight but one."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    sigmas = scheduler.sigmas.flip(0)
    rng = torch.Generator().manual_seed(3)
    x0, cond = torch.randn(6, 4, 8, 8, generator=rng), Cond(torch.randn(6, 5, 7, generator=rng))
    ours = Objective(1 - sigmas, sigmas, "flow", ObjectiveConfig())(denoise, x0, cond, torch.Generator().manual_seed(1))

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


PAPERS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "min-snr": lambda snr: torch.minimum(snr, torch.tensor(3.0)) / snr,
    "soft-min-snr": lambda snr: 1 / (1 / snr + 1 / 3.0) / snr,  # the harmonic sum in place of the minimum
    "debiased": lambda snr: 1 / snr.sqrt(),
    "p2": lambda snr: 1 / (2.0 + snr) ** 0.5,
}


@pytest.mark.parametrize("weighting", list(PAPERS))
def test_weightings_are_those_of_the_papers(weighting: str) -> None:
    own: dict[str, Any] = (
        {"min_snr_gamma": 3.0} if "min" in weighting else {"p2_k": 2.0, "p2_gamma": 0.5} if weighting == "p2" else {}
    )
    snr = compute_snr(DDPM, ALL)
    torch.testing.assert_close(objective(weighting=weighting, **own).weight(ALL), PAPERS[weighting](snr))
    if weighting != "none":  # an error in v is snr / (snr + 1) of that in noise
        v = objective("v", weighting=weighting, **own).weight(ALL)
        torch.testing.assert_close(v, PAPERS[weighting](snr) * snr / (snr + 1))


def test_the_old_key_alone_still_bounds_the_weight() -> None:
    ours = Objective(ALPHAS, SIGMAS, "epsilon", ObjectiveConfig(min_snr_gamma=2.0))
    torch.testing.assert_close(ours.weight(ALL), (2 / compute_snr(DDPM, ALL)).clamp(max=1))


def kohya(e: Tensor, t: Tensor, loss: str, schedule: str, huber_c: float) -> Tensor:
    """conditional_loss and get_huber_threshold_if_needed of kohya's sd-scripts."""
    if schedule == "exponential":
        c = torch.exp(math.log(huber_c) / 1000 * t)
    elif schedule == "snr":
        a = DDPM.alphas_cumprod[t]
        c = (1 - huber_c) / (1 + ((1 - a) / a) ** 0.5) ** 2 + huber_c
    else:
        c = torch.full((len(t),), huber_c)
    c = c.view(-1, 1, 1, 1)
    return (2 * c if loss == "huber" else 2) * (torch.sqrt(e**2 + c**2) - c)


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
@pytest.mark.parametrize("loss", ["huber", "smooth-l1"])
def test_robust_losses_equal_kohyas(loss: str, schedule: str) -> None:
    x0, cond = example()
    ours = objective(loss=loss, huber_c=0.2, huber_schedule=schedule)
    got = ours(denoise, x0, cond, torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(1)
    t, noise = torch.randint(1000, (6,), generator=rng), torch.randn(x0.shape, generator=rng)
    e = denoise(DDPM.add_noise(x0, noise, t), t, cond) - noise
    torch.testing.assert_close(got, kohya(e, t, loss, schedule, 0.2).mean((1, 2, 3)))


def test_validation_stays_plain() -> None:
    x0, cond = example()
    t, noise = torch.randint(1000, (6,)), torch.randn(x0.shape)
    everything = objective(
        weighting="debiased", loss="huber", offset_noise=0.1, pyramid_noise=0.3, input_perturbation=0.1
    )
    assert torch.equal(everything.error(denoise, x0, cond, t, noise), objective().error(denoise, x0, cond, t, noise))


# ---- masks


def half(B: int = 6) -> Tensor:
    """Weights of which the left half is 0, the rest another one for each picture and place."""
    mask_B1HW = torch.rand(B, 1, 8, 8, generator=torch.Generator().manual_seed(9)) + 0.5
    mask_B1HW[..., :4] = 0
    return mask_B1HW


@pytest.mark.parametrize("loss", ["l2", "huber"])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_a_mask_weighs_the_error_of_each_place(prediction: Prediction, loss: str) -> None:
    (x0, cond), mask = example(), half()
    ours = objective(prediction, loss=loss)
    network = Seen()
    got = ours(network, x0, cond, torch.Generator().manual_seed(1), mask_B1HW=mask)
    rng = torch.Generator().manual_seed(1)
    t, noise = torch.randint(1000, (6,), generator=rng), torch.randn(x0.shape, generator=rng)
    target = {"epsilon": noise, "v": DDPM.get_velocity(x0, noise, t), "flow": noise - x0}[prediction]
    expected = []
    for i in range(6):  # it answers 0: the error is the target
        e = ours.distance(target[i : i + 1], t[i : i + 1])[0]
        places = [float(e[c, y, x]) * float(mask[i, 0, y, x]) for c in range(4) for y in range(8) for x in range(8)]
        expected.append(sum(places) / 256)
    torch.testing.assert_close(got, torch.tensor(expected))


@pytest.mark.parametrize("options", [{}, {"weighting": "min-snr", "loss": "smooth-l1", "offset_noise": 0.1}])
def test_a_mask_of_ones_is_none(options: dict[str, Any]) -> None:
    x0, cond = example()
    without, ones = (
        objective(**options)(denoise, x0, cond, torch.Generator().manual_seed(1), mask_B1HW=mask)
        for mask in (None, torch.ones(6, 1, 8, 8))
    )
    assert torch.equal(without, ones)


def test_what_is_left_out_has_neither_loss_nor_gradient() -> None:
    """Whatever is predicted or asked for there: the loss is the same to the last bit, and the prediction gets no gradient."""
    x0, cond = example()
    t, mask, rng = torch.full((6,), 300), half(), torch.Generator().manual_seed(4)
    noise, other = torch.randn(2, *x0.shape, generator=rng)
    other[..., 4:] = noise[..., 4:]
    answer = torch.randn(x0.shape, generator=rng).requires_grad_(True)
    elsewhere = torch.cat([torch.full_like(answer[..., :4], 1e3), answer[..., 4:]], -1)
    losses = [
        objective().error(lambda x, t, c, said=said: said, x0, cond, t, asked, mask_B1HW=mask)  # type: ignore[misc]
        for said, asked in ((answer, noise), (answer, other), (elsewhere, noise))
    ]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])
    losses[0].sum().backward()
    assert answer.grad is not None and not answer.grad[..., :4].any() and answer.grad[..., 4:].all()
    plain = objective().error(lambda x, t, c: answer, x0, cond, t, noise)
    assert not torch.isclose(plain, losses[0]).any()


def test_rows_take_their_own_masks() -> None:
    x0, cond = example()
    whole = objective()(denoise, x0, cond, torch.Generator().manual_seed(1), mask_B1HW=half())
    parts = [
        objective()(denoise, x0, cond, torch.Generator().manual_seed(1), rows, half())
        for rows in (slice(0, 2), slice(2, 6))
    ]
    assert torch.equal(torch.cat(parts), whole)


# ---- noise


def test_offset_noise_is_one_number_a_channel() -> None:
    (plain, _), (offset, _) = seen(), seen(offset_noise=0.5)
    added = (offset.x_BCHW - plain.x_BCHW) / SIGMAS[plain.t_B].view(-1, 1, 1, 1)
    assert torch.equal(plain.t_B, offset.t_B)
    assert not torch.allclose(added[:, 0], added[:, 1], atol=0.1), "another for each channel"
    torch.testing.assert_close(added, added.mean((2, 3), keepdim=True).expand_as(added), atol=1e-5, rtol=0)
    (_, many), spread = seen(400, offset_noise=0.5)[0:2], 0.25
    assert float(many.mean()) == pytest.approx(1 + spread, rel=0.05), "the network is asked for the offset, too"


def test_pyramid_noise_equals_kohyas(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyramid_noise_like of sd-scripts, for one picture: there the scale is that of the batch."""
    noise = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(5))
    rng, expected = torch.Generator().manual_seed(2), noise.clone()
    monkeypatch.setattr(random, "random", lambda: float(torch.rand((), generator=rng)))
    upsample = nn.Upsample(size=(16, 24), mode="bilinear")
    for i in range(6):
        r = random.random() * 2 + 2
        h, w = max(1, int(16 / (r**i))), max(1, int(24 / (r**i)))
        expected += upsample(torch.randn(1, 4, h, w, generator=rng)) * 0.4**i
        if w == 1 or h == 1:
            break
    torch.testing.assert_close(pyramid(noise, 0.4, torch.Generator().manual_seed(2)), expected / expected.std())


def test_pyramid_noise_has_unit_variance_and_reaches_the_network() -> None:
    (plain, _), (coarse, loss_B) = seen(), seen(pyramid_noise=0.5)
    assert torch.equal(plain.t_B, coarse.t_B) and not torch.equal(plain.x_BCHW, coarse.x_BCHW)
    _, loss_B = seen(300, pyramid_noise=0.5)
    assert 1 < float(loss_B.mean()) < 1.1, "the square of the mean comes on top of the variance"


def test_input_perturbation_is_seen_but_not_asked_for() -> None:
    (plain, asked), (perturbed, asked_too) = seen(400), seen(400, input_perturbation=0.3)
    assert torch.equal(asked, asked_too)
    extra = (perturbed.x_BCHW - plain.x_BCHW) / SIGMAS[plain.t_B].view(-1, 1, 1, 1)
    assert float(extra.std()) == pytest.approx(0.3, rel=0.02)


def test_options_do_not_shift_each_others_draws() -> None:
    """Two micro-batches of a step: the second one's timesteps and noise are the same with and without options in the first."""
    options = {"offset_noise": 0.1, "pyramid_noise": 0.3, "input_perturbation": 0.1, "timesteps": "logit-normal"}
    x0, cond = example()
    shown: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
    whiches: tuple[dict[str, Any], ...] = ({}, options, options)
    for which in whiches:
        rng, network = torch.Generator().manual_seed(1), Seen()
        objective(**which)(network, x0, cond, rng)
        first = network.x_BCHW
        objective()(network, x0, cond, rng)
        shown.setdefault(len(which), []).append((first, network.x_BCHW, network.t_B))
    (without,), (a, b) = shown[0], shown[4]
    assert torch.equal(without[1], a[1]) and torch.equal(without[2], a[2])
    assert torch.equal(a[0], b[0]), "the same seed gives the same"


def test_each_micro_batch_of_a_step_has_offsets_of_its_own() -> None:
    x0, cond = example()
    shown = []
    for offset in (0.0, 0.5):
        rng, networks = torch.Generator().manual_seed(1), (Seen(), Seen())
        for network in networks:
            objective(offset_noise=offset)(network, x0, cond, rng)
        shown.append([n.x_BCHW / SIGMAS[n.t_B].view(-1, 1, 1, 1) for n in networks])
    first, second = (b - a for a, b in zip(*shown, strict=True))
    assert not torch.allclose(first, second, atol=0.1)


# ---- timesteps


def test_timestep_range_is_kept_and_reached() -> None:
    for kind in ("uniform", "logit-normal"):
        t_B = objective(timesteps=kind, timestep_range=(10, 13)).draw_timesteps(500, torch.Generator().manual_seed(0))
        assert set(t_B.tolist()) == {10, 11, 12, 13}


def test_logit_normal_timesteps_have_their_quantiles() -> None:
    ours = objective(timesteps="logit-normal", logit_mean=0.5, logit_std=0.8)
    t_B = ours.draw_timesteps(40_000, torch.Generator().manual_seed(0)) / 1000
    for share, z in ((0.1587, -1.0), (0.5, 0.0), (0.8413, 1.0)):
        assert float(t_B.quantile(share)) == pytest.approx(1 / (1 + math.exp(-(0.5 + 0.8 * z))), abs=0.01)


# ---- what does not go together


def model(prediction: Prediction) -> Any:
    return SimpleNamespace(alphas_T=ALPHAS, sigmas_T=SIGMAS, prediction=prediction)


def test_robust_losses_stay_finite_at_pure_noise() -> None:
    alphas = (1 - rescale_zero_terminal_snr(DDPM.betas.clone())).cumprod(0).sqrt()
    assert alphas[-1] == 0
    ours = Objective(alphas, (1 - alphas**2).sqrt(), "v", ObjectiveConfig(loss="huber"))
    assert torch.isfinite(ours.distance(torch.ones(1, 1, 1, 1), torch.tensor([999]))).all()


@pytest.mark.parametrize(
    ("options", "prediction", "says"),
    [
        ({"timestep_range": (5, 4)}, "v", "begins after its end"),
        ({"timestep_range": (5, 1000)}, "v", "the last timestep is 999"),
        ({"huber_c": 0.5}, "v", 'objective.huber_c: has an effect only with objective.loss "huber" or "smooth-l1"'),
        ({"weighting": "p2", "min_snr_gamma": 1.0}, "v", "objective.min_snr_gamma: has an effect only with"),
        ({"logit_std": 2.0}, "v", "objective.logit_std: has an effect only with"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], prediction: Prediction, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ObjectiveConfig(**options).build(model(prediction))
