"""The adapter layers of LoRA: short mathematics around a frozen Linear or Conv2d.

y = W x + scale * B A x. Names: `<layer>.lora_A` (rank, in, ...) and `<layer>.lora_B` (out, rank, ...), which map to every
export format; `<layer>.base` is the untouched layer, so that taking the adapter off puts the very same module back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Adapter(nn.Module):
    """What the two layers share: the frozen layer, A and B in fp32, the scale, the strength."""

    base: nn.Linear | nn.Conv2d

    def __init__(
        self,
        base: nn.Linear | nn.Conv2d,
        a_shape: tuple[int, ...],
        b_shape: tuple[int, ...],
        scale: float,
        dropout: float,
    ):
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.zeros(a_shape, device=base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(b_shape, device=base.weight.device))
        self.scale, self.dropout = scale, dropout
        self.strength = 1.0
        """Multiplies the update: 0 is the base, bit by bit."""

    @property
    def rank(self) -> int:
        return len(self.lora_A)

    def initialise(self, rng: torch.Generator) -> None:
        """A as a Linear's usual start (Kaiming, a = sqrt(5)), B zero: training starts at the base model."""
        fan_in = self.lora_A[0].numel()
        bound = 1 / math.sqrt(fan_in)
        with torch.no_grad():
            self.lora_A.copy_((torch.rand(self.lora_A.shape, generator=rng) * 2 - 1) * bound)
            self.lora_B.zero_()

    def delta(self) -> Tensor:
        """The change of the weight at strength 1, in the weight's shape, fp32."""
        return (self.scale * self.lora_B.flatten(1).float() @ self.lora_A.flatten(1).float()).view_as(self.base.weight)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """A and scale * strength * B in the frozen weight's type."""
        dtype = self.base.weight.dtype
        return self.lora_A.to(dtype), (self.lora_B * (self.scale * self.strength)).to(dtype)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}"


class LoraLinear(Adapter):
    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base, (rank, base.in_features), (base.out_features, rank), scale, dropout)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        if self.strength == 0:
            return F.linear(x, self.base.weight, self.base.bias)
        a, b = self._factors()
        if self.dropout and self.training:
            return F.linear(x, self.base.weight, self.base.bias) + F.linear(F.linear(F.dropout(x, self.dropout), a), b)
        y: Tensor = _LowRankLinear.apply(x, self.base.weight, self.base.bias, a, b)  # type: ignore[no-untyped-call]
        return y


class LoraConv2d(Adapter):
    """The down projection has the layer's kernel, stride and padding; the up projection is 1x1."""

    base: nn.Conv2d

    def __init__(self, base: nn.Conv2d, rank: int, scale: float, dropout: float) -> None:
        kernel = tuple(base.kernel_size)
        super().__init__(base, (rank, base.in_channels, *kernel), (base.out_channels, rank, 1, 1), scale, dropout)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        y: Tensor = self.base(x)
        if self.strength == 0:
            return y
        a, b = self._factors()
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return y + F.conv2d(F.conv2d(x, a, None, self.base.stride, self.base.padding), b)


class _LowRankLinear(torch.autograd.Function):
    """y = x W^T + bias + x A^T B^T for a frozen W: keeps x alone, and adds into one result instead of making three."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        y_NE = torch.addmm(bias, x_ND, W.t()) if bias is not None else x_ND @ W.t()
        y_NE.addmm_(x_ND @ A.t(), B.t())
        ctx.save_for_backward(x_ND, W, A, B)
        return y_NE.view(*x.shape[:-1], len(W))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, W, A, B = ctx.saved_tensors
        g_NE = grad.reshape(-1, grad.shape[-1])
        gB_NR = g_NE @ B
        grad_A, grad_B = gB_NR.t() @ x_ND, g_NE.t() @ (x_ND @ A.t())
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.addmm(g_NE @ W, gB_NR, A).view(*grad.shape[:-1], W.shape[1])
        return grad_x, None, None, grad_A, grad_B


def attach(
    root: nn.Module, layers: Mapping[str, nn.Module], *, rank: int, scale: float, dropout: float, seed: int
) -> dict[str, nn.Parameter]:
    """Replace each of `layers` (name in `root` -> module) by its adapter; returns the new parameters by name."""
    if any(adapters_of(root)):
        raise ValueError("there are adapters on this model already; detach them first")
    rng = torch.Generator().manual_seed(seed)
    for name, layer in layers.items():
        attach_one(root, name, layer, rank=rank, scale=scale, dropout=dropout).initialise(rng)
    return {n: p for n, p in root.named_parameters() if n.endswith((".lora_A", ".lora_B"))}


def attach_one(
    root: nn.Module, name: str, layer: nn.Module, *, rank: int, scale: float, dropout: float = 0.0
) -> Adapter:
    """Replace `layer` by an adapter whose A and B are zero."""
    adapter: Adapter
    if isinstance(layer, nn.Linear):
        adapter = LoraLinear(layer, rank, scale, dropout)
    elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
        adapter = LoraConv2d(layer, rank, scale, dropout)
    else:
        raise ValueError(f"{name}: {type(layer).__name__} takes no LoRA")
    _replace(root, name, adapter.train(root.training))
    return adapter


def adapters_of(root: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """The adapters in `root`, by the name of the layer they replace."""
    for name, module in root.named_modules():
        if isinstance(module, Adapter):
            yield name, module


def detach(root: nn.Module) -> None:
    """Put the original modules back."""
    for name, adapter in list(adapters_of(root)):
        _replace(root, name, adapter.base)


def merge(root: nn.Module) -> None:
    """Add each update, at its strength, to its layer's weight, and put the layer back."""
    for name, adapter in list(adapters_of(root)):
        with torch.no_grad():
            weight = adapter.base.weight
            weight.copy_((weight.float() + adapter.strength * adapter.delta()).to(weight.dtype))
        _replace(root, name, adapter.base)


def set_strength(root: nn.Module, strength: float) -> None:
    for _, adapter in adapters_of(root):
        adapter.strength = strength


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
