"""Where a model lies, and what a family says of itself. Imports no torch: it reads names, JSON and the headers of safetensors files."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

from sdtune.errors import ModelError
from sdtune.hub import not_there, snapshot
from sdtune.schema import Section

WEIGHTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
"""The folders of a model in diffusers layout that hold weights; the others hold settings and words."""
FOLDERS = (*WEIGHTS, "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler")
HEADER = 10 * 2**20
"""Bytes of a safetensors header, at most: an honest one has a hundred for each tensor, and what a tool notes of the training."""
PICKLED = (".ckpt", ".bin", ".pt", ".pth")


@dataclass(frozen=True, kw_only=True)
class Source(Section):
    """What the families share: where a model is found. `type` and `path` are told anew by each."""

    type: str = ""
    path: str
    """A folder in diffusers layout, a single .safetensors file, a Hub id (owner/name), or a file in one (owner/name/file.safetensors)."""
    config: str | None = None
    """Of a single file: the folder or Hub id whose settings, noise schedule and tokenizers go with it, and any part that
    the file lacks. Unset: the family's usual one from the Hub's local cache."""
    revision: str | None = None
    """Commit, tag or branch of a Hub id. The commit in use is written into the run."""
    variant: str | None = None
    """Weight files with this suffix, for example "fp16"."""
    download: bool = False
    """Fetch a Hub id that is not in the Hub's local cache. Off: no network is used."""

    title: ClassVar[str] = ""
    """The family's name for messages."""
    classes: ClassVar[tuple[str, ...]] = ()
    """A folder is of this family if its model_index.json names one of these classes: the pipeline's, or a part's."""
    mark: ClassVar[str] = ""
    """What keys of the family's single-file checkpoints, and of no other's, begin with. Unset: it is read from folders alone."""
    usual: ClassVar[str] = ""
    """The Hub id whose settings fit a single file of this family."""

    @classmethod
    def owns(cls, path: Path) -> bool:
        """Whether the folder or single file that is there is of this family, by its names alone. Raises ModelError."""
        if path.is_file():
            return bool(cls.mark) and any(key.startswith(cls.mark) for key in header(path))
        return cls._owns_folder(path)

    @classmethod
    def _owns_folder(cls, folder: Path) -> bool:
        index = json_of(folder / "model_index.json")
        parts = (named[-1] for named in index.values() if isinstance(named, list) and named)
        return any(name in cls.classes for name in (index.get("_class_name"), *parts))


@dataclass(frozen=True, kw_only=True)
class UnetSource(Source):
    """What the families with a U-Net share beside that: what it predicts."""

    prediction: Literal["epsilon", "v"] | None = None
    """What the U-Net is to predict. Unset: as the model's scheduler says (or the `v_pred` key of a single file)."""
    zero_snr: bool | None = None
    """Whether the last timestep is pure noise (zero terminal SNR, arXiv:2305.08891); needs prediction = "v".
    Unset: as the model's scheduler says (or the `ztsnr` key of a single file)."""

    two_encoders: ClassVar[bool] = False
    linear: ClassVar[bool | None] = None
    """Whether the projections of the U-Net's transformers are Linear. None: either."""

    @classmethod
    def _owns_folder(cls, folder: Path) -> bool:
        """These share their classes, and pipelines have many names: the parts tell them apart."""
        index, unet = json_of(folder / "model_index.json"), json_of(folder / "unet" / "config.json")
        linear = bool(unet.get("use_linear_projection"))
        return (
            bool(index.get("unet"))
            and bool(index.get("text_encoder_2")) == cls.two_encoders
            and cls.linear in (None, linear)
        )


def locate(source: Source) -> tuple[Path, str]:
    """The local folder or file of the model, and its name for messages and records. Raises ModelError."""
    name, path = source.path, Path(source.path).expanduser()
    if name == "embedded":
        return Path(str(resources.files("sdtune") / "demo" / "base")), name
    if path.is_dir() or (path.is_file() and path.suffix == ".safetensors"):
        return path, name
    if path.suffix in PICKLED:
        raise ModelError(f"{name}: pickled checkpoints are not opened; convert it to safetensors with diffusers, apart")
    if path.suffix == ".safetensors" and not path.exists() and name.count("/") >= 2 and name[0] not in "./~":
        return hub_file(name, revision=source.revision, download=source.download)
    if path.suffix == ".safetensors":
        raise ModelError(f"{name}: no such file")
    if not is_hub_id(name):
        raise ModelError(
            f"{name}: no such folder in diffusers layout; give a folder, a .safetensors file, a Hub id (owner/name), "
            'or "embedded"'
        )
    folder = hub_folder(name, revision=source.revision, variant=source.variant, download=source.download)
    return folder, f"{name}@{folder.name}"


def settings_folder(config: Source, weights: Collection[str] = ()) -> Path:
    """The folder whose settings go with a single file."""
    name = config.config or config.usual
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    try:
        return hub_folder(name, download=config.download, weights=weights)
    except ModelError as error:
        raise ModelError(
            f"{config.path}: a single file needs settings and tokenizers beside it; {error}, or name a folder or another "
            "Hub id as model.config"
        ) from None


def is_hub_id(name: str) -> bool:
    """Whether `name` reads as a Hub id (owner/name), and nothing is here under it."""
    return not Path(name).expanduser().exists() and not name.startswith((".", "/", "~")) and name.count("/") == 1


def hub_folder(
    repo: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    download: bool = False,
    weights: Collection[str] = WEIGHTS,
) -> Path:
    """The local copy of a Hub repository, of its weights only those in the folders `weights`. Raises ModelError."""
    settings = [f"{part}/{kind}" for part in FOLDERS for kind in ("*.json", "*.txt", "spiece.model")]
    files = "*.safetensors" if variant is None else f"*.{variant}*.safetensors"
    return snapshot(
        repo,
        ["model_index.json", *settings, *(f"{part}/{files}" for part in weights)],
        without=["*.fp16*.safetensors", "*.bf16*.safetensors", "*.non_ema*.safetensors"] if variant is None else (),
        revision=revision,
        download=download,
    )


def hub_file(name: str, *, revision: str | None = None, download: bool = False) -> tuple[Path, str]:
    """The local copy of a file of a Hub repository, `name` being owner/repository/file, and what to call it. Raises ModelError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    owner, repo, file = name.split("/", 2)
    try:
        found = Path(hf_hub_download(f"{owner}/{repo}", file, revision=revision, local_files_only=not download))
    except LocalEntryNotFoundError:
        raise ModelError(f"{name}: {not_there('no such file, nor', download)}") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(f"{name}: cannot be fetched from the Hub: {str(error).splitlines()[0]}") from error
    return found, f"{name}@{found.parts[len(found.parts) - file.count('/') - 2]}"


def header(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a safetensors file, by name; the weights are not read. Raises ModelError."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > file.stat().st_size:
                raise ValueError("it ends too early")
            if size > HEADER:
                raise ValueError(f"its header has {size / 2**20:.0f} MB, more than any model's")
            entries: dict[str, Any] = json.loads(stream.read(size))
            return {name: tuple(entry["shape"]) for name, entry in entries.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file}: cannot be read as safetensors: {error}") from None


def json_of(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if it is not there or holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
