"""Stage 5: the parts as one diffusers pipeline folder in fp16, and the scorer beside it.

python assemble.py OUT DESTINATION      (DESTINATION is src/sdtune/demo)
"""

import argparse
import re
import shutil
from pathlib import Path

import torch
from captions import load_tokenizer
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from train_unet import SCHEDULE
from transformers import CLIPTextModel, CLIPVisionModelWithProjection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("destination", type=Path)
    args = parser.parse_args()
    half = torch.float16
    trained = args.out / "ema"
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(args.out / "vae", torch_dtype=half),
        text_encoder=CLIPTextModel.from_pretrained(trained / "text_encoder", dtype=half),
        tokenizer=load_tokenizer(args.out / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(trained / "unet", torch_dtype=half),
        scheduler=DPMSolverMultistepScheduler(**SCHEDULE, prediction_type="v_prediction"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    base, scorer = args.destination / "base", args.destination / "scorer"
    for folder in (base, scorer):
        shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(base, safe_serialization=True)
    # transformers loads in the type that the config names, diffusers in fp32: name fp32, or the parts would not fit together.
    config = base / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    for config in base.glob("*/config.json"):  # where the parts lay on this machine
        config.write_text(re.sub(r'  "_name_or_path": "[^"]*",\n', "", config.read_text()))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(args.out / "tokenizer" / name, base / "tokenizer" / name)
    CLIPVisionModelWithProjection.from_pretrained(args.out / "scorer", dtype=half).save_pretrained(scorer)
    total = 0
    for file in sorted(p for folder in (base, scorer) for p in folder.rglob("*") if p.is_file()):
        total += file.stat().st_size
        print(f"{file.stat().st_size / 1e6:8.3f} MB  {file.relative_to(args.destination)}")
    print(f"{total / 1e6:8.3f} MB in all")


if __name__ == "__main__":
    main()
