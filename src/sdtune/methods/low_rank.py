"""The layers of LoRA and DoRA.

LoRA, arXiv:2106.09685:  change = scale * B A
DoRA, arXiv:2402.09353:  change = m / |W + scale B A| * (W + scale B A) - W, the length taken for each output
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdtune.errors import ConfigError
from sdtune.methods.adapters import Adapter, Layer, product
from sdtune.methods.quant import compute_dtype

Init = Literal["default", "gaussian", "pissa", "olora"]


class LowRank(Adapter):
    """A (rank, in, kernel ...) and B (out, rank, 1 ...). For a convolution A has its kernel, stride and padding; B is 1x1."""

    fixed_A: Tensor | None
    fixed_B: Tensor | None

    def __init__(
        self, base: nn.Module, *, rank: int, scale: float, dropout: float = 0.0, init: Init = "default"
    ) -> None:
        super().__init__(base, dropout)
        out, *inside = self._weight_shape()
        self.lora_A = self._new(rank, *inside)
        self.lora_B = self._new(out, rank, *(1 for _ in inside[1:]))
        self.scale, self.init = scale, init
        # The start of PiSSA and OLoRA, which is taken off again, so that training begins at the base. The weight itself stays
        # untouched: W - scale B0 A0 is never stored, so nothing has to be put back, and a quantised W works too.
        self.register_buffer("fixed_A", None, persistent=False)
        self.register_buffer("fixed_B", None, persistent=False)

    @property
    def rank(self) -> int:
        return len(self.lora_A)

    def initialise(self, rng: torch.Generator) -> None:
        """A as a Linear's usual start (Kaiming, a = sqrt(5)) or normal, B zero; or both from the weight's largest directions."""
        if self.init in ("pissa", "olora"):
            self._from_weight()
            return
        if self.init == "gaussian":
            self.lora_A.copy_(torch.randn(self.lora_A.shape, generator=rng) / self.rank)
        else:
            bound = 1 / math.sqrt(self.lora_A[0].numel())
            self.lora_A.copy_((torch.rand(self.lora_A.shape, generator=rng) * 2 - 1) * bound)
        self.lora_B.zero_()

    def _from_weight(self) -> None:
        """PiSSA, arXiv:2404.02948: the first singular vectors. OLoRA, arXiv:2406.01775: the first columns of Q, rows of R."""
        W_OI, r = self.base.weight.float().flatten(1), self.rank
        if r > min(W_OI.shape):
            raise ConfigError(
                f"method.rank: {r}, but init {self.init!r} takes at most {min(W_OI.shape)} for some layer"
            )
        if self.init == "pissa":
            U_OK, S_K, V_KI = torch.linalg.svd(W_OI, full_matrices=False)
            root_R = (S_K[:r] / self.scale).sqrt()
            a_RI, b_OR = root_R[:, None] * V_KI[:r], U_OK[:, :r] * root_R
        else:
            Q_OK, R_KI = torch.linalg.qr(W_OI)
            a_RI, b_OR = R_KI[:r], Q_OK[:, :r]
        self.lora_A.copy_(a_RI.view_as(self.lora_A))
        self.lora_B.copy_(b_OR.reshape(self.lora_B.shape))
        self.fixed_A, self.fixed_B = self.lora_A.detach().clone(), self.lora_B.detach().clone()

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B, with the start of PiSSA and OLoRA taken off: (A, A0) and (B, -B0)."""
        if self.fixed_A is None or self.fixed_B is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.fixed_A]), torch.cat([self.lora_B, -self.fixed_B], 1)

    def low(self) -> Tensor:
        """scale * B A in the weight's shape, fp32."""
        a, b = self.factors()
        return (self.scale * (b.flatten(1).float() @ a.flatten(1).float())).view(self._weight_shape())

    def change(self) -> Tensor:
        return self.low()

    def _twice(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """scale * B A x."""
        h = product(self.base, x, a) * self.scale
        return F.conv2d(h, b) if isinstance(self.base, nn.Conv2d) else F.linear(h, b)

    def update(self, x: Tensor, frozen: Callable[[], Tensor]) -> Tensor:
        return self._twice(x, *self.factors())

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        if self.strength == 0 or self.drops or self.acts_B is not None or not isinstance(self.base, nn.Linear):
            return super().forward(x, *rest)
        a, b = self.factors()
        y: Tensor = LowRankLinear.apply(x, a, b, self.base, self.scale * self.strength)  # type: ignore[no-untyped-call]
        return y

    def tensors(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A PiSSA or OLoRA adapter is written as a plain LoRA of twice the rank, which fits the untouched base."""
        if self.fixed_A is None or self.fixed_B is None:
            return dict(trained)
        a, b = self.fixed_A.to(trained["lora_A"]), self.fixed_B.to(trained["lora_B"])
        return {"lora_A": torch.cat([trained["lora_A"], a]), "lora_B": torch.cat([trained["lora_B"], -b], 1)}

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}"


class LowRankLinear(torch.autograd.Function):
    """y = x W^T + bias + scale * x A^T B^T for a frozen W: keeps x and x A^T alone, and adds into one result instead of making three.

    W is asked of its layer again in the backward pass: a quantised one is not kept in between.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, layer: nn.Linear, scale: float) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        W, h_NR = layer.weight, x_ND @ A.t()
        bias: Tensor | None = layer.bias
        y_NE = torch.addmm(bias, x_ND, W.t()) if bias is not None else x_ND @ W.t()
        y_NE.addmm_(h_NR, B.t(), alpha=scale)
        ctx.save_for_backward(x_ND, h_NR, A, B)
        ctx.layer, ctx.scale = layer, scale
        return y_NE.view(*x.shape[:-1], len(B))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, h_NR, A, B = ctx.saved_tensors
        g_NE = grad.reshape(-1, grad.shape[-1])
        gB_NR = (g_NE @ B).mul_(ctx.scale)
        grad_A, grad_B = gB_NR.t() @ x_ND, (g_NE.t() @ h_NR).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (g_NE @ ctx.layer.weight).addmm_(gB_NR, A).view(*grad.shape[:-1], A.shape[1])
        return grad_x, grad_A, grad_B, None, None


class Dora(LowRank):
    """Direction by LoRA, length by a magnitude for each output; the length that it replaces is a constant to the gradient (4.3)."""

    square_O: Tensor

    def __init__(self, base: nn.Module, *, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, rank=rank, scale=scale, dropout=dropout)
        out, *inside = self._weight_shape()
        self.lora_magnitude_vector = self._new(*((1, out, 1, 1) if inside[1:] else (out,)))  # peft's shapes
        self.register_buffer("square_O", self.base.weight.float().flatten(1).square().sum(1), persistent=False)

    def initialise(self, rng: torch.Generator) -> None:
        super().initialise(rng)
        self.lora_magnitude_vector.copy_(self.square_O.sqrt().view_as(self.lora_magnitude_vector))

    @torch.no_grad()
    def _length(self) -> Tensor:
        """|W + scale B A| for each output, fp32, without that sum: |w + c|^2 = |w|^2 + 2 w c + |c|^2, row by row."""
        a_RI, b_OR = self.lora_A.flatten(1), self.lora_B.flatten(1).float() * self.scale
        cross_OR = (self.base.weight.flatten(1) @ a_RI.t()).float()
        gram_RR = a_RI.float() @ a_RI.float().t()
        square_O = self.square_O + (b_OR * (2 * cross_OR + b_OR @ gram_RR)).sum(1)
        return square_O.clamp(min=1e-12).sqrt().view_as(self.lora_magnitude_vector)

    def _gain(self) -> Tensor:
        return self.lora_magnitude_vector.float() / self._length()

    def change(self) -> Tensor:
        weight = self.base.weight.float()
        gain = self._gain().view(-1, *(1 for _ in weight.shape[1:]))
        return gain * (weight + self.low()) - weight

    def update(self, x: Tensor, frozen: Callable[[], Tensor]) -> Tensor:
        """(gain - 1) W x + gain * scale B A x: small beside W x, so that bf16 rounds a small number."""
        gain, dtype = self._gain(), compute_dtype(self.base)
        return torch.addcmul((gain - 1).to(dtype) * frozen(), gain.to(dtype), self._twice(x, *self.factors()))

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        return Adapter.forward(self, x, *rest)


def make(base: Layer, tensors: Mapping[str, Tensor], scale: float) -> LowRank:
    """The adapter that holds `tensors`, still without their values."""
    kind = Dora if "lora_magnitude_vector" in tensors else LowRank
    return kind(base, rank=len(tensors["lora_A"]), scale=scale)
