"""The loop that a user would otherwise write: the shape of the public diffusers text-to-image LoRA example, written anew.

Pictures are decoded and encoded by the VAE at each step, captions by the text encoder at each step, LoRA comes from peft, precision
is fp32 by default or bf16 by autocast, attention is torch's own. AdamW, gradient clipping, constant learning rate, batches from
a DataLoader. Nothing is slowed: no logging, no checkpoints, no validation, no launcher.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextModel, CLIPTokenizer

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


class Pictures(Dataset[dict[str, Any]]):
    def __init__(self, folder: Path, tokenizer: CLIPTokenizer, side: int) -> None:
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
        self.files, self.side = [folder / row["file_name"] for row in rows], side
        captions = [row["text"] for row in rows]
        self.ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> dict[str, Any]:
        with Image.open(self.files[i]) as im:
            rgb = im.convert("RGB").resize((self.side, self.side), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float() / 127.5 - 1
        return {"pixel_values": pixels, "input_ids": self.ids[i]}


def train(
    model: Path, pictures: Path, *, batch: int, rank: int, lr: float, bf16: bool, device: str = "cpu"
) -> Iterator[float]:
    """Yield the loss of each step, for ever."""
    weights = torch.bfloat16 if bf16 else torch.float32
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    text_encoder = (
        CLIPTextModel.from_pretrained(model, subfolder="text_encoder", dtype=weights).requires_grad_(False).to(device)
    )
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae", dtype=weights).requires_grad_(False).to(device)
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet", dtype=weights).requires_grad_(False).to(device)
    scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS))
    trainable = [p for p in unet.parameters() if p.requires_grad]
    for p in trainable:
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=1e-2)
    side = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    loader = DataLoader(Pictures(pictures, tokenizer, side), shuffle=True, batch_size=batch)
    unet.train()
    while True:
        for rows in loader:
            latents = (
                vae.encode(rows["pixel_values"].to(device, weights)).latent_dist.sample() * vae.config.scaling_factor
            )
            noise = torch.randn_like(latents)
            t = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=device)
            noisy = scheduler.add_noise(latents, noise, t)
            states = text_encoder(rows["input_ids"].to(device), return_dict=False)[0]
            with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
                out = unet(noisy, t, states, return_dict=False)[0]
            v = scheduler.config.prediction_type == "v_prediction"
            loss = F.mse_loss(out.float(), (scheduler.get_velocity(latents, noise, t) if v else noise).float())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield loss.detach().item()
