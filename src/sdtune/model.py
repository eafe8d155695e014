"""What the trainer and the sampler know of a model family, and nothing more."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from sdtune.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sdtune.emphasis import Piece
    from sdtune.words import NewWords

Prediction = Literal["epsilon", "v", "flow"]
"""What the denoiser returns: the noise, v = alpha * noise - sigma * x0 (arXiv:2202.00512, appendix D), or the flow
noise - x0 along the straight way between them, alpha = 1 - sigma (arXiv:2210.02747)."""


@dataclass(frozen=True)
class Cond:
    """What the denoiser is told beside the noisy latents. A row is one picture's; a field that a family does not use is None."""

    states_BLD: Tensor
    """Text states, (B, tokens, width)."""
    pooled_BD: Tensor | None = None
    """One vector for the whole prompt (SDXL, SD3)."""
    size_BK: Tensor | None = None
    """SDXL: height and width of the picture before it was cut, top and left of the cut, height and width after it, in pixels.
    None means: not cut, and as large as the latents say."""
    tokens_BEL: Tensor | None = None
    """Token ids for each text encoder, (B, encoders, tokens): set where text encoders are trained. `denoise` then reads them
    anew, with gradients, and does not look at `states_BLD` and `pooled_BD`."""

    given_BCHW: Tensor | None = None
    """Inpainting variants: where to paint (1 there, one channel), and the latents of what is left of the picture. None: paint all."""

    def __getitem__(self, index: slice | Tensor) -> Cond:
        return self._each(lambda field: field[index])

    def __len__(self) -> int:
        return len(self.states_BLD)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Cond:
        """`dtype` is for what is not a whole number."""
        return self._each(lambda field: field.to(device, dtype if field.is_floating_point() else None))

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are set, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    @staticmethod
    def cat(parts: Sequence[Cond]) -> Cond:
        """Rows of several, which must have the same fields."""
        import torch

        return Cond(**{name: torch.cat([p.tensors()[name] for p in parts]) for name in parts[0].tensors()})

    def _each(self, change: Callable[[Tensor], Tensor]) -> Cond:
        return Cond(**{name: change(value) for name, value in self.tensors().items()})


@dataclass(frozen=True)
class Latents:
    """The encoder's normal distribution, already multiplied by the model's scaling factor. Both (B, C, H, W)."""

    mean_BCHW: Tensor
    logvar_BCHW: Tensor

    def sample(self, rng: torch.Generator) -> Tensor:
        import torch

        noise = torch.randn(self.mean_BCHW.shape, generator=rng).to(self.mean_BCHW)
        return self.mean_BCHW + (0.5 * self.logvar_BCHW).exp() * noise


PictureLoss = Callable[["Tensor"], "Tensor"]
"""(pixels (B, 3, H, W), about -1 to 1) -> what is wrong with each picture, (B,), 0 being best; torch can differentiate it."""

Denoise = Callable[["Tensor", "Tensor", Cond], "Tensor"]
"""(noisy latents (B, C, H, W), times (B,), cond) -> prediction (B, C, H, W)."""


@dataclass(frozen=True)
class Teacher:
    """The model as it was before training, for objectives that learn from it."""

    denoise: Denoise
    """Without gradients."""
    module: nn.Module
    """The denoiser that this computes with."""


class Model(ABC):
    """A text-to-image diffusion model: a denoiser and the frozen parts around it. Methods may train text encoders, too.

    `alphas_T` and `sigmas_T` hold, for each of the T training timesteps, the factors in x_t = alpha_t x_0 + sigma_t noise.
    """

    family: str
    source: str
    """Where it was loaded from, for messages: a folder or file, a Hub id with its revision, or "embedded"."""
    source_is_folder: bool
    """Or a file."""
    denoiser: nn.Module
    text_encoders: tuple[nn.Module, ...]
    alphas_T: Tensor
    sigmas_T: Tensor
    prediction: Prediction
    resolution: int
    """Side in pixels of the pictures that it was made for."""
    downscale: int
    """Pixels per latent, along one side."""
    latent_channels: int
    patch: int = 1
    """Latents that the denoiser takes together, along one side."""
    tokenizers: tuple[Any, ...]
    """One for each text encoder, as they came."""
    new_words: NewWords | None = None
    """What a method has taught the model, where it did: `tokenize` reads with it."""
    unread: tuple[str, ...] = ()
    """Patterns of the names (`<part>.<layer>`) of layers whose output nothing depends on: there is nothing to train."""
    original: nn.Module | None = None
    """The denoiser as it was loaded, while a method has put another one in its place."""
    shift: float = 1.0
    """Of flow models: how far their steps lean towards noise, arXiv:2403.03206, section 5.3.2."""
    _chunks: int = 1

    denoiser_name = "unet"
    """The denoiser's name in diffusers' folders and in adapter files."""
    inpaints = False
    """Whether the denoiser is told where to paint, and what is left of the picture (`Cond.given_BCHW`)."""
    chunkable = False
    """Whether prompts may be read in several chunks (`chunks`)."""
    sized = False
    """Whether the denoiser is told each picture's size and cut (`Cond.size_BK`)."""

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What can be trained, by the names of diffusers' folders: the denoiser, `text_encoder`, `text_encoder_2`, ..."""
        encoders = {f"text_encoder{f'_{i}' if i > 1 else ''}": e for i, e in enumerate(self.text_encoders, 1)}
        return {self.denoiser_name: self.denoiser, **encoders}

    @property
    def chunks(self) -> int:
        """So many chunks of tokens are read of a prompt, one after the other (`data.caption_chunks`); what is beyond is cut."""
        return self._chunks

    @chunks.setter
    def chunks(self, count: int) -> None:
        if count > 1 and not self.chunkable:
            raise ConfigError(
                f"data.caption_chunks: {self.family} does not read prompts in chunks, only {self.max_tokens} tokens at once; "
                "set it to 1"
            )
        self._chunks = count

    def chunks_for(self, prompts: Sequence[str]) -> int:
        """So many that nothing of `prompts` is cut, at least `chunks`. 1 for a model that is not `chunkable`."""
        room = (self.max_tokens - 2) // self.chunks
        longest = max(self.token_counts(prompts)) if self.chunkable else 0
        return max(self.chunks, math.ceil((longest - 2) / room))

    def weighted_chunks(self, parts: Sequence[Sequence[Piece]]) -> int:
        """So many that nothing is cut of a prompt with weights (`emphasis.parse`). Of models that are `chunkable`."""
        raise NotImplementedError

    def encode_weighted(self, parts: Sequence[Sequence[Piece]], chunks: int) -> Cond:
        """One prompt with weights as the text encoders read it, without gradients: one row. Of models that are `chunkable`."""
        raise NotImplementedError

    @property
    def word_parts(self) -> tuple[str, ...]:
        """The text encoders that can learn new words, in the order of their tokenizers."""
        return tuple(part for part in self.parts if part != self.denoiser_name)

    @property
    def grid(self) -> int:
        """Sides of pictures, in pixels, are multiples of this."""
        return self.downscale * self.patch

    @property
    def label(self) -> str:
        """`source` for records that travel (PNG, adapter files): a folder's own name, without the path to it."""
        return PurePath(self.source).name if self.source_is_folder else self.source

    def levels(self, steps: int, height: int, width: int) -> Sequence[float] | None:
        """Of flow models: the sigma at which each of `steps` begins, from noise to picture, for latents of this size.
        None: spread evenly over the timesteps, then leant by `shift`."""
        return None

    def noise_at(self, time: float) -> tuple[float, float]:
        """alpha and sigma at a sampler's time, as `denoise` takes it."""
        return noise_at(self.prediction, self.alphas_T, self.sigmas_T, time)

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the denoiser's computation."""

    @abstractmethod
    def encode_images(self, pixels_BCHW: Tensor) -> Latents:
        """Pixels in [-1, 1], (B, 3, H, W), to the latents' distribution."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], chunks: int | None = None) -> Cond:
        """Prompts as the text encoders read them, without gradients; in so many chunks, `self.chunks` if unset."""

    @abstractmethod
    def tokenize(self, prompts: Sequence[str], chunks: int | None = None) -> Tensor:
        """Token ids for each text encoder, cut and padded: (B, encoders, tokens), on the CPU. `chunks` as in `encode_prompts`."""

    @abstractmethod
    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt, marks included, before anything is cut."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Tokens that the text encoder reads, start and end marks included."""

    @abstractmethod
    def denoise(self, x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        """The denoiser's prediction for noisy latents at times `t_B`: training timesteps, or sigma * T of a flow."""

    @abstractmethod
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Latents to pixels in [-1, 1], (B, 3, H, W)."""

    @abstractmethod
    def judged(self, latents_BCHW: Tensor, loss: PictureLoss) -> tuple[Tensor, Tensor]:
        """`loss` of the pictures that `latents_BCHW` decode to, (B,), and its gradient by the latents, (B, C, H, W).

        The pixels are not cut to [-1, 1]: beyond it there would be no gradient."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that pictures and captions pass through."""
        return hashlib.sha256((self.vae_fingerprint + self.text_fingerprint).encode()).hexdigest()

    @property
    @abstractmethod
    def vae_fingerprint(self) -> str:
        """A hash of the weights and settings that pictures pass through: keys the cache."""

    @property
    @abstractmethod
    def text_fingerprint(self) -> str:
        """A hash of the text encoders' weights and settings, and of the tokenizers: keys the cache."""

    @abstractmethod
    def unload(self, keep: Collection[str]) -> None:
        """Let what the denoiser does not need wait in the computer's memory; it comes when it is asked for. Not the parts `keep`."""

    @abstractmethod
    def sparing(self, *, tiling: bool, slicing: bool, attention: bool) -> AbstractContextManager[None]:
        """Inside, drawing takes less memory: the VAE works in tiles, picture by picture, the denoiser's attention head by head."""

    @abstractmethod
    def save_denoiser(self, folder: object) -> None:
        """Write the denoiser as the family's usual folder (diffusers layout), so that other tools load it."""


def noise_at(
    prediction: Prediction, alphas_T: Sequence[float] | Tensor, sigmas_T: Sequence[float] | Tensor, time: float
) -> tuple[float, float]:
    """alpha and sigma of a schedule at `time`. Between two timesteps sigma / alpha is a straight line, as in diffusers' samplers."""
    last = len(alphas_T) - 1
    if prediction == "flow":
        sigma = time / len(alphas_T)
        return 1 - sigma, sigma
    below = min(int(time), last)
    above, share = min(below + 1, last), time - below
    if share == 0 or float(alphas_T[above]) == 0:
        return float(alphas_T[below]), float(sigmas_T[below])
    low, high = (float(sigmas_T[i] / alphas_T[i]) for i in (below, above))
    ratio = low + share * (high - low)
    return (1 + ratio**2) ** -0.5, ratio * (1 + ratio**2) ** -0.5
