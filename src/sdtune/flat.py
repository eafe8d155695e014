"""Any optimiser over one flat fp32 buffer: clipping, update, EMA and saving are one operation each, however many layers there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdtune.updater import Fp32Updater, Make, arranged, matrix_shape

SLICE = 2**30  # numbers in one tensor of an elementwise optimiser: kernels of bitsandbytes count with 32 bits


class _Segment(NamedTuple):
    """Neighbours of one type. `live` is what the model computes with: the weights themselves, or bf16 copies of them."""

    weights: Tensor
    gradient: Tensor
    live: Tensor
    live_gradient: Tensor


class FlatOptimizer(Fp32Updater):
    """Owns the fp32 weights of `parameters`; the live parameters are views of them, or bf16 copies where the model is bf16.

    Elementwise optimisers see one slice per learning rate, and are equal to what they do parameter by parameter.
    Those that look at rows and columns (`matrices`) see views of each parameter.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        make: Make,
        *,
        lr_scale: Mapping[str, float] | None = None,
        matrices: bool = False,
    ) -> None:
        factor = arranged(parameters, lr_scale or {})
        self.parameters = {name: parameters[name] for name in factor}
        device = next(iter(parameters.values())).device
        self.weights = torch.empty(self.count, device=device)
        self.masters = [self.weights]
        self.gradient = torch.zeros_like(self.weights)
        alike = itertools.groupby(self.parameters, key=lambda name: (factor[name], parameters[name].dtype))
        runs = [list(names) for _, names in alike]
        sizes = [sum(parameters[n].numel() for n in names) for names in runs]
        self._segments = [
            self._adopt([parameters[n] for n in names], weights, gradient)
            for names, weights, gradient in zip(
                runs, self.weights.split(sizes), self.gradient.split(sizes), strict=True
            )
        ]
        views = self._views if matrices else self._slices
        labels: dict[Tensor, str] = {}
        groups = []
        for value, names in itertools.groupby(self.parameters, key=factor.__getitem__):
            seen = views(list(names))
            labels |= {tensor: label for label, tensor in seen.items()}
            groups.append({"params": list(seen.values()), "factor": value})
        self._own(make(groups), labels)

    def _adopt(self, parameters: list[nn.Parameter], weights: Tensor, gradient: Tensor) -> _Segment:
        """Copy the parameters into the buffer and make them, and their gradients, views of it or of a buffer of their type."""
        dtype = parameters[0].dtype
        live, live_gradient = weights, gradient
        if dtype != torch.float32:
            live, live_gradient = torch.empty_like(weights, dtype=dtype), torch.zeros_like(gradient, dtype=dtype)
        sizes = [p.numel() for p in parameters]
        for p, w, view, grad in zip(
            parameters, weights.split(sizes), live.split(sizes), live_gradient.split(sizes), strict=True
        ):
            w.copy_(p.data.flatten())
            view.copy_(p.data.flatten())
            p.data, p.grad = view.view(p.shape), grad.view(p.shape)
        return _Segment(weights, gradient, live, live_gradient)

    def _slices(self, names: list[str]) -> dict[str, Tensor]:
        """The part of the buffer that `names`, neighbours, take up: one tensor, or several if it is huge."""
        before = itertools.takewhile(lambda n: n != names[0], self.parameters)
        start = sum(self.parameters[n].numel() for n in before)
        parts = slices(start, start + sum(self.parameters[n].numel() for n in names))
        out = {label: self.weights[part] for label, part in parts.items()}
        for part, tensor in zip(parts.values(), out.values(), strict=True):
            tensor.grad = self.gradient[part]
        return out

    def _views(self, names: list[str]) -> dict[str, Tensor]:
        """Each parameter's own part of the buffer in its own shape, kernels as matrices."""
        weights, gradients = (
            dict(zip(self.parameters, self._split(f), strict=True)) for f in (self.weights, self.gradient)
        )
        out = {n: weights[n].view(matrix_shape(weights[n].shape)) for n in names}
        for name, tensor in out.items():
            tensor.grad = gradients[name].view(tensor.shape)
        return out

    def _split(self, flat: Tensor) -> list[Tensor]:
        sizes = [p.numel() for p in self.parameters.values()]
        return [part.view(p.shape) for part, p in zip(flat.split(sizes), self.parameters.values(), strict=True)]

    def collect(self) -> None:
        for s in self._segments:
            if s.live_gradient is not s.gradient:
                s.gradient.add_(s.live_gradient)
                s.live_gradient.zero_()

    def gradients(self) -> list[Tensor]:
        return [self.gradient]

    def clip(self, limit: float) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self.gradient)
        if limit:
            self.gradient *= (limit / (norm + 1e-6)).clamp(max=1.0)
        return norm

    def step(self) -> None:
        self.whole = False
        for optimizer in self.optimizers:
            optimizer.step()
        self.gradient.zero_()
        self.publish()
        self.whole = True

    def publish(self) -> None:
        for s in self._segments:
            if s.live is not s.weights:
                s.live.copy_(s.weights)

    def named(self, masters: Sequence[Tensor]) -> dict[str, Tensor]:
        (flat,) = masters
        return {n: t.to("cpu", copy=True) for n, t in zip(self.parameters, self._split(flat), strict=True)}

    def unnamed(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        return [torch.cat([named[n].reshape(-1).to(self.weights) for n in self.parameters])]

    def names_without_gradient(self) -> Iterator[str]:
        for name, grad in zip(self.parameters, self._split(self.gradient), strict=True):
            if not bool(torch.isfinite(grad).all()) or not bool(grad.any()):
                yield name

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, numbers = super().state()
        return (tensors | {"trained": self.weights.to("cpu", copy=True)} if self.averaging() else tensors), numbers

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        super().load_state({k: v for k, v in tensors.items() if k != "trained"}, numbers)
        if "trained" in tensors:
            self.put([tensors["trained"]])


def slices(start: int, end: int) -> dict[str, slice]:
    """What elementwise optimisers see of the buffer from `start` to `end`, by its name in checkpoints."""
    return {f"flat[{a}:{min(a + SLICE, end)}]": slice(a, min(a + SLICE, end)) for a in range(start, end, SLICE)}
