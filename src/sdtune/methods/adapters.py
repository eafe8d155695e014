"""What all adapters share: a frozen Linear or Conv2d, a trainable change of its weight, and how they get on a model and off.

y = W x + strength * change(W) x. The frozen layer is kept untouched as `<layer>.base`, so that taking the adapter off puts the
very same module back. Parameters are named `<part>.<layer>.<parameter>`, the part as in diffusers' folders ("unet",
"text_encoder"), and map to every export format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdtune.methods.quant import FrozenConv2d, FrozenLinear, compute_dtype

Layer = nn.Linear | nn.Conv2d


def product(layer: Layer, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """`weight` (the layer's own, if None) applied to `x` as the layer applies it, without bias."""
    if weight is None:
        function = FrozenConv2d if isinstance(layer, nn.Conv2d) else FrozenLinear
        y: Tensor = function.apply(x, layer)  # type: ignore[no-untyped-call]
        return y
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)
    return F.linear(x, weight)


class Adapter(nn.Module, ABC):
    """A frozen layer and the trainable change of its weight.

    Parameters are in the type the layer computes in, so that a step casts nothing; the optimiser keeps the fp32 originals.
    """

    base: Layer

    def __init__(self, base: nn.Module, dropout: float = 0.0) -> None:
        assert isinstance(base, nn.Linear | nn.Conv2d)
        super().__init__()
        self.base = base
        self.dropout = dropout
        """Share of the change's input set to zero while training."""
        self.strength = 1.0
        """Multiplies the change: 0 is the base, bit by bit."""
        self.acts_B: Tensor | None = None
        """In which rows of a batch the change acts (`acting_in`); None: in all. An input of k times as many rows is k such batches."""

    @abstractmethod
    def initialise(self, rng: torch.Generator) -> None:
        """The first values. Training starts at the base model."""

    @abstractmethod
    def change(self) -> Tensor:
        """What strength 1 adds to the weight, in its shape, fp32."""

    @abstractmethod
    def update(self, x: Tensor, frozen: Callable[[], Tensor]) -> Tensor:
        """What strength 1 adds to the output for the input `x`. `frozen()` is W x, without bias."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        y: Tensor = self.base(x)
        if self.strength == 0:
            return y
        if self.drops:
            x = F.dropout(x, self.dropout)
            update = self.update(x, lambda: product(self.base, x))
        else:
            update = self.update(x, lambda: self._without_bias(y))
        changed = torch.add(y, update, alpha=self.strength)
        if self.acts_B is None:
            return changed
        acts = self.acts_B.repeat(len(y) // len(self.acts_B)).view(-1, *(1 for _ in y.shape[1:]))
        return torch.where(acts, changed, y)

    @property
    def drops(self) -> bool:
        return bool(self.dropout) and self.training

    def tensors(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a file has to hold of this layer, when `trained` are its parameters by their short names."""
        return dict(trained)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def _without_bias(self, y: Tensor) -> Tensor:
        if self.base.bias is None:
            return y
        return y - (self.base.bias.view(-1, 1, 1) if isinstance(self.base, nn.Conv2d) else self.base.bias)

    def _new(self, *shape: int) -> nn.Parameter:
        device = next(iter(self.base.state_dict().values())).device
        return nn.Parameter(torch.zeros(shape, device=device, dtype=compute_dtype(self.base)))

    def _weight_shape(self) -> tuple[int, ...]:
        b = self.base
        if isinstance(b, nn.Conv2d):
            return (b.out_channels, b.in_channels, *b.kernel_size)
        return (b.out_features, b.in_features)


def attach(parts: Mapping[str, nn.Module], made: Mapping[str, Adapter], *, seed: int) -> dict[str, nn.Parameter]:
    """Put each of `made` in the place of the layer that it is named after; returns their parameters by name."""
    check_bare(parts)
    rng = torch.Generator().manual_seed(seed)
    for name, adapter in made.items():
        with torch.no_grad():
            adapter.initialise(rng)
        put(parts, name, adapter)
    return {f"{n}.{short}": p for n, a in adapters_of(parts) for short, p in a.named_parameters(recurse=False)}


def check_bare(parts: Mapping[str, nn.Module]) -> None:
    if any(adapters_of(parts)):
        raise ValueError("there are adapters on this model already; detach them first")


def put(parts: Mapping[str, nn.Module], name: str, module: nn.Module) -> None:
    """Make `module` the layer `name`, in the mode (training or not) of its part."""
    part, _, path = name.partition(".")
    parent, _, child = path.rpartition(".")
    setattr(parts[part].get_submodule(parent), child, module.train(parts[part].training))


def layers_of(parts: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Every module by its name with the part's in front."""
    return {f"{part}.{name}": m for part, root in parts.items() for name, m in root.named_modules() if name}


def adapters_of(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, Adapter]]:
    """The adapters on a model, by the name of the layer they replace. Not those that another holds (`together.Sum`)."""
    inside = ""
    for name, module in layers_of(parts).items():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, Adapter):
            inside = f"{name}."
            yield name, module


def bare_layers(parts: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Every module by its name with the part's in front, as if there were no adapters: in their place the layers that they hold."""
    held = dict(adapters_of(parts))
    inside = tuple(f"{name}." for name in held)
    return {
        n: held[n].base if n in held else m for n, m in layers_of(parts).items() if not n.startswith(inside or ("\0",))
    }


def detach(parts: Mapping[str, nn.Module]) -> None:
    """Put the original modules back."""
    for name, adapter in list(adapters_of(parts)):
        put(parts, name, adapter.base)


@torch.no_grad()
def merge(parts: Mapping[str, nn.Module]) -> None:
    """Add each change, at its strength, to its layer's weight, and put the layer back."""
    for name, adapter in list(adapters_of(parts)):
        weight = adapter.base.weight
        weight.copy_((weight.float() + adapter.strength * adapter.change()).to(weight.dtype))
        put(parts, name, adapter.base)


def set_strength(parts: Mapping[str, nn.Module], strength: float) -> None:
    """Let each adapter's change act with `strength`: 0 is the base, 1 as trained."""
    for _, adapter in adapters_of(parts):
        adapter.strength = strength


@contextmanager
def acting_in(part: nn.Module, acts: Sequence[bool]) -> Iterator[None]:
    """Inside, the adapters on `part` act in those rows of a batch alone, so that base and tuned model compute in one."""
    found = [] if all(acts) else [adapter for _, adapter in adapters_of({"": part})]
    for adapter in found:
        adapter.acts_B = torch.tensor(acts, device=adapter.weight.device)
    try:
        yield
    finally:
        for adapter in found:
            adapter.acts_B = None


@contextmanager
def switched_off(parts: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, the adapters on a model change nothing."""
    found = [(adapter, adapter.strength) for _, adapter in adapters_of(parts)]
    for adapter, _ in found:
        adapter.strength = 0.0
    try:
        yield
    finally:
        for adapter, strength in found:
            adapter.strength = strength
