"""One step against torch's own parts; the run folder and the checkpoints without a training."""

import json
import math
import os
import socket
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from sdtune import checkpoint
from sdtune.data.batch import Batch
from sdtune.ema import Ema
from sdtune.errors import RunError, TrainingError
from sdtune.events import Event, Sampled, Step, Validated
from sdtune.families.sd1 import Sd1
from sdtune.flat import FlatOptimizer
from sdtune.methods.full import Full
from sdtune.methods.lora import Lora
from sdtune.model import Cond, Model
from sdtune.objective import Objective, ObjectiveConfig
from sdtune.optim.kinds import AdamW
from sdtune.runs import Run
from sdtune.state import State
from sdtune.train import train_step
from sdtune.validation import losses
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd1_folder(tmp_path_factory.mktemp("models") / "sd1")


@pytest.fixture
def model(folder: Path) -> Model:
    return Sd1(path=str(folder)).load()


def batch(seed: int, size: int = 2) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    latents, states = torch.randn(size, 4, 16, 16, generator=rng), torch.randn(size, 16, 16, generator=rng)
    return Batch(latents, Cond(states), torch.rand(size, generator=rng) * 3, torch.arange(size))


# eps = 1 keeps AdamW's first step from taking the sign of the gradient alone, which no clipping changes.
def state_of(model: Model) -> tuple[State, FlatOptimizer, Objective]:
    optimizer = AdamW(eps=1.0).build(Full().attach(model, seed=0))
    assert isinstance(optimizer, FlatOptimizer)
    return State(model, optimizer, Ema(optimizer, 0.9)), optimizer, ObjectiveConfig().build(model)


@pytest.mark.parametrize("limit", [0.1, 1e3])
def test_a_step_is_the_weighted_mean_clipped_through_adamw(model: Model, folder: Path, limit: float) -> None:
    state, optimizer, objective = state_of(model)
    state.step, parts = 4, [batch(0), batch(1)]
    start, global_rng = optimizer.weights.clone(), torch.get_rng_state()
    loss, norm = train_step(state, parts, objective, lr=0.5, max_grad_norm=limit, seed=2)
    assert torch.equal(torch.get_rng_state(), global_rng), "the caller's random numbers are its own"

    other, rng = Sd1(path=str(folder)).load(), torch.Generator().manual_seed(2 * 1_000_003 + 4)
    other.denoiser.requires_grad_(True)
    reference = torch.optim.AdamW(other.denoiser.parameters(), lr=0.5, eps=1.0, weight_decay=1e-2)
    their_loss = torch.cat([objective(other.denoise, b.latents_BCHW, b.cond, rng) * b.weight_B for b in parts]).mean()
    their_loss.backward()
    their_norm = nn.utils.clip_grad_norm_(other.denoiser.parameters(), limit)
    reference.step()
    assert (loss, norm) == pytest.approx((their_loss.item(), their_norm.item()), rel=1e-4)
    assert 0.1 < norm < 1e3, "the limits are on both sides of it"
    for mine, theirs in zip(model.denoiser.parameters(), other.denoiser.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5)
    assert state.step == 5 and not optimizer.gradient.any() and state.ema is not None
    torch.testing.assert_close(state.ema.mean[0], start.lerp(optimizer.weights, 1 - 6 / 15))


def test_dropout_follows_the_step_not_the_random_numbers_of_the_caller(folder: Path) -> None:
    results = []
    for callers in (1, 2):
        model = Sd1(path=str(folder)).load()
        optimizer = AdamW().build(Lora(rank=2, dropout=0.5).attach(model, seed=0))
        model.denoiser.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(callers)
            objective = ObjectiveConfig().build(model)
            state = State(model, optimizer, None)
            results.append(train_step(state, [batch(0)], objective, lr=1.0, max_grad_norm=1.0, seed=0))
    assert results[0] == results[1]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nothing_moves_when_loss_or_gradient_is_not_finite(model: Model, what: str) -> None:
    state, optimizer, objective = state_of(model)
    before, part = optimizer.weights.clone(), batch(0)
    if what == "loss":
        part.latents_BCHW[0, 0, 0, 0] = math.nan
    else:
        model.denoiser.get_parameter("conv_out.bias").register_hook(lambda grad: grad * math.inf)
    with pytest.raises(TrainingError, match="step 1: loss"):
        train_step(state, [part], objective, lr=1.0, max_grad_norm=1.0, seed=0)
    assert torch.equal(optimizer.weights, before) and state.step == 0


def test_validation_is_unweighted_and_picture_by_picture(model: Model) -> None:
    objective, held_out = ObjectiveConfig().build(model), batch(3, size=5)
    losses_NK = losses(model, objective, held_out, timesteps=4)
    torch.testing.assert_close(
        losses(model, objective, held_out, timesteps=4, chunk=2), losses_NK, rtol=1e-4, atol=1e-6
    )
    noise_KNCHW = torch.randn((4, 5, 4, 16, 16), generator=torch.Generator().manual_seed(20_240_229))
    with torch.no_grad():
        errors = [
            objective.error(model.denoise, held_out.latents_BCHW, held_out.cond, torch.full((5,), t), noise_KNCHW[k])
            for k, t in enumerate((125, 375, 625, 875))
        ]
    torch.testing.assert_close(losses_NK, torch.stack(errors, 1), rtol=1e-4, atol=1e-6)


def test_validation_weighs_the_places_of_masked_pictures(model: Model) -> None:
    objective, held_out = ObjectiveConfig().build(model), batch(3, size=5)
    mask_B1HW = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    got = losses(model, objective, replace(held_out, mask_B1HW=mask_B1HW), timesteps=2, chunk=2)
    noise_KNCHW = torch.randn((2, 5, 4, 16, 16), generator=torch.Generator().manual_seed(20_240_229))
    with torch.no_grad():
        for k, t in enumerate((250, 750)):
            part = (model.denoise, held_out.latents_BCHW, held_out.cond, torch.full((5,), t), noise_KNCHW[k])
            torch.testing.assert_close(got[:, k], objective.error(*part, mask_B1HW=mask_B1HW), rtol=1e-4, atol=1e-6)
            assert not torch.isclose(got[:, k], objective.error(*part), rtol=0.1).any()


# ---- checkpoints

WEIGHTS = {"weights.safetensors": {"a": torch.ones(3)}}


def steps(run: Run) -> set[str]:
    return {p.name for p in run.checkpoints.iterdir()}


def test_a_save_that_fails_leaves_the_earlier_checkpoints_and_no_part(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2):
        checkpoint.save(run, {"step": step}, WEIGHTS, keep=2)
    with pytest.raises(RunError, match=r"step-000003: not saved: .*; earlier checkpoints are intact"):
        checkpoint.save(run, {"step": 3}, {**WEIGHTS, "no/folder.safetensors": {}}, keep=2)
    assert steps(run) == {"step-000001", "step-000002"}


def test_what_a_killed_process_left_is_swept_and_never_read(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2):
        checkpoint.save(run, {"step": step}, WEIGHTS, keep=2)
    (run.checkpoints / "step-000002").rename(run.checkpoints / ".tmp-step-000002")
    found, faults = checkpoint.latest(run)
    assert found is not None and (found.step, faults) == (1, [])
    checkpoint.sweep(run)
    assert steps(run) == {"step-000001"}


# ---- the run folder


@pytest.mark.parametrize(
    ("holder", "held"),
    [
        ({}, True),
        ({"started": 1.0}, False),
        ({"host": "elsewhere", "pid": 999999999}, True),
        ({"pid": 999999999}, False),
        (None, False),
    ],
    ids=["living", "its number went to another process", "on another host", "dead", "half-written"],
)
def test_a_lock_is_kept_for_the_living_alone(tmp_path: Path, holder: dict[str, object] | None, held: bool) -> None:
    run = Run(tmp_path)
    me = {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}
    run.lock_file.write_text("{" if holder is None else json.dumps(me | holder))
    if held:
        with pytest.raises(RunError, match="in use by process"), run.lock():
            pass
    else:
        with run.lock():
            assert json.loads(run.lock_file.read_text())["pid"] == os.getpid()
    assert run.lock_file.exists() == held, "released at the end, another's left alone"


@pytest.mark.parametrize(("looked", "kept"), [(True, 5), (False, 3)])
def test_the_log_forgets_what_is_done_again(tmp_path: Path, looked: bool, kept: int) -> None:
    run = Run(tmp_path)
    log: list[Event] = [Step(k, 1.0, 1.0, 0.1, 0.0) for k in (1, 2)]
    log[1:1] = [Validated(1, 0.5, (0.5,))]
    log += [Validated(2, 0.5, (0.5,)), Sampled(2, "a", 0, "p"), Step(3, 1.0, 1.0, 0.1, 0.0), Validated(3, 0.5, (0.5,))]
    for event in log:
        run.log(event)
    with run.events_file.open("a") as file:
        file.write('{"event": "Step", "st')  # a crash in the middle of a line
    assert list(run.events()) == log
    run.rewind_log(2, looked=looked)
    assert list(run.events()) == log[:kept]
