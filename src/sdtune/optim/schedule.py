"""Learning-rate schedules: functions of the step alone, so there is nothing to save."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from sdtune.schema import Section, refuse_idle


@dataclass(frozen=True, kw_only=True)
class Schedule(Section):
    """The learning rate of each step and, relative to it, of each part."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate."""
    lr_scale: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    """Learning rate of some weights as a multiple of `lr`, by patterns of their names, the first that fits:
    {"text_encoder*" = 0.5}, or for LoRA+ (arXiv:2402.12354) {"*.lora_B" = 16}. Weight decay stays that of `lr`."""
    schedule: Literal["constant", "linear", "cosine", "cosine-restarts", "polynomial", "rex"] = "cosine"
    """How the learning rate falls after the warm-up to `final` times the peak: not at all, linearly, along a half cosine, along
    `cycles` of them, as (1 - share done) to the `power`, or by REX (arXiv:2107.04197): slowly at first, fast at the end."""
    cycles: Annotated[int, Field(gt=0)] = 1
    """Half cosines of the schedule "cosine-restarts"."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Exponent of the schedule "polynomial"; 1 is linear."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Optimiser steps over which the learning rate rises from zero."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate at the last step, as a share of the peak."""

    def __post_init__(self) -> None:
        uses = {"cycles": ("schedule", ("cosine-restarts",)), "power": ("schedule", ("polynomial",))}
        refuse_idle(self, "optimizer", uses)

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of optimiser step `step` (from 0) of `steps`."""
        if step < self.warmup:
            return self.lr * (step + 1) / (self.warmup + 1)
        if self.schedule == "constant":
            return self.lr
        return self.lr * (
            self.final + (1 - self.final) * self._fall((step - self.warmup) / max(1, steps - self.warmup))
        )

    def _fall(self, part: float) -> float:
        """From 1 at the end of the warm-up (`part` 0) to 0 at the end of the run (1)."""
        match self.schedule:
            case "linear":
                return 1 - part
            case "polynomial":
                return float((1 - part) ** self.power)
            case "rex":
                return (1 - part) / (0.5 + 0.5 * (1 - part))
            case "cosine-restarts" if part < 1:
                part = (self.cycles * part) % 1.0
        return 0.5 * (1 + math.cos(math.pi * part))
