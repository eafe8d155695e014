"""The one description of a run: the parts put together, read from TOML, changed with `a.b=c`. Imports no torch.

Command line, web form and Python API all build this object. Order: field default < recipe < override.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import Field, TypeAdapter, ValidationError

from sdtune import plugins
from sdtune.consistency import ConsistencyConfig
from sdtune.data.config import DataConfig
from sdtune.distillation import DistillationConfig
from sdtune.errors import ConfigError
from sdtune.families import Family
from sdtune.families.sd1 import Sd1
from sdtune.guides import Guide
from sdtune.methods import Method
from sdtune.methods.lora import Lora
from sdtune.objective import ObjectiveConfig
from sdtune.optim import Optimizer
from sdtune.optim.kinds import AdamW, Leanable
from sdtune.schema import Section

Objective = Annotated[ObjectiveConfig | ConsistencyConfig | DistillationConfig, Field(discriminator="type")]

T = TypeVar("T")
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """The loop."""

    steps: Positive = 1000
    """Optimiser steps, however many micro-batches each takes."""
    batch_size: Positive = 4
    """Pictures of a micro-batch: what has to fit into memory at once."""
    accumulate: Positive = 1
    """Micro-batches per optimiser step."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Longer gradients are scaled down to this length; 0 turns that off."""
    seed: int = 0
    """Noise, timesteps, data order and the adapters' first weights follow from it."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the frozen weights and the computation; trained weights and optimiser stay fp32. auto: bf16 where the device is fast at it. fp16,
    with a scaled loss, is for GPUs without bf16 (before RTX 30)."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """auto: CUDA, else MPS, else CPU."""
    threads: Positive | None = None
    """CPU threads. Unset: all physical cores that this process may use."""
    gradient_checkpointing: bool | Literal["feed-forward"] = False
    """Compute activations again in the backward pass: less memory, about a third more time. "feed-forward": only those of the feed-forward
    layers, nearly half of SDXL's, for about an eighth more time."""
    offload_activations: bool = False
    """Let activations wait in the computer's memory for the backward pass; slower. For when checkpointing alone does not do. CUDA."""
    block_swap: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the denoiser's frozen blocks whose weights wait in the computer's memory and come when they run; 1 saves most, and is
    slowest. Not for method.type = "full". CUDA."""
    unload: bool = True
    """VAE, and text encoders that are not trained, wait in the computer's memory between previews. CUDA."""
    shard: bool = False
    """Split the trained weights, their gradients and what the optimiser keeps over the processes (FSDP2): each holds its share of
    16 bytes a weight, and a few blocks of the model at a time. For full fine-tuning (or method.type "student") on several devices
    where one has not enough memory; leave it off where one has. With `optimizer.type` adamw, lion or adamw-schedulefree."""
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of an exponential moving average of the trained weights (0.999 is usual), used for samples and the result. Unset: none."""
    save_every: Positive = 250
    """Steps between checkpoints."""
    keep: Positive = 2
    """Newest checkpoints kept. The weights of the lowest validation loss are kept beside them."""
    validate_every: NotNegative = 50
    """Steps between validation losses; 0 turns them off."""
    validation_timesteps: Positive = 8
    """Fixed timesteps, spread over the schedule, at which each validation picture is judged."""
    patience: NotNegative = 0
    """Stop early when so many validations in a row have brought no new lowest loss; 0 never does. Allow several: the loss is noisy."""
    result: Literal["last", "best"] = "last"
    """Which weights become the result: those of the last step, or those of the lowest validation loss."""
    sample_every: NotNegative = 100
    """Steps between previews; 0 turns them off. The base model's pictures are step 0."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Section):
    """How pictures are drawn: previews in training, `sdtune sample` and comparisons alike."""

    prompts: tuple[str, ...] = ()
    """What to draw. Previews without prompts use the first captions of the data."""
    negative: str = ""
    """What to steer away from."""
    prompt_weights: bool = False
    """Read weights in prompts as AUTOMATIC1111's web UI does: (word:1.3), ((word)), [word], \\( for a bracket, BREAK for a new chunk. Off:
    brackets are letters, as in captions. Stable Diffusion 1, 2 and SDXL."""
    seeds: tuple[int, ...] = (0, 1)
    """One picture per prompt and seed."""
    steps: Positive = 20
    """Denoising steps."""
    guidance: Annotated[float, Field(ge=0)] = 5.0
    """Classifier-free guidance, arXiv:2207.12598. 1 turns it off; higher follows the prompt more and varies less."""
    scheduler: Literal[
        "dpm++2m", "dpm++2m-karras", "dpm++2m-sde", "dpm++2m-sde-karras", "unipc", "euler", "euler-a", "heun", "ddim", "ddpm", "pndm", "lcm"
    ] = "dpm++2m"  # fmt: skip
    """Sampler; `sdtune sample --list-schedulers` says what each is good for. Those with sde, euler-a and ddpm add noise on the way.
    lcm is for models distilled to few steps (objective.type = "consistency"), with `steps` 2 to 8 and `guidance` 1."""
    batch_size: Positive = 8
    """Pictures drawn at once."""
    vae_slicing: bool = False
    """Decode the pictures of a batch one by one: the decoder's memory is that of one picture, whatever `batch_size`. The same pictures."""
    vae_tiling: bool = False
    """Decode (and encode) pictures that are larger than the model's own size in overlapping tiles of that size: the decoder's memory no
    longer grows with the picture. Tiles are blended, and may differ a little in tone."""
    attention_slicing: bool = False
    """Attention head by head, on CPUs, where else the scores of all heads lie in memory at once (those of a picture twice as wide and
    high are 16 times as large); a little slower. GPUs' kernels hold no scores. The same pictures."""
    unload: bool = False
    """VAE and text encoders wait in the computer's memory while they are not at work. CUDA, for `sdtune sample`."""
    compile: bool = False
    """Compile the denoiser (torch.compile) for `sdtune sample`: worth it for many pictures of one size; the first step of each size and
    batch takes a minute or more. Needs a C++ compiler; the same pictures to rounding."""
    width: Positive | None = None
    """Unset: the model's own size."""
    height: Positive | None = None
    """Unset: the model's own size."""
    strength: Annotated[float, Field(ge=0, le=4)] = 1.0
    """Of the adapter: 0 is the base, 1 as trained. (How far a picture may change is `denoising_strength`.)"""
    adapters: tuple[str, ...] = ()
    """More adapters for `sdtune sample` (--lora): files (LoRA, DoRA, LoHa, LoKr, OFT, embeddings) or runs, each with a strength of its
    own behind a colon, ["comic.safetensors:0.8", "runs/pip"]. Their changes add up. Previews and comparisons show a run alone."""
    image: str | None = None
    """A picture file to begin with instead of noise (image-to-image). Without `width` and `height` the size is one of its proportions
    with the model's number of pixels. Comparisons and class pictures are drawn from prompts alone."""
    denoising_strength: Annotated[float, Field(gt=0, le=1)] = 0.75
    """With `image`: how far the result may go from it, as the share of `steps` that is drawn. 0.3 changes the surface, 0.75 most,
    1 nearly everything. (diffusers calls this `strength`.)"""
    mask: str | None = None
    """A picture file as large as `image`: what is white is painted anew (inpainting), what is black stays, byte for byte."""

    guide: Guide | None = None
    """Steer the steps by a loss of the picture: { type = "colour", colour = "#ff8800" }, { type = "text", text = "a red boat" }, or one of
    your own (docs/extending.md). Unset: none. Comparisons and class pictures are drawn without."""

    @property
    def from_prompts(self) -> SampleConfig:
        """The same from prompts alone: no picture to begin with, no loss to be steered by, no further adapters."""
        return dataclasses.replace(self, image=None, mask=None, guide=None, adapters=())


SAME_PICTURES = ("batch_size", "vae_slicing", "attention_slicing", "unload", "compile")
"""Keys of `SampleConfig` that change time and memory, and not the pictures."""
OF_PICTURES = ("image", "denoising_strength", "mask", "guide", "adapters")
"""Keys of `SampleConfig` that drawing from prompts alone does not look at."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Section):
    """How base and tuned model are compared. Prompts and seeds are the same for both."""

    prompts: tuple[str, ...] | str | None = None
    """Prompts, or a text file with one a line. Unset: captions of the held-out pictures."""
    max_prompts: Positive = 48
    """At most so many prompts are drawn from the captions of the held-out pictures."""
    seeds: tuple[int, ...] = (1001, 1002)
    """One picture per prompt and seed. Other seeds than those of the previews."""
    reference: str | None = None
    """Folder of held-out target pictures. Unset: the validation pictures; embedded sets have a `test/` folder of their own."""
    control: str | None = None
    """Folder of pictures of the base's own domain: a tuned model should move away from them. Unset: none; embedded sets bring one."""
    unrelated: tuple[str, ...] | str | None = None
    """Prompts of what the training was not about, or a text file with one a line: does the model still draw them? They get no prefix or
    suffix of the data, and the first of `seeds`. Unset: captions of the control pictures that are not trained on; [] asks nothing."""
    max_unrelated: Positive = 24
    """At most so many of them are drawn."""
    primary: Literal["kid", "validation_loss"] = "kid"
    """The figure that decides "helped?", fixed before the run (no choosing afterwards)."""
    draws: Annotated[int, Field(ge=100)] = 10_000
    """Bootstrap draws over prompts."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """Everything needed to repeat a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$", max_length=100)] = "run"
    """Name of the run's folder below `runs/`: letters, digits and _ . + -"""
    plugins: tuple[str, ...] = ()
    """Python files (or package folders, or installed modules) with methods, target sets, losses, optimisers or model families of
    your own: their code is run. Looked for beside the recipe first. docs/extending.md has an example."""
    model: Family = field(default_factory=Sd1)
    """The model to start from."""
    data: DataConfig = field(default_factory=DataConfig)
    """Captioned pictures."""
    method: Method = field(default_factory=Lora)
    """What becomes trainable."""
    optimizer: Optimizer = field(default_factory=AdamW)
    """How gradients become steps."""
    objective: Objective = field(default_factory=ObjectiveConfig)
    """What is learned."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The loop."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """How pictures are drawn."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """How base and tuned are compared."""

    def __post_init__(self) -> None:
        if faults := list(_contradictions(self)):
            raise ConfigError("\n".join(faults))


def _contradictions(run: RunConfig) -> Iterator[str]:
    """Settings of different parts that exclude each other."""
    if run.sample.mask and not run.sample.image:
        yield "sample.mask: has no picture to lie on; name one with sample.image (--image)"
    lean = isinstance(run.optimizer, Leanable) and run.optimizer.lean
    if isinstance(run.optimizer, Leanable) and run.optimizer.fused_backward:
        if run.train.accumulate > 1:
            yield "optimizer.fused_backward: a gradient is used up at once and cannot add up; set train.accumulate=1"
        if run.train.max_grad_norm:
            yield "optimizer.fused_backward: clipping needs the whole gradient before the first update; set train.max_grad_norm=0"
    if (
        isinstance(run.optimizer, Leanable)
        and run.optimizer.weights == "bf16"
        and run.train.precision in ("fp32", "fp16")
    ):
        yield f'optimizer.weights: "bf16" contradicts train.precision="{run.train.precision}"'
    if isinstance(run.optimizer, Leanable) and run.optimizer.fused_backward and run.train.precision == "fp16":
        yield "optimizer.fused_backward: fp16 may have to give a step up, which is half taken then; set train.precision=bf16"
    if lean and run.train.ema:
        yield "train.ema: keeps the fp32 copy of all weights that optimizer.weights and fused_backward avoid; unset one of them"
    if run.optimizer.averages and run.train.ema:
        yield f"train.ema: {run.optimizer.type} averages the weights already; unset it"
    if run.train.shard and not getattr(run.method, "trains_all", False):
        yield (
            f"train.shard: splits weights that are trained, and {run.method.type!r} trains few beside a whole model that stays; "
            "set it to false, or method.type to full or student"
        )
    seen = run.optimizer.looks_at or ("rows and columns of whole weights" if run.optimizer.matrices else "")
    if run.train.shard and seen:
        yield (
            f"train.shard: {run.optimizer.type!r} looks at {seen}, of which each process holds only a part; "
            "set optimizer.type to adamw, lion or adamw-schedulefree"
        )
    if run.train.shard and lean:
        yield "train.shard: optimizer.weights=bf16 and fused_backward need whole weights in every process; unset them, or it"
    if run.train.shard and run.train.offload_activations:
        yield "train.shard: with offload_activations the weights of blocks that come and go would be taken for activations; unset one"


@cache
def _type(chosen: tuple[plugins.Plugin, ...] = ()) -> type[RunConfig]:
    """RunConfig, whose unions have the plugins' classes, too."""
    extra: dict[str, list[type[Section]]] = {}
    for group, cls in (pair for plugin in chosen for pair in plugin.classes):
        extra.setdefault(group, []).append(cls)
    if not extra:
        return RunConfig
    hints = typing.get_type_hints(RunConfig, include_extras=True)
    fields: list[tuple[str, Any, Any]] = [
        (f.name, _extended(f.name, hints[f.name], extra[f.name]), field(default_factory=f.default_factory))
        for f in dataclasses.fields(RunConfig)
        if f.name in extra and f.default_factory is not dataclasses.MISSING
    ]
    if guides := extra.get("sample.guide"):
        union = _extended("sample.guide", typing.get_type_hints(SampleConfig, include_extras=True)["guide"], guides)
        drawing = _derived(SampleConfig, [("guide", union | None, field(default=None))])
        fields.append(("sample", drawing, field(default_factory=drawing)))
    return _derived(RunConfig, fields)


def _derived(cls: type[T], fields: Sequence[tuple[str, Any, Any]]) -> type[T]:
    """`cls` with other types for some fields, under the same name: `field_help` finds its text so."""
    return dataclasses.make_dataclass(
        cls.__name__, fields, bases=(cls,), frozen=True, kw_only=True, namespace={"__module__": __name__}
    )


def _extended(group: str, union: Any, extra: Sequence[type[Section]]) -> Any:
    """A tagged union with more members. Raises ConfigError for a tag that is taken."""
    members = [*_sections(union), *dict.fromkeys(extra)]
    for cls in extra:
        tag = getattr(cls, "type", "")
        if [getattr(m, "type", None) for m in members].count(tag) > 1:
            raise ConfigError(f"plugins: {cls.__name__}: there is a {group}.type {tag!r} already; choose another name")
    return Annotated[typing.Union[tuple(members)], Field(discriminator="type")]  # noqa: UP007 (made at run time)


@cache
def _adapter(chosen: tuple[plugins.Plugin, ...] = ()) -> TypeAdapter[RunConfig]:
    return TypeAdapter(_type(chosen))


def load(path: str | Path | None = None, overrides: Sequence[str] = (), *, from_run: bool = False) -> RunConfig:
    """Read the recipe `path` and apply `overrides` such as `method.rank=32`; the last one wins.

    `from_run`: the file lies in a run's folder, and chooses no code to run by itself (see `plugins.load`).
    Raises ConfigError with all faults at once.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{path}: {(error.strerror or 'cannot be read').lower()}; `sdtune init` writes a recipe"
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from None
    named = data.get("plugins")
    for item in overrides:
        _override(data, item)
    folder = Path(path).parent if path else None
    return from_dict(
        data, where=str(path) if path else "", folder=folder, from_run=from_run and data.get("plugins") is named
    )


def from_dict(
    data: Mapping[str, Any], where: str = "", *, folder: Path | None = None, from_run: bool = False
) -> RunConfig:
    """Build a config from nested dictionaries. The web form and the Python API enter here.

    Plugins that `data` names are looked for in `folder`, then in the working folder.
    """
    chosen: tuple[plugins.Plugin, ...] = ()
    data = dict(data)
    names = data.get("plugins", ())
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):  # else refused below
        chosen = plugins.load(names, folder, from_run=from_run)
        data["plugins"] = tuple(plugin.name for plugin in chosen)
    try:
        return _adapter(chosen).validate_python(_with_default_tags(RunConfig, data))
    except ValidationError as error:
        faults = [_explain(e, _type(chosen)) for e in error.errors()]
        raise ConfigError("\n".join(f"{where}: {f}" if where else f for f in faults)) from None


def to_dict(config: RunConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def to_toml(config: RunConfig) -> str:
    """The resolved config as TOML, without unset fields. `load` gives the same config back."""
    top, tables = [], []
    for name, value in to_dict(config).items():
        if isinstance(value, dict):
            rows = [f"{k} = {toml_value(v)}" for k, v in value.items() if v is not None]
            tables.append("\n".join([f"[{name}]", *rows]))
        else:
            top.append(f"{name} = {toml_value(value)}")
    return "\n\n".join(["\n".join(top), *tables]) + "\n"


def json_schema(names: Sequence[str] = ()) -> dict[str, Any]:
    """What the web form is drawn from, with what the plugins `names` bring."""
    return _adapter(plugins.load(names)).json_schema()


def _override(data: dict[str, Any], item: str) -> None:
    if not isinstance(item, str):  # from Python
        raise ConfigError(
            f"{item!r}: settings are texts, one by one, for example 'optimizer.lr=1e-4', 'train.steps=100'"
        )
    key, sep, raw = item.partition("=")
    if not sep or not key:
        raise ConfigError(f"{item!r} is not key=value, for example optimizer.lr=1e-4")
    put(data, key.strip(), value_of(raw))


def put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted `key` in nested dictionaries. Raises ConfigError if a group of keys is a value there."""
    *parents, leaf = key.split(".")
    node = data
    for name in parents:
        if node.get(name) is None:
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise ConfigError(f"{key}: {name!r} is a value, not a group of keys")
    node[leaf] = value


def value_of(raw: str) -> Any:
    """A value as the command line has it: TOML, or a text without quotes."""
    try:
        return tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        return raw


def toml_value(value: Any) -> str:
    """A value as TOML writes it; unset ones of a table are left out."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{json.dumps(k, ensure_ascii=False)} = {toml_value(v)}" for k, v in value.items() if v is not None
            )
            + "}"
        )
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def _with_default_tags(cls: type, data: dict[str, Any]) -> dict[str, Any]:
    """Let `method.rank=4` mean the default method, with rank 4."""
    out = dict(data)
    for f in dataclasses.fields(cls):
        if isinstance(out.get(f.name), dict) and f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
            if hasattr(default, "type"):
                out[f.name] = {"type": default.type, **out[f.name]}
    return out


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The section classes that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif get_origin(annotation) in (Annotated, types.UnionType, typing.Union):
        for part in get_args(annotation):
            yield from _sections(part)


def keys_of(group: str, tag: str) -> list[str]:
    """The keys of a kind of section, such as those of method.type = "full"; none for a kind that sdtune does not bring."""
    hint = typing.get_type_hints(RunConfig, include_extras=True).get(group)
    kinds = [s for s in _sections(hint) if getattr(s, "type", None) == tag]
    return [f.name for s in kinds for f in dataclasses.fields(s)]  # type: ignore[arg-type]  # every section is a dataclass


def changes(before: RunConfig, after: RunConfig) -> list[str]:
    """The overrides that make `after` of `before`, as one would type them."""
    old, new = (flat(to_dict(c)) for c in (before, after))
    return [f"{key}={toml_value(value)}" for key, value in new.items() if value is not None and old.get(key) != value]


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    out: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out


def usual_type(group: str) -> str:
    """The kind that a group is of where none is named; "" for a group that has one kind only."""
    made = next((f.default_factory for f in dataclasses.fields(RunConfig) if f.name == group), dataclasses.MISSING)
    return "" if made is dataclasses.MISSING else str(getattr(made(), "type", ""))


def _keys_at(path: Sequence[str], cls: type[RunConfig]) -> list[str]:
    """The keys that are valid inside the group `path`, a tag such as "lora" counting as a step of it."""
    current: list[Any] = [cls]
    for name in path:
        inside = [s for c in current for s in _sections(typing.get_type_hints(c, include_extras=True).get(name))]
        current = inside or [c for c in current if getattr(c, "type", None) == name] or current
    return sorted({f.name for c in current for f in dataclasses.fields(c)})


def _explain(error: Mapping[str, Any], cls: type[RunConfig]) -> str:
    loc = [str(part) for part in error["loc"]]
    hints = typing.get_type_hints(cls, include_extras=True)
    tags = {getattr(s, "type", "") for f in hints.values() for s in _sections(f)}
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])  # of a section that checks itself
    tag_at = 2 if loc[:2] == ["sample", "guide"] else 1
    if tag_at == 2:
        tags = {
            getattr(s, "type", "")
            for s in _sections(typing.get_type_hints(hints["sample"], include_extras=True)["guide"])
        }
    where = ".".join(p for i, p in enumerate(loc) if not (i == tag_at and p in tags)) or "config"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(loc[-1], _keys_at(loc[:-1], cls), n=1)
        return f"{where}: no such key" + (
            f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(_keys_at(loc[:-1], cls))}"
        )
    message = f"{where}: {error['msg'][0].lower() + error['msg'][1:]}"
    context = error.get("ctx", {})
    if error["type"] == "union_tag_not_found":
        return f"{where}.type: say which kind; known: {', '.join(repr(tag) for tag in sorted(tags))}"
    if error["type"] == "union_tag_invalid":
        given, choices = str(context["tag"]), str(context["expected_tags"])
        message = f"{where}.type: unknown type, known: {choices}"
    else:
        given, choices = str(error["input"]), str(context.get("expected", ""))
    near = difflib.get_close_matches(given, choices.split("'")[1::2], n=1)
    shown = f"{message}, got {_short(given if error['type'] == 'union_tag_invalid' else error['input'])}"
    return shown + (f"; did you mean {near[0]!r}?" if near else "")


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
