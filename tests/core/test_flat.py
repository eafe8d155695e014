"""The flat buffer: equal to torch's AdamW and clipping, parameter by parameter; types, groups, EMA."""

from typing import Any

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
        a, b = flat.clip(1.0), nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
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
    torch.testing.assert_close(flat.flat(dict(model.named_parameters())), flat.weights, rtol=1e-2, atol=1e-3)


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


def test_dead_parameters_are_named() -> None:
    model = net()
    model.get_parameter("2.weight").register_hook(torch.zeros_like)
    flat = flat_adamw(model)
    gradients(model, 0)
    flat.collect()
    assert list(flat.names_without_gradient()) == ["2.weight"]


def test_ema_is_applied_and_taken_back_bit_by_bit() -> None:
    model = net()
    flat = flat_adamw(model)
    ema, start = Ema(flat, 0.5), flat.weights.clone()
    gradients(model, 0)
    update(flat, 0.1)
    ema.update(1)
    own = flat.weights.clone()
    decay = min(0.5, 2 / 11)
    torch.testing.assert_close(ema.mean, decay * start + (1 - decay) * own)
    with ema.applied():
        assert torch.equal(model.get_parameter("0.weight").flatten(), ema.mean[:35])
    assert torch.equal(flat.weights, own)
