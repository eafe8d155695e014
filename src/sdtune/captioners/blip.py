"""BLIP: a sentence, begun by a prompt if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration

from sdtune.captioners import generating, pixels, places
from sdtune.captioners.base import Captioner, Pixels
from sdtune.captioners.config import Blip

SIDE = 384


class BlipCaptioner(Captioner):
    """BlipForConditionalGeneration with its tokenizer."""

    def __init__(self, config: Blip, source: str, model: Any, words: Any, look: pixels.Preprocessor) -> None:
        self.config, self.source, self.model, self.words, self.look = config, source, model, words, look
        self.device, self.precision = str(model.device), str(model.dtype).removeprefix("torch.")

    def prepare(self, image: Image.Image) -> Pixels:
        return self.look(image)

    @torch.inference_mode()
    def caption(self, pictures: Sequence[Pixels]) -> list[str]:
        pixels_BCHW = torch.from_numpy(np.stack(pictures)).to(self.model.device, self.model.dtype)
        begun = {}
        if self.config.prompt:
            found = self.words([self.config.prompt] * len(pictures), return_tensors="pt")
            begun = {k: found[k].to(self.model.device) for k in ("input_ids", "attention_mask")}
        ids_BN = self.model.generate(
            pixel_values=pixels_BCHW,
            max_new_tokens=self.config.max_tokens,
            num_beams=self.config.beams,
            do_sample=False,
            **begun,
        )
        # The first token marks the beginning; BLIP's own tokenizers do not know it.
        found_texts: list[str] = self.words.batch_decode(ids_BN[:, 1:], skip_special_tokens=True)
        return [text.strip() for text in found_texts]


def load(config: Blip, device: str, precision: str) -> Captioner:
    place, dtype = generating.place(device, precision)
    folder, name = places.locate(config)
    model = generating.read(BlipForConditionalGeneration, "blip", folder, name, dtype).to(place)
    return BlipCaptioner(config, name, model, generating.words(folder, name), pixels.read(folder, name, SIDE))
