"""SimpleTuner's multidatabackend.json: a list of folders, each with its way of captioning. Local ones are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdtune.data.layouts import Folder, Found, listed, plural
from sdtune.data.readers.base import Reader
from sdtune.data.readers.nested import Part, read_part
from sdtune.data.readers.tables import content_of

FILE = "multidatabackend.json"
STRATEGIES = {"textfile": "sidecar", "filename": "filename", "instanceprompt": "prompt"}


READ = frozenset(
    {
        "id",
        "type",
        "disabled",
        "dataset_type",
        "instance_data_dir",
        "caption_strategy",
        "repeats",
        "instance_prompt",
    }
)
INSTEAD = {
    "prepend_instance_prompt": "data.caption_prefix", "resolution": "data.resolution", "crop": "data.crop", "crop_style": "data.crop",
    "crop_aspect": "data.buckets", "probability": "repeats or weight in data.sources", "minimum_image_size": "data.on.enlarged",
    "maximum_image_size": "data.on.too_large", "mask_path": "data.mask_path", "conditioning_data": "data.mask_path",
    "metadata_backend": "data.layout",
}  # fmt: skip
"""Settings of the file that the recipe has, too."""
TO_IGNORE = frozenset(
    {"cache_dir_vae", "cache_dir", "resolution_type", "write_batch_size", "vae_cache_clear_each_epoch", "default"}
)


class SimpleTuner(Reader):
    """Its `repeats` counts what comes on top: 0 means once."""

    name = "simpletuner"
    walks = False
    file = FILE

    def recognises(self, folder: Folder) -> bool:
        if folder.file is not None:
            return folder.file.suffix == ".json"  # what is no JSON of kohya's
        return FILE in folder.names

    def read(self, folder: Folder, found: Found) -> None:
        file = folder.file or folder.path / FILE
        if (content := content_of(file, found)) is None:
            return None
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            return found.fault(file.name, "not a list of data backends; take the file that SimpleTuner reads")
        passed, unread = [], dict[str, None]()
        for i, row in enumerate(content, 1):
            where = f"{file.name}: {row.get('id') or i}"
            if row.get("disabled") or row.get("dataset_type", "image") != "image":
                passed.append(str(row.get("id") or i))
            elif (part := _part(where, row, found)) is not None:
                unread |= dict.fromkeys(key for key in row if key not in READ | TO_IGNORE)
                found.entries += read_part(folder, part, found)
        if unread:
            said = [f"{key} ({INSTEAD[key]})" if key in INSTEAD else key for key in sorted(unread)]
            found.notes.append(f"{file.name}: not read, set it in the recipe: {listed(said, 12)}")
        if passed:
            found.notes.append(f"{file.name}: no pictures to train on, or disabled: {listed(passed)}")
        return found.notes.insert(0, f"SimpleTuner's {file.name}: {plural(len(found.entries), 'picture')}")


def _part(where: str, row: Mapping[str, Any], found: Found) -> Part | None:
    kind, strategy, repeats = row.get("type", "local"), row.get("caption_strategy", "filename"), row.get("repeats", 0)
    if kind != "local":
        found.fault(where, f"its type is {kind!r}; copy the pictures into a folder and set it to local")
    elif strategy not in STRATEGIES:
        found.fault(where, f"caption_strategy {strategy!r} is not read; known: {', '.join(STRATEGIES)}")
    elif not isinstance(repeats, int) or repeats < 0:
        found.fault(where, f"repeats is {repeats!r}, not a whole number from 0 on")
    else:
        prompt = str(row.get("instance_prompt") or "")
        return Part(where, row.get("instance_data_dir"), repeats + 1, prompt, STRATEGIES[strategy], extension=".txt")
    return None
