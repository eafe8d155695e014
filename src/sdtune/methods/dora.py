"""DoRA, arXiv:2402.09353: LoRA turns a weight's rows, a trained magnitude sets their lengths. The layers are in low_rank.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sdtune.methods.lora import LowRankMethod

if TYPE_CHECKING:
    from torch import nn

    from sdtune.methods.adapters import Adapter


@dataclass(frozen=True, kw_only=True)
class Dora(LowRankMethod):
    """LoRA with a trained length for each output, arXiv:2402.09353. Often better than LoRA at low ranks, and slower."""

    type: Literal["dora"] = "dora"

    def make(self, name: str, layer: nn.Module) -> Adapter:
        from sdtune.methods.low_rank import Dora as DoraLayer

        return DoraLayer(layer, rank=self.rank_of(name), scale=self.scale_of(name), dropout=self.dropout)
