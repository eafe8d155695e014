"""Each optimiser equals its library parameter by parameter, resumes bit by bit, and keeps its promises on memory."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.errors import ConfigError, RunError, TrainingError
from sdtune.events import Event, Sampled, Step, Validated
from sdtune.flat import FlatOptimizer
from sdtune.lean import LeanOptimizer, stochastic_round
from sdtune.optim.kinds import (
    Adafactor,
    AdamW,
    AdamW8bit,
    AdamWScheduleFree,
    Common,
    Leanable,
    Lion,
    Muon,
    Prodigy,
    ProdigyScheduleFree,
)
from sdtune.runs import Run
from sdtune.train import train
from sdtune.updater import Updater
from tests import tiny


class Net(nn.Module):
    """A convolution, a matrix and vectors, as in a U-Net; large enough for 8-bit moments."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.text = nn.Conv2d(4, 16, 3), nn.Linear(16, 24)
        self.big = nn.Linear(24, 256)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.big(torch.tanh(self.text(torch.tanh(self.conv(x).mean((2, 3)).to(self.text.weight.dtype)))))
        return y


def backward(net: Net, k: int, scale: float = 3.0) -> None:
    x = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(k)).to(next(net.conv.parameters()).dtype)
    (net(x).float().square().mean() * scale).backward()


def run(net: Net, section: Common, steps: int = 6, *, lr: float | None = None, limit: float = 1.0) -> Updater:
    updater = section.build(dict(net.named_parameters()), seed=3)
    for k in range(steps):
        one_step(net, updater, k, lr or section.lr, limit)
    return updater


def one_step(net: Net, updater: Updater, k: int, lr: float, limit: float = 1.0) -> None:
    updater.begin(k, lr / (k + 1))
    backward(net, k)
    updater.collect()
    updater.clip(limit)
    updater.step()


def reference(net: Net, optimizer: torch.optim.Optimizer, lr: float, *, steps: int = 6) -> None:
    """The plain loop. `factor` of a group multiplies its learning rate."""
    if hasattr(optimizer, "train"):
        optimizer.train()
    for k in range(steps):
        backward(net, k)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr / (k + 1) * group.get("factor", 1.0)
        optimizer.step()
        net.zero_grad()


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    torch.testing.assert_close(dict(a.named_parameters()), dict(b.named_parameters()))


# ---- equality with the libraries


def library(kind: str) -> tuple[Common, Callable[[list[Any]], torch.optim.Optimizer]]:
    import bitsandbytes as bnb
    import prodigyopt
    import schedulefree
    from prodigyplus.prodigy_plus_schedulefree import ProdigyPlusScheduleFree
    from transformers.optimization import Adafactor as TheirAdafactor

    known: dict[str, tuple[Common, Callable[[list[Any]], torch.optim.Optimizer]]] = {
        "adamw": (AdamW(lr=1e-2), lambda g: torch.optim.AdamW(g, weight_decay=1e-2)),
        "lion": (Lion(lr=1e-3, weight_decay=0.1), lambda g: bnb.optim.Lion(g, betas=(0.9, 0.99), weight_decay=0.1)),
        "adafactor": (
            Adafactor(lr=1e-2, weight_decay=0.1),
            lambda g: TheirAdafactor(g, lr=1, weight_decay=0.1, scale_parameter=False, relative_step=False),
        ),
        "adafactor relative": (
            Adafactor(lr=1e-2, scale_parameter=True),
            lambda g: TheirAdafactor(g, lr=1, scale_parameter=True, relative_step=False),
        ),
        "prodigy": (
            Prodigy(d0=1e-4, d_coef=50, weight_decay=0.0),
            lambda g: prodigyopt.Prodigy(g, d0=1e-4, d_coef=50, use_bias_correction=True, safeguard_warmup=True),
        ),
        "adamw-schedulefree": (
            AdamWScheduleFree(lr=1e-2),
            lambda g: schedulefree.AdamWScheduleFree(g, weight_decay=1e-2),
        ),
        "prodigy-schedulefree": (
            ProdigyScheduleFree(d0=1e-3, d_coef=5, weight_decay=0.1),
            lambda g: ProdigyPlusScheduleFree(g, d0=1e-3, d_coef=5, weight_decay=0.1),
        ),
    }
    return known[kind]


@pytest.mark.parametrize(
    "kind",
    ["adamw", "lion", "adafactor", "adafactor relative", "prodigy", "adamw-schedulefree", "prodigy-schedulefree"],
)
def test_equals_the_library_parameter_by_parameter(kind: str) -> None:
    section, make = library(kind)
    mine, theirs = Net(), Net()
    run(mine, section)
    if "adafactor" in kind or kind == "prodigy-schedulefree":
        flatten_conv(theirs)
    reference(theirs, make(list(theirs.parameters())), section.lr)
    moved = max(float((p - q).detach().abs().max()) for p, q in zip(mine.parameters(), Net().parameters(), strict=True))
    assert moved > 1e-4
    unflatten_conv(theirs)
    assert_same_weights(mine, theirs)


def flatten_conv(net: Net) -> None:
    """The kernel becomes a matrix parameter that the convolution reads through a view."""
    conv = net.conv
    matrix = nn.Parameter(conv.weight.detach().flatten(1).clone())
    del conv._parameters["weight"]
    conv.register_parameter("matrix", matrix)
    conv.forward = lambda x: nn.functional.conv2d(x, matrix.view(16, 4, 3, 3), conv.bias)  # type: ignore[method-assign, assignment]


def unflatten_conv(net: Net) -> None:
    matrix = net.conv._parameters.pop("matrix", None)
    if matrix is not None:
        bias = net.conv._parameters.pop("bias")
        net.conv._parameters["weight"] = nn.Parameter(matrix.detach().view(16, 4, 3, 3))
        net.conv._parameters["bias"] = bias


def test_adamw8bit_equals_bitsandbytes_on_the_flat_vector() -> None:
    """Blocks of 256 numbers share a scale, so the reference gets the same vector."""
    import bitsandbytes as bnb

    mine, theirs = Net(), Net()
    updater = run(mine, AdamW8bit(lr=1e-2))
    vector = nn.Parameter(torch.cat([p.detach().flatten() for p in theirs.parameters()]))
    optimizer = bnb.optim.AdamW8bit([vector], lr=1e-2, weight_decay=1e-2)
    for k in range(6):
        nn.utils.vector_to_parameters(vector.detach(), theirs.parameters())
        theirs.zero_grad()
        backward(theirs, k)
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        vector.grad = torch.cat([p.grad.flatten() for p in theirs.parameters() if p.grad is not None])
        optimizer.param_groups[0]["lr"] = 1e-2 / (k + 1)
        optimizer.step()
    assert isinstance(updater, FlatOptimizer)
    torch.testing.assert_close(updater.weights, vector.detach())
    tensors, _ = updater.state()
    assert {v.dtype for k, v in tensors.items() if k.endswith(":state1")} == {torch.uint8}


def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    section = Muon(lr=1e-2)
    mine, theirs = Net(), Net()
    run(mine, section)
    flatten_conv(theirs)
    matrices, vectors = ([p for p in theirs.parameters() if (p.dim() == 2) is m] for m in (True, False))
    both = [
        torch.optim.Muon(matrices, lr=1, weight_decay=1e-2, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(vectors, lr=1, weight_decay=1e-2),
    ]
    for k in range(6):
        backward(theirs, k)
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for optimizer in both:
            optimizer.param_groups[0]["lr"] = 1e-2 / (k + 1)
            optimizer.step()
        theirs.zero_grad()
    unflatten_conv(theirs)
    assert_same_weights(mine, theirs)


# ---- learning-rate groups and types


def test_learning_rates_by_name_and_types_side_by_side() -> None:
    """A bf16 denoiser with an fp32 text encoder: the factor scales the rate, the first pattern wins, decay stays that of lr."""
    mine, theirs = Net(), Net()
    mine.conv.bfloat16()
    section = AdamW(lr=1e-2, weight_decay=0.2, lr_scale={"text.bias": 4.0, "text*": 0.5})
    updater = section.build(dict(mine.named_parameters()))
    fp32 = dict(theirs.named_parameters())
    fp32["conv.weight"].data = fp32["conv.weight"].data.bfloat16().float()  # where the masters begin
    fp32["conv.bias"].data = fp32["conv.bias"].data.bfloat16().float()
    factor = {n: {"text.bias": 4.0, "text.weight": 0.5}.get(n, 1.0) for n in fp32}
    optimizer = torch.optim.AdamW(
        [{"params": [p], "factor": factor[n], "weight_decay": 0.2 / factor[n]} for n, p in fp32.items()]
    )
    assert isinstance(updater, FlatOptimizer)
    for k in range(5):
        gradients = {n: torch.randn(p.shape, generator=torch.Generator().manual_seed(k)) for n, p in fp32.items()}
        updater.begin(k, 1e-2)
        for n, p in mine.named_parameters():
            assert p.grad is not None
            p.grad.copy_(gradients[n])
            fp32[n].grad = p.grad.float().clone()
        updater.collect()
        assert not mine.conv.weight.grad.any(), "taken over, so that the next backward pass begins at zero"  # type: ignore[union-attr]
        updater.step()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * group["factor"]
        optimizer.step()
    assert len(updater.owners) == 3 and len(updater._segments) == 4
    for name, value in updater.values().items():
        torch.testing.assert_close(value, fp32[name].detach())
    assert {n: p.dtype for n, p in mine.named_parameters()} == {
        n: torch.bfloat16 if "conv" in n else torch.float32 for n in fp32
    }
    assert torch.equal(mine.conv.weight, updater.values()["conv.weight"].bfloat16())


@pytest.mark.parametrize("section", [Adafactor(lr=1e-2), Muon(lr=1e-2), Lion(lr=1e-2), AdamWScheduleFree(lr=1e-2)])
def test_groups_of_one_rate_change_nothing(section: Common) -> None:
    mine, grouped = Net(), Net()
    run(mine, section)
    run(grouped, replace(section, lr_scale={"text*": 1.0, "*.bias": 1.0 + 1e-12}))
    assert_same_weights(mine, grouped)


def test_prodigy_finds_a_step_size_for_each_group() -> None:
    net = Net()
    updater = run(net, Prodigy(d0=1e-4, d_coef=50, lr_scale={"text*": 0.5}))
    sizes = [g["d"] for o in updater.optimizers for g in o.param_groups]
    assert len(sizes) == 2 and len(set(sizes)) == 2 and max(sizes) > 1e-4


@pytest.mark.parametrize("lean", [False, True])
def test_a_pattern_that_fits_nothing_is_named(lean: bool) -> None:
    section = AdamW(lr_scale={"*.weight": 2.0, "text.weight": 3.0, "unet*": 4.0}, fused_backward=lean)
    with pytest.raises(ConfigError, match=r"lr_scale: 'text.weight', 'unet\*' fits no trained weight") as error:
        section.build(dict(Net().named_parameters()))
    assert "'conv.weight'" in str(error.value)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("sdtune.optim.kinds.find_spec", lambda name: None if name == "prodigyopt" else find(name))
    with pytest.raises(ConfigError, match=r"'prodigy' needs prodigyopt.*pip install 'sdtune\[train-extras\]'"):
        Prodigy().check()
    AdamWScheduleFree().check()


def test_paged_needs_cuda() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.paged: needs CUDA, and the training is on cpu"):
        AdamW8bit(paged=True).build(dict(Net().named_parameters()))


# ---- rounding by chance


def test_stochastic_rounding_is_right_on_average() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(64, generator=rng) * torch.logspace(-6, 6, 64)
    rounded = torch.stack([stochastic_round(x, rng).float() for _ in range(4000)])
    spacing = torch.tensor(2.0) ** (x.abs().log2().floor() - 7)
    assert ((rounded.mean(0) - x).abs() / spacing).max() < 5 * 0.5 / 4000**0.5
    assert ((rounded - x).abs() < spacing).all(), "one of the two neighbours"


def test_what_bf16_holds_stays() -> None:
    x = torch.randn(1000).bfloat16().float()
    for seed in range(5):
        assert torch.equal(stochastic_round(x, torch.Generator().manual_seed(seed)).float(), x)


def test_rounding_is_a_function_of_seed_and_step() -> None:
    def weights(seed: int, order: int) -> dict[str, Tensor]:
        net = Net().bfloat16()
        updater = AdamW(lr=1e-3, weights="bf16").build(dict(net.named_parameters()), seed=seed)
        assert isinstance(updater, LeanOptimizer)
        updater.begin(7, 1e-3)
        backward(net, 0)
        for name in list(updater.parameters)[::order]:
            updater._update(name)
        return updater.values()

    first, again, backwards, other = weights(3, 1), weights(3, 1), weights(3, -1), weights(4, 1)
    assert all(torch.equal(first[n], again[n]) and torch.equal(first[n], backwards[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_weights_that_are_alike_are_not_rounded_alike() -> None:
    twins = {name: nn.Parameter(torch.ones(500, dtype=torch.bfloat16)) for name in "ab"}
    updater = Lion(weights="bf16").build(twins)
    updater.begin(0, 2**-9)
    for p in twins.values():
        p.grad = torch.ones_like(p)
    updater.step()
    assert not torch.equal(twins["a"], twins["b"])


# ---- lean weights and the update inside the backward pass


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("section", [AdamW(lr=1e-2), Adafactor(lr=1e-2), Lion(lr=1e-3)])
def test_in_fp32_a_lean_run_equals_a_flat_one(section: Leanable, fused: bool) -> None:
    flat, lean = Net(), Net()
    run(flat, section, limit=0)
    if fused:
        updater = run(lean, replace(section, fused_backward=True), limit=0)
        assert all(p.grad is None for p in lean.parameters()), "no gradient outlives the backward pass"
    else:
        updater = LeanOptimizer(dict(lean.named_parameters()), section.make, matrices=section.matrices)
        for k in range(6):
            one_step(lean, updater, k, section.lr, limit=0)
    assert_same_weights(flat, lean)


def test_lean_clipping_is_torchs() -> None:
    net, other = Net(), Net()
    updater = LeanOptimizer(dict(net.named_parameters()), AdamW().make)
    backward(net, 0, 100.0)
    backward(other, 0, 100.0)
    torch.testing.assert_close(updater.clip(0.5), nn.utils.clip_grad_norm_(other.parameters(), 0.5))
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_bf16_weights_follow_fp32_ones_where_rounding_to_nearest_stands_still() -> None:
    """200 steps of 1/20 of bf16's spacing: by chance they add up to ten spacings, to the nearest they come to nothing."""
    p = nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
    updater = Lion(lr=1e-4, weight_decay=0, weights="bf16").build({"p": p})
    for k in range(200):
        updater.begin(k, 2**-8 / 20)
        p.grad = torch.ones_like(p)
        updater.step()
    assert float(p.detach().float().mean()) == pytest.approx(1 - 200 * 2**-8 / 20, rel=2e-3)


def test_lean_needs_neither_masters_nor_gradients() -> None:
    """What is alive after a step: the bf16 weights and Adafactor's rows and columns."""
    net = Net().bfloat16()
    updater = run(net, Adafactor(lr=1e-2, weights="bf16", fused_backward=True), limit=0)
    tensors, _ = updater.state()
    numbers = sum(t.numel() for t in tensors.values())
    rows_and_columns = (
        sum(sum((p.shape[0], p[0].numel())) if p.dim() > 1 else p.numel() for p in net.parameters()) + 6
    )  # RMS
    assert numbers == rows_and_columns
    assert all(p.dtype == torch.bfloat16 and p.grad is None for p in net.parameters())
    assert isinstance(updater, LeanOptimizer)
    assert all(proxy.numel() == 0 for proxy in updater._proxies.values())


def test_lean_names_dead_parameters() -> None:
    net = Net()
    updater = AdamW(fused_backward=True).build(dict(net.named_parameters()))
    net.text.weight.register_hook(torch.zeros_like)
    net.big.bias.requires_grad_(False)
    updater.begin(0, 1e-3)
    backward(net, 0)
    assert sorted(updater.names_without_gradient()) == ["big.bias", "text.weight"]
    assert not updater.whole
    updater.step()
    assert updater.whole


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["optimizer.fused_backward=true", "train.max_grad_norm=0", "train.accumulate=2"], "set train.accumulate=1"),
        (["optimizer.fused_backward=true"], "set train.max_grad_norm=0"),
        (["optimizer.weights=bf16", "train.precision=fp32"], 'contradicts train.precision="fp32"'),
        (["optimizer.weights=bf16", "train.ema=0.9"], "train.ema: keeps the fp32 copy"),
        (["optimizer.type=adamw-schedulefree", "train.ema=0.9"], "averages the weights already"),
        (["optimizer.type=prodigy-schedulefree", "train.ema=0.9"], "prodigy-schedulefree averages the weights already"),
        (["optimizer.type=adamw-schedulefree", "optimizer.schedule=cosine"], "optimizer.schedule: input should be"),
        (["optimizer.cycles=3"], 'optimizer.cycles: has an effect only with optimizer.schedule "cosine-restarts"'),
        (["optimizer.type=prodigy", "optimizer.weights=bf16"], "optimizer.weights: no such key"),
        (["optimizer.lr_scale={a=-1}"], "optimizer.lr_scale.a: input should be greater than 0"),
        (["optimizer.type=prodgy"], "did you mean 'prodigy'?"),
    ],
)
def test_what_excludes_each_other_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        configs.load(None, overrides)
    assert says in str(error.value)


@pytest.mark.parametrize(("weights", "precision"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_types_that_do_not_fit_are_refused(weights: Any, precision: str) -> None:
    net = Net().bfloat16() if precision == "bf16" else Net()
    with pytest.raises(ConfigError, match=r"train.precision="):
        AdamW(weights=weights, fused_backward=True).build(dict(net.named_parameters()))


def test_a_table_survives_toml() -> None:
    import tomllib

    overrides = ['optimizer.lr_scale={"text_encoder*" = 0.5, "*.lora_B" = 16, \'a"b\' = 2}', "optimizer.type=lion"]
    run_config = configs.load(None, overrides)
    assert run_config.optimizer.lr_scale == {"text_encoder*": 0.5, "*.lora_B": 16.0, 'a"b': 2.0}
    assert configs.from_dict(tomllib.loads(configs.to_toml(run_config))) == run_config
    assert list(configs.load(None, overrides).optimizer.lr_scale) == ["text_encoder*", "*.lora_B", 'a"b']


# ---- whole runs

LORA = ("method.rank=4", "method.targets=many")
FULL = ("method.type=full",)
LEAN = (*FULL, "train.precision=bf16", "optimizer.weights=bf16")
FUSED = (*LEAN, "optimizer.fused_backward=true", "train.max_grad_norm=0", "train.accumulate=1")
RUNS: dict[str, tuple[str, ...]] = {
    "adamw": (*LORA, 'optimizer.lr_scale={"*.lora_B" = 16, "*.down_blocks*" = 0.5}'),
    "adamw8bit": (*LORA, "optimizer.type=adamw8bit"),
    "adafactor": (*FULL, "optimizer.type=adafactor"),
    "lion": (*LORA, "optimizer.type=lion", "train.precision=bf16"),
    "prodigy": (
        *LORA,
        "optimizer.type=prodigy",
        "optimizer.lr=1",
        "optimizer.d0=1e-4",
        'optimizer.lr_scale={"*_A" = 2}',
    ),
    "schedulefree": (*LORA, "optimizer.type=adamw-schedulefree", "optimizer.schedule=constant"),
    "prodigy-schedulefree": (
        *LORA,
        "optimizer.type=prodigy-schedulefree",
        "optimizer.schedule=constant",
        "optimizer.lr=1",
        "optimizer.warmup=0",
        "optimizer.d0=1e-3",
        'optimizer.lr_scale={"*_A" = 2}',
    ),
    "muon": (*FULL, "optimizer.type=muon"),
    "adamw lean": (*LEAN, "optimizer.lr=1e-3"),
    "adamw8bit fused": (*FUSED, "optimizer.type=adamw8bit", "optimizer.lr=1e-3"),
    "adafactor fused": (*FUSED, "optimizer.type=adafactor", "optimizer.lr=1e-3"),
    "lion fused fp32": (*FULL, "optimizer.type=lion", *FUSED[3:]),
}
SETTINGS = (
    "train.steps=5", "train.batch_size=2", "train.accumulate=2", "train.save_every=100", "train.validate_every=2",
    "train.validation_timesteps=1", "train.sample_every=0", "train.precision=fp32", "train.threads=1", "train.device=cpu",
    "optimizer.lr=3e-3", "optimizer.warmup=1", "data.validation_share=0.3",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimisers")
    tiny.sd1_folder(folder / "model")
    tiny.imagefolder(folder / "pictures", [f"a photo of a dog {i}" for i in range(10)])
    return folder


def config_of(world: Path, *overrides: str) -> RunConfig:
    paths = (f"model.path={world / 'model'}", f"data.path={world / 'pictures'}", f"data.cache={world / 'cache'}")
    return configs.load(None, [*paths, *SETTINGS, *overrides])


def stop_after(config: RunConfig, run: Run, step: int) -> None:
    events: Iterator[Event] = train(config, run)
    next(e for e in events if isinstance(e, Step) and e.step == step)
    events.close()  # type: ignore[attr-defined]


def numbers(run: Run) -> list[object]:
    return [
        (e.loss, e.grad_norm) if isinstance(e, Step) else e.per_picture
        for e in run.events()
        if isinstance(e, Step | Validated)
    ]


def final(run: Run) -> dict[str, Tensor]:
    (file,) = run.final.rglob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("name", list(RUNS))
def test_resume_is_bit_identical(world: Path, tmp_path: Path, name: str) -> None:
    config = config_of(world, *RUNS[name])
    straight, stopped = Run(tmp_path / "straight"), Run(tmp_path / "stopped")
    list(train(config, straight))
    stop_after(config, stopped, 2)  # in mid-epoch: seven pictures, two or four a step
    (folder,) = stopped.checkpoints.iterdir()
    state = json.loads((folder / "state.json").read_text())["optimizer"]
    list(train(config, stopped))
    a, b = final(straight), final(stopped)
    assert numbers(stopped) == numbers(straight)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert len({step[0] for step in numbers(straight) if isinstance(step, tuple)}) > 4
    if name == "prodigy":
        counts = sorted(group["k"] for group in state["groups"].values())
        assert counts == [1, 2], "lora_A has no gradient in the first step, and Prodigy does not count that one"
    if name == "adamw8bit fused":
        kept = load_file(folder / "weights.safetensors")
        assert {t.dtype for t in kept.values()} == {torch.bfloat16}


def test_schedule_free_shows_and_saves_the_average(world: Path, tmp_path: Path) -> None:
    """Looking at pictures on the way changes nothing; checkpoint and result are x, the training goes on from y."""
    plain, looked = Run(tmp_path / "plain"), Run(tmp_path / "looked")
    overrides = (
        *RUNS["schedulefree"],
        "train.save_every=1",
        "train.keep=9",
        "sample.steps=1",
        "sample.seeds=[0]",
        'sample.prompts=["a dog"]',
    )
    list(train(config_of(world, *overrides, "train.validate_every=0"), plain))
    events = list(train(config_of(world, *overrides, "train.validate_every=1", "train.sample_every=2"), looked))
    assert any(isinstance(e, Sampled) for e in events)
    losses = [[e.loss for e in r.events() if isinstance(e, Step)] for r in (plain, looked)]
    assert losses[0] == losses[1]
    folder = looked.checkpoints / "step-000005"
    x, moments = load_file(folder / "weights.safetensors"), load_file(folder / "optimizer.safetensors")
    y = moments["trained"]
    (z,) = (v for k, v in moments.items() if k.endswith(":z"))
    flat_x = torch.cat([t.flatten() for t in x.values()]).sort().values  # the file sorts names, the buffer does not
    torch.testing.assert_close(flat_x, ((y - 0.1 * z) / 0.9).sort().values)  # y = beta x + (1 - beta) z
    assert not torch.equal(flat_x, y.sort().values)
    result = {t.contiguous().numpy().tobytes() for t in final(looked).values()}
    assert {t.contiguous().numpy().tobytes() for t in x.values()} <= result, "the result is the average, too"


def test_another_optimisers_checkpoint_is_refused(world: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    stop_after(config_of(world, *RUNS["muon"]), run, 2)
    (folder,) = run.checkpoints.iterdir()
    other = config_of(world, *FULL)
    run.write_config(other)
    with pytest.raises(RunError, match=r"step-000002: its optimiser had .* choose another name="):
        list(train(other, run))
    assert folder.exists()


def test_a_step_that_broke_off_inside_the_backward_pass_is_not_saved(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    config = config_of(world, *RUNS["lion fused fp32"], "train.save_every=2")
    update = LeanOptimizer._update

    def broken(self: LeanOptimizer, name: str) -> None:
        if self._step == 3 and name == "unet.conv_in.weight":
            raise TrainingError("no memory")
        update(self, name)

    monkeypatch.setattr(LeanOptimizer, "_update", broken)
    with pytest.raises(TrainingError):
        list(train(config, run))
    assert [p.name for p in run.checkpoints.glob("step-*")] == ["step-000002"]
