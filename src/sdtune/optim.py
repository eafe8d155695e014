"""Optimisers and learning-rate schedules: what turns gradients into steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sdtune.schema import Section

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from sdtune.flat import FlatAdamW


@dataclass(frozen=True, kw_only=True)
class AdamW(Section):
    """AdamW, arXiv:1711.05101, with fp32 weights and moments in one flat buffer."""

    type: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate. LoRA usually wants 1e-4 to 1e-3, full fine-tuning 1e-6 to 1e-5 (the embedded base about ten times more)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Decoupled decay: each step multiplies the weights by 1 - lr * weight_decay."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up: not at all, linearly, or along a half cosine, to `final` times the peak."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Optimiser steps over which the learning rate rises from zero."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate at the last step, as a share of the peak."""

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of optimiser step `step` (from 0) of `steps`. A function of the step alone: nothing to save."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        part = (step - self.warmup) / max(1, steps - self.warmup)
        fall = {"constant": 1.0, "linear": 1 - part, "cosine": 0.5 * (1 + math.cos(math.pi * part))}[self.schedule]
        return self.lr * (self.final + (1 - self.final) * fall) if self.schedule != "constant" else self.lr

    def build(self, parameters: Mapping[str, nn.Parameter]) -> FlatAdamW:
        from sdtune.flat import FlatAdamW

        return FlatAdamW(parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)
