"""LoKr, as in LyCORIS, arXiv:2309.14859. The layers are in products.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sdtune.methods.adapter_method import AdapterMethod

if TYPE_CHECKING:
    from torch import nn

    from sdtune.methods.adapters import Adapter


@dataclass(frozen=True, kw_only=True)
class Lokr(AdapterMethod):
    """A Kronecker product of a small and a larger matrix, arXiv:2309.14859: full rank from very few parameters."""

    type: Literal["lokr"] = "lokr"
    factor: Annotated[int, Field(gt=0)] = 8
    """Side of the small matrix, or the nearest smaller number that divides a layer's inputs and outputs. Larger: fewer parameters."""
    rank: Annotated[int, Field(gt=0)] | None = None
    """Rank of the larger matrix, where it is below half its side. Unset: whole."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The update is multiplied by alpha / rank, where the larger matrix is not whole. Unset means alpha = rank."""

    def make(self, name: str, layer: nn.Module) -> Adapter:
        from torch import nn

        from sdtune.methods.products import Kronecker, divisor

        assert isinstance(layer, nn.Linear | nn.Conv2d)
        out, width = layer.weight.shape[:2]
        side = divisor(self.factor, out, width)
        thin = self.rank is not None and self.rank < max(out, width) / side / 2  # else there is nothing to save
        scale = self.alpha / self.rank if self.alpha is not None and self.rank is not None else 1.0
        return Kronecker(layer, first=(side, side), rank=self.rank if thin else None, scale=scale, dropout=self.dropout)
