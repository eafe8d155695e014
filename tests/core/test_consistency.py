"""Consistency distillation against diffusers' LCM and DDIM schedulers, and through the real loop."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from sdtune import config as configs
from sdtune import tuned
from sdtune.config import SampleConfig
from sdtune.consistency import Consistency, ConsistencyConfig
from sdtune.errors import ConfigError
from sdtune.events import Step, Validated, Warned
from sdtune.model import Cond, Prediction
from sdtune.runs import Run
from sdtune.sample import sample
from sdtune.train import train
from tests import tiny

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ALPHAS = DDIMScheduler(**BETAS).alphas_cumprod.sqrt()
SIGMAS = (1 - ALPHAS**2).sqrt()


def network(x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
    return torch.tanh(x_BCHW * 1.3 + t_B.view(-1, 1, 1, 1) / 1000 + cond.states_BLD.mean((1, 2)).view(-1, 1, 1, 1))


def pupil(x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
    return 0.9 * network(x_BCHW, t_B, cond)


def loss(prediction: Prediction = "epsilon", **options: Any) -> Consistency:
    empty = Cond(torch.ones(1, 5, 7) * 0.3)
    return Consistency(ALPHAS, SIGMAS, prediction, ConsistencyConfig(**options), network, empty)


def example(B: int = 3) -> tuple[Tensor, Cond, Tensor]:
    rng = torch.Generator().manual_seed(3)
    return (
        torch.randn(B, 4, 8, 8, generator=rng),
        Cond(torch.randn(B, 5, 7, generator=rng)),
        torch.randn(B, 4, 8, 8, generator=rng),
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_jump_is_that_of_diffusers_sampler(prediction: Prediction) -> None:
    scheduler = LCMScheduler(**BETAS, prediction_type={"v": "v_prediction"}.get(prediction, prediction))
    x, cond, _ = example()
    for t in (19, 499, 999):
        scheduler.set_timesteps(1)
        scheduler.timesteps, scheduler._step_index = torch.tensor([t]), None
        theirs = scheduler.step(network(x, torch.full((3,), t), cond), t, x).denoised
        ours = loss(prediction).jump(network, x, torch.full((3,), t), cond)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_teachers_step_is_ddims(prediction: Prediction) -> None:
    scheduler = DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False,
        prediction_type={"v": "v_prediction"}.get(prediction, prediction),
    )  # fmt: skip
    scheduler.set_timesteps(50)  # 20 timesteps apart
    x, cond, _ = example()
    ours = loss(prediction)
    for t in (19, 499, 999):
        t_B = torch.full((3,), t)
        out, free = network(x, t_B, cond), network(x, t_B, ours.empty[torch.zeros(3, dtype=torch.long)])
        theirs = scheduler.step(free + 6 * (out - free), t, x).prev_sample
        solved = ours.solve(x, t_B, (t_B - 20).clamp(min=0), cond, torch.full((3,), 6.0))
        torch.testing.assert_close(solved, theirs, rtol=1e-4, atol=1e-4)


def test_points_are_those_of_the_papers_solver() -> None:
    ours = loss()
    n = torch.arange(50)
    assert torch.equal(ours.timestep(n), torch.arange(1, 51) * 20 - 1) and ours.stride == 20


@pytest.mark.parametrize("kind", ["huber", "l2"])
def test_the_loss_by_hand(kind: str) -> None:
    x0, cond, noise = example()
    ours = loss(loss=kind, huber_c=0.01, guidance=(5.0, 7.0))
    t = torch.tensor([19, 499, 999])
    found = ours._gap(pupil, x0, cond, t, noise, torch.full((3,), 6.0))
    x = ALPHAS[t].view(-1, 1, 1, 1) * x0 + SIGMAS[t].view(-1, 1, 1, 1) * noise
    earlier = ours.solve(x, t, torch.tensor([0, 479, 979]), cond, torch.full((3,), 6.0))
    e = ours.jump(pupil, x, t, cond) - ours.jump(pupil, earlier, torch.tensor([0, 479, 979]), cond)
    expected = e.square() if kind == "l2" else (e.square() + 1e-4).sqrt() - 0.01
    torch.testing.assert_close(found, expected)


def test_validation_asks_how_far_the_jump_is_from_the_end_of_the_teachers_way() -> None:
    x0, cond, noise = example()
    ours, t = loss(guidance=(5.0, 7.0)), torch.tensor([19, 499, 999])
    found = ours.error(pupil, x0, cond, t, noise)
    x = ALPHAS[t].view(-1, 1, 1, 1) * x0 + SIGMAS[t].view(-1, 1, 1, 1) * noise
    end, way = x, [t * (8 - i) // 8 for i in range(9)]
    for here, there in pairwise(way):
        end = ours.solve(end, here, there, cond, torch.full((3,), 6.0))
    torch.testing.assert_close(found, (ours.jump(pupil, x, t, cond) - end).square().mean((1, 2, 3)))


def test_the_end_is_walked_to_once() -> None:
    x0, cond, noise = example()
    asked: list[Tensor] = []

    def teacher(x: Tensor, t: Tensor, c: Cond) -> Tensor:
        asked.append(t)
        return network(x, t, c)

    ours = replace(loss(), teacher=teacher)
    t = torch.tensor([19, 499, 999])
    first = ours.error(pupil, x0, cond, t, noise)
    assert len(asked) == 16
    assert torch.equal(ours.error(pupil, x0, cond, t, noise), first) and len(asked) == 16
    assert not torch.equal(ours.error(pupil, x0, cond, t, noise + 1), first) and len(asked) == 32
    ours.error(pupil, x0, cond, t - 20 * torch.tensor([0, 1, 0]), noise)
    assert len(asked) == 48


def test_a_mask_says_what_each_place_counts() -> None:
    x0, cond, noise = example()
    t = torch.tensor([19, 499, 999])
    mask = torch.zeros(3, 1, 8, 8)
    mask[:, :, 2:5, 1:4] = torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1, 1)
    ours = loss(loss="l2")
    x = ALPHAS[t].view(-1, 1, 1, 1) * x0 + SIGMAS[t].view(-1, 1, 1, 1) * noise
    gap = (ours.jump(pupil, x, t, cond) - ours._end(x, t, cond)).square()
    expected = (gap[:, :, 2:5, 1:4] * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1, 1)).sum((1, 2, 3)) / gap[0].numel()
    torch.testing.assert_close(ours.error(pupil, x0, cond, t, noise, mask_B1HW=mask), expected)
    whole = ours(pupil, x0, cond, torch.Generator().manual_seed(1), mask_B1HW=mask)
    rows = slice(1, 3)
    torch.testing.assert_close(ours(pupil, x0, cond, torch.Generator().manual_seed(1), rows, mask), whole[rows])


def test_the_target_gives_no_gradient() -> None:
    x0, cond, noise = example(1)
    scale, seen = torch.tensor(0.9, requires_grad=True), []

    def asked(x: Tensor, t: Tensor, c: Cond) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return scale * network(x, t, c)

    loss()._gap(asked, x0, cond, torch.tensor([499]), noise, torch.full((1,), 6.0)).sum().backward()
    assert seen == [True, False] and scale.grad is not None


def test_validation_looks_at_the_nearest_points() -> None:
    x0, cond, noise = example()
    asked: list[Tensor] = []

    def spy(x: Tensor, t: Tensor, c: Cond) -> Tensor:
        asked.append(t)
        return network(x, t, c)

    loss().error(spy, x0, cond, torch.tensor([0, 495, 999]), noise)
    assert [a.tolist() for a in asked] == [[19, 499, 999]]


def test_rows_are_what_they_would_be_in_the_whole_batch() -> None:
    x0, cond, _ = example(3)
    whole = loss()(pupil, x0, cond, torch.Generator().manual_seed(1))
    parts = [loss()(pupil, x0, cond, torch.Generator().manual_seed(1), rows) for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert len(set(whole.tolist())) == 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("consistency")
    tiny.sd1_folder(folder / "sd1")
    tiny.family_folder("sdxl-v", folder / "sdxl")
    tiny.family_folder("sd3", folder / "sd3")
    tiny.imagefolder(folder / "pictures", ["a red dog", "a blue house", "the sun", "a green cat"])
    return folder


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_it_trains_resumes_and_samples(family: str, method: str, world: Path, tmp_path: Path) -> None:
    config = configs.load(None, [
        f"model.type={family}", f"model.path={world / family}", f"data.path={world / 'pictures'}", f"data.cache={world / 'cache'}",
        "objective.type=consistency", f"method.type={method}", *(["method.rank=2"] if method == "lora" else []),
        "train.steps=4", "train.batch_size=2", "train.validate_every=2", "train.validation_timesteps=2", "train.sample_every=0",
        "train.precision=fp32", "train.threads=1", "train.device=cpu", "optimizer.lr=1e-3", "optimizer.schedule=constant",
        "sample.scheduler=lcm", "sample.steps=2", "sample.guidance=1",
    ])  # fmt: skip
    run = Run(tmp_path / "run")
    events = list(train(config, run))
    assert not [e for e in events if isinstance(e, Warned)]
    losses = [e.loss for e in events if isinstance(e, Validated)]
    if method == "lora":  # whole weights of a random model take steps too large for four of them to lead anywhere
        assert losses[-1] < losses[0], "the base needs many steps to where the student jumps at once"
    half = Run(tmp_path / "half")
    first = train(config, half)
    next(e for e in first if isinstance(e, Step) and e.step == 2)
    first.close()  # type: ignore[attr-defined]
    assert [e.loss for e in train(config, half) if isinstance(e, Step)] == [
        e.loss for e in events if isinstance(e, Step)
    ][2:]
    model = config.model.load()
    options = SampleConfig(prompts=("a red dog",), seeds=(1,), steps=2, scheduler="lcm", guidance=1.0)
    (base,) = sample(model, options)
    tuned.of_run(model, run)
    (after,) = sample(model, options)
    assert not np.array_equal(np.asarray(base.image), np.asarray(after.image))
    alone, beside = sample(model, options, seeds=(1, 2))
    assert np.array_equal(np.asarray(alone.image), np.asarray(after.image)), "the noise on the way is the seed's own"
    assert not np.array_equal(np.asarray(beside.image), np.asarray(alone.image))


def test_what_it_cannot_do_is_refused(world: Path, tmp_path: Path) -> None:
    flow = configs.load(None, ["model.type=sd3", f"model.path={world / 'sd3'}", f"data.path={world / 'pictures'}",
                               f"data.cache={world / 'cache'}", "objective.type=consistency", "train.threads=1"])  # fmt: skip
    with pytest.raises(ConfigError, match="'consistency' follows DDIM's way; sd3 is a flow model"):
        list(train(flow, Run(tmp_path / "run")))
    with pytest.raises(ConfigError, match=r"objective.guidance: \[8.0, 4.0\] begins after its end"):
        configs.load(None, ["objective.type=consistency", "objective.guidance=[8, 4]"])
