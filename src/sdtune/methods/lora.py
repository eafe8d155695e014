"""LoRA, arXiv:2106.09685: the update of a weight is a product of two thin matrices. The layers are in adapters.py."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sdtune.errors import ConfigError
from sdtune.schema import Section

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from torch import Tensor, nn

    from sdtune.model import Model

TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("*.to_q", "*.to_k", "*.to_v", "*.to_out.0"),
    "transformer": ("*.transformer_blocks.*", "*.proj_in", "*.proj_out"),
    "all-linear": ("*",),
    "many": (
        "*.transformer_blocks.*", "*.proj_in", "*.proj_out", "*.conv1", "*.conv2", "*.conv_shortcut", "*.time_emb_proj",
        "*.downsamplers.0.conv", "*.upsamplers.0.conv",
    ),
}  # fmt: skip
"""Named target sets: patterns of layer names. "all-linear" is every Linear layer, the others take convolutions too."""


@dataclass(frozen=True, kw_only=True)
class Lora(Section):
    """Low-rank adapters, arXiv:2106.09685. A few megabytes that other tools load; the base stays as it is."""

    type: Literal["lora"] = "lora"
    rank: Annotated[int, Field(gt=0)] = 16
    """Rank of the update. 4 to 16 for one subject, 16 to 64 for a style."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The update is multiplied by alpha / rank. Unset means alpha = rank."""
    targets: str | tuple[str, ...] = "attention"
    """Layers that get an adapter: "attention" (q, k, v, out), "transformer" (and feed-forward, projections), "all-linear",
    "many" (and convolutions, time embedding), or a list of name patterns such as ["*.attn2.*", "*.conv1"]."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's input set to zero while training."""

    @property
    def scale(self) -> float:
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    @property
    def trains_text(self) -> bool:
        """Whether text encoders are trained, so that captions have to be read anew in each step."""
        return False

    def select(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """The layers that this target set would adapt, by name. Raises ConfigError if there is none."""
        from torch import nn

        kinds = nn.Linear if self.targets == "all-linear" else (nn.Linear, nn.Conv2d)
        if isinstance(self.targets, str) and self.targets not in TARGETS:
            raise ConfigError(
                f"method.targets: no such set {self.targets!r}; known: {', '.join(TARGETS)}, or a list of patterns"
            )
        patterns = TARGETS[self.targets] if isinstance(self.targets, str) else self.targets
        layers: dict[str, nn.Module] = {
            name: layer
            for name, layer in denoiser.named_modules()
            if type(layer) in (nn.Linear, nn.Conv2d)
            and isinstance(layer, kinds)
            and any(fnmatch.fnmatchcase("." + name, "*." + p.removeprefix("*.")) for p in patterns)
        }
        if not layers:
            raise ConfigError(
                f"method.targets: {self.targets!r} matches no Linear or Conv2d layer; `sdtune inspect MODEL` lists them"
            )
        return layers

    def attach(self, model: Model, *, seed: int) -> dict[str, nn.Parameter]:
        """Put adapters into the denoiser and freeze the rest; returns the adapters' parameters by name."""
        from sdtune.methods import adapters

        model.denoiser.requires_grad_(False)
        layers = self.select(model.denoiser)
        return adapters.attach(
            model.denoiser, layers, rank=self.rank, scale=self.scale, dropout=self.dropout, seed=seed
        )

    def detach(self, model: Model) -> None:
        """Take the adapters out: the denoiser is again what it was, module by module and bit by bit."""
        from sdtune.methods import adapters

        adapters.detach(model.denoiser)

    def merge(self, model: Model) -> None:
        """Add the updates to the weights and take the adapters out."""
        from sdtune.methods import adapters

        adapters.merge(model.denoiser)

    def export(
        self, model: Model, weights: Mapping[str, Tensor], folder: Path, name: str, about: Mapping[str, Any]
    ) -> Path:
        """Write `folder/<name>.safetensors`, which `StableDiffusionPipeline.load_lora_weights` reads, alpha included."""
        from sdtune.methods.lora_file import write_lora

        path = folder / f"{name}.safetensors"
        write_lora(path, weights, rank=self.rank, alpha=self.scale * self.rank, about=about, part=model.denoiser_name)
        return path
