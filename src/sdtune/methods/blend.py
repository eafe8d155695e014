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
        self._base = {name: p.data for name, p in self._live.items()}
        self._tuned = {name: torch.empty_like(p.data).copy_(tuned[name]) for name, p in self._live.items()}
        # what was rounded for the model, and is needed exactly between the two
        self._exact = {name: value for name, value in tuned.items() if value.dtype != self._live[name].dtype}

    @torch.no_grad()
    def set_strength(self, strength: float) -> None:
        """Base and tuned weights both stay in memory, and the parameters point to one or the other: nothing is copied to switch."""
        for name, p in self._live.items():
            base, tuned = self._base[name], self._tuned[name]
            if strength in (0, 1):
                p.data = base if strength == 0 else tuned
            else:
                exact = self._exact.get(name, tuned).to(p.device, torch.float32)
                p.data = torch.empty_like(base).copy_(base.float() + strength * (exact - base.float()))

    def close(self) -> None:
        self.set_strength(0.0)
