"""What the three trainings of the embedded base share: drawings as tensors, resumable state, learning rate."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from drawings import BACKGROUNDS, concepts
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CONCEPTS = concepts()
BACKGROUND_NAMES = list(BACKGROUNDS)
BACKGROUND_RGB = torch.tensor(list(BACKGROUNDS.values())).float() / 255


def load_drawings(folder: Path) -> Tensor:
    """Premultiplied RGBA in [0, 1], shape (N, 4, 128, 128)."""
    rgba = np.load(folder / "drawings.npz")["rgba"]
    return torch.from_numpy(rgba).permute(0, 3, 1, 2).float().div_(255)


def jitter(x: Tensor, rng: torch.Generator, *, shift: float, scale: float, turn: float = 0.0, side: int = 64) -> Tensor:
    """A random shift, zoom and turn of each picture, reduced to `side` pixels."""
    n = len(x)
    zoom = 1 + (torch.rand(n, generator=rng) * 2 - 1) * scale
    move = (torch.rand(n, 2, generator=rng) * 2 - 1) * shift
    angle = (torch.rand(n, generator=rng) * 2 - 1) * turn
    c, s = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    theta = torch.stack([torch.stack([c, -s, move[:, 0]], 1), torch.stack([s, c, move[:, 1]], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, align_corners=False, padding_mode="zeros")
    return F.interpolate(moved, size=(side, side), mode="area")


def over(x: Tensor, rgb: Tensor) -> Tensor:
    """Premultiplied RGBA (N, 4, H, W) on one colour each, (N, 3) -> RGB in [0, 1]."""
    return (x[:, :3] + rgb[:, :, None, None] * (1 - x[:, 3:4])).clamp(0, 1)


def outline(rgb: Tensor) -> Tensor:
    """Dark lines where the brightness changes (Sobel), on white."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).view(1, 1, 3, 3) / 4
    grey = F.pad(rgb.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    gx, gy = F.conv2d(grey, kernel), F.conv2d(grey, kernel.transpose(2, 3))
    return (1 - (gx * gx + gy * gy).sqrt() * 2.2).clamp(0, 1).repeat(1, 3, 1, 1)


def pixelate(rgb: Tensor, cells: int = 16) -> Tensor:
    return F.interpolate(F.interpolate(rgb, size=(cells, cells), mode="area"), size=rgb.shape[-2:], mode="nearest")


def cosine(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return peak * min(1.0, (step + 1) / warmup) * (0.97 * decay + 0.03)


class Ema:
    """Exponential moving average of weights, with a warm-up of the decay."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.live = list(parameters)
        self.mean = [p.detach().clone() for p in self.live]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.live], 1 - min(self.decay, (step + 1) / (step + 10)))


def save_state(path: Path, **groups: dict[str, Tensor]) -> None:
    """Write named groups of tensors into one safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    flat = {f"{g}/{k}": v.detach().contiguous().clone() for g, tensors in groups.items() for k, v in tensors.items()}
    save_file(flat, part)
    part.replace(path)


def load_state(path: Path) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        group, name = key.split("/", 1)
        groups.setdefault(group, {})[name] = value
    return groups


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}/{k}": torch.as_tensor(v) for i, s in state.items() for k, v in s.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        i, k = key.split("/")
        state.setdefault(int(i), {})[k] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
