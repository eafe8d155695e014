"""OFT, arXiv:2306.07280, by Cayley's transform, as in LyCORIS' diag-oft. The layers are in products.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sdtune.methods.adapter_method import AdapterMethod

if TYPE_CHECKING:
    from torch import nn

    from sdtune.methods.adapters import Adapter


@dataclass(frozen=True, kw_only=True)
class Oft(AdapterMethod):
    """Rotate blocks of a layer's outputs, arXiv:2306.07280: no output changes its length, so little is forgotten."""

    type: Literal["oft"] = "oft"
    block: Annotated[int, Field(gt=1)] = 8
    """Outputs that are rotated together, or the nearest smaller number that divides a layer's outputs. Larger moves further."""

    def make(self, name: str, layer: nn.Module) -> Adapter:
        from torch import nn

        from sdtune.methods.products import Orthogonal, divisor

        assert isinstance(layer, nn.Linear | nn.Conv2d)
        return Orthogonal(layer, block=divisor(self.block, len(layer.weight)), dropout=self.dropout)
