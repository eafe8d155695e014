"""What a model's settings say of pictures and captions, without its weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdtune.errors import ModelError
from sdtune.families.places import Source, hub_folder, is_hub_id, json_of, locate, settings_folder

TOKENIZERS = ("CLIPTokenizer", "T5Tokenizer")
"""A file from a stranger chooses no other code to run."""


@dataclass(frozen=True)
class Words:
    """The first tokenizer of a model, which counts as the model itself does."""

    tokenizer: Any
    max_tokens: int

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each text, start and end marks included."""
        return token_counts(self.tokenizer, prompts)


def token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, start and end marks included, before anything is cut."""
    return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False).input_ids]


def read_at_once(tokenizer: Any, places: object) -> int:
    """Tokens that a text encoder with so many `places` reads at once, marks included; no number where its settings do not say."""
    most = int(tokenizer.model_max_length)
    return min(most, places) if isinstance(places, int) else most


def read_in_chunks(at_once: int, chunks: int) -> int:
    """The same of several chunks, each with marks of its own, of which two count."""
    return (at_once - 2) * chunks + 2


def folder_of(source: Source) -> Path:
    """The folder with the settings and tokenizers of a model; of a Hub id no weights are fetched. Raises ModelError."""
    name = source.path
    if is_hub_id(name):
        options = {"revision": source.revision, "variant": source.variant, "download": source.download}
        return hub_folder(name, weights=(), **options)  # type: ignore[arg-type]
    in_the_hub = name.count("/") >= 2 and name[0] not in "./~" and not Path(name).exists()
    if name.endswith(".safetensors") and in_the_hub:
        return settings_folder(source)
    path, _ = locate(source)
    return path if path.is_dir() else settings_folder(source)


def words(folder: Path, chunks: int = 1) -> Words:
    """The tokenizer of a folder in diffusers layout, and what is read in so many chunks. Raises ModelError."""
    import transformers

    named = json_of(folder / "model_index.json").get("tokenizer")
    name = str(named[-1]).removesuffix("Fast") if isinstance(named, list) and named else "none"
    if name not in TOKENIZERS:
        raise ModelError(f"{folder}: model_index.json names {name} as tokenizer; known: {', '.join(TOKENIZERS)}")
    try:
        tokenizer = getattr(transformers, name).from_pretrained(folder / "tokenizer")
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: tokenizer: {str(error).strip().splitlines()[0]}") from error
    places = json_of(folder / "text_encoder" / "config.json").get("max_position_embeddings")
    return Words(tokenizer, read_in_chunks(read_at_once(tokenizer, places), chunks))


def resolution(folder: Path) -> int | None:
    """The side in pixels that a model was made for; None if its settings do not say."""
    side, downscale = _denoiser(folder).get("sample_size"), _downscale(folder)
    return side * downscale if isinstance(side, int) and downscale else None


def grid(folder: Path) -> int:
    """Pixels per latent and patch; 1 if its settings do not say."""
    patch = _denoiser(folder).get("patch_size", 1)
    return (_downscale(folder) or 1) * (patch if isinstance(patch, int) else 1)


def _denoiser(folder: Path) -> dict[str, Any]:
    return json_of(folder / "unet" / "config.json") or json_of(folder / "transformer" / "config.json")


def _downscale(folder: Path) -> int | None:
    """Pixels per latent."""
    blocks = json_of(folder / "vae" / "config.json").get("block_out_channels")
    return int(2 ** (len(blocks) - 1)) if isinstance(blocks, list) and blocks else None
