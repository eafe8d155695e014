"""Stage 3: the U-Net, and the text encoder with it (v-prediction, min-SNR 5, arXiv:2303.09556; caption dropout 10 %; EMA).

    python train_unet.py OUT --minutes 90 --workers 2
    python train_unet.py OUT --minutes 20 --device cuda --batch 512

Latents of many shifted, zoomed and coloured versions of every drawing are encoded once. On a CPU each worker is a process
with one thread; the workers update the same fp32 weights without locks (Hogwild, arXiv:1106.5730) and compute in
bf16: two busy one-thread processes outrun two threads that wait for each other. The learning rate is constant, then falls
to zero over the last part (--cooldown), so a run can be prolonged: give more minutes and run it again. It resumes
from OUT/unet_state.safetensors by itself.
"""

import argparse
import os
import random
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from captions import caption, load_tokenizer
from common import (
    BACKGROUND_RGB, CONCEPTS, Ema, jitter, load_drawings, load_state, optimizer_tensors, over, restore_optimizer, save_state,
)  # fmt: skip
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

VARIANTS = 48  # versions of each drawing: the first 32 on white
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 128, 192), layers_per_block=1, norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=160, attention_head_dim=(2, 4, 4),
    )  # fmt: skip


def bmm_attention(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
    """Attention as two matrix products: torch's CPU flash kernel has a slow bf16 backward."""
    b, h, s, d = q.shape
    n = k.shape[2]
    empty = q.new_empty(1, 1, 1).expand(b * h, s, n)
    w = torch.baddbmm(empty, q.reshape(b * h, s, d), k.reshape(b * h, n, d).transpose(1, 2), beta=0, alpha=d**-0.5)
    return torch.bmm(w.softmax(-1), v.reshape(b * h, n, d)).view(b, h, s, d)


@torch.no_grad()
def encode_variants(out: Path) -> tuple[Tensor, Tensor]:
    """Latents (N, VARIANTS, 4, 16, 16) and the background number of each, (N, VARIANTS)."""
    file = out / "latents.safetensors"
    if not file.exists():
        vae = AutoencoderKL.from_pretrained(out / "vae").eval()
        drawings, rng = load_drawings(out), torch.Generator().manual_seed(1)
        latents, backgrounds = [], []
        for k in range(VARIANTS):
            background = torch.zeros(len(drawings), dtype=torch.long)
            if k >= 32:
                background = torch.randint(1, len(BACKGROUND_RGB), (len(drawings),), generator=rng)
            amount = 0.0 if k == 0 else 1.0
            x = over(jitter(drawings, rng, shift=0.05 * amount, scale=0.1 * amount), BACKGROUND_RGB[background])
            z = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in x.split(32)])
            latents.append(z * vae.config.scaling_factor)
            backgrounds.append(background)
        save_state(file, all={"latents": torch.stack(latents, 1), "backgrounds": torch.stack(backgrounds, 1)})
    data = load_state(file)["all"]
    return data["latents"], data["backgrounds"]


class Shared(nn.Module):
    """The weights all workers update."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.unet = build()
        self.text = CLIPTextModel.from_pretrained(out / "text_encoder", dtype=torch.float32)


def learning_rate(progress: float, step: int, peak: float, cooldown: float) -> float:
    return peak * min(1.0, (step + 1) / 200) * min(1.0, max(0.02, (1 - progress) / cooldown))


def pick_variants(n: int, rng: torch.Generator) -> Tensor:
    """Half of the time the drawing as it is, else one of a dozen shifted and zoomed ones, or (15 %) one on a colour."""
    kind = torch.rand(n, generator=rng)
    moved, coloured = torch.randint(1, 13, (n,), generator=rng), torch.randint(32, VARIANTS, (n,), generator=rng)
    return torch.where(kind < 0.5, 0, torch.where(kind < 0.85, moved, coloured))


def worker(rank: int, shared: Shared, args: argparse.Namespace, counts: Tensor, before: float) -> None:
    torch.set_num_threads(1)
    F.scaled_dot_product_attention = bmm_attention
    device, bf16 = torch.device(args.device), torch.bfloat16
    latents, backgrounds = (x.to(device) for x in encode_variants(args.out))
    tok, schedule = load_tokenizer(args.out / "tokenizer"), DDPMScheduler(**SCHEDULE)
    alpha, sigma = schedule.alphas_cumprod.sqrt().to(device), (1 - schedule.alphas_cumprod).sqrt().to(device)
    weight = (alpha / sigma).square().clamp(max=5.0) / ((alpha / sigma).square() + 1)
    unet, text = build().to(device, bf16), CLIPTextModel(shared.text.config).to(device, bf16)
    master = [*shared.unet.parameters(), *shared.text.parameters()]
    local = [*unet.parameters(), *text.parameters()]
    n_unet = len(list(shared.unet.parameters()))
    optimizer = torch.optim.AdamW(
        [{"params": master[:n_unet], "factor": 1.0}, {"params": master[n_unet:], "factor": 0.3}],
        args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True,
    )  # fmt: skip
    ema = Ema(master, args.ema)
    state_file = args.out / "unet_state.safetensors"
    if state_file.exists():
        state = load_state(state_file)
        ema.mean = [state["ema"][str(i)].to(device) for i in range(len(master))]
        restore_optimizer(optimizer, state["optimizer"])
    start, saved, shown, mean_loss = time.time(), time.time(), time.time(), 0.0
    step = first = int(counts[rank])
    order = torch.empty(0, dtype=torch.long)
    while (minutes := before + (time.time() - start) / 60) < args.minutes and not (args.out / "STOP").exists():
        rng, words = torch.Generator().manual_seed(step * 64 + rank), random.Random(step * 64 + rank)
        while len(order) < args.batch:
            order = torch.cat([order, torch.randperm(len(CONCEPTS), generator=rng)])
        who, order = order[: args.batch], order[args.batch :]
        pick = pick_variants(args.batch, rng)
        x0, background = latents[who, pick], backgrounds[who, pick]
        captions = [
            "" if words.random() < 0.1 else caption(c, b, words)
            for c, b in zip(who.tolist(), background.tolist(), strict=True)
        ]
        ids = tok(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        t = torch.randint(1000, (args.batch,), generator=rng).to(device)
        noise = torch.randn(x0.shape, generator=rng).to(device)
        a, s = alpha[t].view(-1, 1, 1, 1), sigma[t].view(-1, 1, 1, 1)
        torch._foreach_copy_([p.data for p in local], [p.data for p in master])
        v = unet((a * x0 + s * noise).to(bf16), t, text(ids).last_hidden_state, return_dict=False)[0].float()
        loss = ((v - (a * noise - s * x0)).square().mean((1, 2, 3)) * weight[t]).mean()
        loss.backward()
        for p, q in zip(master, local, strict=True):
            p.grad = None if q.grad is None else q.grad.float()
            q.grad = None
        torch.nn.utils.clip_grad_norm_(master, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = (
                learning_rate(minutes / args.minutes, step - first if not before else step, args.lr, args.cooldown)
                * group["factor"]
            )
        optimizer.step()
        step += 1
        counts[rank] = step
        mean_loss = loss.item() if step == first + 1 else 0.99 * mean_loss + 0.01 * loss.item()
        if rank == 0:
            ema.update(step)
            if time.time() - shown > 30:
                shown, total = time.time(), int(counts.sum()) * args.batch
                print(
                    f"{minutes:.1f} min, {total} samples, loss {mean_loss:.4f}, lr {optimizer.param_groups[0]['lr']:.2e}",
                    flush=True,
                )
            if time.time() - saved > 150:
                saved = time.time()
                save(args.out, shared, ema, optimizer, counts, minutes)
    if rank == 0:
        save(args.out, shared, ema, optimizer, counts, minutes)


def save(out: Path, shared: Shared, ema: Ema, optimizer: torch.optim.Optimizer, counts: Tensor, minutes: float) -> None:
    """The state to go on from, and the averaged weights as diffusers and transformers folders."""
    means = {str(i): v.cpu() for i, v in enumerate(ema.mean)}
    at = {"counts": counts.clone(), "minutes": torch.tensor(minutes)}
    save_state(
        out / "unet_state.safetensors",
        model=shared.state_dict(),
        ema=means,
        optimizer=optimizer_tensors(optimizer),
        at=at,
    )
    unet, text = build(), CLIPTextModel(shared.text.config)
    with torch.no_grad():
        for p, m in zip([*unet.parameters(), *text.parameters()], ema.mean, strict=True):
            p.copy_(m)
    unet.save_pretrained(out / "ema" / "unet")
    text.save_pretrained(out / "ema" / "text_encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--cooldown", type=float, default=0.3, help="part of the time in which the learning rate falls")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.manual_seed(0)
    shared, counts, before = Shared(args.out).to(args.device), torch.zeros(args.workers, dtype=torch.long), 0.0
    if (file := args.out / "unet_state.safetensors").exists():
        state = load_state(file)
        shared.load_state_dict(state["model"])
        counts[:] = state["at"]["counts"].max()
        before = float(state["at"]["minutes"])
    encode_variants(args.out)
    if args.workers == 1:
        return worker(0, shared, args, counts, before)
    shared.share_memory()
    counts.share_memory_()
    mp.spawn(worker, (shared, args, counts, before), nprocs=args.workers)
    return None


if __name__ == "__main__":
    main()
