"""What is known of a set of pictures from an earlier start: an unchanged set is neither scanned nor planned again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from sdtune.data.cache import Cache
from sdtune.data.config import DataConfig
from sdtune.data.dataset import Splits, locate, resolve, root_of
from sdtune.data.filling import FORMAT
from sdtune.data.listing import listing
from sdtune.data.plan import key_of
from sdtune.data.record import record
from sdtune.files import as_json, write_json, write_text
from sdtune.model import Model

KEPT = 20
"""So many sets are remembered, the last ones."""
PARTS = ("train", "validation")


class KnownSet:
    """Remembers, by the settings and by the names, sizes and times of all files, what a scan found, and the indices of its caches.

    It only saves time: where nothing is remembered, or nothing can be written, everything is looked at again.
    """

    def __init__(self, config: DataConfig, seed: int, *, read_by: str = "") -> None:
        """Lists the files. `read_by`: what names the model, which a scan asks for sizes and tokens. Raises DataError for a place that
        is not there."""
        self._config = config
        located = [locate(place.path, download=config.download) for place in config.places()]
        places = [place if place.is_dir() else place.parent for place in located]  # a file names others beside it
        others = (config.validation, config.mask_path, config.class_path, *config.roots)
        found = listing([*places, *(resolve(other, download=config.download) for other in others if other)])
        settings = json.dumps({**asdict(config), "cache": ""}, sort_keys=True)
        self._settled = found.settled
        self._folder = (
            config.cache_folder()
            / "sets"
            / key_of(FORMAT, metadata.version("sdtune"), settings, str(seed), read_by, found.fingerprint)
        )
        self.scanned, self.notes, self._record = False, list[str](), ""
        """Whether a scan of just these files found nothing against them; and what it said."""
        with suppress(OSError, ValueError, KeyError):
            self.notes = json.loads(self._scan_file.read_text(encoding="utf-8"))["notes"]
            self.scanned = self._record_file.is_file()
            self._folder.touch()

    @property
    def _scan_file(self) -> Path:
        return self._folder / "scan.json"

    @property
    def _record_file(self) -> Path:
        return self._folder / "record.json"

    def record(self) -> str:
        """The `Record` of the set as JSON: read when it is asked for, since it is the only thing here that is large."""
        return self._record or self._record_file.read_text(encoding="utf-8")

    def remember(self, splits: Splits) -> None:
        """Keep what a scan gave, unless a file has changed so lately that another change would not show."""
        self.notes, self._record = splits.notes, as_json(record(splits, root_of(self._config)))
        self.scanned = True
        if self._settled:
            with suppress(OSError):
                write_text(self._record_file, self._record)
                write_json(self._scan_file, {"notes": self.notes})
                self._sweep()

    def caches(self, model: Model, class_pictures: Sequence[Path] = ()) -> tuple[Cache, Cache] | None:
        """The filled caches of training and validation, if both are known and whole."""
        if not self.scanned:
            return None
        train, validation = (Cache.load(path, model, self._config) for path in self._files(model, class_pictures))
        return (train, validation) if train is not None and validation is not None else None

    def keep(self, caches: Iterable[Cache], model: Model, class_pictures: Sequence[Path] = ()) -> None:
        """Keep the indices of filled caches."""
        if self._settled:
            for cache, path in zip(caches, self._files(model, class_pictures), strict=True):
                cache.save(path)

    def _files(self, model: Model, class_pictures: Sequence[Path]) -> list[Path]:
        asked = (
            model.family,
            model.vae_fingerprint,
            model.text_fingerprint,
            str(model.resolution),
            str(model.chunks),
        )
        key = key_of(*asked, listing(class_pictures).fingerprint)[:24]
        return [self._folder / f"{key}-{part}.safetensors" for part in PARTS]

    def _sweep(self) -> None:
        folders = sorted(self._folder.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for folder in folders[KEPT:]:
            shutil.rmtree(folder, ignore_errors=True)
