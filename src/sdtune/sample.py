"""Prompts and seeds to pictures. The one inference path: previews, command line, server and comparison all draw here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from sdtune.config import SampleConfig
from sdtune.files import atomic_write, write_json
from sdtune.guides import recorded
from sdtune.infotext import a1111_parameters
from sdtune.methods.adapters import acting_in
from sdtune.model import Cond, Model
from sdtune.original import Original, Start, size_of, skipped
from sdtune.samplers import SAMPLERS, build_scheduler
from sdtune.steering import Steering
from sdtune.texts import Texts


@dataclass(frozen=True)
class Sample:
    prompt: str
    negative: str
    seed: int
    image: Image.Image
    settings: dict[str, Any]
    """Everything else that the picture depends on: model, scheduler, steps, guidance, size, strength."""
    flaw: str = ""
    """Why this is no picture (`flaw_of`), and what may help. Nothing for a sound one."""
    ask: int = 0
    """Which of the prompts that were asked for it is."""
    cell: tuple[str, ...] = ()
    """Its place in a grid: what each axis says there (`asks.Axis`)."""


@dataclass(frozen=True)
class Row:
    """A picture that is to be drawn in a batch of originals and tuned ones."""

    prompt: str
    seed: int
    texts: Texts
    """Knows the prompt and the negative one already, as this picture's model reads them (`Texts.learn`)."""
    acts: bool = True
    """Whether the adapters on the denoiser act."""


@dataclass(frozen=True)
class Look:
    """One look of the denoiser at noisy latents, and what came of it. Tensors are (B, C, H, W) on the model's device."""

    number: int
    """Counted from 0. Some samplers look twice in a step."""
    count: int
    """Looks in all."""
    t: float
    """The time that the denoiser was told, as in `Model.denoise`."""
    seen_BCHW: Tensor
    """What it was shown: alpha_t x_0 + sigma_t noise, whatever units the sampler computes in."""
    told_BCHW: Tensor
    """Its output, guided."""
    conditional_BCHW: Tensor
    """Its output for the prompt."""
    unconditional_BCHW: Tensor | None
    """Its output for the negative prompt; None without guidance."""
    x_BCHW: Tensor
    """The latents after the step, in the sampler's units."""


def sample(
    model: Model,
    config: SampleConfig,
    *,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    pairs: Sequence[tuple[str, int]] | None = None,
    rows: Sequence[Row] | None = None,
    texts: Texts | None = None,
    on_step: Callable[[Look], None] | None = None,
) -> Iterator[Sample]:
    """Draw one picture per prompt and seed, prompt by prompt. `prompts` and `seeds` replace those of `config`; `pairs` of (prompt, seed)
    both of them, and `rows` these and `texts`.

    A picture depends on its own prompt and seed, not on those beside it. The model's adapter acts as it is set (`Tuned`).
    A prompt that is too long for the model's text encoder is read in as many chunks as it or the negative prompt needs, where
    the model can (`Model.chunkable`). `texts` are prompts encoded before, by the same model as it is now. `on_step` is shown every look of
    the denoiser, batch by batch, and changes nothing.
    """
    original = Original.read(config, lambda size: size_of(config, model, size))
    height, width = original.pixels.shape[:2] if original else size_of(config, model)[::-1]
    spared = partial(
        model.sparing, tiling=config.vae_tiling, slicing=config.vae_slicing, attention=config.attention_slicing
    )
    with spared():
        start = Start.of(model, original) if original else None
    prompts = config.prompts if prompts is None else prompts
    crossed = [(p, s) for p in prompts for s in (config.seeds if seeds is None else seeds)]
    texts = texts or Texts(model, weights=config.prompt_weights)
    jobs = [Row(*pair, texts) for pair in (crossed if pairs is None else pairs)] if rows is None else list(rows)
    shape = (model.latent_channels, height // model.downscale, width // model.downscale)
    precision = str(model.dtype).removeprefix("torch.")
    settings = {
        "model": model.label, "scheduler": config.scheduler, "steps": config.steps, "guidance": config.guidance,
        "width": width, "height": height, "strength": config.strength, "precision": precision,
    }  # fmt: skip
    settings |= {**original.record, "denoising_strength": config.denoising_strength} if original else {}
    settings |= {"vae_tiling": True} if config.vae_tiling else {}
    settings |= {"prompt_weights": True} if config.prompt_weights else {}
    settings |= {"guide": recorded(config.guide)} if config.guide else {}
    steering = Steering.of(model, config.guide)
    # Only prompts of equally many chunks go together: empty ones that a longer neighbour asks for would change a picture.
    needed = {(id(row.texts), row.prompt): row.texts.chunks([row.prompt, config.negative]) for row in jobs}
    for chunks, group in groupby(jobs, lambda row: needed[id(row.texts), row.prompt]):
        while batch := list(islice(group, config.batch_size)):
            cond = Cond.cat([row.texts.encode([row.prompt], chunks) for row in batch])
            empty = Cond.cat([row.texts.encode([config.negative], chunks) for row in batch])
            own_seeds, acts = [row.seed for row in batch], [row.acts for row in batch]
            with (
                spared(),
                acting_in(model.denoiser, acts),
            ):  # not while somebody else has the model, between two pictures
                latents = denoise(model, config, cond, empty, own_seeds, shape, on_step, start, steering)
                pixels = model.decode(latents)
            drawn = zip(batch, to_images(pixels), pixels.cpu(), latents.cpu(), strict=True)
            for row, image, pixels_CHW, latents_CHW in drawn:
                flaw = flaw_of(pixels_CHW, latents_CHW, precision)
                image = original.keep(image) if original else image
                yield Sample(row.prompt, config.negative, row.seed, image, settings, flaw)


@torch.no_grad()
def denoise(
    model: Model,
    config: SampleConfig,
    cond: Cond,
    empty: Cond,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    on_step: Callable[[Look], None] | None = None,
    start: Start | None = None,
    steering: Steering | None = None,
) -> Tensor:
    """The reverse process with classifier-free guidance (arXiv:2207.12598): latents (B, C, H, W), fp32. `empty` has one row, or B.

    It begins at noise, or at the picture `start` with as much noise as `denoising_strength` says (arXiv:2108.01073).
    """
    scheduler = build_scheduler(model, config.scheduler)
    levels = model.levels(config.steps, *shape[1:])
    scheduler.set_timesteps(config.steps) if levels is None else scheduler.set_timesteps(sigmas=levels)
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
    if start is None:
        begin = Beginning(_noise(rngs, shape, model) * _first_sigma(scheduler), scheduler.timesteps)
    else:
        begin = _from_picture(model, config, scheduler, rngs, start)
    x_BCHW = begin.x_BCHW
    scale = getattr(scheduler, "scale_model_input", lambda x_BCHW, t: x_BCHW)  # a flow's sampler scales nothing
    guided = config.guidance != 1
    if len(empty) == 1:
        empty = empty[torch.zeros(len(seeds), dtype=torch.long)]
    both = Cond.cat([empty, cond]) if guided else cond
    if begin.given_BCHW is not None:
        both = replace(both, given_BCHW=begin.given_BCHW.repeat(2 if guided else 1, 1, 1, 1))
    extra = {"generator": rngs} if SAMPLERS[config.scheduler].noisy else {}
    for i, t in enumerate(begin.timesteps):
        seen_BCHW = scale(x_BCHW, t)
        x_in = torch.cat([seen_BCHW, seen_BCHW]) if guided else seen_BCHW
        out = model.denoise(x_in, t.expand(len(x_in)).to(model.device), both).float()
        unconditional, conditional = out.chunk(2) if guided else (None, out)
        if unconditional is not None:
            out = unconditional + config.guidance * (conditional - unconditional)
        if steering and steering.at_work(i, len(begin.timesteps)):
            out = steering.steered(out, seen_BCHW, float(t))
        x_BCHW = scheduler.step(out, t, x_BCHW, **extra).prev_sample
        x_BCHW = begin.keep(x_BCHW, i)
        if on_step:
            on_step(Look(i, len(begin.timesteps), float(t), seen_BCHW, out, conditional, unconditional, x_BCHW))
    return x_BCHW


@dataclass(frozen=True)
class Beginning:
    """Where the reverse process begins, and what of a picture it keeps to."""

    x_BCHW: Tensor
    timesteps: Tensor
    given_BCHW: Tensor | None = None
    """For inpainting models, as `Cond.given_BCHW`."""
    keep: Callable[[Tensor, int], Tensor] = lambda x_BCHW, i: x_BCHW
    """(latents after step i, i) -> the same with what is outside of the mask put back."""


def _noise(rngs: Sequence[torch.Generator], shape: Sequence[int], model: Model) -> Tensor:
    return torch.stack([torch.randn(tuple(shape), generator=rng) for rng in rngs]).to(model.device)


def _first_sigma(scheduler: Any) -> float:
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def _from_picture(
    model: Model, config: SampleConfig, scheduler: Any, rngs: Sequence[torch.Generator], start: Start
) -> Beginning:
    """Begin at a picture with noise. Seeds are used up in the order of diffusers' pipelines: the same seed gives their picture."""
    first = skipped(config, flow=model.prediction == "flow") * getattr(scheduler, "order", 1)
    timesteps, mask_1HW = scheduler.timesteps[first:], start.mask_1HW
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    anew = mask_1HW is not None and config.denoising_strength == 1  # no trace of the picture in what is painted
    told = start.left is not None
    x0_BCHW = start.latents.mean_BCHW
    if not (anew and told):
        x0_BCHW = torch.cat([start.latents.sample(rng) for rng in rngs])
    noise_BCHW = _noise(rngs, x0_BCHW.shape[1:], model)

    def noised(i: int) -> Tensor:
        """The picture with the noise of timestep i; without any behind the last."""
        if i == len(timesteps):
            return x0_BCHW
        t_B = timesteps[i : i + 1].expand(len(rngs))
        mixed: Tensor = (
            scheduler.scale_noise(x0_BCHW, t_B, noise_BCHW)
            if model.prediction == "flow"
            else scheduler.add_noise(x0_BCHW, noise_BCHW, t_B)
        )
        return mixed

    x_BCHW = noise_BCHW * _first_sigma(scheduler) if anew else noised(0)
    if mask_1HW is None:
        return Beginning(x_BCHW, timesteps)
    if start.left is not None:
        left_BCHW = torch.cat([start.left.sample(rng) for rng in rngs])
        return Beginning(x_BCHW, timesteps, torch.cat([mask_1HW.expand(len(rngs), 1, -1, -1), left_BCHW], 1))
    return Beginning(x_BCHW, timesteps, keep=lambda x_BCHW, i: (1 - mask_1HW) * noised(i + 1) + mask_1HW * x_BCHW)


def to_images(pixels_BCHW: Tensor) -> list[Image.Image]:
    """Pixels in [-1, 1] to 8-bit RGB pictures; NaN is black."""
    share_BCHW = (pixels_BCHW.float() / 2 + 0.5).nan_to_num(0).clamp(0, 1)
    bytes_BHWC = share_BCHW.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in bytes_BHWC]


FLAT = 2 / 255
"""Of a range of 1: what 8 bits may show as one colour."""


def flaw_of(pixels_CHW: Tensor, latents_CHW: Tensor, precision: str) -> str:
    """Why pixels in [-1, 1] are no picture, and what may help; "" if they are one.

    NaN, which 8 bits would show as black; or one colour all over: no channel spans more than two of the 256 levels. A sound
    decoder does not draw that of an empty page either (the embedded base's spans 9 levels for a white one), so the prompt need
    not be known. It may of a page that it overshoots and the clamp cuts flat: hence "unless" below.
    """
    pixels = pixels_CHW.flatten(1).float()
    bad = int((~torch.isfinite(pixels)).any(0).sum())
    if bad:
        if bool(torch.isfinite(latents_CHW).all()):
            where = f"the VAE made them, of finite latents up to {float(latents_CHW.abs().max()):.3g}"
        else:
            where = "the latents were NaN already, so the denoiser made them"
        remedy = "fp16 ends at 65504: set train.precision=fp32" if precision == "float16" else DIVERGED
        return f"{bad} of {pixels.shape[1]} pixels were NaN, stored as black; {where}; {remedy}"
    if float((pixels.amax(1) - pixels.amin(1)).max()) <= 2 * FLAT:
        colour = ", ".join(str(round(float(v / 2 + 0.5) * 255)) for v in pixels.mean(1).clamp(-1, 1))
        return f"one colour all over, rgb({colour}); unless an empty page was asked for, {DIVERGED}"
    return ""


DIVERGED = (
    "the weights have diverged or their file is damaged: take an earlier checkpoint, or train with a lower optimizer.lr"
)


def save_png(picture: Sample, path: Path) -> None:
    """Write the picture with its parameters inside (the `parameters` text that web UIs read, and our own JSON), and a JSON beside it."""
    record = {"prompt": picture.prompt, "negative": picture.negative, "seed": picture.seed, **picture.settings}
    record |= {"flaw": picture.flaw} if picture.flaw else {}
    info = PngInfo()
    info.add_itxt("parameters", a1111_parameters(record))
    info.add_itxt("sdtune", json.dumps(record, ensure_ascii=False))
    with atomic_write(path) as file:
        picture.image.save(file, format="PNG", pnginfo=info)
    write_json(path.with_suffix(".json"), record)
