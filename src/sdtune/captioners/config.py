"""How captions are made and where they go. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError

from sdtune.errors import ConfigError
from sdtune.schema import Section, defaults

if TYPE_CHECKING:
    from sdtune.captioners.base import Captioner

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
TASKS = {
    "<CAPTION>": "What does the image describe?",
    "<DETAILED_CAPTION>": "Describe in detail what is shown in the image.",
    "<MORE_DETAILED_CAPTION>": "Describe with a paragraph what is shown in the image.",
}
"""Florence-2's marks for captions, and the sentences that the model was trained to see in their place."""


@dataclass(frozen=True, kw_only=True)
class Source(Section):
    """What the captioners share: where a model is found."""

    type: str
    path: str
    """A Hub id (owner/name), or a folder."""
    revision: str | None = None
    """Commit, tag or branch of a Hub id, such as refs/pr/38."""
    download: bool = False
    """Fetch a Hub id that is not in the Hub's local cache. Off: no network is used."""

    usual_revisions: ClassVar[Mapping[str, str]] = {}
    """Where a repository has its safetensors elsewhere than on its main branch."""

    def load(self, device: str = "auto", precision: str = "auto") -> Captioner:
        """The model on that device of CaptionConfig. Raises ConfigError for one that is not there, and ModelError."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Blip(Source):
    """BLIP (arXiv:2201.12086): a short sentence."""

    type: Literal["blip"] = "blip"
    path: str = "Salesforce/blip-image-captioning-base"
    """A Hub id (owner/name), or a folder."""
    prompt: str = ""
    """How the caption is to begin, for example "a painting of". It stays in the caption."""
    max_tokens: Positive = 40
    """The longest caption, in tokens of the model, `prompt` not counted."""
    beams: Positive = 3
    """Captions weighed against each other at each word. 1 is fastest."""

    usual_revisions: ClassVar[Mapping[str, str]] = {"Salesforce/blip-image-captioning-base": "refs/pr/38"}

    def load(self, device: str = "auto", precision: str = "auto") -> Captioner:
        from sdtune.captioners.blip import load

        return load(self, device, precision)


@dataclass(frozen=True, kw_only=True)
class Florence2(Source):
    """Florence-2 (arXiv:2311.06242) as transformers itself has it: a sentence, or a paragraph."""

    type: Literal["florence2"] = "florence2"
    path: str = "florence-community/Florence-2-base"
    """A Hub id (owner/name), or a folder. Not microsoft/Florence-2-*: those bring code of their own, which is not run."""
    prompt: str = "<DETAILED_CAPTION>"
    """The task: <CAPTION>, <DETAILED_CAPTION> or <MORE_DETAILED_CAPTION>; the brackets may be left out."""
    max_tokens: Positive = 256
    """The longest caption, in tokens of the model."""
    beams: Positive = 3
    """Captions weighed against each other at each word. 1 is fastest."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"prompt: florence2 has the tasks {', '.join(TASKS)}, got {self.prompt!r}")

    @property
    def task(self) -> str:
        """`prompt` with its brackets."""
        return f"<{self.prompt.strip().strip('<>').upper().replace('-', '_')}>"

    def load(self, device: str = "auto", precision: str = "auto") -> Captioner:
        from sdtune.captioners.florence2 import load

        return load(self, device, precision)


@dataclass(frozen=True, kw_only=True)
class Wd14(Source):
    """A tagger of the WD14 kind: Danbooru's tags, with commas between them. Needs onnxruntime (the extra `captioners`)."""

    type: Literal["wd14"] = "wd14"
    path: str = "SmilingWolf/wd-vit-tagger-v3"
    """A Hub id (owner/name), or a folder, with model.onnx and selected_tags.csv."""
    threshold: Share = 0.35
    """General tags count from this probability on."""
    character_threshold: Share = 0.85
    """Names of characters count from this probability on. 1 leaves them out."""

    def load(self, device: str = "auto", precision: str = "auto") -> Captioner:
        from sdtune.captioners.wd14 import load

        return load(self, device)  # the file says the precision


Model = Annotated[Blip | Florence2 | Wd14, Field(discriminator="type")]
MODELS: tuple[type[Source], ...] = (Blip, Florence2, Wd14)


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(Section):
    """Which model writes captions, and what it may touch."""

    model: Model = field(default_factory=Blip)
    """The captioner: "blip", "florence2" or "wd14"."""
    write: Literal["sidecar", "metadata"] | None = None
    """a.txt beside a.png, or rows of metadata.jsonl. Unset: what the folder uses already, else sidecar."""
    column: str = "text"
    """Key of the caption in metadata.jsonl."""
    overwrite: bool = False
    """Replace captions that people wrote."""
    append: bool = False
    """Add to captions that people wrote."""
    again: bool = False
    """Make captions anew that sdtune wrote and nobody has changed since."""
    prefix: str = ""
    """Put before every caption that is made."""
    suffix: str = ""
    """Put behind every caption that is made."""
    blacklist: tuple[str, ...] = ()
    """Phrases, or tags, that are taken out of what is made."""
    batch_size: Positive = 8
    """Pictures captioned at once."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """auto: CUDA, else MPS, else CPU."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the device is fast at it, else fp32. A wd14 model has its own."""
    dry_run: Positive | None = None
    """Caption only so many pictures, and write nothing."""

    def __post_init__(self) -> None:
        if self.overwrite and self.append:
            raise ConfigError("overwrite: contradicts append; captions are either replaced or added to")
        if isinstance(self.model, Wd14) and self.precision != "auto":
            raise ConfigError("precision: has no effect with wd14, whose ONNX file says it; leave it out")

    def record(self) -> dict[str, Any]:
        """The settings that a caption depends on, those that are as usual left out."""
        model, ours = self.model, ("prefix", "suffix", "blacklist")
        usual = defaults(model)
        found = {k: v for k, v in dataclasses.asdict(model).items() if k not in ("path", "revision", "download")}
        kept = {k: v for k, v in found.items() if k == "type" or v != usual[k]}
        return kept | {name: value for name in ours if (value := getattr(self, name))}


@cache
def _adapter() -> TypeAdapter[CaptionConfig]:
    return TypeAdapter(CaptionConfig)


def from_options(kind: str, model: Mapping[str, Any], rest: Mapping[str, Any]) -> CaptionConfig:
    """The config of a captioner's type, its own settings and the others; None stands for "as usual". Raises ConfigError."""
    cls = next((c for c in MODELS if defaults(c)["type"] == kind), None)
    if cls is None:
        known = ", ".join(str(defaults(c)["type"]) for c in MODELS)
        raise ConfigError(f"--model: no such captioner {kind!r}; known: {known}")
    names = {f.name for f in dataclasses.fields(cls)}
    given = {key: value for key, value in model.items() if value is not None}
    if idle := [_option(key) for key in given if key not in names]:
        raise ConfigError("\n".join(f"{option}: has no effect with --model {kind}; leave it out" for option in idle))
    values = {key: value for key, value in rest.items() if value is not None}
    try:
        return _adapter().validate_python({"model": {"type": kind, **given}, **values})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(fault) for fault in error.errors())) from None


def _explain(fault: Any) -> str:
    if fault["type"] == "value_error":
        key, _, what = str(fault["ctx"]["error"]).partition(":")
        return f"{_option(key)}:{what}"
    message = str(fault["msg"])
    return f"{_option(str(fault['loc'][-1]))}: {message[0].lower()}{message[1:]}, got {fault['input']!r}"


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")
