"""Files of kohya's scripts: the dataset TOML (--dataset_config) and the metadata JSON (--in_json)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdtune.data.layouts import Entry, Folder, Found, captions_of, listed, plural
from sdtune.data.readers.base import Reader
from sdtune.data.readers.nested import Part, read_part
from sdtune.data.readers.tables import content_of

READ = frozenset(
    {
        "image_dir",
        "num_repeats",
        "class_tokens",
        "caption_extension",
        "caption_prefix",
        "caption_suffix",
        "metadata_file",
    }
)
INSTEAD = {
    "resolution": "data.resolution", "batch_size": "train.batch_size", "flip_aug": "data.flip", "random_crop": 'data.crop="random"',
    "caption_dropout_rate": "data.caption_dropout", "validation_split": "data.validation_share", "alpha_mask": 'data.mask="alpha"',
    "conditioning_data_dir": "data.mask_path", "color_aug": "data.jitter", "shuffle_caption": "data.shuffle_tags",
    "keep_tokens": "data.keep_tags", "caption_tag_dropout_rate": "data.tag_dropout", "enable_wildcard": "data.wildcards",
    "keep_tokens_separator": "||| with data.shuffle_tags", "secondary_separator": ";;; with data.shuffle_tags",
}  # fmt: skip
"""Settings of the file that the recipe has, too."""
TO_IGNORE = frozenset({"subsets", "cache_info", "resize_interpolation"})


class KohyaToml(Reader):
    """[[datasets]] with [[datasets.subsets]]; a lower level wins over a higher one."""

    name = "kohya-toml"
    walks = False
    file = "kohya's dataset .toml"

    def recognises(self, folder: Folder) -> bool:
        return folder.file is not None and folder.file.suffix == ".toml"

    def read(self, folder: Folder, found: Found) -> None:
        if folder.file is None:
            return found.fault(folder.path.name, "data.path has to name the .toml file itself for this layout")
        if (content := content_of(folder.file, found)) is None:
            return None
        for where, subset in _subsets(content, folder.file.name, found):
            self._read_subset(folder, where, subset, found)
        _tell_of_settings(content, folder.file.name, found)
        said = f"kohya's {folder.file.name}: {plural(len(found.entries), 'picture')}"
        return found.notes.insert(0, said)

    def _read_subset(self, folder: Folder, where: str, subset: Mapping[str, Any], found: Found) -> None:
        if subset.get("is_reg"):
            name = subset.get("image_dir")
            return found.notes.append(f"{where}: class pictures are not read here; data.class_path={name} uses them")
        repeats = subset.get("num_repeats", 1)
        if not isinstance(repeats, int) or repeats < 1:
            return found.fault(where, f"num_repeats is {repeats!r}, not a whole number from 1 on")
        part = Part(
            where, subset.get("image_dir"), repeats, str(subset.get("class_tokens") or ""),
            extension=str(subset.get("caption_extension", ".caption")),
            prefix=str(subset.get("caption_prefix") or ""), suffix=str(subset.get("caption_suffix") or ""),
        )  # fmt: skip
        if subset.get("metadata_file"):
            return found.fault(where, f"give data.path={subset['metadata_file']} as a source of its own (data.sources)")
        found.entries += read_part(folder, part, found)
        return None


def _subsets(content: Mapping[str, Any], name: str, found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each subset with what it has from above."""
    general, datasets = content.get("general", {}), _tables(content.get("datasets"))
    if not datasets or not isinstance(general, dict):
        what = "[general] is no table" if datasets else "no [[datasets]] in it: not a dataset file of kohya's scripts"
        found.fault(name, what)
        return
    for i, dataset in enumerate(datasets, 1):
        subsets = _tables(dataset.get("subsets"))
        if not subsets:
            found.fault(f"{name}: datasets[{i}]", "has no [[datasets.subsets]]")
        for k, subset in enumerate(subsets, 1):
            yield f"{name}: datasets[{i}].subsets[{k}]", {**general, **dataset, **subset}


def _tables(value: object) -> list[dict[str, Any]]:
    """A list of tables; nothing else is one."""
    return value if isinstance(value, list) and all(isinstance(row, dict) for row in value) else []


def _tell_of_settings(content: Mapping[str, Any], name: str, found: Found) -> None:
    """What the file sets and nobody reads, with the recipe's own setting where it has one."""
    datasets = _tables(content.get("datasets"))
    levels = [
        *_tables([content.get("general", {})]),
        *datasets,
        *(s for d in datasets for s in _tables(d.get("subsets"))),
    ]
    keys = sorted({key for level in levels for key in level} - READ - TO_IGNORE - {"is_reg"})
    if keys:
        said = [f"{key} ({INSTEAD[key]})" if key in INSTEAD else key for key in keys]
        found.notes.append(f"{name}: not read, set it in the recipe: {listed(said, 12)}")


class KohyaJson(Reader):
    """{"name or path": {"caption": ..., "tags": ...}}; pictures in the folder of the file or below."""

    name = "kohya-json"
    file = "kohya's metadata .json"

    def recognises(self, folder: Folder) -> bool:
        return folder.file is not None and folder.file.suffix == ".json" and _is_metadata(folder.file)

    def read(self, folder: Folder, found: Found) -> None:
        if folder.file is None:
            return found.fault(folder.path.name, "data.path has to name the .json file itself for this layout")
        if (content := content_of(folder.file, found)) is None:
            return None
        if not isinstance(content, dict):
            return found.fault(folder.file.name, "not an object of pictures; take the file that kohya's scripts wrote")
        by_name = _names(folder)
        for key, row in content.items():
            self._read_row(folder, by_name, key, row, found)
        return found.notes.insert(0, f"kohya's {folder.file.name}: {plural(len(found.entries), 'picture')}")

    def _read_row(self, folder: Folder, by_name: Mapping[str, list[Path]], key: str, row: object, found: Found) -> None:
        assert folder.file
        where = f"{folder.file.name}: {key!a:.80}"
        stem = key.replace("\\", "/").rpartition("/")[2]
        pictures = by_name.get(stem, [])
        if len(pictures) != 1:
            what = "no picture of this name here" if not pictures else f"{len(pictures)} pictures have this name"
            return found.fault(where, f"{what}; add or rename it, or remove the entry", skippable=True, kind="missing")
        captions = captions_of(row.get("caption")) if isinstance(row, dict) else None
        tags = captions_of(row.get("tags")) if isinstance(row, dict) else None
        if captions is None or tags is None:
            return found.fault(where, 'is no {"caption": "...", "tags": "..."} of texts; mend it')
        lines = [line.strip() for caption in captions for line in caption.splitlines() if line.strip()]
        texts = [", ".join(filter(None, (line, *tags))) for line in lines or [""]]
        found.entries.append(Entry(pictures[0], tuple(filter(None, texts)), where))
        return None


def _names(folder: Folder) -> dict[str, list[Path]]:
    """Pictures by their names with and without suffix: kohya's files have either."""
    names: dict[str, list[Path]] = {}
    for path in folder.pictures:
        for name in {path.name, path.stem}:
            names.setdefault(name, []).append(path)
    return names


def _is_metadata(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).lstrip().startswith(b"{")
