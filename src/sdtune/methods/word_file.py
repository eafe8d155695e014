"""Files with the vectors of a new word, which diffusers, ComfyUI and AUTOMATIC1111 load as an embedding.

One text encoder: the word -> (tokens, width). Several: clip_l, clip_g -> the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdtune.errors import ModelError
from sdtune.files import atomic_write
from sdtune.methods import word_layer
from sdtune.methods.word_layer import InstalledWords, MoreWords
from sdtune.model import Model

FOLDER = "embeddings"
PARTS = ("clip_l", "clip_g")
"""What others call the first and the second text encoder."""

OTHERS = ("unet.", "transformer.", "text_encoder", "lora_", "base_model.")
"""What the keys of adapter files begin with."""


def write_words(folder: Path, model: Model, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> list[Path]:
    """A file for each new word on `model`; `weights`: the vectors by the names of `word_layer.attach`."""
    assert model.new_words
    paths, at = [], 0
    for word, count in model.new_words.words.items():
        rows = [weights[f"{part}.words.vectors"][at : at + count] for part in model.word_parts]
        keys = PARTS if len(rows) > 1 else (word,)
        tensors = {k: v.detach().cpu().float().contiguous() for k, v in zip(keys, rows, strict=True)}
        header = {"format": "pt", "sdtune": json.dumps({**about, "word": word}, sort_keys=True)}
        path = folder / f"{file_name(word)}.safetensors"
        with atomic_write(path) as file:
            file.write(save(tensors, header))
        paths.append(path)
        at += count
    return paths


def file_name(word: str) -> str:
    """Other tools take the file's name for the word: without what a file name cannot have."""
    return re.sub(r"[^\w.+-]", "", word) or "word"


def is_word_file(path: Path) -> bool:
    """Whether `path` holds vectors of a word, and no adapter or model. Raises ModelError if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
            flat = all(len(file.get_slice(k).get_shape()) <= 2 and not k.startswith(OTHERS) for k in keys[:2])
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors: {error}") from None
    return bool(keys) and flat and (len(keys) == 1 or set(keys) == set(PARTS))


def load_words(model: Model, paths: list[Path]) -> InstalledWords:
    """Teach `model` the words in `paths`. Raises ModelError if they were made for another kind of model."""
    words, vectors = _fitting(model, paths)
    word_layer.attach(model, words, vectors)
    for _, layer in word_layer.embeddings_of(model):
        layer.requires_grad_(False)
    return InstalledWords(model)


def add_words(model: Model, paths: list[Path]) -> MoreWords:
    """Teach `model` the words in `paths` beside those that it has learned. Raises ModelError, also for a word that two files teach."""
    words, vectors = _fitting(model, paths)
    if model.new_words and (both := sorted(set(words) & set(model.new_words.words))):
        raise ModelError(
            f"{paths[0]}: {both[0]!r} is a word that another file has taught already; leave one of them out"
        )
    return MoreWords(model, words, vectors)


def _fitting(model: Model, paths: list[Path]) -> tuple[dict[str, int], dict[str, Tensor]]:
    """The words in `paths` with the tokens of each, and their vectors by part."""
    words, rows = dict[str, int](), dict[str, list[Tensor]]()
    for path in paths:
        word, vectors = read(path)
        keys = PARTS if len(model.word_parts) > 1 else tuple(vectors)
        widths = [model.parts[p].get_input_embeddings().weight.shape[1] for p in model.word_parts]  # type: ignore[operator]
        if [v.shape[1] for v in vectors.values()] != widths or set(vectors) != set(keys):
            given = ", ".join(f"{k} {v.shape[1]}" for k, v in vectors.items())
            raise ModelError(
                f"{path}: has vectors of width {given}; {model.source} needs {' and '.join(map(str, widths))}: "
                "it was made for another kind of model"
            )
        words[word] = len(next(iter(vectors.values())))
        for part, key in zip(model.word_parts, keys, strict=True):
            rows.setdefault(part, []).append(vectors[key])
    return words, {part: torch.cat(found) for part, found in rows.items()}


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The word, and its vectors (tokens, width) by key, fp32."""
    with safe_open(path, "pt") as file:
        about = json.loads((file.metadata() or {}).get("sdtune", "{}"))
        keys = sorted(file.keys(), reverse=True)  # clip_l first
        vectors = {key: file.get_tensor(key).float() for key in keys}
    vectors = {k: v if v.dim() == 2 else v[None] for k, v in vectors.items()}
    if bad := [k for k, v in vectors.items() if not bool(torch.isfinite(v).all())]:
        raise ModelError(f"{path}: {bad[0]} holds NaN or infinity; the file is damaged")
    named = about.get("word") or (keys[0] if keys[0] not in (*PARTS, "emb_params") else path.stem)
    return str(named), vectors
