"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from sdtune.updater import Fp32Updater


class Ema:
    """mean <- decay * mean + (1 - decay) * weights, the decay rising from 0.1 so that early steps count."""

    def __init__(self, optimizer: Fp32Updater, decay: float) -> None:
        self.optimizer, self.decay = optimizer, decay
        self.mean: list[Tensor] = optimizer.copies()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step` (from 1)."""
        torch._foreach_lerp_(self.mean, self.optimizer.masters, 1 - min(self.decay, (1 + step) / (10 + step)))

    def values(self) -> dict[str, Tensor]:
        """Copies of the mean by name."""
        return self.optimizer.named(self.mean)

    def held(self) -> dict[str, Tensor]:
        """Copies by name of what this process has of the mean."""
        return self.optimizer.local(self.mean)

    def load(self, values: Mapping[str, Tensor]) -> None:
        self.mean = self.optimizer.unnamed(values)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with the mean inside; with its own weights again afterwards, bit by bit."""
        own = self.optimizer.copies()
        self.optimizer.put(self.mean)
        try:
            yield
        finally:
            self.optimizer.put(own)
