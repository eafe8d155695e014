"""Training at real size on a CUDA device: images/s and peak memory of each way to train, and the plain loop beside it. `make bench-gpu`.

    python benchmarks/bench_gpu.py [--family sd15] [--family sdxl] [--steps 24] [--only lora] [--out benchmarks/FILE.md]

The models have the published architectures and random weights, the pictures are noise: speed and memory do not depend on either.
Images/s are medians over the steps after the first few, with the range of single steps; memory is what torch allocated and reserved
at most in the training steps (the CUDA context, some 0.5 GiB, comes on top), and before it while pictures and captions were encoded.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

WARM, PICTURES = 4, 16
LORA = {"method.type": "lora", "method.rank": 16, "method.targets": "attention"}
MANY = {**LORA, "method.targets": "many"}
FULL = {"method.type": "full"}
LEAN = {**FULL, "optimizer.weights": "bf16", "optimizer.fused_backward": True, "train.max_grad_norm": 0}
CKPT = {"train.gradient_checkpointing": True}
FF = {"train.gradient_checkpointing": "feed-forward"}


@dataclass(frozen=True)
class Case:
    """One way to train; `slow` ones take a fraction of the steps."""

    name: str
    settings: Mapping[str, Any]
    batch: int = 1
    slow: bool = False


CASES = {
    "sd15": [
        Case("lora", LORA), Case("lora", LORA, 4), Case("lora", LORA, 16), Case("lora, checkpointing", LORA | CKPT, 16),
        Case("lora many", MANY, 4), Case("dora", LORA | {"method.type": "dora"}, 4), Case("lokr", {"method.type": "lokr"}, 4),
        Case("qlora nf4", LORA | {"method.type": "qlora"}, 4), Case("lora + text encoder", LORA | {"method.text_encoders": True}, 4),
        Case("full, adamw, ema", FULL | {"train.ema": 0.999}, 4), Case("full, adamw", FULL, 16),
        Case("full, adamw8bit, bf16 weights, fused", LEAN | {"optimizer.type": "adamw8bit"}, 4),
        Case("consistency (LCM-LoRA)", LORA | {"objective.type": "consistency"}, 4),
    ],
    "sdxl": [
        Case("lora", LORA), Case("lora", LORA, 4), Case("lora, feed-forward again", LORA | FF, 1),
        Case("lora, checkpointing", LORA | CKPT), Case("lora, checkpointing", LORA | CKPT, 4),
        Case("lora, half of the blocks swapped", LORA | {"train.block_swap": 0.5}, slow=True),
        Case("lora, all blocks swapped", LORA | {"train.block_swap": 1}, slow=True),
        Case("lora, activations offloaded", LORA | {"train.offload_activations": True}, slow=True),
        Case("dora", LORA | {"method.type": "dora"}),
        Case("qlora nf4, checkpointing", LORA | CKPT | {"method.type": "qlora"}),
        Case("qlora nf4 many, checkpointing", MANY | CKPT | {"method.type": "qlora"}),
        Case("qlora int8, checkpointing", LORA | CKPT | {"method.type": "qlora", "method.base": "int8"}),
        Case("lora + both text encoders, checkpointing", LORA | CKPT | {"method.text_encoders": True}),
        Case("full, adafactor, bf16 weights, fused, checkpointing", LEAN | CKPT | {"optimizer.type": "adafactor"}),
        Case("full, adamw8bit, bf16 weights, fused, checkpointing", LEAN | CKPT | {"optimizer.type": "adamw8bit"}),
        Case("full, adamw, checkpointing", FULL | CKPT, slow=True),
    ],
}  # fmt: skip
SIDES = {"sd15": 512, "sdxl": 1024, "tiny": 32}
CASES["tiny"] = [
    *CASES["sd15"],
    *CASES["sdxl"],
]  # sd1 of the tests, to try this script itself: --family tiny --device cpu


def make_model(family: str, folder: Path, device: str) -> None:
    """A folder in diffusers layout, fp16: the published architecture, random weights."""
    if family == "tiny":
        sys.path.append(str(Path(__file__).parents[1]))
        from tests import tiny

        tiny.sd1_folder(folder)
        return
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    xl = family == "sdxl"
    source = Path(str(resources.files("sdtune") / "demo" / "base" / "tokenizer"))
    with torch.device(device):
        unet = UNet2DConditionModel(**(XL_UNET if xl else {"cross_attention_dim": 768, "sample_size": 64}))
        vae = AutoencoderKL(**VAE, sample_size=SIDES[family], scaling_factor=0.13025 if xl else 0.18215)
        encoders: dict[str, Any] = {"text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L))}
        if xl:
            encoders["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_BIG_G))
    parts: dict[str, Any] = {"unet": unet, "vae": vae, **encoders}
    for name, part in parts.items():
        part.half().save_pretrained(folder / name)
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"}
    index |= {n: ["diffusers" if n in ("unet", "vae") else "transformers", type(p).__name__] for n, p in parts.items()}
    for name in ("tokenizer", "tokenizer_2") if xl else ("tokenizer",):
        CLIPTokenizer.from_pretrained(source, model_max_length=77).save_pretrained(folder / name)
        index[name] = ["transformers", "CLIPTokenizer"]
    DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1).save_pretrained(
        folder / "scheduler"
    )
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
}  # fmt: skip
XL_UNET = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": (5, 10, 20),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_BIG_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip


def make_pictures(folder: Path, side: int) -> None:
    folder.mkdir()
    rng, words = np.random.default_rng(0), ("apple", "dog", "sun", "house")
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for i in range(PICTURES):
            coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
            coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.jpg", quality=90)
            file.write(json.dumps({"file_name": f"{i:02d}.jpg", "text": f"a picture of a {words[i % 4]}"}) + "\n")


def ours(family: str, case: Case, folder: Path, steps: int, device: str) -> dict[str, Any]:
    from sdtune import config
    from sdtune.events import Started, Step
    from sdtune.runs import Run
    from sdtune.train import train

    settings = {
        "model.type": "sdxl" if family == "sdxl" else "sd1", "model.path": folder / "model", "data.path": folder / "pictures",
        "data.cache": folder / "cache", "data.resolution": SIDES[family], "data.validation_share": 0, "data.crop": "center",
        "train.device": device, "train.precision": "bf16" if device == "cuda" else "fp32",
        "train.steps": steps, "train.batch_size": case.batch,
        "train.validate_every": 0, "train.sample_every": 0, "train.save_every": 10**6, "optimizer.lr": 1e-5, **case.settings,
    }  # fmt: skip
    began, encoded = time.time(), 0.0
    with tempfile.TemporaryDirectory() as run:
        events = train(config.load(None, [f"{k}={_plain(v)}" for k, v in settings.items()]), Run(Path(run) / "run"))
        seconds: list[float] = []
        for event in events:
            if isinstance(event, Started):
                encoded = _peak()[0]
                _reset()
            if isinstance(event, Step):
                seconds.append(event.seconds)
                if len(seconds) == 1:
                    began = time.time() - began
            if len(seconds) == steps:
                break
        peak = _peak()
        del events, event  # before the run's end, whose file nobody needs
    return {
        "first_step_s": began,
        "images_per_s": sorted(case.batch / s for s in seconds[WARM:]),
        "encoding_gib": encoded,
        "peak_gib": peak[0],
        "reserved_gib": peak[1],
    }


def plain(folder: Path, batch: int, steps: int, device: str, bf16: bool) -> dict[str, Any]:
    import plain_loop

    _reset()
    began = time.time()
    loop = plain_loop.train(
        folder / "model", folder / "pictures", batch=batch, rank=16, lr=1e-5, bf16=bf16, device=device
    )
    marks = [time.time() for _ in islice(loop, steps)]
    peak = _peak()
    pairs = zip(marks[WARM:], marks[WARM - 1 :], strict=False)
    return {
        "first_step_s": marks[0] - began,
        "images_per_s": sorted(batch / (b - a) for b, a in pairs),
        "encoding_gib": 0.0,
        "peak_gib": peak[0],
        "reserved_gib": peak[1],
    }


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _peak() -> tuple[float, float]:
    if not torch.cuda.is_available():
        return 0.0, 0.0
    return torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30


def _reset() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure(family: str, args: argparse.Namespace) -> Iterator[tuple[str, int, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(family, folder / "model", args.device)
        make_pictures(folder / "pictures", SIDES[family])
        if family == "sd15" and not args.only:
            for batch in (1, 4, 16):
                yield "plain loop, lora, bf16 autocast", batch, plain(folder, batch, args.steps, args.device, True)
        for case in CASES[family]:
            if args.only and not any(text in case.name for text in args.only):
                continue
            _reset()
            steps = max(WARM + 4, args.steps // 3) if case.slow else args.steps
            try:
                yield case.name, case.batch, ours(family, case, folder, steps, args.device)
            except Exception as error:  # one that fails is told, and the others are measured
                yield case.name, case.batch, {"error": f"{type(error).__name__}: {error}"}


def row(family: str, name: str, batch: int, got: dict[str, Any]) -> str:
    if "error" in got:
        return f"| {family} | {name} | {batch} | {got['error'].splitlines()[0][:120]} | | | |"
    rates = got["images_per_s"]
    speed = f"{statistics.median(rates):.1f} ({rates[0]:.1f} to {rates[-1]:.1f})"
    memory = f"{got['peak_gib']:.1f} ({got['reserved_gib']:.1f})"
    return (
        f"| {family} | {name} | {batch} | {speed} | {memory} | {got['encoding_gib']:.1f} | {got['first_step_s']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=list(SIDES), help="sd15 and sdxl unless said")
    parser.add_argument("--only", action="append", help="cases with this in their name")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("torch", "diffusers", "transformers"))
    lines = [
        f"{name}; {versions}; {time.strftime('%Y-%m-%d')}; bf16, {args.steps} steps of which the first {WARM} do not count.",
        f"Command: `python {' '.join(sys.argv)}`",
        "",
        "| model | training | batch | images/s, median (range) | peak GiB allocated (reserved) | encoding | first step, s |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for family in args.family or ["sd15", "sdxl"]:
        for case, batch, got in measure(family, args):
            lines.append(row(family, case, batch, got))
            print(lines[-1], flush=True)
            if args.out:
                args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
