"""The optimisers, each a dataclass that builds its own. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from sdtune.errors import ConfigError
from sdtune.optim.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from sdtune.updater import Updater

Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[Decay, Decay]


@dataclass(frozen=True, kw_only=True)
class Common(Schedule):
    """What all optimisers have."""

    library: ClassVar[str] = ""
    """What has to be installed beside torch."""
    matrices: ClassVar[bool] = False
    """Whether it looks at rows and columns, and so has to see each weight by itself."""
    looks_at: ClassVar[str] = ""
    """What else it looks at beside a single number and its gradient, so that processes cannot share the numbers out."""
    averages: ClassVar[bool] = False
    """Whether it averages the weights itself, so that another average makes no sense."""

    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Decoupled decay: each step multiplies the weights by 1 - lr * weight_decay."""

    def check(self) -> None:
        """Raises ConfigError if a library is missing. For before a model is loaded."""
        if self.library and find_spec(self.library) is None:
            kind = getattr(self, "type", "")
            raise ConfigError(
                f"optimizer.type: {kind!r} needs {self.library}, which is not installed: pip install 'sdtune[train-extras]'"
            )

    def make(self, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
        """The torch optimisers for parameter groups."""
        raise NotImplementedError

    def build(self, parameters: Mapping[str, nn.Parameter], *, seed: int = 0) -> Updater:
        from sdtune.flat import FlatOptimizer

        return FlatOptimizer(parameters, self.make, lr_scale=self.lr_scale, matrices=self.matrices)


@dataclass(frozen=True, kw_only=True)
class Leanable(Common):
    """Those that can do without an fp32 copy of the weights."""

    weights: Literal["fp32", "bf16"] = "fp32"
    """bf16: the model's own weights are the only copy, and updates are rounded by chance, right on average (arXiv:2010.06192).
    Saves 4 bytes a weight and more; for full fine-tuning, with `train.precision` bf16."""
    fused_backward: bool = False
    """Update each weight as soon as its gradient is there, and drop the gradient: saves as much memory as the weights take.
    Needs `train.accumulate` 1 and `train.max_grad_norm` 0."""

    @property
    def lean(self) -> bool:
        return self.weights == "bf16" or self.fused_backward

    def build(self, parameters: Mapping[str, nn.Parameter], *, seed: int = 0) -> Updater:
        if not self.lean:
            return super().build(parameters, seed=seed)
        import torch

        from sdtune.lean import LeanOptimizer

        has_bf16 = any(p.dtype == torch.bfloat16 for p in parameters.values())
        if has_bf16 and self.weights == "fp32":
            raise ConfigError(
                'optimizer.fused_backward: the model is bf16; set optimizer.weights="bf16", or train.precision="fp32"'
            )
        if self.weights == "bf16" and not has_bf16:
            raise ConfigError(
                'optimizer.weights: "bf16", but all trained weights are fp32; set train.precision="bf16", and method.type="full"'
            )
        return LeanOptimizer(
            parameters, self.make, lr_scale=self.lr_scale, matrices=self.matrices, fused=self.fused_backward, seed=seed
        )


@dataclass(frozen=True, kw_only=True)
class AdamW(Leanable):
    """AdamW, arXiv:1711.05101, with fp32 moments. The safe choice."""

    type: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate. LoRA usually wants 1e-4 to 1e-3, full fine-tuning 1e-6 to 1e-5 (the embedded base about ten times more)."""
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    def make(self, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
        import torch

        options: dict[str, Any] = {"betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        return [torch.optim.AdamW(groups, lr=self.lr, fused=True, **options)]


@dataclass(frozen=True, kw_only=True)
class AdamW8bit(Leanable):
    """AdamW whose moments take one byte each (arXiv:2110.02861), by bitsandbytes."""

    library: ClassVar[str] = "bitsandbytes"
    looks_at: ClassVar[str] = "blocks of 256 numbers"

    type: Literal["adamw8bit"] = "adamw8bit"
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
    paged: bool = False
    """Let the moments move to the computer's memory while the GPU has none to spare (CUDA only)."""

    def make(self, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
        from bitsandbytes.optim.adamw import AdamW8bit as Reference

        device = groups[0]["params"][0].device.type
        if self.paged and device != "cuda":
            raise ConfigError(f"optimizer.paged: needs CUDA, and the training is on {device}; set it to false")
        options: dict[str, Any] = {"betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        return [Reference(groups, lr=self.lr, is_paged=self.paged, **options)]


@dataclass(frozen=True, kw_only=True)
class Adafactor(Leanable):
    """Adafactor, arXiv:1804.04235: of a matrix's second moments only the means of rows and columns are kept, and no first ones."""

    matrices: ClassVar[bool] = True

    type: Literal["adafactor"] = "adafactor"
    scale_parameter: bool = False
    """Take `lr` relative to each weight's own size (root mean square)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay: each step multiplies the weights by 1 - lr * weight_decay."""

    def make(self, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
        from transformers.optimization import Adafactor as Reference

        options: dict[str, Any] = {"scale_parameter": self.scale_parameter, "relative_step": False}
        return [Reference(groups, lr=self.lr, weight_decay=self.weight_decay, **options)]


@dataclass(frozen=True, kw_only=True)
class Lion(Leanable):
    """Lion, arXiv:2302.06675: one moment, steps of equal length. Wants a learning rate three to ten times below AdamW's."""

    type: Literal["lion"] = "lion"
    lr: Annotated[float, Field(gt=0)] = 3e-5
    """Peak learning rate: three to ten times below AdamW's."""
    betas: Betas = (0.9, 0.99)
    """Share of the old momentum in the direction of a step, and in the new momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 3e-2
    """Decoupled decay: each step multiplies the weights by 1 - lr * weight_decay. As much larger than AdamW's as lr is smaller."""

    def make(self, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
        from sdtune.optim.lion import Lion as Implementation

        return [Implementation(groups, betas=self.betas, weight_decay=self.weight_decay)]


@dataclass(frozen=True, kw_only=True)
class Prodigy(Common):
    """Prodigy, arXiv:2306.06101: Adam that finds its own step size, one for each value of `lr_scale`."""

    library: ClassVar[str] = "prodigyopt"
    looks_at: ClassVar[str] = "all weights together"

    type: Literal["prodigy"] = "prodigy"
    lr: Annotated[float, Field(gt=0)] = 1.0
    """A factor on the step size that it finds: leave it at 1, and tune `d_coef`."""
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
    d0: Annotated[float, Field(gt=0)] = 1e-6
    """First guess of the step size; it only grows from there."""
    d_coef: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the estimate: 0.5 to be careful, 2 to be bold."""
    bias_correction: bool = True
    """Adam's bias correction."""
    safeguard_warmup: bool = True
    """Keep a warm-up from making the estimate too large."""

    def make(self, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
        from prodigyopt import Prodigy as Reference

        options: dict[str, Any] = {
            "betas": self.betas, "eps": self.eps, "d0": self.d0, "d_coef": self.d_coef,
            "use_bias_correction": self.bias_correction, "safeguard_warmup": self.safeguard_warmup,
        }  # fmt: skip
        # Weight decay by group: given as a default, the library prints a line. An instance takes one learning rate only.
        return [Reference([{**group, "weight_decay": self.weight_decay}], lr=self.lr, **options) for group in groups]


@dataclass(frozen=True, kw_only=True)
class AdamWScheduleFree(Common):
    """Schedule-free AdamW, arXiv:2405.15682: an average of the weights takes the place of a falling learning rate."""

    library: ClassVar[str] = "schedulefree"
    averages: ClassVar[bool] = True

    type: Literal["adamw-schedulefree"] = "adamw-schedulefree"
    lr: Annotated[float, Field(gt=0)] = 2.5e-4
    """Learning rate after the warm-up: one to ten times AdamW's with a schedule."""
    schedule: Literal["constant"] = "constant"
    """There is none. Use `warmup`."""
    betas: Betas = (0.9, 0.999)
    """Share of the average at the point where gradients are taken, and decay of the gradient's mean square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    def make(self, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
        from schedulefree import AdamWScheduleFree as Reference

        return [Reference(groups, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)]


@dataclass(frozen=True, kw_only=True)
class ProdigyScheduleFree(Common):
    """Prodigy's step size (arXiv:2306.06101) and schedule-free averaging (arXiv:2405.15682) together: nothing to tune, any end is good."""

    library: ClassVar[str] = "prodigyplus"
    averages: ClassVar[bool] = True
    matrices: ClassVar[bool] = True

    type: Literal["prodigy-schedulefree"] = "prodigy-schedulefree"
    lr: Annotated[float, Field(gt=0)] = 1.0
    """A factor on the step size that it finds: leave it at 1, and tune `d_coef`."""
    schedule: Literal["constant"] = "constant"
    """There is none."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay: each step multiplies the weights by 1 - its step size * weight_decay."""
    betas: Betas = (0.9, 0.99)
    """Share of the average at the point where gradients are taken, and decay of the gradient's mean square."""
    d0: Annotated[float, Field(gt=0)] = 1e-6
    """First guess of the step size; it only grows from there."""
    d_coef: Annotated[float, Field(gt=0)] = 1.0
    """Factor on the estimate: 0.5 to be careful, 2 to be bold."""
    factored: bool = True
    """Keep only rows' and columns' means of the gradient's mean square, as Adafactor does: less memory."""

    def make(self, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
        from prodigyplus.prodigy_plus_schedulefree import ProdigyPlusScheduleFree as Reference

        options: dict[str, Any] = {
            "betas": self.betas, "d0": self.d0, "d_coef": self.d_coef, "factored": self.factored,
            "weight_decay": self.weight_decay, "stochastic_rounding": False,
        }  # fmt: skip
        return [Reference(groups, lr=self.lr, **options)]


@dataclass(frozen=True, kw_only=True)
class Muon(Common):
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon): matrices step by their orthogonalised momentum, the rest by AdamW."""

    matrices: ClassVar[bool] = True

    type: Literal["muon"] = "muon"
    momentum: Decay = 0.95
    """Decay of the matrices' momentum."""
    betas: Betas = (0.9, 0.999)
    """AdamW's, for weights that are no matrices."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's."""

    def make(self, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
        import torch

        def part(matrix: bool) -> list[dict[str, Any]]:
            parts = ({**g, "params": [p for p in g["params"] if (p.dim() == 2) is matrix]} for g in groups)
            return [g for g in parts if g["params"]]

        # Steps as long as AdamW's (arXiv:2502.16982, section 2.2), so that one learning rate serves both.
        muon: dict[str, Any] = {"momentum": self.momentum, "adjust_lr_fn": "match_rms_adamw"}
        adamw: dict[str, Any] = {"betas": self.betas, "eps": self.eps}
        both = [
            (torch.optim.Muon, part(True), muon),
            (torch.optim.AdamW, part(False), adamw),
        ]
        return [kind(g, lr=self.lr, weight_decay=self.weight_decay, **options) for kind, g, options in both if g]
