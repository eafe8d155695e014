"""Stage 2 and 4: the text encoder and the image encoder that scores pictures, trained to agree (CLIP, arXiv:2103.00020).

    python train_clip.py OUT                       stage 2: both, from nothing -> OUT/text_encoder, OUT/scorer
    python train_clip.py OUT --locked TEXT_ENCODER stage 4: the image encoder alone, to a finished text encoder

The image encoder projects into the space of the text encoder's pooled output, so no text projection is needed. It sees the
drawings, and the same drawings in other styles (outlines, line art, pixels, grey, sepia, flat, inverted) under the same
name, so it can still tell what is drawn after a fine-tuning on a style; a second head names the style, so that its features hold the
style as well. Resumes by itself.
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from captions import LENGTH, caption, load_tokenizer
from common import (
    BACKGROUND_RGB, CONCEPTS, cosine, jitter, load_drawings, load_state, optimizer_tensors, outline, over, pixelate,
    restore_optimizer, save_state,
)  # fmt: skip
from drawings import FONT, comic, line_art, pixel_art, render
from PIL import ImageFont
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

WIDTH = 160
STYLES = 10


def build_text(vocab: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocab, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4, num_attention_heads=5,
        max_position_embeddings=LENGTH, projection_dim=WIDTH, hidden_act="quick_gelu",
        bos_token_id=vocab - 2, eos_token_id=vocab - 1, pad_token_id=vocab - 1,
    )  # fmt: skip
    return CLIPTextModel(config)


def build_image() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4, num_attention_heads=5, image_size=64, patch_size=8,
        projection_dim=WIDTH, hidden_act="quick_gelu",
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config)


def target_styles(out: Path) -> Tensor:
    """Line art (two widths), pixel art and comic of every concept, opaque RGBA, (4, N, 4, 128, 128); kept in OUT/styles.npz."""
    if not (file := out / "styles.npz").exists():
        font = ImageFont.truetype(FONT, 109)
        makers = (lambda im: line_art(im, 4), lambda im: line_art(im, 3), pixel_art, comic)
        np.savez(file, rgb=np.stack([[np.asarray(make(render(c.char, font))) for c in CONCEPTS] for make in makers]))
    rgb = torch.from_numpy(np.load(file)["rgb"]).permute(0, 1, 4, 2, 3).float() / 255
    return torch.cat([rgb, torch.ones_like(rgb[:, :, :1])], 2)


def stylise(x: Tensor, style: int) -> Tensor:
    """RGB in [0, 1] in one of the cheap styles 1 to 6; 0 leaves it."""
    grey = x.mean(1, keepdim=True)
    sepia = torch.tensor([1.05, 0.88, 0.66]).view(1, 3, 1, 1)
    make = (lambda: x, lambda: outline(x), lambda: grey.repeat(1, 3, 1, 1), lambda: (grey * sepia).clamp(0, 1),
            lambda: pixelate(x), lambda: (x * 3).round() / 3, lambda: 1 - x)  # fmt: skip
    return make[style]()


def batch(drawings: Tensor, targets: Tensor, n: int, seed: int, targeted: bool) -> tuple[Tensor, list[str], Tensor]:
    """n different concepts: pictures (n, 3, 64, 64) in [0, 1], captions, style numbers."""
    rng, words = torch.Generator().manual_seed(seed), random.Random(seed)
    who = torch.randperm(len(drawings), generator=rng)[:n]
    background = torch.randint(1, 10, (n,), generator=rng) * (torch.rand(n, generator=rng) < 0.4)
    kind, other = torch.rand(n, generator=rng), torch.randint(1, STYLES, (n,), generator=rng)
    if targeted:  # plain, comic, line art (the hardest to read), the rest in any style
        style = torch.where(kind < 0.2, 0, torch.where(kind < 0.45, 9, torch.where(kind < 0.75, 7, other)))
    else:
        style = other * (kind < 0.45)
    background[style > 0] = 0
    x = over(jitter(drawings[who], rng, shift=0.08, scale=0.15, turn=0.08), BACKGROUND_RGB[background])
    for k in range(1, 7):
        x[style == k] = stylise(x[style == k], k)
    for k, pick in ((7, torch.randint(0, 2, (n,), generator=rng)), (8, torch.full((n,), 2)), (9, torch.full((n,), 3))):
        chosen = style == k
        if not chosen.any():
            continue
        made = targets[pick[chosen], who[chosen]]
        x[chosen] = over(jitter(made, rng, shift=0.06, scale=0.12), made[:, :3, 0, 0])
    x = (x + 0.03 * torch.randn(x.shape, generator=rng)).clamp(0, 1)
    return x, [caption(int(c), int(b), words) for c, b in zip(who, background, strict=True)], style


@torch.no_grad()
def retrieval(
    text: CLIPTextModel, image: CLIPVisionModelWithProjection, tok: object, drawings: Tensor, targets: Tensor
) -> str:
    """How often a picture's own name is the nearest of all names, per style."""
    ids = tok([c.caption for c in CONCEPTS], padding="max_length", truncation=True, return_tensors="pt").input_ids
    names = F.normalize(text(ids).pooler_output, dim=-1)
    plain = over(F.interpolate(drawings, size=(64, 64), mode="area"), torch.ones(len(drawings), 3))
    small = [F.interpolate(t[:, :3], size=(64, 64), mode="area") for t in targets]
    rows = []
    for label, x in (
        ("drawing", plain),
        ("outline", outline(plain)),
        ("line art", small[0]),
        ("pixel art", small[2]),
        ("comic", small[3]),
    ):
        e = F.normalize(image(pixel_values=x * 2 - 1).image_embeds, dim=-1)
        rows.append(f"{label} {((e @ names.T).argmax(1) == torch.arange(len(names))).float().mean():.2f}")
    return ", ".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--locked", type=Path)
    parser.add_argument("--start", type=Path, help="image encoder to start from")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tok = load_tokenizer(args.out / "tokenizer")
    text = CLIPTextModel.from_pretrained(args.locked, dtype=torch.float32) if args.locked else build_text(len(tok))
    image = (
        CLIPVisionModelWithProjection.from_pretrained(args.start, dtype=torch.float32) if args.start else build_image()
    )
    text.train(not args.locked).requires_grad_(not args.locked)
    style_head, scale = nn.Linear(WIDTH, STYLES), nn.Parameter(torch.tensor(2.6))
    model = nn.ModuleDict({"text": text, "image": image, "style": style_head})
    drawings, targets = load_drawings(args.out), target_styles(args.out)
    parameters = [scale, *(p for p in model.parameters() if p.requires_grad)]
    optimizer = torch.optim.AdamW(parameters, 1e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    state_file, first = args.out / f"clip_state{'_locked' if args.locked else ''}.safetensors", 0
    if state_file.exists():
        state = load_state(state_file)
        model.load_state_dict(state["model"])
        scale.data.copy_(state["at"]["scale"])
        restore_optimizer(optimizer, state["optimizer"])
        first = int(state["at"]["step"])
    start = time.time()
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, args.steps, 1e-3)
        x, captions, style = batch(drawings, targets, 128, step, targeted=args.locked is not None)
        ids = tok(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.autocast("cpu", torch.bfloat16):
            seen = image(pixel_values=x * 2 - 1)
            meant = text(ids).pooler_output
            pooled = seen.last_hidden_state[:, 0]
        a, b = F.normalize(seen.image_embeds.float(), dim=-1), F.normalize(meant.float(), dim=-1)
        logits, same = scale.exp() * a @ b.T, torch.arange(len(x))
        loss = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        loss = loss + 0.3 * F.cross_entropy(style_head(pooled.float()), style)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scale.data.clamp_(max=4.6)
        if step % 100 == 0 or step + 1 == args.steps:
            print(f"clip {step} loss {loss.item():.3f} {(time.time() - start) / 60:.1f} min", flush=True)
            at = {"step": torch.tensor(step + 1), "scale": scale.data}
            save_state(state_file, model=model.state_dict(), optimizer=optimizer_tensors(optimizer), at=at)
    model.eval()
    print("names found first:", retrieval(text, image, tok, drawings, targets))
    image.save_pretrained(args.out / "scorer")
    if not args.locked:
        text.save_pretrained(args.out / "text_encoder")


if __name__ == "__main__":
    main()
