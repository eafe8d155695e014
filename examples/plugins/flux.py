"""A model family of one's own: FLUX.1. docs/extending.md goes through it; a recipe names it: plugins = ["flux.py"].

An example, compared with diffusers' FluxPipeline on a tiny model of the true classes, not on the 12 billion weights themselves. It
does not do: single files, the variants with further inputs (Fill, Control, Kontext, Redux), two prompts for the two encoders.
FLUX.1 [dev] was distilled to know `model.guidance`; draw with sample.guidance = 1, which turns the other kind off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from pydantic import Field
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from sdtune.errors import ModelError
from sdtune.families.common import LatentModel
from sdtune.families.loading import Loaded
from sdtune.families.places import Source
from sdtune.model import Cond, Model


@dataclass(frozen=True, kw_only=True)
class Flux(Source):
    """FLUX.1 [dev] or [schnell]: a diffusers folder or a Hub id."""

    type: Literal["flux"] = "flux"
    path: str = "black-forest-labs/FLUX.1-dev"
    """A folder in diffusers layout, or a Hub id."""
    guidance: Annotated[float, Field(ge=0)] = 3.5
    """How closely to follow the prompt, as the transformer is told, in training too (1 is usual there). [schnell] is not told."""

    title: ClassVar[str] = "FLUX.1"
    classes: ClassVar[tuple[str, ...]] = ("FluxPipeline",)

    def load(self, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Model:
        model = FluxModel.load(self, device=device, dtype=dtype)
        model.guidance = self.guidance
        return model


class FluxModel(LatentModel):
    """A transformer over patches of 2 x 2 latents, which reads T5's states and CLIP's vector."""

    family, denoiser_name, prediction, patch = "flux", "transformer", "flow", 2
    IN_DTYPE = ("transformer", "text_encoder_2")  # T5, which is large
    SIDE = 128  # 1024 pixels
    PARTS: ClassVar = {
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": T5Tokenizer,
    }
    guidance = 3.5

    def __init__(
        self, loaded: Loaded, *, device: torch.device | str = "cpu", dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        super().__init__(loaded, device=device, dtypes=dtypes)
        transformer: Any = self.denoiser
        if transformer.config.in_channels != 4 * self.latent_channels:
            raise ModelError(
                f"{self.source}: the transformer reads {transformer.config.in_channels} channels, not 2 x 2 latents of "
                f"{self.latent_channels}; this is no FLUX.1 that draws from text alone"
            )
        # The way in training, where nothing depends on the picture's size; pictures are drawn along `levels`.
        steps = int(self.schedule.get("num_train_timesteps", 1000))
        sigmas_T = FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps).sigmas.flip(0)
        self.sigmas_T, self.alphas_T = sigmas_T.to(device), (1 - sigmas_T).to(device)

    def levels(self, steps: int, height: int, width: int) -> Sequence[float]:
        """Evenly spread, then leant towards noise: more so for larger pictures, where the model was made so ([dev])."""
        sigmas = [1 - i / steps for i in range(steps)]
        told = self.schedule
        lean = float(told.get("shift", 1.0))
        if told.get("use_dynamic_shifting"):
            few, many = told.get("base_image_seq_len", 256), told.get("max_image_seq_len", 4096)
            least, most = told.get("base_shift", 0.5), told.get("max_shift", 1.15)
            patches = height * width / self.patch**2
            lean = math.exp(least + (most - least) * (patches - few) / (many - few))
        return [lean * sigma / (1 + (lean - 1) * sigma) for sigma in sigmas]

    @property
    def word_parts(self) -> tuple[str, ...]:
        return super().word_parts[:1]  # T5 knows no embedding files

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.max_tokens, min(512, self.tokenizers[1].model_max_length)

    def read_tokens(self, tokens_BEL: Tensor) -> Cond:
        clip, t5 = self.text_encoders
        clip_BL, t5_BL = (ids[:, :n] for ids, n in zip(tokens_BEL.to(self.device).unbind(1), self.lengths, strict=True))
        return Cond(t5(t5_BL)[0], clip(clip_BL).pooler_output)

    def predict(self, x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        transformer: Any = self.denoiser
        assert cond.pooled_BD is not None
        B, C, H, W = x_BCHW.shape
        h, w, (told, vector) = H // 2, W // 2, (c.to(self.dtype) for c in (cond.states_BLD, cond.pooled_BD))
        patches_BLD = x_BCHW.view(B, C, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, 4 * C)
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        places_LK = torch.stack([torch.zeros_like(rows), rows, columns], -1).view(-1, 3).to(x_BCHW)
        guidance_B = torch.full((B,), self.guidance, device=self.device) if transformer.config.guidance_embeds else None
        out_BLD = transformer(
            patches_BLD, told, vector, t_B / len(self.sigmas_T), places_LK, places_LK.new_zeros(told.shape[1], 3), guidance_B,
            return_dict=False,
        )[0]  # fmt: skip
        prediction: Tensor = out_BLD.view(B, h, w, C, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)
        return prediction


FAMILIES = (Flux,)
