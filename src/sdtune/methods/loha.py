"""LoHa, arXiv:2108.06098 (FedPara), as in LyCORIS, arXiv:2309.14859. The layers are in products.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sdtune.methods.adapter_method import AdapterMethod

if TYPE_CHECKING:
    from torch import nn

    from sdtune.methods.adapters import Adapter


@dataclass(frozen=True, kw_only=True)
class Loha(AdapterMethod):
    """Two low-rank products multiplied value by value, arXiv:2108.06098: rank up to rank squared for the parameters of two LoRAs."""

    type: Literal["loha"] = "loha"
    rank: Annotated[int, Field(gt=0)] = 8
    """Rank of each of the two products."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The update is multiplied by alpha / rank. Unset means alpha = rank."""

    def make(self, name: str, layer: nn.Module) -> Adapter:
        from sdtune.methods.products import Hadamard

        scale = (self.rank if self.alpha is None else self.alpha) / self.rank
        return Hadamard(layer, rank=self.rank, scale=scale, dropout=self.dropout)
