"""Trained weights in the place of the base's, at any strength."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Blend:
    """Weights between base and tuned: 0 is the base byte for byte, 1 as trained."""

    def __init__(self, parts: Mapping[str, nn.Module], tuned: Mapping[str, Tensor]) -> None:
        """`tuned` has weights by `<part>.<name>`; those that it lacks stay the base's. Raises KeyError for one that does not fit."""
        own = {f"{part}.{name}": p for part, root in parts.items() for name, p in root.named_parameters()}
        self._live = {name: own[name] for name in tuned}
        if strange := [name for name, value in tuned.items() if own[name].shape != value.shape]:
            raise KeyError(strange[0])
        self._tuned = dict(tuned)
        self._base = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def set_strength(self, strength: float) -> None:
        for name, p in self._live.items():
            base, tuned = self._base[name], self._tuned[name].to(p.device, torch.float32)
            if strength in (0, 1):
                p.copy_(base if strength == 0 else tuned)
            else:
                p.copy_(base.float() + strength * (tuned - base.float()))

    def close(self) -> None:
        self.set_strength(0.0)
