"""Stage 1: the autoencoder. 64x64 pixels to 16x16x4 latents and back (AutoencoderKL, 1.6 M parameters).

    python train_vae.py OUT [--steps 9000] [--threads 1]

Loss: L1 + 0.7 L1 of image gradients + 0.5 L1 of 2x2 and 8x8 means (colour is learned last without it) + 2e-4 KL.
It learns from 32x32 crops first (four times cheaper), then whole pictures; drawings, their outlines and pixel versions,
channel-shuffled drawings and random shapes, so that styles it never saw still pass through it. Resumes by itself.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import (
    Ema, cosine, jitter, load_drawings, load_state, optimizer_tensors, outline, over, pixelate, restore_optimizer, save_state,
)  # fmt: skip
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw
from torch import Tensor


def build() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
        mid_block_add_attention=False,
    )  # fmt: skip


def shapes(n: int) -> Tensor:
    """Random lines, ellipses and polygons, (n, 3, 64, 64): so that the latents hold more than emoji."""
    rng, out = np.random.default_rng(0), []
    for _ in range(n):
        im = Image.new(
            "RGB", (128, 128), tuple(int(v) for v in rng.integers(0, 256, 3)) if rng.random() < 0.5 else "white"
        )
        draw = ImageDraw.Draw(im)
        for _ in range(rng.integers(2, 9)):
            points = [tuple(int(v) for v in rng.integers(-10, 138, 2)) for _ in range(rng.integers(2, 5))]
            colour = tuple(int(v) for v in rng.integers(0, 256, 3)) if rng.random() < 0.6 else "black"
            kind = rng.random()
            if kind < 0.45:
                draw.line(points, fill=colour, width=int(rng.integers(2, 9)), joint="curve")
            elif kind < 0.7:
                (x0, x1), (y0, y1) = np.sort(rng.integers(0, 128, 2)), np.sort(rng.integers(0, 128, 2))
                fill = None if rng.random() < 0.5 else colour
                draw.ellipse(
                    [int(x0), int(y0), int(x1) + 4, int(y1) + 4],
                    outline=colour,
                    width=int(rng.integers(2, 7)),
                    fill=fill,
                )
            elif len(points) > 2:
                draw.polygon(points, fill=colour)
        out.append(np.asarray(im))
    return F.interpolate(torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 255, size=(64, 64), mode="area")


def batch(drawings: Tensor, extra: Tensor, n: int, crops: bool, rng: torch.Generator) -> Tensor:
    """Pictures in [-1, 1]; with `crops`, n 32x32 pieces of n/2 pictures."""
    m = n // 2 if crops else n
    rand = lambda *shape: torch.rand(*shape, generator=rng)  # noqa: E731
    i = torch.randint(len(drawings), (m,), generator=rng)
    rgb = torch.where(rand(m, 1) < 0.5, torch.ones(m, 3), rand(m, 3))
    x, kind = over(jitter(drawings[i], rng, shift=0.1, scale=0.15, turn=0.15), rgb), rand(m)
    shuffled = kind < 0.2
    x[shuffled] = x[shuffled][:, torch.randperm(3, generator=rng)] ** (0.6 + rand(int(shuffled.sum()), 1, 1, 1))
    x[kind > 0.9] = outline(x[kind > 0.9])
    dots = (kind > 0.82) & (kind <= 0.9)
    x[dots] = pixelate(x[dots])
    other = (kind > 0.67) & (kind <= 0.82)
    x[other] = extra[torch.randint(len(extra), (int(other.sum()),), generator=rng)]
    if crops:
        corner = torch.randint(0, 33, (n, 2), generator=rng).tolist()
        x = torch.stack([x[k % m, :, a : a + 32, b : b + 32] for k, (a, b) in enumerate(corner)])
    return x * 2 - 1


def loss_of(vae: AutoencoderKL, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.device.type, torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
    y, d = y.float(), lambda v, a: v.diff(dim=a)
    l1 = (y - x).abs().mean()
    edges = sum((d(y, a) - d(x, a)).abs().mean() for a in (2, 3))
    colour = sum(F.l1_loss(F.avg_pool2d(y, k), F.avg_pool2d(x, k)) for k in (2, 8))
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return l1 + 0.7 * edges + 0.5 * colour + 2e-4 * kl, l1


@torch.no_grad()
def whiten(vae: AutoencoderKL, x: Tensor) -> None:
    """Give each latent channel mean 0 and deviation 1 / 0.18215, so that SD's scaling factor fits.

    Folded into the 1x1 convolutions at either side of the latents, hence exact.
    """
    z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(64)])
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3)) * vae.config.scaling_factor
    q, p, c = vae.quant_conv, vae.post_quant_conv, vae.config.latent_channels
    p.bias += (p.weight[:, :, 0, 0] @ mean[:, None])[:, 0]
    p.weight *= std[None, :, None, None]
    q.weight[:c] /= std[:, None, None, None]
    q.bias[:c] = (q.bias[:c] - mean) / std
    q.bias[c:] -= 2 * std.log()  # log-variance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    vae, drawings, extra = build().to(args.device), load_drawings(args.out), shapes(1500)
    ema = Ema(vae.parameters(), 0.998)
    optimizer = torch.optim.AdamW(vae.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    state_file, first = args.out / "vae_state.safetensors", 0
    if state_file.exists():
        state = load_state(state_file)
        vae.load_state_dict(state["model"])
        ema.mean = [state["ema"][str(i)] for i in range(len(ema.mean))]
        restore_optimizer(optimizer, state["optimizer"])
        first = int(state["at"]["step"])
    start = time.time()
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, args.steps, 1.5e-3)
        crops = step < 0.75 * args.steps
        x = batch(drawings, extra, 24 if crops else 10, crops, torch.Generator().manual_seed(step)).to(args.device)
        loss, l1 = loss_of(vae, x)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        ema.update(step)
        if step % 200 == 0 or step + 1 == args.steps:
            print(
                f"vae {step} loss {loss.item():.4f} l1 {l1.item():.4f} {(time.time() - start) / 60:.1f} min", flush=True
            )
            at = {"step": torch.tensor(step + 1)}
            means = {str(i): v for i, v in enumerate(ema.mean)}
            save_state(state_file, model=vae.state_dict(), ema=means, optimizer=optimizer_tensors(optimizer), at=at)
    with torch.no_grad():
        for p, m in zip(vae.parameters(), ema.mean, strict=True):
            p.copy_(m)
    vae.eval()
    rng = torch.Generator().manual_seed(0)
    whites = over(jitter(drawings, rng, shift=0.0, scale=0.0), torch.ones(len(drawings), 3)) * 2 - 1
    whiten(vae, whites.to(args.device))
    with torch.no_grad():
        mse = torch.cat(
            [(vae.decode(vae.encode(p).latent_dist.mean).sample - p).square() for p in whites.to(args.device).split(64)]
        ).mean()
    print(f"PSNR on the drawings: {10 * torch.log10(4 / mse).item():.1f} dB")
    vae.save_pretrained(args.out / "vae")


if __name__ == "__main__":
    main()
