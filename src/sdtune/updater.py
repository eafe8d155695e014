"""What the training loop asks of an optimiser, and how the state of any torch optimiser goes to disk and comes back, exactly."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    sharded = False
    """Whether each process holds a part of every weight. Then all of them have to call the same methods at the same time, and
    the first alone gets what `values` and `state` give: the others get nothing."""

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
        """The gradients themselves, for several processes to add up in place. Those of a sharded one are added up already."""

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

    def held(self) -> dict[str, Tensor]:
        """Copies by name of what this process holds of the weights."""
        return self.values()

    def put_back(self, held: Mapping[str, Tensor]) -> None:
        """The inverse of `held`."""
        self.load(held)

    @contextmanager
    def assembled(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the model's modules hold whole weights and can be written to files: `values`, where they have only parts."""
        yield

    # ---- checkpoints

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next step depends on beside weights and config: tensors by name, and numbers for JSON."""
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, dict[str, Any]] = {}
        for label, (optimizer, tensor) in self.owners.items():
            for key, value in optimizer.state.get(tensor, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{label}:{key}"] = value.detach().to("cpu", copy=True)
                else:
                    numbers.setdefault(label, {})[key] = value
        return tensors, {"tensors": numbers, "groups": self._changes()}

    def _changes(self) -> dict[str, dict[str, Any]]:
        """What optimisers noted in their groups, by number: Prodigy's d, schedule-free's weight_sum. `begin` sets lr anew."""
        own = ("params", "lr")
        pairs = enumerate(zip(self._groups(), self._built, strict=True))
        noted = {
            str(i): {k: v for k, v in now.items() if k not in own and (k not in built or built[k] != v)}
            for i, (now, built) in pairs
        }
        return {i: change for i, change in noted.items() if change}

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


class Fp32Updater(Updater):
    """Keeps the weights in fp32, as tensors that optimisers and a moving average (`Ema`) work on in place."""

    masters: list[Tensor]
    """The fp32 weights that this process holds."""

    @abstractmethod
    def named(self, masters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Copies by name of weights in the form of `masters`."""

    @abstractmethod
    def unnamed(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """The inverse of `named`. Raises KeyError for a missing name."""

    def local(self, masters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Copies by name of what this process has of weights in the form of `masters`: all, unless they are sharded."""
        return self.named(masters)

    def held(self) -> dict[str, Tensor]:
        return self.local(self.masters)

    def publish(self) -> None:
        """Bring the live parameters up to the fp32 weights."""

    def copies(self) -> list[Tensor]:
        return [weights.clone() for weights in self.masters]

    def put(self, masters: Sequence[Tensor]) -> None:
        """Take over the numbers of `masters`."""
        for own, new in zip(self.masters, masters, strict=True):
            own.copy_(new)
        self.publish()

    def values(self) -> dict[str, Tensor]:
        return self.named(self.masters)

    def load(self, values: Mapping[str, Tensor]) -> None:
        self.put(self.unnamed(values))

    # ---- schedule-free optimisers: they train y, and the result is the average x

    def averaging(self) -> list[Any]:
        return [o for o in self.optimizers if hasattr(o, "train") and hasattr(o, "eval")]

    def begin(self, step: int, lr: float) -> None:
        super().begin(step, lr)
        for optimizer in self.averaging():
            optimizer.train()

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        averaging = self.averaging()
        if not averaging:
            yield
            return
        own, modes = self.copies(), [group["train_mode"] for group in self._groups()]
        for optimizer in averaging:
            optimizer.eval()
        self.publish()
        try:
            yield
        finally:  # not by train(): going to x and back rounds, and a run that looks at pictures would differ from one that does not
            for group, mode in zip(self._groups(), modes, strict=True):
                group["train_mode"] = mode
            self.put(own)


def _group_of(optimizer: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Any]:
    return next(g for g in optimizer.param_groups if any(p is tensor for p in g["params"]))


def arranged(parameters: Mapping[str, nn.Parameter], lr_scale: Mapping[str, float]) -> dict[str, float]:
    """The learning-rate factor of each name, in the order of buffers and checkpoints: by factor, then by type, else as given."""
    if not parameters:
        raise ValueError("nothing to train: the method made no parameter trainable")
    factor = dict(zip(parameters, factors(list(parameters), lr_scale), strict=True))
    of_group = list(dict.fromkeys(factor.values()))
    of_type = list(dict.fromkeys(p.dtype for p in parameters.values()))

    def place(name: str) -> tuple[int, int]:
        return of_group.index(factor[name]), of_type.index(parameters[name].dtype)

    return {name: factor[name] for name in sorted(parameters, key=place)}


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
