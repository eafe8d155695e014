"""What the training loop asks of an optimiser, and how the state of any torch optimiser goes to disk and comes back, exactly."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sdtune.errors import ConfigError, RunError

Make = Callable[[list[dict[str, Any]]], list[torch.optim.Optimizer]]
"""Parameter groups (`params`, `factor`) -> the optimisers that update them."""


class Updater(ABC):
    """Holds the trained parameters and one or more torch optimisers that change them."""

    parameters: dict[str, nn.Parameter]
    optimizers: list[torch.optim.Optimizer]
    owners: dict[str, tuple[torch.optim.Optimizer, Tensor]]
    """What each tensor that an optimiser sees is called in a checkpoint."""
    whole = True
    """False while some weights are a step ahead of others: there is nothing worth saving then."""

    def _own(self, optimizers: list[torch.optim.Optimizer], labels: Mapping[Tensor, str]) -> None:
        """Take `optimizers` over. To be called once they are built."""
        self.optimizers = optimizers
        self.owners = {labels[p]: (o, p) for o in optimizers for g in o.param_groups for p in g["params"]}
        for group in self._groups():
            # Weights decay by lr * weight_decay: the factor is for the gradient only.
            group["weight_decay"] /= group["factor"]
        self._built = [dict(group) for group in self._groups()]

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self.optimizers:
            yield from optimizer.param_groups

    @property
    def count(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self.parameters.values())

    def begin(self, step: int, lr: float) -> None:
        """Before the first forward pass of optimiser step `step` (from 0), which will have learning rate `lr`."""
        for group in self._groups():
            group["lr"] = lr * group["factor"]

    @abstractmethod
    def collect(self) -> None:
        """Take in the gradients that the last backward pass left. Call it after each backward."""

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """The gradients themselves, for several processes to add up in place."""

    @abstractmethod
    def clip(self, limit: float) -> Tensor:
        """Scale the gradient down to length `limit` (0: never); returns its length before, a scalar tensor."""

    @abstractmethod
    def step(self) -> None:
        """One update; the gradient is zero afterwards."""

    def drop(self) -> None:
        """Forget the gradient instead of taking a step."""
        for gradient in self.gradients():
            gradient.zero_()

    @abstractmethod
    def values(self) -> dict[str, Tensor]:
        """Copies of the weights by name."""

    @abstractmethod
    def load(self, values: Mapping[str, Tensor]) -> None:
        """The inverse of `values`. Raises KeyError for a missing name."""

    @abstractmethod
    def names_without_gradient(self) -> Iterator[str]:
        """Parameters whose gradient is all zero or not finite, before it is used up by `step`."""

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """The model computes with the weights that are the result, where these are not the ones that are trained."""
        yield

    # ---- checkpoints

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next step depends on beside weights and config: tensors by name, and numbers for JSON."""
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, dict[str, Any]] = {}
        for label, (optimizer, tensor) in self.owners.items():
            for key, value in optimizer.state.get(tensor, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{label}:{key}"] = value.detach().clone()
                else:
                    numbers.setdefault(label, {})[key] = value
        changed = {str(i): change for i, group in enumerate(self._groups()) if (change := self._changed(i, group))}
        return tensors, {"tensors": numbers, "groups": changed}

    def _changed(self, i: int, group: Mapping[str, Any]) -> dict[str, Any]:
        """What an optimiser noted in its group: Prodigy's d, schedule-free's weight_sum. `begin` sets lr anew."""
        built = self._built[i]
        return {k: v for k, v in group.items() if k not in ("params", "lr") and (k not in built or built[k] != v)}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """The inverse of `state`. Raises RunError if it is of another optimiser."""
        found: dict[str, dict[str, Any]] = {label: dict(v) for label, v in numbers.get("tensors", {}).items()}
        for name, value in tensors.items():
            label, _, key = name.rpartition(":")
            found.setdefault(label, {})[key] = value
        if unknown := found.keys() - self.owners.keys():
            raise RunError(f"its optimiser had {sorted(unknown)[0]!r}, which this one does not know")
        for label, values in found.items():
            self._restore(label, values)
        groups = list(self._groups())
        for i, change in numbers.get("groups", {}).items():
            groups[int(i)].update(change)

    def _restore(self, label: str, values: Mapping[str, Any]) -> None:
        optimizer, tensor = self.owners[label]
        if hasattr(optimizer, "init_state"):  # bitsandbytes makes its own buffers, which may be paged
            optimizer.init_state(_group_of(optimizer, tensor), tensor, 0, 0)
            for key, value in values.items():
                own = optimizer.state[tensor].get(key)
                optimizer.state[tensor][key] = own.copy_(value) if isinstance(own, Tensor) else value
            return
        fused = bool(_group_of(optimizer, tensor).get("fused"))
        for key, value in values.items():
            here = not isinstance(value, Tensor) or (key == "step" and not fused)  # torch keeps step on the CPU else
            optimizer.state[tensor][key] = value if here else value.to(tensor.device)


def _group_of(optimizer: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Any]:
    return next(g for g in optimizer.param_groups if any(p is tensor for p in g["params"]))


def factors(names: list[str], lr_scale: Mapping[str, float]) -> list[float]:
    """The learning-rate factor of each name: that of the first pattern that fits. Raises ConfigError for one that is never it."""
    firsts = [next((p for p in lr_scale if fnmatch.fnmatchcase(name, p)), None) for name in names]
    if unused := [p for p in lr_scale if p not in firsts]:
        raise ConfigError(
            f"optimizer.lr_scale: {', '.join(map(repr, unused))} fits no trained weight, or an earlier pattern takes them all;"
            f" the weights have names such as {names[0]!r}"
        )
    return [1.0 if p is None else lr_scale[p] for p in firsts]


def matrix_shape(shape: torch.Size) -> tuple[int, ...]:
    """Kernels of convolutions as matrices (out, in * height * width): what Adafactor and Muon take as rows and columns."""
    return tuple(shape) if len(shape) < 3 else (shape[0], shape[1:].numel())
