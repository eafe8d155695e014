"""What saves memory changes no number: activations computed again or kept elsewhere, swapped blocks, unloaded parts; and fp16."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sdtune import config as configs
from sdtune import prepare
from sdtune.config import RunConfig, SampleConfig
from sdtune.errors import ConfigError, TrainingError
from sdtune.events import Event, Started, Step, Warned
from sdtune.memory import RESIDENT, Swap, activations_elsewhere, compute_again
from sdtune.model import Model
from sdtune.runs import Run
from sdtune.sample import sample
from sdtune.scaling import LossScale
from sdtune.state import State
from sdtune.train import train
from tests import tiny

METHODS = {
    "lora": ("method.rank=2", "method.targets=many"),
    "full": ("method.type=full",),
    "int8": ("method.type=qlora", "method.base=int8", "method.rank=2"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    tiny.sd1_folder(folder / "model")
    tiny.imagefolder(folder / "pictures", ["a red dog", "a blue house", "the sun", "a green cat"])
    return folder


def config_of(world: Path, *overrides: str) -> RunConfig:
    return configs.load(None, [
        f"model.path={world / 'model'}", f"data.path={world / 'pictures'}", f"data.cache={world / 'cache'}",
        "train.steps=4", "train.batch_size=2", "train.validate_every=0", "train.sample_every=0", "train.precision=fp32",
        "train.threads=1", "train.device=cpu", "optimizer.lr=1e-3", "optimizer.schedule=constant", *overrides,
    ])  # fmt: skip


def one_step(
    world: Path, method: str, act: Callable[[Model], Any] = lambda model: None
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Output, gradients and bytes saved for the backward pass, `act` having been done to the model."""
    config = config_of(world, *METHODS[method])
    model = config.model.load()
    parameters = config.method.attach(model, seed=0)
    rng = torch.Generator().manual_seed(1)
    for p in parameters.values():
        p.data += 0.05 * torch.randn(p.shape, generator=rng)
    act(model)
    cond = model.encode_prompts(["a red dog", "the sun"])
    x = torch.randn(2, 4, 16, 16, generator=rng)
    fixed = {t.untyped_storage().data_ptr() for t in (*model.denoiser.parameters(), *model.denoiser.buffers())}
    saved = 0

    def weigh(t: Tensor) -> Tensor:
        nonlocal saved
        saved += t.nbytes if t.untyped_storage().data_ptr() not in fixed else 0
        return t

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda t: t):
        y = model.denoise(x, torch.tensor([3, 700]), cond)
    grads = torch.autograd.grad(y.square().mean(), list(parameters.values()))
    return y.detach(), dict(zip(parameters, grads, strict=True)), saved


def same(a: tuple[Tensor, dict[str, Tensor], int], b: tuple[Tensor, dict[str, Tensor], int]) -> bool:
    return torch.equal(a[0], b[0]) and all(torch.equal(a[1][k], b[1][k]) for k in a[1])


@pytest.mark.parametrize("method", METHODS)
def test_feed_forward_layers_are_computed_again(method: str, world: Path) -> None:
    plain = one_step(world, method)
    some = one_step(world, method, lambda model: compute_again(model, "feed-forward", text=False))
    every = one_step(world, method, lambda model: compute_again(model, True, text=False))
    assert same(some, plain) and same(every, plain)
    assert every[2] < some[2] < plain[2]


def test_feed_forward_needs_such_layers() -> None:
    class Bare:
        denoiser = nn.Sequential(nn.Linear(2, 2))

    with pytest.raises(ConfigError, match=r"train.gradient_checkpointing: the denoiser has no feed-forward layers"):
        compute_again(Bare(), "feed-forward", text=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("method", ["lora", "int8"])
def test_swapped_blocks_give_the_same_numbers(method: str, share: float, world: Path) -> None:
    swaps: list[Swap] = []

    def swap(model: Model) -> None:
        swaps.append(Swap(model.denoiser, share, model.device))
        (made,) = swaps
        assert made.bytes_away == sum(t.nbytes for u in made.units for t in made._home[u]), "all wait at the beginning"

    plain, swapped = one_step(world, method), one_step(world, method, swap)
    assert same(swapped, plain)
    (made,) = swaps
    everything = sum(1 for _ in _units_of(world, method))
    assert len(made.units) == int(share * everything) and everything >= 8
    for unit in made.units:
        at_home = [t.data_ptr() == h.data_ptr() for t, h in zip(_frozen(unit), made._home[unit], strict=True)]
        assert at_home == [unit not in made._resident] * len(at_home), "brought as copies, and left behind"
    assert len(made._resident) == RESIDENT and made.bytes_away > 0
    assert swapped[2] < plain[2], "nothing inside them is kept for the backward pass"


@pytest.mark.parametrize("method", ["lora", "int8"])
def test_swapped_blocks_are_there_for_the_whole_backward_pass(
    method: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU what waits elsewhere could be used as it is; here it is gone, as it is on a GPU."""

    def leave(self: Swap, unit: nn.Module) -> None:
        for t in _frozen(unit):
            t.data = torch.zeros_like(t.data)

    plain = one_step(world, method)
    monkeypatch.setattr(Swap, "_leave", leave)
    assert same(one_step(world, method, lambda model: Swap(model.denoiser, 1.0, model.device)), plain)


def _units_of(world: Path, method: str) -> list[nn.Module]:
    from sdtune.memory import _units

    config = config_of(world, *METHODS[method])
    model = config.model.load()
    config.method.attach(model, seed=0)
    return _units(model.denoiser)


def _frozen(unit: nn.Module) -> list[Tensor]:
    return [t for t in (*unit.parameters(), *unit.buffers()) if not t.requires_grad]


def test_swapped_blocks_draw_the_same(world: Path) -> None:
    config = config_of(world)
    model = config.model.load()
    options = SampleConfig(prompts=("a red dog",), seeds=(1,), steps=2)
    before = [np.asarray(s.image) for s in sample(model, options)]
    Swap(model.denoiser, 1.0, model.device)
    assert all(np.array_equal(np.asarray(s.image), b) for s, b in zip(sample(model, options), before, strict=True))


def test_trained_blocks_are_not_swapped(world: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.block_swap: only frozen blocks can wait elsewhere"):
        one_step(world, "full", lambda model: Swap(model.denoiser, 1.0, model.device))


@pytest.mark.parametrize("method", METHODS)
def test_activations_elsewhere_give_the_same_gradients(
    method: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdtune.memory.LEAST_BYTES", 512)
    moved: list[Tensor] = []
    empty = torch.empty_like

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        made: Tensor = empty(*args, **kwargs)
        moved.extend([made] if "pin_memory" in kwargs else [])
        return made

    config = config_of(world, *METHODS[method])
    results = []
    for wanted in (False, True):
        model = config.model.load()
        parameters = config.method.attach(model, seed=0)
        cond = model.encode_prompts(["a red dog", "the sun"])
        x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        monkeypatch.setattr(torch, "empty_like", noted if wanted else empty)
        with activations_elsewhere(model, wanted=wanted):
            y = model.denoise(x, torch.tensor([3, 700]), cond)
        monkeypatch.setattr(torch, "empty_like", empty)
        results.append(torch.autograd.grad(y.square().mean(), list(parameters.values())))
        if wanted:
            weights = {t.nbytes for t in (*model.denoiser.parameters(), *model.denoiser.buffers())}
            assert len(moved) > 50 and min(t.nbytes for t in moved) >= 512
            assert len([t for t in moved if t.nbytes in weights and t.dim() == 4 and t.shape[2:] == (3, 3)]) == 0, (
                "no kernel"
            )
    for a, b in zip(*results, strict=True):  # copies lie elsewhere in memory, which may change a sum's last bit
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8)


def test_settings_without_effect_are_told(world: Path, tmp_path: Path) -> None:
    config = config_of(world, "train.steps=1", "train.block_swap=0.5", "train.offload_activations=true")
    told = [e.message for e in train(config, Run(tmp_path / "run")) if isinstance(e, Warned)]
    assert told == [
        "train.block_swap: has no effect on a CPU, whose memory is the computer's",
        "train.offload_activations: has no effect on a CPU, whose memory is the computer's",
    ]


def test_a_run_may_go_on_with_less_memory(world: Path, tmp_path: Path) -> None:
    whole = [e.loss for e in train(config_of(world), Run(tmp_path / "whole")) if isinstance(e, Step)]
    run = Run(tmp_path / "run")
    first = train(config_of(world), run)
    next(e for e in first if isinstance(e, Step) and e.step == 2)
    first.close()  # type: ignore[attr-defined]
    rest = train(config_of(world, "train.gradient_checkpointing=feed-forward"), run)
    assert [e.loss for e in rest if isinstance(e, Step)] == whole[2:]


def test_what_the_denoiser_does_not_need_waits_elsewhere(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = config_of(world).model.load()
    options = SampleConfig(prompts=("a red dog",), seeds=(1,), steps=1)
    (before,) = (np.asarray(s.image) for s in sample(model, options))
    moves: list[tuple[str, str]] = []
    to = nn.Module.to

    def noted(self: nn.Module, *args: Any) -> nn.Module:
        moves.append((type(self).__name__, "away" if args == ("cpu",) else "here"))
        return to(self, *args)

    monkeypatch.setattr(nn.Module, "to", noted)
    model.unload(keep=())
    assert moves == [("AutoencoderKL", "away"), ("CLIPTextModel", "away")]
    moves.clear()
    (after,) = (np.asarray(s.image) for s in sample(model, options))
    assert np.array_equal(before, after)
    assert moves[:2] == [("CLIPTextModel", "here"), ("CLIPTextModel", "away")]
    assert moves[-2:] == [("AutoencoderKL", "here"), ("AutoencoderKL", "away")]
    moves.clear()
    model.unload(keep={"text_encoder"})
    model.encode_prompts(["a"])
    assert moves == [("AutoencoderKL", "away")], "a text encoder that is trained stays"


@pytest.mark.parametrize(
    ("device", "settings", "away"),
    [
        ("cuda", (), {"vae", "text_encoder"}), ("cuda", ("method.text_encoders=true",), {"vae"}),
        ("cuda", ("train.unload=false",), set()), ("cpu", (), set()),
    ],
)  # fmt: skip
def test_a_training_unloads_what_it_does_not_train(
    device: str, settings: tuple[str, ...], away: set[str], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CUDA device, which is named here and not used: nothing is moved but to where it is."""
    config = config_of(world, "method.rank=2", *settings)
    model = config.model.load()
    trained = {name.partition(".")[0] for name in config.method.attach(model, seed=0)}
    parts = {**model.parts, "vae": model.vae}  # type: ignore[attr-defined]
    moved = set[str]()
    to = nn.Module.to

    def noted(self: nn.Module, *args: Any) -> nn.Module:
        moved.update(name for name, part in parts.items() if part is self)
        return to(self, *args)

    monkeypatch.setattr(nn.Module, "to", noted)
    monkeypatch.setattr(type(model), "device", torch.device(device))
    list(prepare._save_memory(model, config, Run(tmp_path / "run"), trained))
    assert moved == away


# ---- fp16


def test_fp16_trains_as_fp32_does_nearly(world: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "fp16"):
        events = list(train(config_of(world, f"train.precision={precision}"), Run(tmp_path / precision)))
        assert not [e for e in events if isinstance(e, Warned)]
        assert (
            next(e.precision for e in events if isinstance(e, Started))
            == {"fp32": "float32", "fp16": "float16"}[precision]
        )
        losses[precision] = [e.loss for e in events if isinstance(e, Step)]
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=2e-2) and losses["fp16"] != losses["fp32"]


@pytest.mark.parametrize("method", ["lora", "full", "int8"])
def test_fp16_goes_on_bit_by_bit(method: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "LossScale", lambda: LossScale(value=64.0, growth_steps=3))
    config = config_of(world, "train.precision=fp16", *METHODS[method])
    whole = list(train(config, Run(tmp_path / "whole")))
    half = Run(tmp_path / "half")
    first = train(config, half)
    next(e for e in first if isinstance(e, Step) and e.step == 2)
    first.close()  # type: ignore[attr-defined]
    assert [e.loss for e in train(config, half) if isinstance(e, Step)] == [
        e.loss for e in whole if isinstance(e, Step)
    ][2:]
    from sdtune import checkpoint

    found = [checkpoint.latest(Run(tmp_path / name))[0] for name in ("whole", "half")]
    assert [f.state["loss_scale"] for f in found if f] == [[128.0, 1, 0]] * 2


def test_small_gradients_survive_by_the_scale(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = {}
    for scale in (1.0, 2.0**14):
        monkeypatch.setattr(prepare, "LossScale", lambda scale=scale: LossScale(value=scale))
        events: list[Event] = list(
            train(
                config_of(world, "train.precision=fp16", "train.max_grad_norm=0", *METHODS["full"]),
                Run(tmp_path / f"{scale}"),
            )
        )
        norms[scale] = [e.grad_norm for e in events if isinstance(e, Step)]
    assert norms[1.0] == pytest.approx(norms[2.0**14], rel=0.1), "the scale is taken off again"
    assert norms[1.0] != norms[2.0**14]


def test_a_gradient_too_large_gives_the_step_up(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "LossScale", lambda: LossScale(value=2.0**26))
    run = Run(tmp_path / "run")
    config = config_of(world, "train.precision=fp16", "train.steps=30", *METHODS["full"])
    seen: list[tuple[int, Tensor]] = []
    publish = State.train_mode

    def spied(self: State, training: bool) -> None:
        seen.append((self.step, next(iter(self.optimizer.values().values()))))
        publish(self, training)

    monkeypatch.setattr(State, "train_mode", spied)
    events = list(train(config, run))
    given_up = [e for e in events if isinstance(e, Warned) and "step given up, loss scale halved" in e.message]
    assert 3 <= len(given_up) < 10 and given_up[0].message.endswith("halved to 3.35544e+07")
    first_taken = next(e.step for e in events if isinstance(e, Step))
    before = [w for step, w in seen if step < first_taken]
    assert first_taken == len(given_up) + 1 and all(torch.equal(w, before[0]) for w in before)
    assert not torch.equal(seen[-1][1], before[0])


def test_a_hopeless_run_stops_and_says_so(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "LossScale", lambda: LossScale(value=2.0**60))
    with pytest.raises(
        TrainingError,
        match=r"step 10: loss .*, gradient norm (inf|nan) at learning rate 0.001, loss scale 2.*; its pictures:",
    ):
        list(train(config_of(world, "train.precision=fp16", "train.steps=30", *METHODS["full"]), Run(tmp_path / "run")))


def test_the_scale_by_hand() -> None:
    scale = LossScale(value=8.0, growth_steps=2)
    assert [scale.judge(1.0), scale.value, scale.judge(2.0), scale.value] == [True, 8.0, True, 16.0]
    assert [scale.judge(float("inf")), scale.value, scale.bad, scale.judge(float("nan")), scale.value] == [
        False,
        8.0,
        1,
        False,
        4.0,
    ]
    assert scale.judge(1.0) and scale.bad == 0 and not scale.hopeless
    scale.value = 1.5
    scale.judge(float("inf"))
    assert scale.hopeless


def test_fp16_contradictions_are_told() -> None:
    with pytest.raises(ConfigError, match=r'optimizer.weights: "bf16" contradicts train.precision="fp16"'):
        configs.load(None, ["method.type=full", "optimizer.weights=bf16", "train.precision=fp16"])
    with pytest.raises(ConfigError, match=r"fp16 may have to give a step up"):
        configs.load(
            None, ["method.type=full", "optimizer.fused_backward=true", "train.max_grad_norm=0", "train.precision=fp16"]
        )
