"""Stable Diffusion 1.x as a `Model`."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from sdtune.families import chunks, single_file
from sdtune.families.common import UnetModel
from sdtune.families.single_file import Place
from sdtune.model import Cond


class Sd1Model(UnetModel):
    """One text encoder, whose last states the U-Net reads."""

    family, chunkable = "sd1", True
    PARTS: ClassVar = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
    }
    PLACES: ClassVar = {
        "unet": Place("model.diffusion_model.", single_file.unet),
        "vae": Place("first_stage_model.", single_file.vae),
        "text_encoder": Place("cond_stage_model.transformer.", single_file.clip),
    }

    def read_tokens(self, tokens_BEL: Tensor) -> Cond:
        (encoder,) = self.text_encoders
        ids_NL = chunks.apart(tokens_BEL[:, 0].to(self.device), self.chunk_tokens)
        return Cond(chunks.together(encoder(ids_NL).last_hidden_state, len(tokens_BEL)))

    def predict(self, x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        unet: Any = self.denoiser
        prediction: Tensor = unet(
            self.with_mask(x_BCHW, cond.given_BCHW), t_B, cond.states_BLD.to(self.dtype), return_dict=False
        )[0]
        return prediction
