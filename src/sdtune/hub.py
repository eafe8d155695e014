"""The local copy of a Hub repository: the one way to it, for models and for pictures. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

from sdtune.errors import ModelError, SdtuneError

MODEL_REMEDY = "set model.download=true to fetch it"


def snapshot(
    repo: str,
    wanted: Collection[str],
    *,
    without: Collection[str] = (),
    revision: str | None = None,
    download: bool = False,
    remedy: str = MODEL_REMEDY,
    kind: Literal["model", "dataset"] = "model",
    error: type[SdtuneError] = ModelError,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The local copy of the files `wanted` (patterns) of a Hub repository; `remedy` says how to have it fetched. Raises `error`.

    `progress` is told the bytes that are here and those that it will be, from the threads that fetch.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            repo,
            repo_type=kind,
            revision=revision,
            allow_patterns=list(wanted),
            ignore_patterns=list(without) or None,
            local_files_only=not download,
            tqdm_class=_told(progress) if progress else None,
        )
    except LocalEntryNotFoundError:
        at = f" (revision {revision})" if revision else ""
        raise error(f"{repo}{at}: {not_there('neither a folder nor', download, remedy, kind)}") from None
    except (HfHubHTTPError, OSError, ValueError) as failure:
        raise error(f"{repo}: cannot be fetched from the Hub: {str(failure).splitlines()[0]}") from failure
    return Path(found)


def _told(progress: Callable[[int, int], None]) -> type[Any]:
    """A progress bar for huggingface_hub that draws nothing and tells `progress` of bytes."""
    from huggingface_hub.utils.tqdm import tqdm

    class Told(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._bytes = kwargs.get("unit") == "B"
            counting = {**kwargs, "disable": False, "gui": True}  # gui: the drawing is left to others
            super().__init__(*args, **counting)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            super().update(n)
            if self._bytes:
                progress(int(self.n), int(self.total or 0))
            return None

    return Told


def not_there(here: str, download: bool, remedy: str = MODEL_REMEDY, kind: str = "model") -> str:
    """What is wrong with a Hub id that the local cache does not hold, or not as a whole."""
    if download:
        return "not whole in the local Hub cache, and the Hub cannot be reached; check the network, and HF_HUB_OFFLINE"
    return f"{here} in the local Hub cache; {remedy} (HF_TOKEN for gated {kind}s, HF_HOME for the cache's place)"


def blobs(folder: Path) -> list[Path]:
    """Where the links of a Hub copy lead: of .../datasets--owner--name/snapshots/COMMIT and below it, blobs/ beside snapshots/."""
    for parent in (folder, *folder.parents):
        beside = parent.parent.parent / "blobs"
        if parent.parent.name == "snapshots" and "--" in parent.parent.parent.name and beside.is_dir():
            return [beside]
    return []
