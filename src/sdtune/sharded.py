"""Full fine-tuning over several processes, each of which holds a part of every weight (torch's FSDP2, arXiv:2304.11277)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sdtune import distributed
from sdtune.flat import slices
from sdtune.updater import Fp32Updater, Make, arranged

BUNDLE = 2**24  # numbers that are whole at a time, about: few exchanges, little memory


class ShardedOptimizer(Fp32Updater):
    """Each process holds some rows of every weight: in fp32, with their gradient, and with what an elementwise optimiser keeps.

    The weights of a block of the model come together, in the model's own type, for its forward and its backward pass; sums of
    gradients go out in fp32. So whatever runs the model, all processes have to run it equally often.
    Checkpoints are those of `FlatOptimizer`: a run may go on with any number of processes, or without sharding.
    """

    sharded = True

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        parameters: Mapping[str, nn.Parameter],
        make: Make,
        *,
        lr_scale: Mapping[str, float] | None = None,
    ) -> None:
        """Splits the modules among `parts` whose `parameters`, all of them, are trained; `<part>.<name>` is what they are called."""
        factor = arranged(parameters, lr_scale or {})
        self._types = {name: p.dtype for name, p in parameters.items()}
        self._parts = {part: parts[part] for part in dict.fromkeys(name.partition(".")[0] for name in parameters)}
        mesh = init_device_mesh(next(iter(parameters.values())).device.type, (distributed.size(),))
        for module in self._parts.values():
            _split(module, mesh)
        live = {f"{part}.{n}": p for part, module in self._parts.items() for n, p in module.named_parameters()}
        self.parameters = {name: live[name] for name in factor}
        self.masters = [_rows(p.detach()) for p in self.parameters.values()]
        self._row = dict(zip(self.parameters, self.masters, strict=True))
        self._spans: list[tuple[dict[str, slice], list[str]]] = []
        groups, start = [], 0
        for value, names in itertools.groupby(factor, key=factor.__getitem__):
            group = list(names)
            end = start + sum(self.parameters[name].numel() for name in group)
            self._spans.append((slices(start, end), group))
            groups.append({"params": [self._row[name] for name in group], "factor": value})
            start = end
        self._own(make(groups), {tensor: name for name, tensor in self._row.items()})

    # ---- a step

    def collect(self) -> None:
        """Let the optimisers see the sums that the backward pass left; later passes of the step add to them."""
        for p, row in zip(self.parameters.values(), self.masters, strict=True):
            row.grad = torch.zeros_like(row) if p.grad is None else _rows(p.grad)

    def gradients(self) -> list[Tensor]:
        return [_gradient(row) for row in self.masters]

    def clip(self, limit: float) -> Tensor:
        square: Tensor = get_total_norm(self.gradients()).square()
        distributed.add_up(square)
        norm = square.sqrt()
        if limit:
            clip_grads_with_norm_(self.masters, limit, norm)
        return norm

    def step(self) -> None:
        self.whole = False
        for optimizer in self.optimizers:
            optimizer.step()
        self.whole = True
        for p, row in zip(self.parameters.values(), self.masters, strict=True):
            p.grad = row.grad = None

    def names_without_gradient(self) -> Iterator[str]:
        alive_N2 = torch.stack([torch.stack([g.any(), ~g.isfinite().all()]) for g in self.gradients()]).int()
        distributed.add_up(alive_N2)
        for name, (some, broken) in zip(self.parameters, alive_N2.tolist(), strict=True):
            if broken or not some:
                yield name

    # ---- whole weights and their parts

    def local(self, masters: Sequence[Tensor]) -> dict[str, Tensor]:
        return {name: rows.clone() for name, rows in zip(self.parameters, masters, strict=True)}

    def put_back(self, held: Mapping[str, Tensor]) -> None:
        self.put([held[name] for name in self.parameters])

    def named(self, masters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Each weight as it is, whole, in the first process; nothing in the others. Few at a time are whole on the device."""
        return {name: whole.cpu() for name, whole in self._gather(dict(zip(self.parameters, masters, strict=True)))}

    def unnamed(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        return [self._mine(named[name], row) for name, row in self._row.items()]

    def _gather(self, rows: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of which each process gives its `rows`, like those of the weight of that name; in the first process alone."""
        starts = itertools.accumulate((self.parameters[name].numel() for name in rows), initial=0)
        for _, bundle in itertools.groupby(zip(starts, rows, strict=False), key=lambda at: at[0] // BUNDLE):
            names = [name for _, name in bundle]
            sizes = [
                -(-self.parameters[n].shape[0] // distributed.size()) * self.parameters[n].shape[1:].numel()
                for n in names
            ]
            mine = torch.zeros(sum(sizes), device=rows[names[0]].device)
            for place, name in zip(mine.split(sizes), names, strict=True):
                place[: rows[name].numel()] = rows[name].flatten()  # the last processes have fewer rows, or none
            theirs = distributed.gather(mine)
            if distributed.primary():
                for name, *parts in zip(names, *(t.split(sizes) for t in theirs), strict=True):
                    p = self.parameters[name]
                    yield name, torch.cat(parts)[: p.numel()].view(p.shape)

    def _mine(self, whole: Tensor, like: Tensor) -> Tensor:
        """The rows of a whole tensor that this process holds."""
        parts = whole.chunk(distributed.size())  # as FSDP does
        part = parts[distributed.rank()] if distributed.rank() < len(parts) else whole[:0]
        return part.to(like, copy=True)

    @contextmanager
    def assembled(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        whole = {id(p): nn.Parameter(values[n].to(self._types[n]), False) for n, p in self.parameters.items()}
        places = [
            (module, name, p)
            for part in self._parts.values()
            for module in part.modules()
            for name, p in module._parameters.items()
            if id(p) in whole
        ]
        for module, name, p in places:
            module._parameters[name] = whole[id(p)]
        try:
            yield
        finally:
            for module, name, p in places:
                module._parameters[name] = p

    # ---- checkpoints, in the form of the flat buffer's

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, dict[str, Any]] = {}
        for parts, names in self._spans:
            states = {name: self._state_of(name) for name in names}
            for key, value in sorted(states[names[0]].items()):  # all processes gather in the same order
                if not isinstance(value, Tensor):
                    numbers |= {label: {**numbers.get(label, {}), key: value} for label in parts}
                elif value.shape != self._row[names[0]].shape:  # the number of the step: the same for all
                    tensors |= {f"{label}:{key}": value.to("cpu", copy=True) for label in parts}
                else:
                    flat = self._flat({name: states[name][key] for name in names})
                    sizes = [part.stop - part.start for part in parts.values()] if len(flat) else [0] * len(parts)
                    tensors |= {f"{label}:{key}": t for label, t in zip(parts, flat.split(sizes), strict=True)}
        if self.averaging():
            tensors["trained"] = self._flat(self._row)
        return (tensors if distributed.primary() else {}), {"tensors": numbers, "groups": self._changes()}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        left, told = dict(tensors), dict(numbers.get("tensors", {}))
        trained = left.pop("trained", None)
        mine: dict[str, Tensor] = {}
        for parts, names in self._spans:
            for key in dict.fromkeys(key for label, _, key in (n.rpartition(":") for n in tensors) if label in parts):
                pieces = [left.pop(f"{label}:{key}") for label in parts]
                mine |= {f"{name}:{key}": own for name, own in self._cut(pieces, names)}
            for values in [told.pop(label) for label in parts if label in told][:1]:
                told |= dict.fromkeys(names, values)
        super().load_state(left | mine, {**numbers, "tensors": told})
        if trained is not None:
            self.put([own for _, own in self._cut([trained], list(self.parameters))])

    def _state_of(self, name: str) -> dict[str, Any]:
        optimizer, row = self.owners[name]
        state: dict[str, Any] = optimizer.state.get(row, {})
        return state

    def _flat(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Whole tensors end to end, in the first process; nothing in the others."""
        sizes = [self.parameters[name].numel() if distributed.primary() else 0 for name in rows]
        flat = torch.empty(sum(sizes))
        places = dict(zip(rows, flat.split(sizes), strict=True))
        for name, whole in self._gather(rows):
            places[name].copy_(whole.flatten())
        return flat

    def _cut(self, pieces: Sequence[Tensor], names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The inverse of `_flat`, for what this process holds; the flat tensor may come in pieces. A scalar is the same for all."""
        ends = list(itertools.accumulate(len(piece) if piece.dim() else 0 for piece in pieces))
        start = 0
        for name in names:
            if not pieces[0].dim():
                yield name, pieces[0].clone()
                continue
            end = start + self.parameters[name].numel()
            within = [
                piece[max(start - at + len(piece), 0) : max(end - at + len(piece), 0)]
                for piece, at in zip(pieces, ends, strict=True)
            ]
            yield name, self._mine(torch.cat(within).view(self.parameters[name].shape), self._row[name])
            start = end


def _split(part: nn.Module, mesh: DeviceMesh) -> None:
    """Let FSDP2 hold `part` in fp32 rows, and put it together block by block in the type that it has now.

    The blocks are those that diffusers and transformers name as not to be torn apart.
    """
    # The model casts its own inputs, and leaves times and sizes in fp32.
    policy = MixedPrecisionPolicy(next(part.parameters()).dtype, torch.float32, cast_forward_inputs=False)
    kinds = set(getattr(part, "_no_split_modules", None) or ())
    blocks = [module for module in part.modules() if module is not part and type(module).__name__ in kinds]
    frozen = {p for p in part.parameters() if not p.requires_grad}  # a few that nothing reads
    for module in [*reversed(blocks), part]:  # inner ones first
        for p in module.parameters():
            if not isinstance(p, DTensor) and p not in frozen:
                p.data = p.data.float()
        kind = type(module)
        # Also the outermost: after a pass without a backward one its whole weights would stay, and be old after an update.
        split = fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=frozen)
        split.set_gradient_divide_factor(1.0)  # sums: a loss is divided by the pictures of the whole batch already
        split.set_force_sum_reduction_for_comms(True)
        module.__class__ = kind  # FSDP's would be told in files, and transformers looks its models up by their class


def _rows(p: Tensor) -> Tensor:
    """What this process holds of a split tensor, itself."""
    part = p.detach()
    assert isinstance(part, DTensor)
    return part.to_local()


def _gradient(row: Tensor) -> Tensor:
    assert row.grad is not None
    return row.grad
