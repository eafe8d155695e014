"""SDXL as a `Model`, arXiv:2307.01952."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdtune.errors import ModelError
from sdtune.families import chunks, single_file
from sdtune.families.common import UnetModel
from sdtune.families.loading import Loaded
from sdtune.families.single_file import Place
from sdtune.model import Cond


class SdxlModel(UnetModel):
    """Two text encoders, each read at its last layer but one; the second's vector, and each picture's size and cut."""

    family, sized, chunkable = "sdxl", True, True
    PARTS: ClassVar = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
    }
    PLACES: ClassVar = {
        "unet": Place("model.diffusion_model.", single_file.unet),
        "vae": Place("first_stage_model.", single_file.vae),
        "text_encoder": Place("conditioner.embedders.0.transformer.", single_file.clip),
        "text_encoder_2": Place("conditioner.embedders.1.model.", single_file.open_clip),
    }

    def __init__(
        self, loaded: Loaded, *, device: torch.device | str = "cpu", dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        super().__init__(loaded, device=device, dtypes=dtypes)
        first: Any = self.text_encoders[0]
        last = first.config.num_hidden_layers - 1  # only the second encoder gives a vector
        self.unread = (f"text_encoder.*layers.{last}.*", "text_encoder.*final_layer_norm.*")
        self._zeros_for_empty = bool(loaded.index.get("force_zeros_for_empty_prompt", True))  # diffusers' default, too

    def read_tokens(self, tokens_BEL: Tensor) -> Cond:
        """States side by side, and the second encoder's vector, which of a long prompt is that of its first chunk (kohya's
        scripts, library/strategy_sdxl.py, take it, too). Zeros for the empty prompt, where the model is made so."""
        (B, _, L), size = tokens_BEL.shape, self.chunk_tokens
        pairs = zip(self.text_encoders, tokens_BEL.to(self.device).unbind(1), strict=True)
        first, second = (encoder(chunks.apart(ids_BL, size), output_hidden_states=True) for encoder, ids_BL in pairs)
        states_BLD = chunks.together(torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), B)
        pooled_BD = chunks.first(second.text_embeds, B)
        if self._zeros_for_empty:
            empty_1EL = self.tokenize([""], L // size).to(tokens_BEL.device)
            kept_B = (tokens_BEL != empty_1EL).any(2).any(1).to(states_BLD)
            states_BLD, pooled_BD = states_BLD * kept_B[:, None, None], pooled_BD * kept_B[:, None]
        return Cond(states_BLD, pooled_BD)

    def predict(self, x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        unet: Any = self.denoiser
        assert cond.pooled_BD is not None
        size_BK = self._uncut(x_BCHW) if cond.size_BK is None else cond.size_BK
        added = {"text_embeds": cond.pooled_BD.to(self.dtype), "time_ids": size_BK}
        prediction: Tensor = unet(
            self.with_mask(x_BCHW, cond.given_BCHW),
            t_B,
            cond.states_BLD.to(self.dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return prediction

    def _uncut(self, x_BCHW: Tensor) -> Tensor:
        """Sizes of pictures as large as the latents, uncut: (B, 6)."""
        height, width = (side * self.downscale for side in x_BCHW.shape[2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
        return sizes.to(x_BCHW.device).expand(len(x_BCHW), -1)

    def _reading(self) -> tuple[Any, ...]:
        return ("zeros for the empty prompt", self._zeros_for_empty)

    def _check_unet(self, unet: Any) -> None:
        super()._check_unet(unet)
        second: Any = self.text_encoders[1]
        told = second.config.projection_dim + 6 * (unet.addition_time_embed_dim or 0)
        if unet.addition_embed_type != "text_time" or unet.projection_class_embeddings_input_dim != told:
            raise ModelError(
                f"{self.source}: the U-Net is not told a prompt's vector and six sizes (projection_class_embeddings_input_dim "
                f"{unet.projection_class_embeddings_input_dim}, not {told}); this is no SDXL base"
            )
