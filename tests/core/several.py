"""What the processes of test_sharded do, each in its own group: `python -m tests.core.several FOLDER CHECK ...`.

The outcome of each check goes to FOLDER/SIZE-RANK.json: nothing, or the traceback, after which the process ends.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sdtune import checkpoint, distributed
from sdtune import config as configs
from sdtune.ema import Ema
from sdtune.errors import Diverged, RunError, TrainingError
from sdtune.events import Event, Sampled, Saved, Step, Validated
from sdtune.flat import FlatOptimizer
from sdtune.optim.kinds import AdamW, AdamWScheduleFree, Lion
from sdtune.runs import Run
from sdtune.sharded import ShardedOptimizer
from sdtune.train import _unmoved, train

CPU = torch.device("cpu")
SECTIONS = {
    "adamw": AdamW(eps=1e-3, weight_decay=0.1, lr_scale={"*.bias": 0.5}),
    "lion": Lion(weight_decay=0.1),
    "schedule-free": AdamWScheduleFree(eps=1e-3, warmup=2),
}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.tanh(self.up(x)))
        return out


class Net(nn.Module):
    """Blocks that FSDP splits, and a last layer with fewer rows than there may be processes."""

    _no_split_modules = ("Block",)

    def __init__(self, width: int = 6, blocks: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.last, self.unused = nn.Linear(width, 3), nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.last(x)
        return out


def sharded(net: nn.Module, section: Any) -> ShardedOptimizer:
    parameters = {f"unet.{n}": p for n, p in net.named_parameters() if p.requires_grad}
    return ShardedOptimizer({"unet": net, "vae": nn.Linear(1, 1)}, parameters, section.make, lr_scale=section.lr_scale)


def flat(net: nn.Module, section: Any) -> FlatOptimizer:
    updater = section.build({f"unet.{n}": p for n, p in net.named_parameters()})
    assert isinstance(updater, FlatOptimizer)
    return updater


def backward(net: nn.Module, k: int, rows: slice = slice(None)) -> None:
    """A loss of five pictures; of `rows` of them, where several processes share them."""
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(k))
    (net(x[rows]).square().sum() * 3).backward()


def steps(net: nn.Module, updater: Any, first: int, last: int) -> list[float]:
    """Gradient norms of some steps of two passes each, clipped in every other. A split updater's pictures are split, too.

    The gradient is made smaller in place, as with a loss scale; the first step is given up.
    """
    rows = distributed.rows(5) if updater.sharded else slice(None)
    norms = []
    for k in range(first, last):
        updater.begin(k, 1e-2)
        for part in range(2):
            backward(net, 10 * k + part, rows)
            updater.collect()
        for gradient in updater.gradients():
            gradient /= 2
        if not k:
            updater.drop()
            continue
        norms.append(float(updater.clip(1.0 if k % 2 else 1e9)))
        updater.step()
    return norms


def close(a: dict[str, Tensor], b: dict[str, Tensor], rtol: float = 1e-5, atol: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=atol)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    close(a, b, rtol=0, atol=0)


# ---- the updater by itself


def updates(folder: Path, kind: str) -> None:
    """Steps, norms, state and what comes after loading it are those of the flat buffer, both ways."""
    section = SECTIONS[kind]
    one, other = Net(), Net()
    reference, updater = flat(one, section), sharded(other, section)
    assert updater.count == reference.count and list(updater.parameters) == list(reference.parameters)
    expected, norms = steps(one, reference, 0, 4), steps(other, updater, 0, 4)
    assert len(norms) == 3
    assert all(abs(a / b - 1) < 1e-5 for a, b in zip(norms, expected, strict=True)), (norms, expected)
    with updater.evaluated(), reference.evaluated():
        whole, want = (
            updater.values(),
            reference.values(),
        )  # what checkpoints hold; of schedule-free not what is trained
    again = updater.values()
    tensors, numbers = updater.state()
    flat_tensors, flat_numbers = reference.state()
    assert numbers == json.loads(json.dumps(flat_numbers))
    if not distributed.primary():
        assert whole == again == tensors == {}
    else:
        close(whole, want)
        close(again, reference.values())
        close(tensors, flat_tensors)
        third = Net()  # one process goes on with what several left
        alone = flat(third, section)
        alone.load(whole)
        alone.load_state(tensors, numbers)
        equal(alone.values(), again)
        equal(alone.state()[0], tensors)
    fourth = Net()  # and several with what one left
    resumed = sharded(fourth, section)
    resumed.load(want)
    resumed.load_state(flat_tensors, json.loads(json.dumps(flat_numbers)))
    back = resumed.state()[0]
    if distributed.primary():
        equal(back, flat_tensors)
    steps(one, reference, 4, 6)
    steps(fourth, resumed, 4, 6)
    last = resumed.values()
    if distributed.primary():
        close(last, reference.values())


def average(folder: Path) -> None:
    """The moving average of the parts is the parts of the moving average."""
    one, other = Net(), Net()
    reference, updater = flat(one, SECTIONS["adamw"]), sharded(other, SECTIONS["adamw"])
    theirs, ours = Ema(reference, 0.5), Ema(updater, 0.5)
    for k in range(1, 4):
        steps(one, reference, k, k + 1)
        steps(other, updater, k, k + 1)
        theirs.update(k)
        ours.update(k)
    mean = ours.values()
    with ours.applied():
        inside = updater.values()
    outside = updater.values()
    if distributed.primary():
        close(mean, theirs.values())
        equal(mean, inside)
        close(outside, reference.values())
        assert not any(torch.equal(mean[n], outside[n]) for n in mean if "unused" not in n)
    again = Ema(sharded(Net(), SECTIONS["adamw"]), 0.5)
    again.load(theirs.values())
    back = again.values()
    if distributed.primary():
        equal(back, theirs.values())


def in_bf16(folder: Path) -> None:
    """The model computes in bf16, its weights and the sums of gradients are fp32."""
    one, other = Net().bfloat16(), Net().bfloat16()
    reference, updater = flat(one, SECTIONS["adamw"]), sharded(other, SECTIONS["adamw"])
    assert {w.dtype for w in updater.masters} == {torch.float32}
    for k in range(4):
        x = torch.randn(6, 6, generator=torch.Generator().manual_seed(k)).bfloat16()
        for net, of, rows in ((one, reference, slice(None)), (other, updater, distributed.rows(6))):
            of.begin(k, 1e-3)
            out = net(x[rows])
            assert out.dtype == torch.bfloat16
            out.float().square().sum().backward()
            of.collect()
            of.clip(0)
            assert any((g != g.bfloat16().float()).any() for g in of.gradients()) or of is reference
            of.step()
    mine = updater.values()
    if distributed.primary():
        close(mine, reference.values(), rtol=2e-3, atol=2e-4)
        assert any((w != w.bfloat16().float()).any() for w in mine.values()), "steps that bf16 cannot hold"


def dead(folder: Path) -> None:
    """Weights without a gradient, with one that is broken in one process, or that did not move in any, are named in all."""
    net = Net()
    updater = sharded(net, AdamW())
    backward(net, 0, distributed.rows(5))
    updater.collect()
    row = updater.masters[list(updater.parameters).index("unet.blocks.1.up.weight")]
    assert row.grad is not None
    if distributed.primary():
        row.grad[0, 0] = float("nan")
    named = list(updater.names_without_gradient())
    assert named == ["unet.blocks.1.up.weight", "unet.unused.weight", "unet.unused.bias"], named
    before, now = updater.held(), updater.held()
    if not distributed.primary():
        now["unet.last.weight"] = now["unet.last.weight"] + 1
    assert set(_unmoved(now, before)) == set(now) - {"unet.last.weight"}, "it moved in one process"


def fresh(folder: Path) -> None:
    """A pass without a backward one leaves no whole weights behind, which would be old after an update."""
    net, x = Net(), torch.randn(2, 6)
    updater = sharded(net, AdamW())
    torch.distributed.broadcast(x, 0)
    with torch.no_grad():
        before = net(x)
        updater.put([torch.zeros_like(w) for w in updater.masters])
        assert before.any() and not net(x).any()


def memory(folder: Path) -> None:
    """Weights, gradient and moments of all processes together take what they take in one, and a little for uneven rows."""
    net = Net(width=64, blocks=8)
    updater = sharded(net, AdamW())
    x = torch.randn(2, 64)
    for k in range(2):
        updater.begin(k, 1e-3)
        if k:
            updater.step()
        net(x).square().mean().backward()
        updater.collect()
    gc.collect()
    alive = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in (o.to_local() if isinstance(o, DTensor) else o for o in gc.get_objects() if isinstance(o, Tensor))
    }
    share, used = 16 * updater.count / distributed.size(), sum(alive.values())
    assert 0.99 * share < used < 1.01 * share, (used, share)
    (folder / f"memory-{distributed.size()}-{distributed.rank()}.json").write_text(json.dumps([used, share]))


def whole(folder: Path) -> None:
    """For export the model has whole weights in its own type; afterwards it computes as before. What is not trained stays whole."""
    net, x = Net().bfloat16(), torch.ones(2, 6).bfloat16()
    net.unused.requires_grad_(False)
    kinds = {type(m) for m in net.modules()}
    updater = sharded(net, AdamW())
    values = updater.values()
    assert "unet.unused.weight" not in updater.parameters and type(net.unused.weight) is nn.Parameter
    before = net(x)
    assert {type(m) for m in net.modules()} == kinds, "files and libraries go by the class"
    if distributed.primary():
        with updater.assembled(values):
            state = net.state_dict()
        assert state.keys() == Net().state_dict().keys()
        assert all(torch.equal(t, values[f"unet.{n}"].bfloat16()) for n, t in state.items() if "unused" not in n)
        assert {type(t) for t in state.values()} == {Tensor} and {t.dtype for t in state.values()} == {torch.bfloat16}
    assert torch.equal(net(x), before)


# ---- runs


def config_of(folder: Path, *overrides: str) -> configs.RunConfig:
    return configs.load(folder / "recipe.toml", ["train.shard=true", *overrides])


QUICK = (
    "train.accumulate=1", "train.gradient_checkpointing=false", "train.validation_timesteps=1", "train.ema=0",
)  # fmt: skip
BF16 = (*QUICK, "train.precision=bf16", "train.steps=2", "train.sample_every=0")


def through(folder: Path, name: str, *overrides: str) -> None:
    for _ in train(config_of(folder, *overrides), Run(folder / name)):
        pass


def go_on(folder: Path, old: str, new: str) -> None:
    """Go on with a run as it was at step 2."""
    if distributed.primary():
        back_to_step_2(folder / old, folder / new)
    through(folder, new)


def back_to_step_2(old: Path, new: Path) -> None:
    shutil.copytree(old, new)
    for path in ("final", "checkpoints/step-000004", "checkpoints/best"):
        shutil.rmtree(new / path, ignore_errors=True)


def stops(folder: Path) -> None:
    """One process alone is stopped, at any kind of event: all stop at the same step, which is saved."""
    places: list[tuple[type[Event], int]] = [
        (Sampled, 0), (Validated, 2), (Saved, 2), (Step, 3), (Step, 4), (Sampled, 4), (Saved, 4),
    ]  # fmt: skip
    for i, (kind, step) in enumerate(places):
        run, ended = Run(folder / f"stopped-{i}-of-{distributed.size()}"), 0
        another_port()
        events = train(config_of(folder, *QUICK), run)
        for event in events:
            ended = max(ended, getattr(event, "step", 0))
            if isinstance(event, kind) and ended >= step and distributed.rank() == i % distributed.size():
                events.close()  # type: ignore[attr-defined]
        assert ended == step, (kind, step, ended)
        newest, _ = checkpoint.latest(run)
        assert (newest.step if newest else 0) == step, (kind, step, newest)
        assert not run.final.exists()


def diverges(folder: Path) -> None:
    """A loss that is no number is noticed by all at the same step, and what was trained before it is saved."""
    run = Run(folder / "diverged")
    with pytest.raises(Diverged, match="its pictures"):
        list(train(config_of(folder, *QUICK, "optimizer.lr=1e30", "train.sample_every=0"), run))
    newest, _ = checkpoint.latest(run)
    last = max(e.step for e in run.events() if isinstance(e, Step))
    assert newest is not None and newest.step == last < 4


def no_room(folder: Path) -> None:
    """The process that writes cannot: all end, each with a message."""
    save = checkpoint.save

    def full(run: Run, state: Any, tensors: Any, **options: Any) -> Path:
        if distributed.primary() and not options.get("name"):
            raise RunError("no room")
        return save(run, state, tensors, **options)

    says = "no room" if distributed.primary() else "another process of this run has ended"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        with pytest.raises((RunError, TrainingError), match=says):
            list(train(config_of(folder, *QUICK, "train.sample_every=0"), Run(folder / "no-room")))


CHECKS: dict[str, Callable[[Path], None]] = {
    **{kind: partial(updates, kind=kind) for kind in SECTIONS},
    **{f.__name__: f for f in (average, in_bf16, dead, fresh, memory, whole, stops, diverges, no_room)},
    "train": lambda folder: through(folder, f"of-{distributed.size()}"),
    "train bf16": lambda folder: through(folder, "bf16", *BF16),
    "again": lambda folder: go_on(folder, "of-2", "again"),
    "from one": lambda folder: go_on(folder, "alone", f"from-one-of-{distributed.size()}"),
    "from two": lambda folder: go_on(folder, "of-2", "from-two"),
}
RUNS = ("train", "train bf16", "again", "from one", "from two", "stops", "diverges", "no_room")

PORTS = os.environ.get("PORTS", "").split()


def another_port() -> None:
    """Groups that follow each other do not meet at one door."""
    os.environ["MASTER_PORT"] = PORTS.pop(0)


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    outcome: dict[str, str] = {}
    for name in names:
        another_port()
        try:
            with nullcontext() if name in RUNS else distributed.joined(CPU):
                CHECKS[name](folder)
            outcome[name] = ""
        except BaseException:
            outcome[name] = traceback.format_exc()
        (folder / f"{distributed.size()}-{distributed.rank()}.json").write_text(json.dumps(outcome))
        if outcome[name]:
            os._exit(1)  # the others notice, and end as well


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
