"""What the configs of all adapter methods share: targets, text encoders, attach and detach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from sdtune.methods import targets as sets
from sdtune.methods.textual_inversion import Words
from sdtune.model import Teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from torch import Tensor, nn

    from sdtune.methods.adapters import Adapter
    from sdtune.methods.installed import Several
    from sdtune.model import Cond, Model


@dataclass(frozen=True, kw_only=True)
class AdapterMethod(Words):
    """Train small additions to chosen layers; the base stays as it is."""

    type: str
    targets: str | tuple[str, ...] = "attention"
    """Layers of the denoiser that get an adapter: "attention" (q, k, v, out), "cross-attention" (those that read the prompt),
    "transformer" (attention, feed-forward, projections), "all-linear", "many" (transformer, convolutions, time embedding),
    "style" or "content" (SDXL's two blocks of B-LoRA), or a list of name patterns such as ["*.attn2.*", "*.conv1"]."""
    text_encoders: bool | tuple[Annotated[int, Field(ge=1)], ...] = False
    """Text encoders that get adapters, too: false for none, true for all of CLIP's kind, or their numbers, such as [1] or [1, 2]."""
    text_targets: str | tuple[str, ...] = "attention"
    """Layers of those text encoders: "attention" (q, k, v, out), "transformer" (and the two layers after it), or a list of patterns."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's input set to zero while training."""

    lighter: ClassVar[str] = "method.type=qlora"
    """What to set for less memory, for the message when there is too little."""

    @property
    def trains_text(self) -> bool:
        """Whether text encoders are trained, so that captions have to be read anew in each step."""
        return bool(self.text_encoders or self.tokens)

    def select(self, model: Model) -> dict[str, nn.Module]:
        """The layers that get an adapter, by part and name. Raises ConfigError if a set or a text encoder is not there."""
        layers = {model.denoiser_name: sets.select(model.denoiser, self.targets)}
        for part in sets.encoders(model, self.text_encoders):
            layers[part] = sets.select(model.parts[part], self.text_targets, sets.TEXT_TARGETS, "text_targets")
        named = {f"{part}.{name}": layer for part, found in layers.items() for name, layer in found.items()}
        return {name: layer for name, layer in named.items() if not sets.is_unread(model, name)}

    def make(self, name: str, layer: nn.Module) -> Adapter:
        """The adapter for one layer."""
        raise NotImplementedError

    def attach(self, model: Model, *, seed: int) -> dict[str, nn.Parameter]:
        """Put adapters on the model and freeze the rest; returns the adapters' parameters by name."""
        return self._put_on(model, seed)

    def _put_on(self, model: Model, seed: int) -> dict[str, nn.Parameter]:
        from sdtune.methods import adapters

        adapters.check_bare(model.parts)
        layers = self.select(model)
        for part in model.parts.values():
            part.requires_grad_(False)
        learned = self._learn(model, seed)
        made = adapters.attach(model.parts, {name: self.make(name, x) for name, x in layers.items()}, seed=seed)
        return {**made, **learned}

    def apply(self, model: Model, weights: Mapping[str, Tensor], *, seed: int) -> Several:
        """Put what was trained on a fresh base: `weights` by the names that `attach` gave with this seed.

        Raises KeyError or RuntimeError, the base as it was, if they do not fit.
        """
        import torch

        from sdtune.methods.installed import installed

        parameters = self._put_on(model, seed)
        try:
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(weights[name])
        except (KeyError, RuntimeError):  # a name that is not there, a shape that differs
            self.detach(model)
            raise
        return installed(model)

    def teacher(self, model: Model) -> Teacher:
        """`model` without its adapters."""
        import torch

        from sdtune.methods.adapters import switched_off

        def denoise(x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
            with torch.no_grad(), switched_off(model.parts):
                return model.denoise(x_BCHW, t_B, cond)

        return Teacher(denoise, model.denoiser)

    def detach(self, model: Model) -> None:
        """Take the adapters out: the model is again what it was, module by module and bit by bit."""
        from sdtune.methods import adapters

        adapters.detach(model.parts)
        self._forget(model)

    def merge(self, model: Model) -> None:
        """Add the changes to the weights and take the adapters out."""
        from sdtune.methods import adapters

        adapters.merge(model.parts)

    def export(
        self, model: Model, weights: Mapping[str, Tensor], folder: Path, name: str, about: Mapping[str, Any]
    ) -> Path:
        """Write `folder/<name>.safetensors`, and new words as `folder/embeddings/<word>.safetensors`. The adapters are on the model;
        `weights` are their parameters in fp32."""
        path = folder / f"{name}.safetensors"
        layers, scales = self._contents(model, weights)
        self._write()(path, layers, scales, about)
        self._write_words(model, weights, folder, about)
        return path

    def _contents(
        self, model: Model, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
        from sdtune.methods import adapters

        layers, scales = dict[str, dict[str, "Tensor"]](), dict[str, float]()
        for name, adapter in adapters.adapters_of(model.parts):
            own = {short: weights[f"{name}.{short}"] for short, _ in adapter.named_parameters(recurse=False)}
            layers[name], scales[name] = adapter.tensors(own), float(getattr(adapter, "scale", 1.0))
        return layers, scales

    def _write(self) -> Callable[..., None]:
        """The file format: a function of path, tensors by layer, scale by layer, and what to keep in the header."""
        from sdtune.methods.lycoris_file import write_lycoris

        return write_lycoris
