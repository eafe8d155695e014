"""One drawing watched from noise to picture: what the denoiser saw, predicted and read at each step, by the base and by the tuned model.

Nothing is drawn anew: the pictures are those of `sdtune.sample`, byte for byte, with the same model, prompt, seed and settings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sdtune import tokens
from sdtune.config import RunConfig, SampleConfig
from sdtune.data.images import crop_boxes, load_image
from sdtune.errors import DataError
from sdtune.families.watching import watched
from sdtune.model import Cond, Model, Prediction
from sdtune.objective import Objective, parts
from sdtune.pictures import scan
from sdtune.sample import Look, Sample, sample, to_images
from sdtune.tuned import Tuned
from sdtune.viewing import square

Progress = Callable[[str, int, int], None]
"""(what is done, steps done, steps in all)."""

PARTS = ("early", "middle", "late")
"""Of a drawing: thirds of its looks, over which attention is averaged."""
TRAINING_TIMES = 6
"""Noise levels of the training view."""


@dataclass(frozen=True)
class Frame:
    """One look of the denoiser, in pictures."""

    number: int
    """Of the look, from 0."""
    t: float
    alpha: float
    sigma: float
    channels: Image.Image
    """Its latents, channel beside channel, in greys: 8 bits for -3 to 3."""
    colours: Image.Image
    """Its latents by `Shown.to_colours`, a pixel a latent."""
    noisy: Image.Image
    """Its latents, decoded."""
    predicted: Image.Image
    """The clean picture that its output amounts to, decoded."""


@dataclass(frozen=True)
class Attention:
    """How the picture's places spread an attention of 1 over the tokens (`families.watching`)."""

    maps_GLHW: NDArray[np.float32]
    """Mean over heads, layers and the looks of a part: (parts, tokens, height, width)."""
    looks: tuple[tuple[int, int], ...]
    """First and last look of each part."""
    layers: int

    def of(self, positions: Sequence[int]) -> NDArray[np.float32]:
        """What these tokens get together: in each part, then in the whole drawing, (parts + 1, height, width)."""
        parts_GHW = self.maps_GLHW[:, list(positions)].sum(1)
        weights = [last - first + 1 for first, last in self.looks]
        return np.concatenate([parts_GHW, np.average(parts_GHW, axis=0, weights=weights)[None]]).astype(np.float32)


@dataclass(frozen=True)
class Side:
    """The drawing of one model."""

    name: str
    """base or tuned."""
    picture: Sample
    frames: tuple[Frame, ...]
    difference: tuple[float, ...]
    """Of each look: the root mean square of conditional - unconditional output. Empty without guidance."""
    conditional: tuple[float, ...]
    """The same of the conditional output."""
    attention: Attention | None
    """None if no layer reads the prompt by attention."""


@dataclass(frozen=True)
class Training:
    """One picture as training sees it: noised to several timesteps, and what each model makes of that."""

    name: str
    caption: str
    picture: Image.Image
    times: tuple[int, ...]
    noisy: tuple[Image.Image, ...]
    predicted: dict[str, tuple[Image.Image, ...]]
    """By side."""
    losses: dict[str, tuple[float, ...]]
    """Mean square errors of the output, unweighted."""


@dataclass(frozen=True)
class Shown:
    """All that the page shows."""

    source: str
    prompt: str
    seed: int
    prediction: Prediction
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    """Of each training timestep."""
    times: tuple[float, ...]
    """What the denoiser was told at each look."""
    reading: tokens.Reading
    sides: tuple[Side, ...]
    training: Training | None
    to_colours: NDArray[np.float64]
    """The linear map from latents to colours, (channels + 1, 3): fitted to this drawing's predictions and their decoded pictures."""
    explained: float
    """Share of the colours' variance that this map explains."""


def show(
    model: Model,
    config: RunConfig,
    *,
    source: str,
    prompt: str,
    seed: int,
    on_top: Tuned | None = None,
    steps_shown: int = 8,
    training: tuple[str, Image.Image, str] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Shown:
    """Draw `prompt` and look on. With `on_top`, first the base (strength 0), then the tuned model (`sample.strength`).

    `training` is a picture for the training view, (name, picture, caption); without one it is the picture that was drawn. Raises the
    errors of `sample`.
    """
    strengths = {"base": 0.0, "tuned": config.sample.strength} if on_top else {"model": 1.0}
    drawn, views = dict[str, _Drawing](), dict[str, _View]()
    for name, strength in strengths.items():
        if on_top:
            on_top.set_strength(strength)
        own = dataclasses.replace(config.sample, strength=strength) if on_top else config.sample
        drawn[name] = _draw(model, own, prompt, seed, steps_shown, partial(progress, f"drawing, {name}"))
        if training is None:
            training = ("the picture drawn above", drawn[name].picture.image, prompt)
        views[name] = _train_view(model, training[1], training[2])
    seen = [look for drawing in drawn.values() for look in drawing.looks]
    decoded = dict[int, _Decoded]()
    for done, look in enumerate(seen):
        progress("decoding", done, len(seen))
        decoded[id(look)] = _Decoded.of(model, look)
    to_colours, explained = _fit([(look.clean_BCHW, decoded[id(look)].small_BCHW) for look in seen])
    sides = tuple(_side(name, drawing, decoded, to_colours) for name, drawing in drawn.items())
    first = next(iter(drawn.values()))
    chunks = model.chunks_for([prompt, config.sample.negative])
    assert training is not None
    return Shown(
        source, prompt, seed, model.prediction, tuple(model.alphas_T.tolist()), tuple(model.sigmas_T.tolist()), tuple(first.times),
        tokens.read(model, prompt, chunks), sides, _training(model, training, views), to_colours, explained,
    )  # fmt: skip


def training_picture(config: RunConfig, side: int) -> tuple[str, Image.Image, str] | None:
    """The first training picture of a run with its caption, a square of `side` pixels. None where its pictures are gone."""
    try:
        example = scan(config).train[0]
        return example.image.name, square(example, config.data, side), example.captions[0]
    except (DataError, OSError):
        return None


def picture_of(path: Path, caption: str, side: int) -> tuple[str, Image.Image, str]:
    """The middle of a picture file, a square of `side` pixels. Raises DataError."""
    image = load_image(path)
    image = image.crop(crop_boxes(image.size, "center", 1, "")[0])
    return path.name, image.resize((side, side), Image.Resampling.LANCZOS), caption


# ---- the drawing


@dataclass(frozen=True)
class _Seen:
    """What is kept of a look that is shown; tensors (1, C, H, W) in fp32 on the model's device."""

    number: int
    t: float
    alpha: float
    sigma: float
    seen_BCHW: Tensor
    clean_BCHW: Tensor


@dataclass
class _Drawing:
    picture: Sample
    looks: list[_Seen]
    times: list[float]
    difference: list[float]
    conditional: list[float]
    attention: Attention | None


class _Watcher:
    """Keeps what is shown of each look."""

    def __init__(self, model: Model, steps_shown: int, took: Callable[[int, int], None]) -> None:
        self.model, self.steps_shown, self.took = model, steps_shown, took
        self.looks, self.times = list[_Seen](), list[float]()
        self.difference, self.conditional = list[float](), list[float]()
        self.maps = dict[int, list[Tensor]]()

    def take(self, look: Look, map_LHW: Tensor | None) -> None:
        self.times.append(look.t)
        self.conditional.append(_rms(look.conditional_BCHW))
        if look.unconditional_BCHW is not None:
            self.difference.append(_rms(look.conditional_BCHW - look.unconditional_BCHW))
        if look.number in chosen(look.count, self.steps_shown):
            alpha, sigma = self.model.noise_at(look.t)
            clean_BCHW, _ = parts(self.model.prediction, look.told_BCHW.float(), look.seen_BCHW.float(), alpha, sigma)
            self.looks.append(_Seen(look.number, look.t, alpha, sigma, look.seen_BCHW, clean_BCHW))
        if map_LHW is not None:
            part = self.maps.setdefault(look.number * min(len(PARTS), look.count) // look.count, [])
            part.append(map_LHW)
        self.took(look.number + 1, look.count)

    def attention(self, layers: int) -> Attention | None:
        if not self.maps:
            return None
        ends = np.cumsum([0, *(len(maps) for maps in self.maps.values())])
        looks = tuple((int(a), int(b) - 1) for a, b in pairwise(ends))
        maps_GLHW = torch.stack([torch.stack(maps).mean(0) for maps in self.maps.values()])
        return Attention(maps_GLHW.nan_to_num().numpy(), looks, layers)


def _draw(
    model: Model, config: SampleConfig, prompt: str, seed: int, steps_shown: int, took: Callable[[int, int], None]
) -> _Drawing:
    watcher = _Watcher(model, steps_shown, took)
    with watched(model.denoiser) as watch:
        (picture,) = sample(
            model, config, prompts=[prompt], seeds=[seed], on_step=lambda look: watcher.take(look, watch.take())
        )
    return _Drawing(
        picture, watcher.looks, watcher.times, watcher.difference, watcher.conditional, watcher.attention(watch.layers)
    )


def chosen(count: int, most: int) -> list[int]:
    """At most `most` of `count` looks, evenly, the first and the last among them."""
    if most == 1:
        return [count - 1]
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


# ---- its pictures


@dataclass(frozen=True)
class _Decoded:
    """The pictures of a look."""

    noisy: Image.Image
    predicted: Image.Image
    small_BCHW: Tensor
    """The predicted one with a pixel a latent, (1, 3, h, w) in [-1, 1]."""

    @classmethod
    def of(cls, model: Model, look: _Seen) -> _Decoded:
        noisy_BCHW, clean_BCHW = model.decode(look.seen_BCHW), model.decode(look.clean_BCHW)
        small_BCHW = F.adaptive_avg_pool2d(clean_BCHW.float(), (look.seen_BCHW.shape[2], look.seen_BCHW.shape[3]))
        return cls(to_images(noisy_BCHW)[0], to_images(clean_BCHW)[0], small_BCHW.cpu())


def _side(name: str, drawing: _Drawing, decoded: dict[int, _Decoded], to_colours: NDArray[np.float64]) -> Side:
    frames = []
    for look in drawing.looks:
        shown = decoded[id(look)]
        latents_CHW = look.seen_BCHW[0].float().cpu().numpy()
        pictures = channels(latents_CHW), colours(latents_CHW, to_colours), shown.noisy, shown.predicted
        frames.append(Frame(look.number, look.t, look.alpha, look.sigma, *pictures))
    return Side(
        name, drawing.picture, tuple(frames), tuple(drawing.difference), tuple(drawing.conditional), drawing.attention
    )


GAP = 1
"""Pixels between channels."""


def channels(latents_CHW: NDArray[np.float32]) -> Image.Image:
    """The channels as tiles in two rows, a pixel a latent: black is -3, white is 3."""
    C, H, W = latents_CHW.shape
    columns = math.ceil(C / 2)
    tiled = np.full((2 * H + GAP, columns * (W + GAP) - GAP), 127, np.uint8)
    for c, channel_HW in enumerate(latents_CHW):
        top, left = (c // columns) * (H + GAP), (c % columns) * (W + GAP)
        tiled[top : top + H, left : left + W] = _bytes(channel_HW / 6 + 0.5)
    return Image.fromarray(tiled)


def colours(latents_CHW: NDArray[np.float32], to_colours: NDArray[np.float64]) -> Image.Image:
    """Latents by a linear map (channels + 1, 3), a pixel a latent."""
    rgb_HWC = np.moveaxis(latents_CHW, 0, -1) @ to_colours[:-1] + to_colours[-1]
    return Image.fromarray(_bytes(rgb_HWC / 2 + 0.5))


def _bytes(share: NDArray[Any]) -> NDArray[np.uint8]:
    whole: NDArray[np.uint8] = (np.nan_to_num(share).clip(0, 1) * 255).round().astype(np.uint8)
    return whole


def _fit(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[NDArray[np.float64], float]:
    """The linear map from clean latents (1, C, h, w) to the mean colours of their pixels (1, 3, h, w) with the least square
    error, and the share of the variance that it explains."""
    rows, targets = list[NDArray[np.float64]](), list[NDArray[np.float64]]()
    for latents_BCHW, small_BCHW in pairs:
        x_CL = latents_BCHW[0].flatten(1).double().cpu().nan_to_num().clamp(-9, 9)
        rows.append(torch.cat([x_CL, torch.ones_like(x_CL[:1])]).T.numpy())
        targets.append(small_BCHW[0].double().nan_to_num().flatten(1).T.numpy())
    X, Y = np.concatenate(rows), np.concatenate(targets)
    found = np.linalg.lstsq(X, Y, rcond=None)[0].astype(np.float64)
    left = float(np.square(Y - X @ found).sum() / max(1e-12, np.square(Y - Y.mean(0)).sum()))
    return found, max(0.0, 1 - left)


# ---- the training view


@dataclass(frozen=True)
class _View:
    times: tuple[int, ...]
    noisy: tuple[Tensor, ...]
    clean: tuple[Tensor, ...]
    losses: tuple[float, ...]


@torch.no_grad()
def _train_view(model: Model, picture: Image.Image, caption: str) -> _View:
    """The loss of training, and the clean latents that the output amounts to, at timesteps spread evenly. The noise is always the same."""
    pixels_BCHW = torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    x0_BCHW = model.encode_images(pixels_BCHW).mean_BCHW
    cond = model.encode_prompts([caption], model.chunks_for([caption]))
    noise_BCHW = torch.randn(x0_BCHW.shape, generator=torch.Generator().manual_seed(0)).to(x0_BCHW)
    objective = Objective(model.alphas_T, model.sigmas_T, model.prediction)
    T = len(model.alphas_T)
    times = tuple(int((i + 0.5) * T / TRAINING_TIMES) for i in range(TRAINING_TIMES))
    noisy, found, losses = list[Tensor](), list[Tensor](), list[float]()

    def denoise(x_BCHW: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        out_BCHW = model.denoise(x_BCHW, t_B, cond)
        alpha, sigma = model.noise_at(float(t_B[0]))
        noisy.append(x_BCHW)
        found.append(parts(model.prediction, out_BCHW.float(), x_BCHW.float(), alpha, sigma)[0])
        return out_BCHW

    for t in times:
        t_B = torch.tensor([t], device=x0_BCHW.device)
        losses.append(float(objective.error(denoise, x0_BCHW, cond, t_B, noise_BCHW)))
    return _View(times, tuple(noisy), tuple(found), tuple(losses))


def _training(model: Model, given: tuple[str, Image.Image, str], views: dict[str, _View]) -> Training:
    name, picture, caption = given
    first = next(iter(views.values()))
    return Training(
        name, caption, picture.convert("RGB"), first.times, tuple(_decoded(model, first.noisy)),
        {side: tuple(_decoded(model, view.clean)) for side, view in views.items()},
        {side: view.losses for side, view in views.items()},
    )  # fmt: skip


def _decoded(model: Model, latents: Sequence[Tensor]) -> Iterator[Image.Image]:
    for x_BCHW in latents:
        yield to_images(model.decode(x_BCHW))[0]


# ---- what the maps say


def moved(before_HW: NDArray[np.float32], after_HW: NDArray[np.float32]) -> float:
    """How much of a word's attention lies elsewhere: half the sum of differences of the two maps, each scaled to a sum of 1. 0 to 1."""
    p, q = (m / max(1e-12, float(m.sum())) for m in (before_HW.astype(np.float64), after_HW.astype(np.float64)))
    return float(np.abs(p - q).sum() / 2)
