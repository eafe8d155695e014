"""Several adapters on one layer: their changes add up, each at its own strength."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdtune.methods.adapters import Adapter, bare_layers, layers_of, put


class Sum(Adapter):
    """W + strength_1 change_1(W) + strength_2 change_2(W) + ...: each change is that of the untouched W."""

    def __init__(self, base: nn.Module, members: Sequence[Adapter]) -> None:
        super().__init__(base)
        self.members = nn.ModuleList(members)

    def initialise(self, rng: torch.Generator) -> None:
        """Nothing is trained here."""

    def _acting(self) -> list[Adapter]:
        return [m for m in self.members if isinstance(m, Adapter) and m.strength != 0]

    def change(self) -> Tensor:
        return sum((m.strength * m.change() for m in self._acting()), torch.zeros_like(self.base.weight.float()))

    def update(self, x: Tensor, frozen: Callable[[], Tensor]) -> Tensor:
        first, *rest = self._acting()
        total = first.strength * first.update(x, frozen)
        for member in rest:
            total = torch.add(total, member.update(x, frozen), alpha=member.strength)
        return total

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        if not self._acting():
            y: Tensor = self.base(x)
            return y
        return super().forward(x, *rest)


def add(parts: Mapping[str, nn.Module], made: Mapping[str, Adapter]) -> None:
    """Put `made`, whose bases are the bare layers, on `parts` beside what is there."""
    layers = layers_of(parts)
    for name, adapter in made.items():
        match layers[name]:
            case Sum() as there:
                there.members.append(adapter.train(there.training))
            case Adapter() as there:
                put(parts, name, Sum(there.base, [there, adapter]))
            case _:
                put(parts, name, adapter)


def take_off(parts: Mapping[str, nn.Module], made: Mapping[str, Adapter]) -> None:
    """Undo `add`: what is left is again what it was."""
    layers, bare = layers_of(parts), bare_layers(parts)
    for name, adapter in made.items():
        match layers[name]:
            case Sum() as there:
                left = [m for m in there.members if m is not adapter]
                put(parts, name, _of(there.base, left))
            case there if there is adapter:
                put(parts, name, bare[name])


def _of(base: nn.Module, members: Collection[nn.Module]) -> nn.Module:
    adapters = [m for m in members if isinstance(m, Adapter)]
    return Sum(base, adapters) if len(adapters) > 1 else adapters[0] if adapters else base
