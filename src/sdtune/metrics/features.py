"""The shipped scorer: an image encoder whose embeddings live in the space of the base model's text encoder.

It was trained on the embedded base's own domain (drawings at 64 x 64, in several styles). On photographs or at other
scales its numbers mean little: other base models are looked at by published encoders (panel.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdtune.errors import EvaluationError
from sdtune.metrics.vectors import unit

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import CLIPTokenizer

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scorer:
    """Features are the class token after the last layer and its layer norm; float32 arithmetic, returned as float64."""

    vision: Any  # CLIPVisionModelWithProjection; transformers is untyped
    text: nn.Module
    tokenizer: CLIPTokenizer
    side: int
    fingerprint: str
    folder: Path | None = None
    """Where what was seen is kept, by content; None keeps nothing."""
    """sha256 of the image encoder's weight file."""

    title = "the scorer that comes with sdtune"

    def records(self) -> list[dict[str, Any]]:
        """What a result must say of it."""
        return [{"encoder": "shipped", "title": self.title, "fingerprint": self.fingerprint}]

    @staticmethod
    def load(folder: Path | None = None, *, text: Path | None = None, tokenizer: Path | None = None) -> Scorer:
        """The packaged scorer, or one from transformers folders. Raises EvaluationError if a file is missing or does not fit."""
        from transformers import (
            CLIPTextConfig,
            CLIPTextModel,
            CLIPTokenizer,
            CLIPVisionConfig,
            CLIPVisionModelWithProjection,
        )

        demo = Path(str(resources.files("sdtune") / "demo"))
        folder, text, tokenizer = (
            folder or demo / "scorer",
            text or demo / "base/text_encoder",
            tokenizer or demo / "base/tokenizer",
        )
        if not (tokenizer / "vocab.json").exists() and not (tokenizer / "tokenizer.json").exists():
            raise EvaluationError(f"{tokenizer}: no tokenizer there; reinstall sdtune, its scorer is incomplete")
        vision_config = CLIPVisionConfig(**_config(folder))
        vision = _filled(CLIPVisionModelWithProjection(vision_config), folder)
        words = _filled(CLIPTextModel(CLIPTextConfig(**_config(text))), text)
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        tok = CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True)
        return Scorer(vision, words, tok, int(vision_config.image_size), digest)

    def features(self, images: Iterable[Image.Image]) -> Array:
        """Pooled features of the pictures, (N, D): what KID, the Frechet distance and nearest pictures are taken on."""
        return self.see(images)[0]

    def embeds(self, images: Iterable[Image.Image]) -> Array:
        """Unit-length embeddings of the pictures in the text space, (N, E)."""
        return self.see(images)[1]

    def see(self, images: Iterable[Image.Image]) -> tuple[Array, Array]:
        """`features` and `embeds` in one pass; pictures that were seen before are not looked at again (`folder`)."""
        from sdtune.metrics import cache, encoders

        rows_NF = cache.features(encoders.ShippedEncoder(self, whole=True), images, folder=self.folder)
        return rows_NF[:, : self.dimension], rows_NF[:, self.dimension :]

    def look(self, pixels_BCHW: NDArray[np.float32]) -> Array:
        """`features` and, beside them, `embeds` of prepared pictures, (B, D + E)."""
        import torch

        with torch.inference_mode():
            out = self.vision(pixel_values=torch.from_numpy(pixels_BCHW))
            features: Tensor = self.vision.vision_model.post_layernorm(out.last_hidden_state[:, 0])
        return np.concatenate([features.double().numpy(), unit(out.image_embeds.double().numpy())], axis=1)

    @property
    def dimension(self) -> int:
        """D, of `features`."""
        return int(self.vision.config.hidden_size)

    def texts(self, prompts: Sequence[str]) -> Array:
        """Unit-length embeddings of the prompts, (N, E)."""
        import torch

        tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        with torch.inference_mode():
            return unit(self.text(tokens.input_ids).pooler_output.double().numpy())

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """RGB in [-1, 1], (3, side, side). Larger pictures are reduced by area, smaller ones enlarged bicubically."""
        rgb = image.convert("RGB")
        if rgb.size != (self.side, self.side):
            shrink = min(rgb.size) >= self.side
            rgb = rgb.resize((self.side, self.side), Image.Resampling.BOX if shrink else Image.Resampling.BICUBIC)
        return np.ascontiguousarray((np.asarray(rgb, np.float32) / 127.5 - 1).transpose(2, 0, 1))


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{folder}: no scorer there ({type(error).__name__}); reinstall sdtune, its scorer is incomplete"
        ) from None
    return {
        k: v
        for k, v in config.items()
        if k not in ("architectures", "dtype", "torch_dtype", "transformers_version", "model_type")
    }


def _filled(model: Any, folder: Path) -> nn.Module:
    """The model with the weights of `folder`, in float32 and evaluation mode."""
    from safetensors.torch import load_file

    try:
        weights = {
            k: v.float() for k, v in load_file(folder / "model.safetensors").items() if not k.endswith("position_ids")
        }
        model.load_state_dict(weights)
    except (OSError, RuntimeError) as error:
        raise EvaluationError(
            f"{folder}/model.safetensors: does not fit its config.json: {str(error).splitlines()[0]}"
        ) from None
    filled: nn.Module = model.eval().requires_grad_(False)
    return filled
