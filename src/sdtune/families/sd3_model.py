"""Stable Diffusion 3.x as a `Model`, arXiv:2403.03206."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from sdtune.errors import ModelError
from sdtune.families import single_file
from sdtune.families.common import LatentModel
from sdtune.families.loading import Loaded, Parts
from sdtune.families.places import Source
from sdtune.families.sd3 import Sd3
from sdtune.families.single_file import Place
from sdtune.model import Cond

T5_TOKENS = 256
"""As diffusers' pipeline reads."""


class Sd3Model(LatentModel):
    """Two CLIP encoders side by side, each read at its last layer but one, then T5's states; both CLIP vectors."""

    family, denoiser_name, prediction = "sd3", "transformer", "flow"
    OPTIONAL = ("text_encoder_3", "tokenizer_3")
    IN_DTYPE = ("transformer", "text_encoder_3")  # T5 is by far the largest part
    PARTS: ClassVar = {
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5Tokenizer,
    }
    PLACES: ClassVar = {
        "transformer": Place("model.diffusion_model.", single_file.transformer),
        "vae": Place("first_stage_model.", single_file.vae),
        "text_encoder": Place("text_encoders.clip_l.transformer.", single_file.clip_of_sd3),
        "text_encoder_2": Place("text_encoders.clip_g.transformer.", single_file.clip),
        "text_encoder_3": Place("text_encoders.t5xxl.transformer.", single_file.t5),
    }

    def __init__(
        self, loaded: Loaded, *, device: torch.device | str = "cpu", dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        super().__init__(loaded, device=device, dtypes=dtypes)
        transformer: Any = self.denoiser
        self.patch = int(transformer.config.patch_size)
        self._check(transformer.config)
        last = transformer.config.num_layers - 1  # of its output only the picture's part is used
        self.unread = (f"transformer.transformer_blocks.{last}.attn.add_q_proj*",)
        self.shift = float(self.schedule.get("shift", 1.0))
        steps = int(self.schedule.get("num_train_timesteps", 1000))
        sigmas_T = FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps, shift=self.shift).sigmas.flip(0)
        self.sigmas_T, self.alphas_T = sigmas_T.to(device), (1 - sigmas_T).to(device)

    @classmethod
    def wanted(cls, config: Source) -> Parts:
        assert isinstance(config, Sd3)
        return {part: name for part, name in cls.PARTS.items() if config.t5 or part not in cls.OPTIONAL}

    def _check(self, transformer: Any) -> None:
        if self.schedule.get("use_dynamic_shifting"):
            raise ModelError(f"{self.source}: a noise schedule that depends on the picture's size is not supported")
        encoders: tuple[Any, ...] = self.text_encoders
        given = sum(e.config.projection_dim for e in encoders[:2])
        if transformer.pooled_projection_dim != given:
            raise ModelError(
                f"{self.source}: the transformer expects a text vector of width {transformer.pooled_projection_dim}, the "
                f"text encoders give {given}; this is no Stable Diffusion 3.x"
            )

    @property
    def word_parts(self) -> tuple[str, ...]:
        return super().word_parts[:2]  # T5 knows no embedding files

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self.max_tokens, self.max_tokens, T5_TOKENS)[: len(self.text_encoders)]

    def read_tokens(self, tokens_BEL: Tensor) -> Cond:
        """CLIP's states; T5's after them, where it is there. The zeros that fill both up are added in `predict`."""
        clip_l, clip_g, *t5 = self.text_encoders
        ids = [row_BL[:, :n] for row_BL, n in zip(tokens_BEL.to(self.device).unbind(1), self.lengths, strict=True)]
        first, second = (e(i, output_hidden_states=True) for e, i in zip((clip_l, clip_g), ids[:2], strict=True))
        states_BLD = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        for encoder, ids_BL in zip(t5, ids[2:], strict=True):
            t5_BLD = encoder(ids_BL)[0].to(states_BLD)
            states_BLD = torch.cat([F.pad(states_BLD, (0, t5_BLD.shape[-1] - states_BLD.shape[-1])), t5_BLD], 1)
        return Cond(states_BLD, torch.cat([first.text_embeds, second.text_embeds], -1))

    def predict(self, x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        transformer: Any = self.denoiser
        assert cond.pooled_BD is not None
        _, tokens, width = cond.states_BLD.shape
        lacking = transformer.config.joint_attention_dim - width, self.max_tokens + T5_TOKENS - tokens
        states_BLD = F.pad(cond.states_BLD, (0, lacking[0], 0, lacking[1]))
        prediction: Tensor = transformer(
            x_BCHW, states_BLD.to(self.dtype), cond.pooled_BD.to(self.dtype), t_B, return_dict=False
        )[0]
        return prediction
