"""Florence-2 in transformers' own classes: the picture's tokens, then the sentence that its task stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from sdtune.captioners import generating, pixels, places
from sdtune.captioners.base import Captioner, Pixels
from sdtune.captioners.config import TASKS, Florence2
from sdtune.errors import ModelError

SIDE = 768


class Florence2Captioner(Captioner):
    """Florence2ForConditionalGeneration with its tokenizer."""

    def __init__(self, config: Florence2, source: str, model: Any, words: Any, look: pixels.Preprocessor) -> None:
        self.config, self.source, self.model, self.words, self.look = config, source, model, words, look
        self.device, self.precision = str(model.device), str(model.dtype).removeprefix("torch.")
        self._picture_tokens: dict[tuple[int, ...], int] = {}

    def prepare(self, image: Image.Image) -> Pixels:
        return self.look(image)

    @torch.inference_mode()
    def caption(self, pictures: Sequence[Pixels]) -> list[str]:
        pixels_BCHW = torch.from_numpy(np.stack(pictures)).to(self.model.device, self.model.dtype)
        ids_BN = self.prompt_ids(pixels_BCHW)
        made_BM = self.model.generate(
            input_ids=ids_BN,
            attention_mask=torch.ones_like(ids_BN),
            pixel_values=pixels_BCHW,
            max_new_tokens=self.config.max_tokens,
            num_beams=self.config.beams,
            do_sample=False,
        )
        texts: list[str] = self.words.batch_decode(made_BM, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def prompt_ids(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """A place for each of the picture's tokens, then <s>, the task's sentence, </s>: (B, N)."""
        text = f"{self.words.bos_token}{TASKS[self.config.task]}{self.words.eos_token}"
        sentence = self.words(text, add_special_tokens=False)["input_ids"]
        places_of = [self.model.config.image_token_id] * self._tokens_of(pixels_BCHW)
        ids_N = torch.tensor([*places_of, *sentence], device=self.model.device)
        return ids_N.expand(len(pixels_BCHW), -1).contiguous()

    def _tokens_of(self, pixels_BCHW: torch.Tensor) -> int:
        """How many tokens the model makes of a picture of this size: asked of itself, once."""
        size = tuple(pixels_BCHW.shape[1:])
        if size not in self._picture_tokens:
            self._picture_tokens[size] = self.model.get_image_features(pixels_BCHW[:1]).pooler_output.shape[1]
        return self._picture_tokens[size]


def load(config: Florence2, device: str, precision: str) -> Captioner:
    try:
        from transformers import Florence2ForConditionalGeneration
    except ImportError:
        raise ModelError("florence2: this transformers has no Florence-2 of its own; install a newer one") from None
    place, dtype = generating.place(device, precision)
    folder, name = places.locate(config)
    model = generating.read(Florence2ForConditionalGeneration, "florence2", folder, name, dtype).to(place)
    return Florence2Captioner(config, name, model, generating.words(folder, name), pixels.read(folder, name, SIDE))
