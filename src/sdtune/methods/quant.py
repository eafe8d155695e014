"""Frozen weights in four or eight bits: Linear and Conv2d whose weight is computed anew whenever it is read.

NF4 (QLoRA, arXiv:2305.14314) is bitsandbytes' own, on plain tensors. int8 and fp8 are one scale per output channel, a few lines
without a dependency: weight-only, so what a library would add is kernels that this project does not need. The autograd functions
keep the layer instead of its weight: the dequantised matrix lives for one product, in the forward and again in the backward pass.
"""

from __future__ import annotations

import fnmatch
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from sdtune.errors import ConfigError

Scheme = Literal["nf4", "int8", "fp8"]
BLOCK = 64
"""Values of a weight that share one NF4 scale."""
SMALL = 4096
"""Weights with fewer values stay as they are: there is nothing to save."""
KEPT = ("conv_in", "conv_out", "proj_out", "*embed*", "*norm*")
"""Layers that stay as they are: the first, the last, embeddings and what modulates norms. They are few and sensitive."""


class FrozenLinear(torch.autograd.Function):
    """x W^T for a layer whose W is not trained and, where it is quantised, not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return grad @ ctx.layer.weight if ctx.needs_input_grad[0] else None, None


class FrozenConv2d(torch.autograd.Function):
    """The same for a convolution."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        layer, grad_x = ctx.layer, None
        if ctx.needs_input_grad[0]:
            grad_x = conv2d_input(ctx.shape, layer.weight, grad, layer.stride, layer.padding, layer.dilation)
        return grad_x, None


class Packed(nn.Module):
    """A weight in few bits. Calling it gives the weight back, in the type it had."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.dtype, self.shape = weight.dtype, weight.shape


class PackedNf4(Packed):
    values: Tensor

    def __init__(self, weight: Tensor, double: bool) -> None:
        super().__init__(weight)
        functional = _bitsandbytes()
        values, self.state = functional.quantize_4bit(
            weight.contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=double
        )
        self.register_buffer("values", values)
        self._dequantize = functional.dequantize_4bit

    def forward(self) -> Tensor:
        weight: Tensor = self._dequantize(self.values, self.state)
        return weight.view(self.shape)

    @property
    def nbytes(self) -> int:
        nested = self.state.state2
        return sum(t.nbytes for t in (self.values, self.state.absmax, *([nested.absmax] if nested else [])))


class PackedByte(Packed):
    """One byte a value: q * scale, where the scale of an output channel makes its largest value the type's largest."""

    values: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, kind: torch.dtype) -> None:
        super().__init__(weight)
        largest = torch.iinfo(kind).max if kind == torch.int8 else torch.finfo(kind).max
        rows = weight.float().flatten(1)
        scale = (rows.abs().amax(1, keepdim=True) / largest).clamp(min=1e-12)
        scaled = rows / scale
        self.register_buffer("values", (scaled.round() if kind == torch.int8 else scaled).to(kind))
        self.register_buffer("scale", scale)

    def forward(self) -> Tensor:
        return (self.values.to(self.dtype) * self.scale.to(self.dtype)).view(self.shape)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scale.nbytes


def pack(weight: Tensor, scheme: Scheme, double: bool = False) -> PackedNf4 | PackedByte:
    if scheme == "nf4":
        return PackedNf4(weight, double)
    return PackedByte(weight, {"int8": torch.int8, "fp8": torch.float8_e4m3fn}[scheme])


class QuantLinear(nn.Linear):
    """A frozen Linear whose weight is packed."""

    def __init__(self, layer: nn.Linear, packed: PackedNf4 | PackedByte) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias, self.packed = layer.bias, packed

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        value: Tensor = self.packed()
        return value

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        y: Tensor = FrozenLinear.apply(input, self)  # type: ignore[no-untyped-call]
        bias: Tensor | None = self.bias
        return y if bias is None else y + bias


class QuantConv2d(nn.Conv2d):
    """A frozen Conv2d whose weight is packed."""

    def __init__(self, layer: nn.Conv2d, packed: PackedNf4 | PackedByte) -> None:
        nn.Module.__init__(self)
        for name in (
            "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
            "transposed", "output_padding", "padding_mode", "_reversed_padding_repeated_twice",
        ):  # fmt: skip
            setattr(self, name, getattr(layer, name))
        self.bias, self.packed = layer.bias, packed

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        value: Tensor = self.packed()
        return value

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        y: Tensor = FrozenConv2d.apply(input, self)  # type: ignore[no-untyped-call]
        bias: Tensor | None = self.bias
        return y if bias is None else y + bias.view(-1, 1, 1)


def quantise(root: nn.Module, scheme: Scheme, *, double: bool = False) -> list[str]:
    """Pack the weights of the large Linear and Conv2d layers of `root`, one by one; returns their names.

    What they were is not kept: to have it again, load the model again.
    """
    names = [name for name, layer in root.named_modules() if _wanted(name, layer)]
    for name in names:
        layer = root.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        packed = pack(layer.weight.data, scheme, double)
        quant = QuantConv2d(layer, packed) if isinstance(layer, nn.Conv2d) else QuantLinear(layer, packed)
        parent, _, child = name.rpartition(".")
        setattr(root.get_submodule(parent), child, quant)
    return names


def compute_dtype(layer: nn.Linear | nn.Conv2d) -> torch.dtype:
    """The type that `layer` computes in. (To ask a packed weight for its type would unpack it.)"""
    return layer.packed.dtype if isinstance(layer, QuantLinear | QuantConv2d) else layer.weight.dtype


def _wanted(name: str, layer: nn.Module) -> bool:
    if type(layer) not in (nn.Linear, nn.Conv2d) or getattr(layer, "groups", 1) != 1:
        return False
    size = layer.weight.numel()  # type: ignore[operator]
    return size >= SMALL and size % BLOCK == 0 and not any(fnmatch.fnmatchcase(name, pattern) for pattern in KEPT)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes.functional as functional
    except ImportError:
        raise ConfigError(
            "method.base: nf4 needs bitsandbytes; pip install 'sdtune[train-extras]', or set method.base=int8"
        ) from None
    return functional
