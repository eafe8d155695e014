"""What the families share of `Model`: diffusers' and transformers' modules behind the few verbs of the trainer."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdtune.emphasis import Piece
from sdtune.errors import ModelError
from sdtune.families import chunks as in_chunks
from sdtune.families import settings
from sdtune.families.attention import processors, suit_to_cpu
from sdtune.families.loading import Loaded, Parts, alphas_cumprod, load_parts, prediction
from sdtune.families.places import Source, UnetSource
from sdtune.families.single_file import Place
from sdtune.model import Cond, Latents, Model, PictureLoss

PIXELS_BACKWARD = 512 * 512
"""Pixels that `LatentModel.judged` decodes at once, if they are of several pictures."""
PIXELS_KEPT = 256 * 256
"""Pixels of a picture from which on it keeps no activations: of 512 x 512 they are some 5 GB in Stable Diffusion's decoder."""
_TOKENIZERS = threading.Lock()
"""A tokenizer cannot be used by two threads at once: batches are made in one, previews drawn in another."""


class LatentModel(Model):
    """See `Model`. Only the denoiser is in `dtype`; the VAE stays fp32 (an fp16 VAE can draw black), text encoders too."""

    PARTS: ClassVar[Parts]
    """The parts to be read, and their classes."""
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Those that a model may lack."""
    IN_DTYPE: ClassVar[tuple[str, ...]] = ("unet",)
    """Those that are not kept in fp32."""
    PLACES: ClassVar[Mapping[str, Place]] = {}
    """Where parts lie in a single file, for a family that has such files (`Source.mark`)."""
    SIDE: ClassVar[int] = 0
    """Latents along a side of the pictures that the family was made for, where the denoiser's settings name no `sample_size`."""

    def __init__(
        self, loaded: Loaded, *, device: torch.device | str = "cpu", dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        self.source, self.source_is_folder, self.schedule = loaded.source, loaded.source_is_folder, loaded.schedule
        self.title = loaded.title
        self.vae = vae = loaded.modules["vae"]
        self.denoiser: nn.Module = loaded.modules[self.denoiser_name]
        self.text_encoders = tuple(m for name, m in loaded.modules.items() if name.startswith("text_encoder"))
        self.tokenizers = loaded.tokenizers
        self._away: tuple[nn.Module, ...] = ()  # those that wait in the computer's memory
        self.downscale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.latent_channels = int(vae.config.latent_channels)
        self.resolution = int(loaded.modules[self.denoiser_name].config.get("sample_size", self.SIDE)) * self.downscale
        for part, module in loaded.modules.items():
            module.requires_grad_(False).eval()
            # diffusers' own `to` warns about parts kept in fp32; these families have none
            nn.Module.to(module, device, (dtypes or {}).get(part, torch.float32))
        # Of the computation: in training the weights may be held in another, and split.
        self._dtype: torch.dtype = next(self.denoiser.parameters()).dtype

    @classmethod
    def load(cls, config: Source, *, device: torch.device | str, dtype: torch.dtype | None) -> Self:
        """Read a diffusers folder, a single file, a Hub id (cache first) or the embedded base. Raises ModelError."""
        dtypes = dict.fromkeys(cls.IN_DTYPE, dtype or torch.float32)
        loaded = load_parts(config, cls.wanted(config), optional=cls.OPTIONAL, places=cls.PLACES, dtypes=dtypes)
        loaded.schedule.update(cls.schedule_of(config))
        return cls(loaded, device=device, dtypes=dtypes)

    @classmethod
    def wanted(cls, config: Source) -> Parts:
        """The parts to be read."""
        return cls.PARTS

    @classmethod
    def schedule_of(cls, config: Source) -> dict[str, Any]:
        """What the config says in place of the model's scheduler settings."""
        return {}

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def unload(self, keep: Collection[str]) -> None:
        encoders = (encoder for part, encoder in self.parts.items() if part not in {*keep, self.denoiser_name})
        self._away = (self.vae, *encoders)
        for module in self._away:
            nn.Module.to(module, "cpu")

    @contextmanager
    def sparing(self, *, tiling: bool, slicing: bool, attention: bool) -> Iterator[None]:
        before, spared = (self.vae.use_tiling, self.vae.use_slicing), list(processors(self.denoiser))
        self.vae.use_tiling, self.vae.use_slicing = tiling, slicing
        for processor in spared:
            processor.by_head = attention
        try:
            yield
        finally:
            self.vae.use_tiling, self.vae.use_slicing = before
            for processor in spared:
                processor.by_head = False

    @contextmanager
    def _at_work(self, *modules: nn.Module) -> Iterator[None]:
        """Inside, those of `modules` that wait elsewhere are on the device."""
        moved = [module for module in modules if any(module is away for away in self._away)]
        for module in moved:
            nn.Module.to(module, self.device)
        try:
            yield
        finally:
            for module in moved:
                nn.Module.to(module, "cpu")

    @torch.no_grad()
    def encode_images(self, pixels_BCHW: Tensor) -> Latents:
        with self._at_work(self.vae):
            posterior = self.vae.encode(pixels_BCHW.to(self.device, torch.float32)).latent_dist
        scale = torch.tensor(self.vae.config.scaling_factor)
        return Latents((posterior.mean - self._shift_factor) * scale, posterior.logvar + 2 * scale.log())

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], chunks: int | None = None) -> Cond:
        with self._at_work(*self.text_encoders):
            return self.read_tokens(self.tokenize(prompts, chunks))

    def weighted_chunks(self, parts: Sequence[Sequence[Piece]]) -> int:
        tokenizers = self._reader([])[0]
        return sum(max(1, math.ceil(len(ids) / (self.chunk_tokens - 2))) for ids in self._weighed(tokenizers[0], parts))

    @torch.no_grad()
    def encode_weighted(self, parts: Sequence[Sequence[Piece]], chunks: int) -> Cond:
        tokenizers, _ = self._reader([])
        rows = [in_chunks.weighted(t, self._weighed(t, parts), self.chunk_tokens, chunks) for t in tokenizers]
        ids_1EL = torch.tensor([[[token for token, _ in row] for row in rows]])
        weights_EL = torch.tensor([[weight for _, weight in row] for row in rows], device=self.device)
        encoders: tuple[Any, ...] = self.text_encoders
        with self._at_work(*encoders):
            cond = self.read_tokens(ids_1EL)
        each = cond.states_BLD.split([e.config.hidden_size for e in encoders], 2)
        weighed = [in_chunks.weigh(x, w_L, self.chunk_tokens) for x, w_L in zip(each, weights_EL, strict=True)]
        return replace(cond, states_BLD=torch.cat(weighed, 2))

    def _weighed(self, tokenizer: Any, parts: Sequence[Sequence[Piece]]) -> list[list[tuple[int, float]]]:
        """Each token of each part, and what it counts."""
        out = []
        for part in parts:
            texts = self._reader([piece.text for piece in part])[1]
            with _TOKENIZERS:
                rows = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
            out.append([(token, p.weight) for p, row in zip(part, rows, strict=True) for token in row])
        return out

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens that each text encoder reads at once."""
        return (self.chunk_tokens,) * len(self.text_encoders)

    def tokenize(self, prompts: Sequence[str], chunks: int | None = None) -> Tensor:
        tokenizers, texts = self._reader(prompts)
        if (count := chunks or self.chunks) > 1:
            with _TOKENIZERS:
                return torch.stack([in_chunks.tokenize(t, texts, self.chunk_tokens, count) for t in tokenizers], 1)
        with _TOKENIZERS:
            rows = [
                tokenizer(texts, padding="max_length", max_length=n, truncation=True, return_tensors="pt").input_ids
                for tokenizer, n in zip(tokenizers, self.lengths, strict=True)
            ]
        return torch.stack([F.pad(ids_BL, (0, max(self.lengths) - ids_BL.shape[1])) for ids_BL in rows], 1)

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        tokenizers, texts = self._reader(prompts)
        with _TOKENIZERS:
            return settings.token_counts(tokenizers[0], texts)

    def _reader(self, prompts: Sequence[str]) -> tuple[tuple[Any, ...], list[str]]:
        """The tokenizers, and `prompts` as they read them: with the words that a method has taught them."""
        if self.new_words is None:
            return self.tokenizers, list(prompts)
        return self.new_words.tokenizers, self.new_words.spell(prompts)

    @property
    def max_tokens(self) -> int:
        return settings.read_in_chunks(self.chunk_tokens, self.chunks)

    @property
    def chunk_tokens(self) -> int:
        """Tokens that the first text encoder reads at once, start and end marks included."""
        encoder: Any = self.text_encoders[0]
        return settings.read_at_once(self.tokenizers[0], encoder.config.max_position_embeddings)

    @abstractmethod
    def read_tokens(self, tokens_BEL: Tensor) -> Cond:
        """What the text encoders make of token ids."""

    @abstractmethod
    def predict(self, x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        """The denoiser's output; its inputs but the time are in its dtype already."""

    def denoise(self, x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        if cond.tokens_BEL is not None:
            cond = Cond(**{**cond.tensors(), **self.read_tokens(cond.tokens_BEL).tensors()})
        return self.predict(x_BCHW.to(self.dtype), t_B, cond)

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        with self._at_work(self.vae):
            return self._decoded(latents_BCHW).clamp(-1, 1)

    def _decoded(self, latents_BCHW: Tensor) -> Tensor:
        pixels: Tensor = self.vae.decode(
            latents_BCHW.float() / self.vae.config.scaling_factor + self._shift_factor
        ).sample
        return pixels

    def judged(self, latents_BCHW: Tensor, loss: PictureLoss) -> tuple[Tensor, Tensor]:
        """A few pictures at a time, and of large ones the decoder's blocks are computed again in the backward pass."""
        pixels = latents_BCHW[0, 0].numel() * self.downscale**2
        rows, vae = max(1, PIXELS_BACKWARD // pixels), self.vae
        again = pixels > PIXELS_KEPT and hasattr(vae, "enable_gradient_checkpointing")
        losses, gradients = list[Tensor](), list[Tensor]()
        with self._at_work(vae), torch.enable_grad():
            if again:
                vae.enable_gradient_checkpointing()
            try:
                for some_BCHW in latents_BCHW.detach().float().split(rows):
                    some_BCHW = some_BCHW.requires_grad_()
                    loss_B = loss(self._decoded(some_BCHW))
                    gradients += torch.autograd.grad(loss_B.sum(), some_BCHW)
                    losses.append(loss_B.detach())
            finally:
                if again:
                    vae.disable_gradient_checkpointing()
        return torch.cat(losses), torch.cat(gradients)

    @property
    def _shift_factor(self) -> float:
        return float(self.vae.config.get("shift_factor") or 0)

    @cached_property
    def vae_fingerprint(self) -> str:
        return _fingerprint([_settings(dict(self.vae.config))], [self.vae])

    @cached_property
    def text_fingerprint(self) -> str:
        encoders: tuple[Any, ...] = self.text_encoders
        words = [_words(tokenizer) for tokenizer in self.tokenizers]
        said = [_settings(encoder.config.to_dict()) for encoder in encoders]
        return _fingerprint([*words, self.chunk_tokens, said, *self._reading()], encoders)

    def _reading(self) -> tuple[Any, ...]:
        """What else `encode_prompts` depends on."""
        return ()

    def save_denoiser(self, folder: object) -> None:
        self.denoiser.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a part's settings its output depends on."""
    return {k: v for k, v in config.items() if not k.startswith("_") and k != "transformers_version"}


def _words(tokenizer: Any) -> str:
    """A tokenizer's own text of itself, without how its last call cut and padded."""
    rules = {**json.loads(tokenizer.backend_tokenizer.to_str()), "truncation": None, "padding": None}
    return json.dumps(rules, separators=(",", ":"), ensure_ascii=False)


def _fingerprint(said: Sequence[Any], parts: Sequence[nn.Module]) -> str:
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for part in parts:
        for name, value in part.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class UnetModel(LatentModel):
    """A U-Net that predicts the noise or v."""

    def __init__(
        self, loaded: Loaded, *, device: torch.device | str = "cpu", dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        super().__init__(loaded, device=device, dtypes=dtypes)
        unet: Any = self.denoiser
        self._check_unet(unet.config)
        self.inpaints, self._blanks = unet.config.in_channels != self.latent_channels, dict[tuple[int, ...], Tensor]()
        self.prediction = prediction(self.schedule, self.source)
        alphas_cumprod_T = alphas_cumprod(self.schedule)
        if self.prediction == "epsilon" and float(alphas_cumprod_T[-1]) == 0:
            raise ModelError(
                f"{self.source}: the last timestep is pure noise (zero terminal SNR), from which a model that predicts the "
                'noise learns nothing; set model.prediction="v", or model.zero_snr=false'
            )
        self.alphas_T = alphas_cumprod_T.sqrt().to(device)
        self.sigmas_T = (1 - alphas_cumprod_T).sqrt().to(device)
        if unet.device.type == "cpu":
            suit_to_cpu(unet)

    @classmethod
    def schedule_of(cls, config: Source) -> dict[str, Any]:
        assert isinstance(config, UnetSource)
        kind = {"epsilon": "epsilon", "v": "v_prediction", None: None}[config.prediction]
        said = {"prediction_type": kind, "rescale_betas_zero_snr": config.zero_snr}
        return {key: value for key, value in said.items() if value is not None}

    def _check_unet(self, unet: Any) -> None:
        encoders: tuple[Any, ...] = self.text_encoders
        given = sum(e.config.hidden_size for e in encoders)
        if unet.cross_attention_dim != given:
            raise ModelError(
                f"{self.source}: the U-Net expects text states of width {unet.cross_attention_dim}, the text encoder gives "
                f"{given}; this is no {self.title}"
            )
        if unet.in_channels not in (self.latent_channels, 2 * self.latent_channels + 1):
            raise ModelError(
                f"{self.source}: the U-Net has {unet.in_channels} input channels; supported are {self.latent_channels}, and "
                f"{2 * self.latent_channels + 1} for inpainting"
            )

    def with_mask(self, x_BCHW: Tensor, given_BCHW: Tensor | None) -> Tensor:
        """What the U-Net reads. Inpainting variants also get a mask and the latents of what it leaves of the picture, as in
        diffusers' inpainting; where none is given the mask covers the whole picture, so that nothing (grey) is left."""
        if not self.inpaints:
            return x_BCHW
        if given_BCHW is not None:
            return torch.cat([x_BCHW, given_BCHW.to(x_BCHW)], 1)
        (B, _, H, W), side = x_BCHW.shape, self.downscale
        if (H, W) not in self._blanks:
            self._blanks[H, W] = self.encode_images(x_BCHW.new_zeros(1, 3, H * side, W * side)).mean_BCHW
        blank = self._blanks[H, W].to(x_BCHW).expand(B, -1, -1, -1)
        return torch.cat([x_BCHW, x_BCHW.new_ones(B, 1, H, W), blank], 1)
