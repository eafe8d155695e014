"""What drawing may be steered towards: a colour, a text that CLIP reads, or a loss of one's own (docs/extending.md).

Imports torch and transformers in `build` only. How it steers is in steering.py.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from sdtune.errors import ConfigError, ModelError
from sdtune.hub import snapshot
from sdtune.model import Model, PictureLoss
from sdtune.schema import Section

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Share = Annotated[float, Field(ge=0, le=1)]
CLIP = "openai/clip-vit-large-patch14"


@dataclass(frozen=True, kw_only=True)
class GuideConfig(Section):
    """Steer each step by a loss of the picture that the model sees in it."""

    type: str
    strength: Annotated[float, Field(ge=0, le=10)] = 0.5
    """How much of the noise that the model sees is changed in each step, as a share of its spread; 0.2 to 1 is usual, 0 is off, byte for
    byte. The same number does about the same with other steps, samplers and models."""
    start: Share = 0.0
    """Share of the steps after which it begins."""
    end: Share = 1.0
    """Share of the steps after which it ends. The last steps make fine detail; without them it is the model's own."""

    def __post_init__(self) -> None:
        if self.start >= self.end:
            raise ConfigError(f"sample.guide.start: {self.start:g} is not before sample.guide.end, {self.end:g}")

    def build(self, model: Model) -> PictureLoss:
        """(pixels (B, 3, H, W), about -1 to 1) -> a loss for each picture, (B,), 0 being best. A picture's loss is to depend
        on that picture alone. Raises ConfigError and ModelError."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Colour(GuideConfig):
    """Towards a colour."""

    type: Literal["colour"] = "colour"
    colour: str
    """As CSS writes it: "#ff8800", "orange"."""
    each_pixel: bool = True
    """Whether every pixel is drawn to the colour, or only their mean, which leaves the picture its contrasts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rgb  # noqa: B018 (refuses what is no colour)

    @property
    def rgb(self) -> tuple[int, int, int]:
        """0 to 255. Raises ConfigError."""
        from PIL import ImageColor

        try:
            red, green, blue, *_ = ImageColor.getrgb(self.colour)
        except ValueError:
            raise ConfigError(
                f'sample.guide.colour: {self.colour!r} is no colour; write one as "#ff8800" or "orange"'
            ) from None
        return red, green, blue

    def build(self, model: Model) -> PictureLoss:
        """The mean square distance, or that of the mean, of red, green and blue from -1 to 1."""
        import torch

        wanted_3 = torch.tensor(self.rgb, device=model.device) / 127.5 - 1

        def loss(pixels_BCHW: Tensor) -> Tensor:
            if self.each_pixel:
                return (pixels_BCHW - wanted_3.view(1, 3, 1, 1)).square().mean((1, 2, 3))
            return (pixels_BCHW.mean((2, 3)) - wanted_3).square().mean(1)

        return loss


@dataclass(frozen=True, kw_only=True)
class Text(GuideConfig):
    """Towards what CLIP takes for a text, arXiv:2103.00020: another reader of words than the model's own."""

    type: Literal["text"] = "text"
    text: str
    """What the picture is to show."""
    clip: str | None = None
    """A CLIP model: a folder or Hub id in transformers layout. Unset: for the embedded base the scorer that comes with it, for
    others openai/clip-vit-large-patch14."""
    download: bool = False
    """Fetch a Hub id that is not in the Hub's local cache. Off: no network is used."""

    def build(self, model: Model) -> PictureLoss:
        """1 - cosine of the picture's and the text's embeddings."""
        import torch.nn.functional as F

        own = self.clip is None and model.source == "embedded"
        reader = _scorer(model.device) if own else _clip(self.clip or CLIP, self.download, model.device)
        wanted_1E = F.normalize(reader.read(self.text), dim=-1)

        def loss(pixels_BCHW: Tensor) -> Tensor:
            return 1 - F.cosine_similarity(reader.see(pixels_BCHW), wanted_1E)

        return loss


def recorded(guide: GuideConfig) -> dict[str, Any]:
    """For a picture's record: what it was steered by, a folder without the path to it."""
    said = {key: value for key, value in dataclasses.asdict(guide).items() if value is not None and key != "download"}
    if "clip" in said and Path(said["clip"]).expanduser().is_dir():
        said["clip"] = Path(said["clip"]).name
    return said


# ---- what reads pictures and texts


@dataclass(frozen=True)
class Reader:
    """Pictures and texts in one space."""

    vision: nn.Module
    text: nn.Module
    tokenizer: Any
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of pixels from 0 to 1."""
    device: torch.device

    def see(self, pixels_BCHW: Tensor) -> Tensor:
        """Embeddings of pixels in [-1, 1], (B, E). Resized to a square by area, or bicubically if they are smaller."""
        import torch.nn.functional as F

        if pixels_BCHW.shape[2:] != (size := (self.side, self.side)):
            pixels_BCHW = F.interpolate(pixels_BCHW, size, mode="bicubic", antialias=True)
        mean, std = (pixels_BCHW.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        embeds: Tensor = self.vision(pixel_values=(pixels_BCHW / 2 + 0.5 - mean) / std).image_embeds
        return embeds

    def read(self, text: str) -> Tensor:
        """The embedding of a text, (1, E)."""
        import torch

        tokens = self.tokenizer([text], padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            out = self.text(tokens.input_ids.to(self.device))
        embeds: Tensor = out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
        return embeds


@lru_cache(maxsize=1)
def _scorer(device: torch.device) -> Reader:
    from sdtune.metrics.features import Scorer

    scorer = Scorer.load()
    halves = (0.5,) * 3  # it reads pixels from -1 to 1
    return Reader(
        scorer.vision.to(device), scorer.text.to(device), scorer.tokenizer, scorer.side, halves, halves, device
    )


@lru_cache(maxsize=1)
def _clip(name: str, download: bool, device: torch.device) -> Reader:
    """A CLIP model in transformers layout. Raises ModelError."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    folder = Path(name).expanduser()
    if not folder.is_dir():
        remedy = "name a folder with sample.guide.clip, or set sample.guide.download=true to fetch it"
        folder = snapshot(name, ("*.json", "*.txt", "model*.safetensors"), download=download, remedy=remedy)
    try:
        kinds = (CLIPVisionModelWithProjection, CLIPTextModelWithProjection)
        vision, text = (
            kind.from_pretrained(folder, local_files_only=True, use_safetensors=True).to(device).eval()
            for kind in kinds
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        said = folder / "preprocessor_config.json"
        pixels: dict[str, Any] = json.loads(said.read_text(encoding="utf-8")) if said.exists() else {}
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{name}: no CLIP model in transformers layout: {str(error).splitlines()[0][:200]}") from None
    for module in (vision, text):
        module.requires_grad_(False)
    from sdtune.metrics.looks import CLIP_MEAN, CLIP_STD

    mean, std = tuple(pixels.get("image_mean", CLIP_MEAN)), tuple(pixels.get("image_std", CLIP_STD))
    return Reader(vision, text, tokenizer, int(vision.config.image_size), mean, std, device)


Guide = Annotated[Colour | Text, Field(discriminator="type")]
