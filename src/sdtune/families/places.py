"""Where a model lies, and of which family it is. Imports no torch: it reads names, JSON and the headers of safetensors files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

from sdtune.errors import ModelError
from sdtune.schema import Section

NAMES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL", "sd3": "Stable Diffusion 3.x"}
WEIGHTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
"""The folders of a model in diffusers layout that hold weights; the others hold settings and words."""
FOLDERS = (*WEIGHTS, "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler")
PICKLED = (".ckpt", ".bin", ".pt", ".pth")
MARKS = {
    "model.diffusion_model.joint_blocks.": "sd3",
    "conditioner.embedders.1.model.": "sdxl",
    "cond_stage_model.model.": "sd2",
    "cond_stage_model.transformer.": "sd1",
}
"""What the keys of a single-file checkpoint begin with, and the family that this tells."""


@dataclass(frozen=True, kw_only=True)
class Source(Section):
    """What the families share: where a model is found. `type` and `path` are told anew by each."""

    type: str
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

    usual: ClassVar[str] = ""
    """The Hub id whose settings fit a single file of this family."""


@dataclass(frozen=True, kw_only=True)
class UnetSource(Source):
    """What the families with a U-Net share beside that: what it predicts."""

    prediction: Literal["epsilon", "v"] | None = None
    """What the U-Net is to predict. Unset: as the model's scheduler says (or the `v_pred` key of a single file)."""
    zero_snr: bool | None = None
    """Whether the last timestep is pure noise (zero terminal SNR, arXiv:2305.08891); needs prediction = "v".
    Unset: as the model's scheduler says (or the `ztsnr` key of a single file)."""


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
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(
            f"{name}: no such folder in diffusers layout; give a folder, a .safetensors file, a Hub id (owner/name), "
            'or "embedded"'
        )
    folder = hub_folder(name, revision=source.revision, variant=source.variant, download=source.download)
    return folder, f"{name}@{folder.name}"


def hub_folder(
    repo: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    download: bool = False,
    weights: Collection[str] = WEIGHTS,
) -> Path:
    """The local copy of a Hub repository, of its weights only those in the folders `weights`. Raises ModelError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    settings = [f"{part}/{kind}" for part in FOLDERS for kind in ("*.json", "*.txt", "spiece.model")]
    files = "*.safetensors" if variant is None else f"*.{variant}*.safetensors"
    try:
        found = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=["model_index.json", *settings, *(f"{part}/{files}" for part in weights)],
            ignore_patterns=["*.fp16*.safetensors", "*.bf16*.safetensors", "*.non_ema*.safetensors"]
            if variant is None
            else None,
            local_files_only=not download,
        )
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{repo}: neither a folder nor in the local Hub cache; set model.download=true to fetch it "
            "(HF_TOKEN for gated models, HF_HOME for the cache's place)"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"{repo}: cannot be fetched from the Hub: {str(error).splitlines()[0]}") from error
    return Path(found)


def hub_file(name: str, *, revision: str | None = None, download: bool = False) -> tuple[Path, str]:
    """The local copy of a file of a Hub repository, `name` being owner/repository/file, and what to call it. Raises ModelError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    owner, repo, file = name.split("/", 2)
    try:
        found = Path(hf_hub_download(f"{owner}/{repo}", file, revision=revision, local_files_only=not download))
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{name}: no such file, nor in the local Hub cache; set model.download=true to fetch it (HF_TOKEN for gated models)"
        ) from None
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
            entries: dict[str, Any] = json.loads(stream.read(size))
            return {name: tuple(entry["shape"]) for name, entry in entries.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: cannot be read as safetensors: {error}") from None


def recognise(path: str) -> str | None:
    """The family ("sd1", ...) of what a recipe may name as `model.path`; None if it is not there or none of ours."""
    try:
        return family_of(locate(Source(type="", path=path))[0])
    except ModelError:
        return None  # loading it says what is wrong


def family_of(path: Path) -> str | None:
    """The family of a model folder or a single-file checkpoint that is there, by its names alone."""
    if path.is_dir():
        return _of_index(json_of(path / "model_index.json"), json_of(path / "unet" / "config.json"))
    return _of_keys(header(path))


def check_family(path: Path, name: str, expected: str) -> None:
    """Refuse what is plainly of another family. Raises ModelError."""
    found = family_of(path)
    if found is None and path.is_file():
        raise ModelError(f"{name}: no checkpoint of a known family; known: {', '.join(NAMES.values())}")
    if found not in (None, expected):
        raise ModelError(f'{name}: is {NAMES[str(found)]}, the recipe says {expected}; set model.type="{found}"')


def json_of(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if it is not there or holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _of_index(index: Mapping[str, Any], unet: Mapping[str, Any]) -> str | None:
    if index.get("transformer"):
        return "sd3"
    if index.get("text_encoder_2"):
        return "sdxl"
    # SD 1 and 2 have the same parts; from 2 on, the projections of the U-Net's transformers are Linear.
    return ("sd2" if unet.get("use_linear_projection") else "sd1") if index.get("unet") else None


def _of_keys(shapes: Mapping[str, object]) -> str | None:
    return next((family for mark, family in MARKS.items() if any(key.startswith(mark) for key in shapes)), None)
