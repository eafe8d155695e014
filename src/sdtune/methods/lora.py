"""LoRA, arXiv:2106.09685: the update of a weight is a product of two thin matrices. The layers are in low_rank.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sdtune.methods.adapter_method import AdapterMethod
from sdtune.methods.targets import matches

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from sdtune.methods.adapters import Adapter

Rank = Annotated[int, Field(gt=0)]
Alpha = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class LowRankMethod(AdapterMethod):
    """What LoRA, DoRA and QLoRA share."""

    rank: Rank = 16
    """Rank of the update. 4 to 16 for one subject, 16 to 64 for a style."""
    alpha: Alpha | None = None
    """The update is multiplied by alpha / rank. Unset means alpha = rank."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, arXiv:2312.03732: high ranks then learn as fast as low ones."""
    rank_pattern: dict[str, Rank] = field(default_factory=dict)
    """Other ranks for some layers: name pattern -> rank, such as { "*.attn2.*" = 8 }. The last pattern that fits counts."""
    alpha_pattern: dict[str, Alpha] = field(default_factory=dict)
    """Other alphas for some layers, likewise."""

    def rank_of(self, name: str) -> int:
        return next((r for p, r in reversed(self.rank_pattern.items()) if matches(name, p)), self.rank)

    def scale_of(self, name: str) -> float:
        """alpha / rank of the layer `name`, or alpha / sqrt(rank)."""
        rank = self.rank_of(name)
        alpha = next((a for p, a in reversed(self.alpha_pattern.items()) if matches(name, p)), self.alpha)
        return (rank if alpha is None else alpha) / (math.sqrt(rank) if self.rslora else rank)

    def _write(self) -> Callable[..., None]:
        from sdtune.methods.lora_file import write_lora

        return write_lora


@dataclass(frozen=True, kw_only=True)
class Lora(LowRankMethod):
    """Low-rank adapters, arXiv:2106.09685. A few megabytes that other tools load; the base stays as it is."""

    type: Literal["lora"] = "lora"
    init: Literal["default", "gaussian", "pissa", "olora"] = "default"
    """First values: "default" (Kaiming and zero), "gaussian", or from the weight itself: "pissa" (its largest singular vectors,
    arXiv:2404.02948) or "olora" (QR, arXiv:2406.01775). The last two learn faster, and give a file of twice the rank."""

    def make(self, name: str, layer: nn.Module) -> Adapter:
        from sdtune.methods.low_rank import LowRank

        rank, scale = self.rank_of(name), self.scale_of(name)
        return LowRank(layer, rank=rank, scale=scale, dropout=self.dropout, init=self.init)
