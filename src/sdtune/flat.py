"""AdamW over one flat fp32 buffer: clipping, update, EMA and saving are one operation each, however many layers there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class FlatAdamW:
    """Owns the fp32 weights of `parameters`; the live parameters are views of them, or bf16 copies where the model is bf16.

    The update is torch's own AdamW on the flat tensor, hence equal to it parameter by parameter: every operation is elementwise.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        self.parameters = dict(parameters)
        if not self.parameters:
            raise ValueError("nothing to train: the method made no parameter trainable")
        first = next(iter(self.parameters.values()))
        low = {p.dtype for p in self.parameters.values()} - {torch.float32}
        assert len(low) <= 1, "trainable weights in fp32 and at most one other type"
        size = sum(p.numel() for p in self.parameters.values())
        self.weights = torch.empty(size, device=first.device)
        self.gradient = torch.zeros_like(self.weights)
        self._live = torch.empty_like(self.weights, dtype=low.pop()) if low else self.weights
        self._live_gradient = torch.zeros_like(self._live) if self._live is not self.weights else self.gradient
        for p, w, grad, live, live_grad in zip(
            self.parameters.values(),
            self._split(self.weights),
            self._split(self.gradient),
            self._split(self._live),
            self._split(self._live_gradient),
            strict=True,
        ):
            w.copy_(p.data)
            live.copy_(p.data)
            p.data, p.grad = (w, grad) if p.dtype == torch.float32 else (live, live_grad)
        self.weights.grad = self.gradient
        self._adamw = torch.optim.AdamW(
            [self.weights], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )

    def _split(self, flat: Tensor) -> list[Tensor]:
        sizes = [p.numel() for p in self.parameters.values()]
        return [part.view(p.shape) for part, p in zip(flat.split(sizes), self.parameters.values(), strict=True)]

    def collect(self) -> None:
        """Add the gradients that the last backward pass left to the fp32 gradient. Call it after each backward."""
        if self._live_gradient is not self.gradient:
            self.gradient += self._live_gradient
            self._live_gradient.zero_()

    def clip(self, limit: float) -> Tensor:
        """Scale the gradient down to length `limit`; returns its length before, a scalar tensor."""
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        self.gradient *= (limit / (norm + 1e-6)).clamp(max=1.0)
        return norm

    def step(self, lr: float) -> None:
        """One AdamW update at learning rate `lr`; the gradient is zero afterwards."""
        self._adamw.param_groups[0]["lr"] = lr
        self._adamw.step()
        self.gradient.zero_()
        self.publish()

    def publish(self) -> None:
        """Bring the live parameters up to the fp32 weights."""
        if self._live is not self.weights:
            self._live.copy_(self.weights)

    def load_weights(self, flat: Tensor) -> None:
        self.weights.copy_(flat)
        self.publish()

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """`flat` cut into the parameters' names and shapes, as copies."""
        return {n: t.clone() for n, t in zip(self.parameters, self._split(flat), strict=True)}

    def flat(self, named: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `named`. Raises KeyError for a missing name."""
        return torch.cat([named[n].reshape(-1).to(self.weights) for n in self.parameters])

    def names_without_gradient(self) -> Iterator[str]:
        """Parameters whose gradient is all zero or not finite, before it is used up by `step`."""
        for name, grad in zip(self.parameters, self._split(self.gradient), strict=True):
            if not bool(torch.isfinite(grad).all()) or not bool(grad.any()):
                yield name

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state: empty before the first step, then `step`, `exp_avg`, `exp_avg_sq`."""
        return {k: v.clone() for k, v in self._adamw.state.get(self.weights, {}).items()}

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        if moments:
            self._adamw.state[self.weights] = {
                k: v.to(self.weights.device, torch.float32).clone() for k, v in moments.items()
            }
