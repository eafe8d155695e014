"""A method, a target set, a loss, an optimiser and a guide of one's own. Copy what you need; docs/extending.md goes through it.

The recipe beside this file names it: plugins = ["my_method.py"].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sdtune.guides import GuideConfig
from sdtune.methods.adapter_method import AdapterMethod
from sdtune.methods.adapters import Adapter, product
from sdtune.methods.lora_file import write_lora
from sdtune.model import Model, PictureLoss, Teacher
from sdtune.objective import Objective, ObjectiveConfig
from sdtune.optim.kinds import Common

# ---- a method: the adapter layer, and the part of the recipe that makes it


class VeraLayer(Adapter):
    """VeRA, arXiv:2310.11454: change = diag(b) B diag(d) A, with A (rank, in) and B (out, rank) random and frozen.

    Only the vectors b (out,) and d (rank,) are trained, so that a file could be tiny. (The paper shares one A and one B
    between all layers; here each layer has its own, which follow from the run's seed.)
    """

    A: Tensor
    B: Tensor

    def __init__(self, base: nn.Module, *, rank: int, dropout: float) -> None:
        super().__init__(base, dropout)
        out, inside = self._weight_shape()
        self.d, self.b = self._new(rank), self._new(out)  # what is trained: the nn.Parameters of this module
        for name, shape in (("A", (rank, inside)), ("B", (out, rank))):
            self.register_buffer(name, self._new(*shape).data, persistent=False)

    def initialise(self, rng: torch.Generator) -> None:
        """A and B as Kaiming's uniform start, d small and b zero: training begins at the base."""
        for matrix in (self.A, self.B):
            bound = (3 / matrix.shape[1]) ** 0.5
            matrix.copy_((torch.rand(matrix.shape, generator=rng) * 2 - 1) * bound)
        self.d.fill_(0.1)
        self.b.zero_()

    def change(self) -> Tensor:
        """What strength 1 adds to the weight: (out, in), fp32."""
        return (self.b[:, None] * self.B).float() @ (self.d[:, None] * self.A).float()

    def update(self, x: Tensor, frozen: Callable[[], Tensor]) -> Tensor:
        """The change applied to `x`, without forming it. `frozen()` would be W x."""
        low = product(self.base, x, self.A) * self.d
        return (low @ self.B.t()) * self.b

    def tensors(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What goes into the file: the same change as a LoRA, which every tool loads."""
        return {"lora_A": trained["d"][:, None] * self.A.float(), "lora_B": trained["b"][:, None] * self.B.float()}


@dataclass(frozen=True, kw_only=True)
class Vera(AdapterMethod):
    """LoRA with random matrices that stay as they are; only two vectors a layer are trained, arXiv:2310.11454."""

    type: Literal["vera"] = "vera"
    rank: Annotated[int, Field(gt=0)] = 64
    """Rank of the random matrices. High ranks cost no parameters here."""

    def make(self, name: str, layer: nn.Module) -> Adapter:
        return VeraLayer(layer, rank=self.rank, dropout=self.dropout)

    def _write(self) -> Callable[..., None]:
        return write_lora


# ---- a loss


@dataclass(frozen=True, kw_only=True)
class EdgesConfig(ObjectiveConfig):
    """The usual loss, and the error's differences between neighbours: fine lines count more."""

    type: Literal["edges"] = "edges"  # type: ignore[assignment]
    edges: Annotated[float, Field(ge=0)] = 0.5
    """Factor on the mean square of the error's differences between neighbouring latents."""

    needs_teacher: ClassVar[bool] = False

    def build(self, model: Model, teacher: Teacher | None = None) -> Edges:
        return Edges(model.alphas_T, model.sigmas_T, model.prediction, self)


@dataclass(frozen=True)
class Edges(Objective):
    """mean |e|^2 + edges * mean |e - its neighbour|^2, in both directions."""

    options: EdgesConfig = EdgesConfig()

    def distance(self, e_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """In the shape of `e_BCHW`; its mean over all but B is the example's loss."""
        total = super().distance(e_BCHW, t_B)
        for side in (2, 3):
            step = e_BCHW.diff(dim=side)
            total = total + self.options.edges * step.square().mean((1, 2, 3), keepdim=True)
        return total


# ---- an optimiser


@dataclass(frozen=True, kw_only=True)
class Momentum(Common):
    """Plain gradient descent with momentum: least state, and a learning rate that has to be found."""

    type: Literal["momentum"] = "momentum"
    lr: Annotated[float, Field(gt=0)] = 1e-1
    """Peak learning rate: far above AdamW's."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the running mean of the gradient."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Added to the gradient, times the weight."""

    def make(self, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
        options: dict[str, Any] = {"momentum": self.momentum, "weight_decay": self.weight_decay, "nesterov": True}
        return [torch.optim.SGD(groups, lr=self.lr, **options)]


# ---- a guide: what drawing is steered towards


@dataclass(frozen=True, kw_only=True)
class Mirror(GuideConfig):
    """Towards pictures whose right half mirrors the left one."""

    type: Literal["mirror"] = "mirror"

    def build(self, model: Model) -> PictureLoss:
        """The mean square of what differs between each picture and its mirror image."""
        return lambda pixels_BCHW: (pixels_BCHW - pixels_BCHW.flip(3)).square().mean((1, 2, 3))


# ---- what sdtune takes from this file

METHODS = (Vera,)
OBJECTIVES = (EdgesConfig,)
OPTIMIZERS = (Momentum,)
GUIDES = (Mirror,)
TARGETS = {"values": ("*.to_v", "*.to_out.0")}
"""A named set for method.targets: what attention hands on, and not where it looks."""
