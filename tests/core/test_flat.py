"""The flat buffer: equal to torch's AdamW and clipping, parameter by parameter; types, groups, EMA."""

from typing import Any

import pytest
import torch
from torch import nn

from sdtune.ema import Ema
from sdtune.flat import FlatOptimizer
from sdtune.optim.kinds import AdamW


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def flat_adamw(model: nn.Module, **options: Any) -> FlatOptimizer:
    flat = AdamW(**options).build(dict(model.named_parameters()))
    assert isinstance(flat, FlatOptimizer)
    return flat


def update(flat: FlatOptimizer, lr: float) -> None:
    flat.begin(0, lr)
    flat.step()


def gradients(model: nn.Module, k: int, dtype: torch.dtype = torch.float32) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(k)).to(dtype)
    (model(x).float().square().sum() * 3).backward()


def test_ten_steps_equal_torch() -> None:
    mine, theirs = net(), net()
    options = {"betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": 0.1}
    flat = flat_adamw(mine, **options)
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, **options)  # type: ignore[arg-type]
    for k in range(10):
        gradients(mine, k)
        flat.collect()
        gradients(theirs, k)
        limit = 1.0 if k % 2 else 1e3  # over and under the gradient's length
        a, b = flat.clip(limit), nn.utils.clip_grad_norm_(theirs.parameters(), limit)
        torch.testing.assert_close(a, b)
        reference.param_groups[0]["lr"] = 1e-2 / (k + 1)
        update(flat, 1e-2 / (k + 1))
        reference.step()
        reference.zero_grad()
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_bf16_weights_keep_an_fp32_copy_that_small_steps_reach() -> None:
    model = net().bfloat16()
    before = {n: p.clone() for n, p in model.named_parameters()}
    flat = flat_adamw(model, weight_decay=0.0)
    start = flat.weights.clone()
    for k in range(3):
        gradients(model, k, torch.bfloat16)
        flat.collect()
        update(flat, 1e-5)
    assert (flat.weights != start).all(), "the fp32 weights take steps that bf16 cannot hold"
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert any(torch.equal(p, before[n]) for n, p in model.named_parameters())
    torch.testing.assert_close(flat.unnamed(dict(model.named_parameters()))[0], flat.weights, rtol=1e-2, atol=1e-3)


def test_bf16_steps_equal_torch_on_an_fp32_copy() -> None:
    model, copy = net().bfloat16(), net().bfloat16()
    options = {"betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": 0.1}
    flat = flat_adamw(model, **options)
    weights = [p.detach().float() for p in copy.parameters()]
    reference = torch.optim.AdamW(weights, lr=1e-2, fused=True, **options)  # type: ignore[arg-type]
    for k in range(6):
        gradients(model, k, torch.bfloat16)
        flat.collect()
        gradients(copy, k, torch.bfloat16)
        for w, p in zip(weights, copy.parameters(), strict=True):
            assert p.grad is not None
            w.grad = p.grad.float() if w.grad is None else w.grad + p.grad.float()
            p.grad = None
        if k % 2:  # two backward passes to a step
            update(flat, 1e-2)
            reference.step()
            reference.zero_grad()
            for w, p in zip(weights, copy.parameters(), strict=True):
                p.data.copy_(w)
    torch.testing.assert_close(flat.weights, torch.cat([w.flatten() for w in weights]))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), copy.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_goes_on_bit_by_bit(dtype: torch.dtype) -> None:
    def build() -> tuple[nn.Module, FlatOptimizer]:
        model = net().to(dtype)
        return model, flat_adamw(model, betas=(0.9, 0.99), weight_decay=0.1)

    def steps(model: nn.Module, flat: FlatOptimizer, *numbers: int) -> None:
        for k in numbers:
            gradients(model, k, dtype)
            flat.collect()
            update(flat, 0.1)

    straight, first = build()
    steps(straight, first, 0, 1)
    weights, (tensors, numbers) = first.values(), first.state()
    steps(straight, first, 2, 3)
    resumed, second = build()
    second.load(weights)
    second.load_state(tensors, numbers)
    steps(resumed, second, 2, 3)
    assert torch.equal(second.weights, first.weights)
    assert all(torch.equal(p, q) for p, q in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_accumulation_adds_up() -> None:
    once, twice = net(), net()
    a, b = (flat_adamw(m) for m in (once, twice))
    for k in range(2):
        gradients(once, k)
    a.collect()
    for k in range(2):
        gradients(twice, k)
        b.collect()
    torch.testing.assert_close(a.gradient, b.gradient)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_dead_parameters_are_named(value: float) -> None:
    model = net()
    model.get_parameter("2.weight").register_hook(lambda grad: torch.full_like(grad, value))
    flat = flat_adamw(model)
    gradients(model, 0)
    flat.collect()
    assert list(flat.names_without_gradient()) == ["2.weight"]


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        AdamW().build({})


def test_ema_is_applied_and_taken_back_bit_by_bit() -> None:
    model = net()
    flat = flat_adamw(model)
    ema, start = Ema(flat, 0.5), flat.weights.clone()
    gradients(model, 0)
    update(flat, 0.1)
    ema.update(1)
    own = flat.weights.clone()
    decay = min(0.5, 2 / 11)
    torch.testing.assert_close(ema.mean[0], decay * start + (1 - decay) * own)
    with ema.applied():
        assert torch.equal(model.get_parameter("0.weight").flatten(), ema.mean[0][:35])
    assert torch.equal(flat.weights, own)
    with pytest.raises(KeyboardInterrupt), ema.applied():
        raise KeyboardInterrupt  # Ctrl-C while previews are drawn; what is saved then must be the weights
    assert torch.equal(flat.weights, own)
    before = ema.mean[0].clone()
    ema.update(1000)
    torch.testing.assert_close(ema.mean[0], 0.5 * before + 0.5 * own)


def test_the_section_reaches_the_optimiser() -> None:
    section = AdamW(lr=0.5, betas=(0.7, 0.8), eps=1e-3, weight_decay=0.25)
    flat = section.build(dict(net().named_parameters()))
    flat.begin(0, section.lr_at(0, 10))
    ((group,),) = (o.param_groups for o in flat.optimizers)
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.5, (0.7, 0.8), 1e-3, 0.25)
