"""Training with the least memory: no fp32 copy of the weights, and, if asked, no gradient of the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sdtune.updater import Make, Updater, factors, matrix_shape


class LeanOptimizer(Updater):
    """The live parameters are the only copy of the weights. Each in turn is made fp32, updated, and rounded back by chance.

    `fused`: a parameter is updated as soon as the backward pass has its gradient, which is dropped then. Hence one backward
    pass a step, and no clipping by a length that is not known yet.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        make: Make,
        *,
        lr_scale: Mapping[str, float] | None = None,
        matrices: bool = False,
        fused: bool = False,
        seed: int = 0,
    ) -> None:
        if not parameters:
            raise ValueError("nothing to train: the method made no parameter trainable")
        self.parameters, self._fused, self._seed, self._step = dict(parameters), fused, seed, 0
        self._matrices, self._norms = matrices, dict[str, Tensor]()
        self._index = {name: i for i, name in enumerate(self.parameters)}
        first = next(iter(self.parameters.values()))
        self._rng = torch.Generator(first.device)
        self._proxies: dict[str, Tensor] = {}
        self._of: dict[str, list[torch.optim.Optimizer]] = {}
        for (name, p), factor in zip(
            self.parameters.items(), factors(list(self.parameters), lr_scale or {}), strict=True
        ):
            proxy = torch.empty(self._shape(p), device=p.device)
            self._of[name] = make([{"params": [proxy], "factor": factor}])
            proxy.data = torch.empty(0, device=p.device)
            self._proxies[name] = proxy
            p.grad = None
        self._own([o for os in self._of.values() for o in os], {proxy: n for n, proxy in self._proxies.items()})
        if fused:
            for name, p in self.parameters.items():
                p.register_post_accumulate_grad_hook(lambda _, name=name: self._update(name))

    def _shape(self, p: Tensor) -> tuple[int, ...]:
        return matrix_shape(p.shape) if self._matrices else tuple(p.shape)

    def begin(self, step: int, lr: float) -> None:
        super().begin(step, lr)
        self._step = step
        self._norms.clear()

    def collect(self) -> None:
        """Nothing to do: gradients of several passes add up in the parameters' own type."""

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def clip(self, limit: float) -> Tensor:
        norms = self._norms.values() if self._fused else [_length(p.grad) for p in self._with_gradient().values()]
        device = self._rng.device
        norm: Tensor = torch.linalg.vector_norm(torch.stack(list(norms))) if norms else torch.zeros((), device=device)
        if limit and not self._fused:
            for p in self._with_gradient().values():
                assert p.grad is not None
                p.grad *= (limit / (norm + 1e-6)).clamp(max=1.0)
        return norm

    def step(self) -> None:
        if not self._fused:
            for name in self._with_gradient():
                self._update(name)
        self.whole = True

    def _with_gradient(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.parameters.items() if p.grad is not None}

    @torch.no_grad()
    def _update(self, name: str) -> None:
        """Step one parameter. Its rounding is a function of (seed, step, parameter), in whatever order gradients come."""
        p = self.parameters[name]
        assert p.grad is not None
        self.whole = False
        with self._in_fp32(name) as proxy:
            proxy.grad = p.grad.float().view(proxy.shape)
            self._norms[name] = _length(proxy.grad)
            for optimizer in self._of[name]:
                optimizer.step()
            self._rng.manual_seed(((self._seed * 1_000_003 + self._step) * 65_537 + self._index[name]) % 2**63)
            new = stochastic_round(proxy, self._rng) if p.dtype == torch.bfloat16 else proxy
            p.copy_(new.view(p.shape))
        p.grad = None

    @contextmanager
    def _in_fp32(self, name: str) -> Iterator[Tensor]:
        """The tensor that the parameter's optimisers know, holding its weights for a moment."""
        proxy, p = self._proxies[name], self.parameters[name]
        proxy.data = p.detach().float().view(self._shape(p))
        try:
            yield proxy
        finally:
            proxy.grad = None
            proxy.data = torch.empty(0, device=p.device)

    def values(self) -> dict[str, Tensor]:
        return {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.parameters.items():
            p.copy_(values[name])

    def names_without_gradient(self) -> Iterator[str]:
        for name, p in self.parameters.items():
            norm = self._norms.get(name) if p.grad is None else _length(p.grad)
            if norm is None or not 0 < float(norm) < float("inf"):
                yield name

    def _restore(self, label: str, values: Mapping[str, object]) -> None:
        with self._in_fp32(label):
            super()._restore(label, values)


def _length(x: Tensor | None) -> Tensor:
    assert x is not None
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float32)
    return norm


def stochastic_round(x: Tensor, rng: torch.Generator) -> Tensor:
    """fp32 to bf16: up or down to a neighbour, each with the probability that makes the mean right (arXiv:2010.06192).

    The 16 bits that bf16 cuts off carry into the rest as often as they are large. Rounding to nearest would lose every
    update smaller than 1/512 of its weight.
    """
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, generator=rng, device=x.device)
    return noise.add_(x.view(torch.int32)).bitwise_and_(-(1 << 16)).view(torch.float32).bfloat16()
