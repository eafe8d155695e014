"""The layers of LoHa, LoKr and OFT, with LyCORIS' formulas and names.

LoHa, arXiv:2108.06098:  change = scale * (A1 B1) * (A2 B2), multiplied value by value
LoKr, arXiv:2309.14859:  change = scale * kron(W1, W2), W2 perhaps itself a product of two thin matrices
OFT, arXiv:2306.07280:   change = R W - W, with R orthogonal in blocks: R^T = (I + Q) (I - Q)^-1, Q = S - S^T (Cayley)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdtune.methods.adapters import Adapter, Layer, product
from sdtune.methods.quant import compute_dtype


class Hadamard(Adapter):
    """LoHa. The rank of a value-wise product is up to rank^2."""

    def __init__(self, base: nn.Module, *, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, dropout)
        out, *inside = self._weight_shape()
        width = math.prod(inside)
        self.hada_w1_a, self.hada_w1_b = self._new(out, rank), self._new(rank, width)
        self.hada_w2_a, self.hada_w2_b = self._new(out, rank), self._new(rank, width)
        self.scale = scale

    def initialise(self, rng: torch.Generator) -> None:
        """As LyCORIS: normal with deviations 0.1, 1, 0, 1; a zero in one product makes the change zero."""
        for p, deviation in ((self.hada_w1_a, 0.1), (self.hada_w1_b, 1.0), (self.hada_w2_b, 1.0)):
            p.copy_(torch.randn(p.shape, generator=rng) * deviation)
        self.hada_w2_a.zero_()

    def _weight(self) -> Tensor:
        factors = (self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b)
        flat: Tensor = HadamardProduct.apply(*factors, self.scale)  # type: ignore[no-untyped-call]
        return flat.view(self._weight_shape())

    def change(self) -> Tensor:
        a1, b1, a2, b2 = (f.float() for f in (self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b))
        return (self.scale * (a1 @ b1) * (a2 @ b2)).view(self._weight_shape())

    def update(self, x: Tensor, frozen: Callable[[], Tensor]) -> Tensor:
        return product(self.base, x, self._weight())


class HadamardProduct(torch.autograd.Function):
    """scale * (A1 B1) * (A2 B2), keeping the thin factors alone: the two full products are made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, A1: Tensor, B1: Tensor, A2: Tensor, B2: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(A1, B1, A2, B2)
        ctx.scale = scale
        return (A1 @ B1).mul_(A2 @ B2).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        A1, B1, A2, B2 = ctx.saved_tensors
        grad = grad * ctx.scale
        first, second = grad * (A2 @ B2), grad * (A1 @ B1)
        return first @ B1.t(), A1.t() @ first, second @ B2.t(), A2.t() @ second, None


class Kronecker(Adapter):
    """LoKr. W1 is (l, m), W2 is (out / l, in / m, kernel ...); `rank` None keeps W2 whole."""

    def __init__(
        self, base: nn.Module, *, first: tuple[int, int], rank: int | None, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__(base, dropout)
        out, width, *kernel = self._weight_shape()
        self._second = (out // first[0], width // first[1], *kernel)
        self.lokr_w1 = self._new(*first)
        if rank is None:
            self.lokr_w2 = self._new(*self._second)
        else:
            self.lokr_w2_a = self._new(self._second[0], rank)
            self.lokr_w2_b = self._new(rank, math.prod(self._second[1:]))
        self.rank, self.scale = rank, scale if rank is not None else 1.0  # LyCORIS scales no whole W2

    def initialise(self, rng: torch.Generator) -> None:
        """As LyCORIS: Kaiming with a = sqrt(5), and zero for (the second factor of) W2."""
        for p in (self.lokr_w1, *(() if self.rank is None else (self.lokr_w2_a,))):
            p.copy_((torch.rand(p.shape, generator=rng) * 2 - 1) / math.sqrt(p.shape[1]))
        (self.lokr_w2 if self.rank is None else self.lokr_w2_b).zero_()

    def _w2(self) -> Tensor:
        return self.lokr_w2 if self.rank is None else (self.lokr_w2_a @ self.lokr_w2_b).view(self._second)

    def change(self) -> Tensor:
        w1, w2 = self.lokr_w1.float(), self._w2().float()
        return self.scale * torch.kron(w1.view(*w1.shape, *(1 for _ in w2.shape[2:])), w2.contiguous())

    def update(self, x: Tensor, frozen: Callable[[], Tensor]) -> Tensor:
        """kron(W1, W2) x without the Kronecker product: W2 on each of m pieces of x, then W1 over the pieces."""
        w1, w2 = self.lokr_w1 * self.scale, self._w2()
        if isinstance(self.base, nn.Conv2d):
            pieces = product(self.base, x.reshape(-1, self._second[1], *x.shape[2:]), w2)
            pieces = pieces.view(len(x), w1.shape[1], -1)
            y = torch.matmul(w1, pieces)
            return y.view(len(x), self.base.out_channels, *self._size(x))
        pieces = x.reshape(*x.shape[:-1], w1.shape[1], self._second[1]) @ w2.t()
        return torch.matmul(w1, pieces).flatten(-2)

    def _size(self, x: Tensor) -> tuple[int, ...]:
        b = self.base
        assert isinstance(b, nn.Conv2d) and not isinstance(b.padding, str)
        return tuple(
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip(x.shape[2:], b.padding, b.dilation, b.kernel_size, b.stride, strict=True)
        )


class Orthogonal(Adapter):
    """OFT: each block of outputs is rotated. Lengths and angles between the outputs of a block stay what they were."""

    def __init__(self, base: nn.Module, *, block: int, dropout: float = 0.0) -> None:
        super().__init__(base, dropout)
        out = self._weight_shape()[0]
        self.oft_blocks = self._new(out // block, block, block)
        self.scale = 1.0

    def initialise(self, rng: torch.Generator) -> None:
        """No rotation."""
        self.oft_blocks.zero_()

    def change(self) -> Tensor:
        weight, by = self.base.weight.float(), turn(self.oft_blocks)
        blocks = weight.reshape(len(by), by.shape[1], -1)
        return torch.einsum("knm,kni->kmi", by, blocks).reshape(weight.shape)

    def update(self, x: Tensor, frozen: Callable[[], Tensor]) -> Tensor:
        """The rotation acts on the outputs, so the weight is not touched."""
        y, by = frozen(), turn(self.oft_blocks).to(compute_dtype(self.base))
        if isinstance(self.base, nn.Conv2d):
            pieces = y.reshape(len(y), len(by), by.shape[1], -1)
            return torch.einsum("knm,bknp->bkmp", by, pieces).reshape(y.shape)
        pieces = y.view(*y.shape[:-1], len(by), by.shape[1])
        return torch.einsum("knm,...kn->...km", by, pieces).reshape(y.shape)


def turn(blocks: Tensor) -> Tensor:
    """R^T - I for each block, (blocks, n, m): what is added to the outputs. fp32, for a solve knows no bf16."""
    s = blocks.float()
    q, identity = s - s.transpose(1, 2), torch.eye(s.shape[1], device=s.device)
    rotation: Tensor = torch.linalg.solve(identity - q, identity + q, left=False)
    return rotation - identity


def divisor(limit: int, *sizes: int) -> int:
    """The largest number up to `limit` that divides each of `sizes` and is no larger than the root of any.

    LyCORIS' loader finds the shapes of LoKr and OFT from those of the file alone, and finds these right.
    """
    most = min(limit, *(math.isqrt(size) for size in sizes))
    return next(n for n in range(most, 0, -1) if all(size % n == 0 for size in sizes))


def make_loha(base: Layer, tensors: Mapping[str, Tensor], scale: float) -> Hadamard:
    """The adapter that holds `tensors`, still without their values."""
    return Hadamard(base, rank=len(tensors["hada_w1_b"]), scale=scale)


def make_lokr(base: Layer, tensors: Mapping[str, Tensor], scale: float) -> Kronecker:
    rows, columns = tensors["lokr_w1"].shape
    rank = tensors["lokr_w2_a"].shape[1] if "lokr_w2_a" in tensors else None
    return Kronecker(base, first=(rows, columns), rank=rank, scale=scale)


def make_oft(base: Layer, tensors: Mapping[str, Tensor], scale: float) -> Orthogonal:
    return Orthogonal(base, block=tensors["oft_blocks"].shape[1])
