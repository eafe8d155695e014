"""Less memory for more time: activations computed again or kept elsewhere, frozen blocks that wait in the computer's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdtune.errors import ConfigError
from sdtune.model import Model

UNITS = ("transformer_blocks", "resnets", "downsamplers", "upsamplers")
"""The lists whose elements are swapped one by one."""
RESIDENT = 2
"""Swapped units on the device at once: the one that runs, and the one before it."""
LEAST_BYTES = 2**18
"""Smaller activations stay where they are."""


def compute_again(model: Model, what: bool | Literal["feed-forward"], *, text: bool) -> None:
    """Let the backward pass compute activations again: all (diffusers' own way), or those of the feed-forward layers, which hold
    nearly half of SDXL's and cost little to compute. `text`: in text encoders, too."""
    if what == "feed-forward":
        layers = [
            layer for name, layer in model.denoiser.named_modules() if name.rpartition(".")[2] in ("ff", "ff_context")
        ]
        if not layers:
            raise ConfigError(
                'train.gradient_checkpointing: the denoiser has no feed-forward layers ("ff"); set it to true'
            )
        for layer in layers:
            _wrap(layer, lambda run, *args, **kwargs: checkpoint(run, *args, use_reentrant=False, **kwargs))
    elif what:
        model.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        for encoder in model.text_encoders if text else ():
            # transformers renamed it; its lower bound here has the old name alone
            enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
            enable()  # type: ignore[operator]


def _wrap(module: nn.Module, around: Callable[..., Any]) -> None:
    """Run `module` as around(its forward, ...) where gradients are wanted, and plainly elsewhere."""
    run = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return around(run, *args, **kwargs) if torch.is_grad_enabled() else run(*args, **kwargs)

    module.forward = forward


# ---- activations


@contextmanager
def activations_elsewhere(model: Model, *, wanted: bool = True) -> Iterator[None]:
    """Inside, what the backward pass will need waits in the computer's memory. Weights stay where they are."""
    if not wanted:
        yield
        return
    fixed = {
        t.untyped_storage().data_ptr() for part in model.parts.values() for t in (*part.parameters(), *part.buffers())
    }

    def pack(t: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        if t.nbytes < LEAST_BYTES or t.untyped_storage().data_ptr() in fixed:
            return t
        away = torch.empty_like(t, device="cpu", pin_memory=t.is_cuda)
        return t.device, away.copy_(t, non_blocking=t.is_cuda)

    def unpack(kept: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept[1].to(kept[0], non_blocking=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


# ---- weights


class Swap:
    """Frozen blocks of a denoiser that wait in the computer's memory and come to the device when they run.

    They are computed again in the backward pass, so that nothing keeps their weights on the device in between.
    """

    def __init__(self, denoiser: nn.Module, share: float, device: torch.device) -> None:
        """`share` of the blocks, evenly spread. Raises ConfigError where none is frozen."""
        self.device, self._resident = device, list[nn.Module]()
        units = [unit for unit in _units(denoiser) if any(True for _ in _frozen(unit))]
        self.units = [unit for i, unit in enumerate(units) if int((i + 1) * share) > int(i * share)]
        if not self.units:
            raise ConfigError(
                "train.block_swap: only frozen blocks can wait elsewhere, and here all are trained (or the share is too small); "
                "set it to 0, or train an adapter"
            )
        self._home = {unit: [_at_home(t, device) for t in _frozen(unit)] for unit in self.units}
        for unit in self.units:
            self._leave(unit)
            self._watch(unit)

    def _watch(self, unit: nn.Module) -> None:
        run = unit.forward

        def brought(*args: Any, **kwargs: Any) -> Any:
            self._bring(unit)
            return run(*args, **kwargs)

        unit.forward = brought
        _wrap(unit, lambda f, *args, **kwargs: self._computed_again(unit, f, *args, **kwargs))

    def _computed_again(self, unit: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = checkpoint(run, *args, use_reentrant=False, **kwargs)
        for t in out if isinstance(out, tuple) else (out,):
            if isinstance(t, Tensor) and t.requires_grad:
                # Its weights are wanted before anything is computed again where the last layer keeps nothing but itself (quant).
                t.register_hook(lambda grad: self._bring(unit))
        return out

    def _bring(self, unit: nn.Module) -> None:
        if unit in self._resident:
            return
        while len(self._resident) >= RESIDENT:
            self._leave(self._resident.pop(0))
        for t, home in zip(_frozen(unit), self._home[unit], strict=True):
            t.data = home.to(self.device, copy=True, non_blocking=True)
        self._resident.append(unit)

    def _leave(self, unit: nn.Module) -> None:
        for t, home in zip(_frozen(unit), self._home[unit], strict=True):
            t.data = home

    @property
    def bytes_away(self) -> int:
        """Of the weights that wait in the computer's memory now."""
        return sum(t.nbytes for unit in self.units if unit not in self._resident for t in self._home[unit])


def _units(denoiser: nn.Module) -> list[nn.Module]:
    return [m for name, m in denoiser.named_modules() if name.split(".")[-2:-1] and name.split(".")[-2] in UNITS]


def _frozen(unit: nn.Module) -> Iterator[Tensor]:
    """The weights of `unit` that are not trained."""
    return (t for t in (*unit.parameters(), *unit.buffers()) if not t.requires_grad)


def _at_home(t: Tensor, device: torch.device) -> Tensor:
    home = t.detach().cpu()
    return home.pin_memory() if device.type == "cuda" else home
