"""What is inside a model, an adapter file or a run, as plain records."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdtune.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
    part: str = ""
    """The text encoder that it is of; "" for the denoiser."""


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
    text_targets: tuple[TargetSet, ...] = ()
    """Of each text encoder that can be trained."""


@dataclass(frozen=True)
class AdapterReport:
    path: str
    rank: int
    """Of the first layer. LoKr: the side of its small matrix; OFT: the outputs of a block."""
    alpha: float
    layers: tuple[tuple[str, int, float], ...]
    """Name, parameters, and the length (Frobenius norm) of the weight's change at strength 1, longest change first. DoRA's and
    OFT's change depends on the weight, which is not in the file: for them it is that of scale * B A, and of the rotation."""
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


@dataclass(frozen=True)
class Group:
    """Weights of one part that have the same place in their blocks."""

    part: str
    name: str
    tensors: int
    parameters: int


@dataclass(frozen=True)
class RecipeReport:
    """What a recipe would train."""

    path: str
    model: str
    method: str
    trainable: int
    total: int
    """Parameters of the denoiser before."""
    groups: tuple[Group, ...]
    """Most parameters first."""


@dataclass(frozen=True)
class WordReport:
    """The vectors of a new word: (text encoder's key, tokens, width)."""

    path: str
    word: str
    vectors: tuple[tuple[str, int, int], ...]


Report = ModelReport | AdapterReport | RunReport | RecipeReport | WordReport


def inspect(source: str, rank: int = 16) -> Report:
    """Look into `source`: a run folder, a recipe, a .safetensors adapter, embedding or model, a model folder, a Hub id in the cache,
    or "embedded"."""
    from sdtune.families import recognise

    path = Path(source).expanduser()
    if (path / "config.toml").is_file():
        return inspect_run(path)
    if path.suffix == ".toml":
        return inspect_recipe(path)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise ModelError(f"{source}: no such file")
        if recognise(source) is None:
            return inspect_word(path) or inspect_adapter(path)
    return inspect_model(source, rank)


def load(source: str) -> Model:
    """The model `source` on the CPU, fp32."""
    from sdtune import config as configs
    from sdtune.families import recognise

    return configs.from_dict({"model": {"path": source, "type": recognise(source) or "sd1"}}).model.load()


def inspect_model(source: str, rank: int = 16) -> ModelReport:

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
        parts=tuple(parts_of(model)),
        targets=tuple(_target_sets(model.denoiser, rank)),
        text_targets=tuple(_text_target_sets(model, rank)),
    )


def _target_sets(denoiser: nn.Module, rank: int) -> Iterator[TargetSet]:
    """The named sets that find a layer in this model."""
    from sdtune.methods.targets import TARGETS

    for name in TARGETS:
        try:
            yield target_set(denoiser, name, rank)
        except ConfigError:  # "style" and "content" are there in SDXL alone
            continue


def _text_target_sets(model: Model, rank: int) -> Iterator[TargetSet]:
    """What `method.text_encoders = true` would train with each value of `method.text_targets`, encoder by encoder."""
    from sdtune.methods.targets import TEXT_TARGETS, encoders, is_unread, select

    for part in encoders(model, True):
        for name in TEXT_TARGETS:
            found = select(model.parts[part], name, TEXT_TARGETS, "text_targets")
            layers = {k: v for k, v in found.items() if not is_unread(model, f"{part}.{k}")}
            yield TargetSet(
                name, tuple(layers), rank, sum(_adapter_size(v.weight, rank) for v in layers.values()), part
            )


def parts_of(model: Model) -> list[Part]:
    """Its modules with their sizes."""
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
    from sdtune.methods.targets import select

    layers = select(denoiser, (name,) if {"*", "."} & set(name) else name)
    return TargetSet(name, tuple(layers), rank, sum(_adapter_size(layer.weight, rank) for layer in layers.values()))


def _adapter_size(weight: Any, rank: int) -> int:
    """A is (rank, in, kernel ...), B is (out, rank)."""
    return rank * (int(weight[0].numel()) + len(weight))


def inspect_recipe(path: Path) -> RecipeReport:
    """Load the recipe's model (on the CPU, its denoiser in bf16) and let its method choose."""
    import torch

    from sdtune import config as configs

    config = configs.load(path)
    model = config.model.load(dtype=torch.bfloat16)
    total = sum(p.numel() for p in model.denoiser.parameters())
    found: dict[tuple[str, str], list[int]] = {}
    for name, p in config.method.attach(model, seed=0).items():
        part, _, rest = name.partition(".")
        found.setdefault((part, _place(rest)), []).append(p.numel())
    groups = [Group(part, place, len(sizes), sum(sizes)) for (part, place), sizes in found.items()]
    return RecipeReport(
        str(path), model.source, config.method.type, sum(g.parameters for g in groups), total,
        tuple(sorted(groups, key=lambda g: -g.parameters)),
    )  # fmt: skip


def _place(name: str) -> str:
    """Where in its block a weight is: attn2.to_q of up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_q.lora_A."""
    layer = name.rpartition(".")[0] or name
    return re.sub(r"^.*(blocks|attentions|resnets|layers|downsamplers|upsamplers)\.\d+\.", "", layer)


def inspect_word(path: Path) -> WordReport | None:
    """The report of an embedding file; None if it is none."""
    from sdtune.methods import word_file

    if not word_file.is_word_file(path):
        return None
    word, vectors = word_file.read(path)
    return WordReport(str(path), word, tuple((key, *v.shape) for key, v in vectors.items()))


def inspect_adapter(path: Path) -> AdapterReport:
    from sdtune.methods.files import read

    file = read(path)
    layers = [
        (name, sum(t.numel() for t in tensors.values()), abs(file.scales[name]) * _length(tensors))
        for name, tensors in file.layers.items()
    ]
    layers = [(name.removeprefix("unet."), *rest) for name, *rest in layers]  # type: ignore[misc]
    first, tensors = next(iter(file.layers.items()))
    rank = _rank(tensors)
    ranked = tuple(sorted(layers, key=lambda row: (-row[2], row[0])))
    return AdapterReport(str(path), rank, file.scales[first] * rank, ranked, file.about)


def _rank(tensors: Mapping[str, Any]) -> int:
    name = next(n for n in ("lora_A", "hada_w1_b", "lokr_w1", "oft_blocks") if n in tensors)
    return int(tensors[name].shape[1 if name == "oft_blocks" else 0])


def _length(tensors: Mapping[str, Any]) -> float:
    """The Frobenius norm of what a layer's tensors multiply to, without their scale."""
    from sdtune.methods.lora_file import size

    t = tensors
    if "lora_A" in t:
        return size(t)
    if "hada_w1_b" in t:
        return float(((t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])).norm())
    if "lokr_w1" in t:  # |kron(A, B)| = |A| |B|
        second = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
        return float(t["lokr_w1"].norm() * second.norm())
    from sdtune.methods.products import turn

    return float(turn(t["oft_blocks"]).norm())


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
