"""Stable Diffusion 1.x as a `Model`: diffusers' and transformers' modules behind the few verbs of the trainer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from sdtune.errors import ModelError
from sdtune.families.attention import BmmAttention
from sdtune.model import Cond, Latents, Model, Prediction

if TYPE_CHECKING:
    from sdtune.families.sd1 import Sd1

# The only classes that a model_index.json of this family may name: a file from a stranger chooses no code to run.
ALLOWED = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}
PARTS = (*ALLOWED, "scheduler")


class Sd1Model(Model):
    """See `Model`. Only the denoiser is in `dtype`; VAE and text encoder stay fp32 (an fp16 VAE can draw black)."""

    family = "sd1"

    def __init__(
        self,
        *,
        source: str,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        schedule: dict[str, Any],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.source, self.vae, self.text_encoder, self.tokenizer, self.schedule = (
            source,
            vae,
            text_encoder,
            tokenizer,
            schedule,
        )
        self.source_is_folder = source != "embedded" and "@" not in source
        self.denoiser: nn.Module = unet
        self.text_encoders: tuple[nn.Module, ...] = (text_encoder,)
        self.prediction: Prediction = _prediction(schedule, source)
        alphas_cumprod_T = _alphas_cumprod(schedule)
        self.alphas_T = alphas_cumprod_T.sqrt().to(device)
        self.sigmas_T = (1 - alphas_cumprod_T).sqrt().to(device)
        self.downscale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.latent_channels = int(vae.config.latent_channels)
        self.resolution = int(unet.config.sample_size) * self.downscale
        for part in (unet, vae, text_encoder):
            part.requires_grad_(False).eval()
        for part, its_dtype in ((vae, torch.float32), (text_encoder, torch.float32), (unet, dtype or torch.float32)):
            nn.Module.to(
                part, device, its_dtype
            )  # diffusers' own `to` warns about parts kept in fp32; this family has none
        if unet.device.type == "cpu":
            unet.set_attn_processor(BmmAttention())

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype

    @torch.no_grad()
    def encode_images(self, pixels_BCHW: Tensor) -> Latents:
        posterior = self.vae.encode(pixels_BCHW.to(self.device, torch.float32)).latent_dist
        scale = torch.tensor(self.vae.config.scaling_factor)
        return Latents(posterior.mean * scale, posterior.logvar + 2 * scale.log())

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Cond:
        return self._read(self.tokenize(prompts))

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        ids_BL: Tensor = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        ).input_ids
        return ids_BL[:, None]

    def _read(self, tokens_BEL: Tensor) -> Cond:
        return Cond(self.text_encoder(tokens_BEL[:, 0].to(self.device)).last_hidden_state)

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(list(prompts), truncation=False, verbose=False).input_ids]

    @property
    def max_tokens(self) -> int:
        return int(min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings))

    def denoise(self, x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        if cond.tokens_BEL is not None:
            cond = self._read(cond.tokens_BEL)
        prediction: Tensor = self.denoiser(
            x_BCHW.to(self.dtype), t_B, cond.states_BLD.to(self.dtype), return_dict=False
        )[0]
        return prediction

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        pixels: Tensor = self.vae.decode(latents_BCHW.float() / self.vae.config.scaling_factor).sample
        return pixels.clamp(-1, 1)

    @cached_property
    def fingerprint(self) -> str:
        configs = (self.text_encoder.config.to_dict(), dict(self.vae.config))
        settings = [
            {k: v for k, v in c.items() if not k.startswith("_") and k != "transformers_version"} for c in configs
        ]
        text = json.dumps(
            [self.tokenizer.backend_tokenizer.to_str(), self.max_tokens, settings], sort_keys=True, default=str
        )
        digest = hashlib.sha256(text.encode())
        for part in (self.vae, self.text_encoder):
            for name, value in part.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def save_denoiser(self, folder: object) -> None:
        self.denoiser.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]


def load_sd1(config: Sd1, *, device: torch.device | str, dtype: torch.dtype | None) -> Sd1Model:
    """Read a diffusers folder, a Hub id (cache first) or the embedded base. Raises ModelError."""
    folder, source = _folder(config)
    _check_index(folder, source)
    transformers.utils.logging.disable_progress_bar()
    try:
        unet = UNet2DConditionModel.from_pretrained(
            folder, subfolder="unet", variant=config.variant, dtype=torch.float32, use_safetensors=True
        )
        vae = AutoencoderKL.from_pretrained(
            folder, subfolder="vae", variant=config.variant, dtype=torch.float32, use_safetensors=True
        )
        text_encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", variant=config.variant, dtype=torch.float32, use_safetensors=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{source}: cannot be read as Stable Diffusion 1.x: {str(error).splitlines()[0]}") from error
    _check_finite(source, unet=unet, vae=vae, text_encoder=text_encoder)
    if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
        raise ModelError(
            f"{source}: the U-Net expects text states of width {unet.config.cross_attention_dim}, the text encoder gives "
            f"{text_encoder.config.hidden_size}; this is no Stable Diffusion 1.x"
        )
    schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return Sd1Model(
        source=source, unet=unet, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, schedule=schedule,
        device=device, dtype=dtype,
    )  # fmt: skip


def _folder(config: Sd1) -> tuple[Path, str]:
    """The local folder of the model, and its name for messages and records."""
    if config.path == "embedded":
        return Path(str(resources.files("sdtune") / "demo" / "base")), "embedded"
    if (folder := Path(config.path).expanduser()).is_dir():
        return folder, str(config.path)
    if folder.suffix in (".ckpt", ".bin", ".pt", ".pth"):
        raise ModelError(
            f"{config.path}: pickled checkpoints are not opened; convert it to safetensors with diffusers, apart"
        )
    if folder.exists() or config.path.startswith((".", "/", "~")) or config.path.count("/") != 1:
        raise ModelError(
            f'{config.path}: no such folder in diffusers layout; give a folder, a Hub id (owner/name), or "embedded"'
        )
    return _hub_folder(config)


def _hub_folder(config: Sd1) -> tuple[Path, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["model_index.json", *(f"{p}/{kind}" for p in PARTS for kind in ("*.json", "*.safetensors", "*.txt"))]
    try:
        found = Path(
            snapshot_download(
                config.path, revision=config.revision, allow_patterns=patterns, local_files_only=not config.download
            )
        )
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{config.path}: neither a folder nor in the local Hub cache; set model.download=true to fetch it "
            "(HF_TOKEN for gated models, HF_HOME for the cache's place)"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"{config.path}: cannot be fetched from the Hub: {str(error).splitlines()[0]}") from error
    return found, f"{config.path}@{found.name}"


def _check_index(folder: Path, source: str) -> None:
    """Refuse a folder that lacks a part, or that names other classes than this family's."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except OSError:
        raise ModelError(f"{source}: no model_index.json; this is not a model folder in diffusers layout") from None
    except ValueError as error:
        raise ModelError(f"{source}: model_index.json is not JSON: {error}") from None
    for part in PARTS:
        if not (folder / part).is_dir():
            raise ModelError(f"{source}: the folder {part}/ is missing")
    for part, expected in ALLOWED.items():
        named = index.get(part)
        if not (isinstance(named, list) and len(named) == 2 and named[1] in (expected, expected + "Fast")):
            raise ModelError(f"{source}: model_index.json names {named!r} as {part}; sd1 needs {expected}")
    if "text_encoder_2" in index:
        raise ModelError(f"{source}: has two text encoders (SDXL); sd1 reads Stable Diffusion 1.x")


def _check_finite(source: str, **parts: nn.Module) -> None:
    for part, module in parts.items():
        for name, value in module.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ModelError(f"{source}: {part}: {name} holds NaN or infinity; the file is damaged")


def _prediction(schedule: dict[str, Any], source: str) -> Prediction:
    kind = schedule.get("prediction_type", "epsilon")
    known: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v"}
    if kind not in known:
        raise ModelError(
            f"{source}: scheduler/scheduler_config.json: prediction_type {kind!r} is not supported; known: epsilon, v_prediction"
        )
    return known[kind]


def _alphas_cumprod(schedule: dict[str, Any]) -> Tensor:
    """The cumulative product of 1 - beta over the training timesteps, shape (T,), by diffusers' own schedule."""
    from diffusers import DDPMScheduler

    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    alphas: Tensor = DDPMScheduler(**{k: schedule[k] for k in keys if schedule.get(k) is not None}).alphas_cumprod
    return alphas
