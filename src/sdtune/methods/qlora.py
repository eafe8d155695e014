"""QLoRA, arXiv:2305.14314: LoRA or DoRA on a frozen denoiser in four or eight bits. The quantised layers are in quant.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sdtune.methods.lora import LowRankMethod

if TYPE_CHECKING:
    from torch import nn

    from sdtune.methods.adapters import Adapter
    from sdtune.model import Model


@dataclass(frozen=True, kw_only=True)
class Qlora(LowRankMethod):
    """LoRA on a frozen denoiser in four or eight bits, arXiv:2305.14314: least memory. The result fits the usual base."""

    type: Literal["qlora"] = "qlora"
    base: Literal["nf4", "int8", "fp8"] = "nf4"
    """Type of the frozen weights: "nf4" (4 bits, needs bitsandbytes), "int8" or "fp8" (8 bits, nearer to the original)."""
    double_quant: bool = False
    """nf4: quantise the scales, too: 0.52 instead of 0.56 bytes a weight."""
    dora: bool = False
    """DoRA instead of LoRA adapters."""

    lighter: ClassVar[str] = "method.targets=attention"

    def make(self, name: str, layer: nn.Module) -> Adapter:
        from sdtune.methods.low_rank import Dora, LowRank

        kind = Dora if self.dora else LowRank
        return kind(layer, rank=self.rank_of(name), scale=self.scale_of(name), dropout=self.dropout)

    def attach(self, model: Model, *, seed: int) -> dict[str, nn.Parameter]:
        """Quantise the denoiser's large layers and put adapters on. What the weights were before is not kept."""
        from sdtune.methods.quant import quantise

        self.select(model)  # refuse wrong targets before anything is changed
        quantise(model.denoiser, self.base, double=self.double_quant)
        return self._put_on(model, seed)

    def detach(self, model: Model) -> None:
        """Take the adapters out. The denoiser stays quantised: its own weights come back when it is loaded again."""
        super().detach(model)

    def merge(self, model: Model) -> None:
        """Refused on the quantised base, for the sum would be rounded again; `apply` the result to the usual base and merge there."""
        from sdtune.errors import ConfigError
        from sdtune.methods.adapters import adapters_of
        from sdtune.methods.quant import QuantConv2d, QuantLinear

        if any(isinstance(adapter.base, QuantLinear | QuantConv2d) for _, adapter in adapters_of(model.parts)):
            raise ConfigError("method.base: cannot be merged into quantised weights; load the result on the usual base")
        super().merge(model)
