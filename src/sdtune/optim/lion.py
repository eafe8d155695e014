"""Lion, arXiv:2302.06675, program 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """Steps of equal length for every weight, by the sign of an interpolation of momentum and gradient."""

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for w in group["params"]:
                state = self.state[w]
                m = state["exp_avg"] if state else state.setdefault("exp_avg", torch.zeros_like(w))
                w.mul_(1 - lr * group["weight_decay"])
                w.add_(torch.sign(m * beta1 + w.grad * (1 - beta1)), alpha=-lr)
                m.mul_(beta2).add_(w.grad, alpha=1 - beta2)
