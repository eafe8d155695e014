"""What is inside a model, an adapter file or a run, as plain records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdtune.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from sdtune.config import RunConfig
    from sdtune.model import Model


@dataclass(frozen=True)
class Part:
    """One module of a model. `stored_mb` is what its weights take in memory as loaded."""

    name: str
    kind: str
    parameters: int
    stored_mb: float


@dataclass(frozen=True)
class TargetSet:
    """The layers that a named target set would train, and the parameters of their adapters at `rank`."""

    name: str
    layers: tuple[str, ...]
    rank: int
    parameters: int


@dataclass(frozen=True)
class ModelReport:
    source: str
    family: str
    prediction: str
    resolution: int
    latent: tuple[int, int, int]
    """Channels, height and width of the latents."""
    tokens: int
    timesteps: int
    parts: tuple[Part, ...]
    targets: tuple[TargetSet, ...]


@dataclass(frozen=True)
class AdapterReport:
    path: str
    rank: int
    alpha: float
    layers: tuple[tuple[str, int, float], ...]
    """Name, parameters, and the length (Frobenius norm) of the weight's change at strength 1, longest change first."""
    about: dict[str, Any]
    """What sdtune wrote into the header: base, run, steps."""

    @property
    def parameters(self) -> int:
        return sum(parameters for _, parameters, _ in self.layers)

    @property
    def norm(self) -> float:
        return float(sum(norm**2 for _, _, norm in self.layers) ** 0.5)

    def groups(self) -> dict[str, int]:
        """The layers counted by the last part of their name."""
        names = [name.split(".") for name, _, _ in self.layers]
        return dict(Counter(".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:]) for parts in names))


@dataclass(frozen=True)
class RunReport:
    path: str
    state: str
    config: RunConfig
    result: AdapterReport | None
    """The finished adapter; None for a full fine-tuning and for a run without a result."""


def inspect(source: str, rank: int = 16) -> ModelReport | AdapterReport | RunReport:
    """Look into `source`: a run folder, a .safetensors adapter or model, a model folder, a Hub id in the cache, or "embedded"."""
    from sdtune.families import recognise

    path = Path(source).expanduser()
    if (path / "config.toml").is_file():
        return inspect_run(path)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise ModelError(f"{source}: no such file")
        if recognise(source) is None:
            return inspect_adapter(path)
    return inspect_model(source, rank)


def load(source: str) -> Model:
    """The model `source` on the CPU, fp32."""
    from sdtune import config as configs
    from sdtune.families import recognise

    return configs.from_dict({"model": {"path": source, "type": recognise(source) or "sd1"}}).model.load()


def inspect_model(source: str, rank: int = 16) -> ModelReport:
    from sdtune.methods.lora import TARGETS

    model = load(source)
    side = model.resolution // model.downscale
    return ModelReport(
        source=model.source,
        family=model.family,
        prediction=model.prediction,
        resolution=model.resolution,
        latent=(model.latent_channels, side, side),
        tokens=model.max_tokens,
        timesteps=len(model.alphas_T),
        parts=tuple(_parts(model)),
        targets=tuple(target_set(model.denoiser, name, rank) for name in TARGETS),
    )


def _parts(model: Model) -> list[Part]:
    from torch import nn

    modules = {name: value for name, value in vars(model).items() if isinstance(value, nn.Module)}
    modules |= {name: part for name, part in model.parts.items() if part is not model.denoiser}
    return [
        Part(
            name,
            type(m).__name__,
            sum(p.numel() for p in m.parameters()),
            sum(p.nbytes for p in m.parameters()) / 2**20,
        )
        for name, m in modules.items()
    ]


def target_set(denoiser: nn.Module, name: str, rank: int) -> TargetSet:
    """What `method.targets = name` (a set, or a pattern such as "*.to_k") at `method.rank = rank` would train.

    Raises ConfigError for an unknown set.
    """
    from sdtune.methods.lora import Lora

    targets = (name,) if {"*", "."} & set(name) else name
    layers = Lora(targets=targets, rank=rank).select(denoiser)
    return TargetSet(name, tuple(layers), rank, sum(_adapter_size(layer.weight, rank) for layer in layers.values()))


def _adapter_size(weight: Any, rank: int) -> int:
    """A is (rank, in, kernel ...), B is (out, rank)."""
    return rank * (int(weight[0].numel()) + len(weight))


def inspect_adapter(path: Path) -> AdapterReport:
    from sdtune.methods.lora_file import read_lora

    weights, scale, about = read_lora(path)
    names = {name.rpartition(".")[0] for name in weights}
    if lone := [n for n in sorted(names) if not {f"{n}.lora_A", f"{n}.lora_B"} <= weights.keys()]:
        raise ModelError(f"{path}: {lone[0]} has only one of its two matrices; the file is damaged")
    layers = [_layer(name, weights[f"{name}.lora_A"], weights[f"{name}.lora_B"], scale) for name in names]
    rank = len(weights[f"{layers[0][0]}.lora_A"])
    return AdapterReport(str(path), rank, scale * rank, tuple(sorted(layers, key=lambda row: (-row[2], row[0]))), about)


def _layer(name: str, a: Any, b: Any, scale: float) -> tuple[str, int, float]:
    # |scale B A| without the product: |B A|^2 = trace((B^T B) (A A^T))
    a_RI, b_OR = a.flatten(1).double(), b.flatten(1).double()
    square = ((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).sum().clamp(min=0)
    return name, a.numel() + b.numel(), abs(scale) * float(square.sqrt())


def inspect_run(folder: Path) -> RunReport:
    from sdtune.events import Finished, Step
    from sdtune.runs import Run

    run = Run(folder)
    config = run.config()
    last = max((e.step for e in run.events() if isinstance(e, Step)), default=0)
    done = any(isinstance(e, Finished) for e in run.events()) and run.final.is_dir()
    state = f"finished after {last} steps" if done else f"at step {last} of {config.train.steps}"
    files = sorted(run.final.glob("*.safetensors"))
    return RunReport(str(folder), state, config, inspect_adapter(files[0]) if len(files) == 1 else None)
