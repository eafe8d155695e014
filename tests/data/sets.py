"""Arrow and Parquet files as Hugging Face's `datasets` writes them, by pyarrow alone. Compared once with datasets 5.2.0's own."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

Row = dict[str, Any]
IMAGE = {"_type": "Image"}
TEXT = {"dtype": "string", "_type": "Value"}


def png(seed: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    tiny.picture(seed, size).save(stream, "PNG")
    return stream.getvalue()


def cell(seed: int = 0, name: str | None = None, size: tuple[int, int] = (8, 8)) -> Row:
    """A picture with its bytes in the row."""
    return {"bytes": png(seed, size), "path": name}


def table(rows: Sequence[Row], features: dict[str, Any]) -> Any:
    """With the schema and the metadata that `datasets` gives: features are Image, ClassLabel, texts, lists of texts, whole numbers."""
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'sdtune[parquet]'")
    kinds = {
        "Image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "ClassLabel": pa.int64(), "List": pa.list_(pa.string()),
    }  # fmt: skip
    fields = [
        (n, kinds.get(f["_type"]) or (pa.string() if f["dtype"] == "string" else pa.int64()))
        for n, f in features.items()
    ]
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.Table.from_pylist(list(rows), schema=pa.schema(fields, metadata=metadata))


def save_to_disk(folder: Path, rows: Sequence[Row], features: dict[str, Any], shards: int = 1) -> Path:
    """What `Dataset.save_to_disk` writes: Arrow's stream of record batches, and two files that say what they are."""
    whole = table(rows, features)
    import pyarrow as pa

    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    size = -(-len(rows) // shards)
    for i, name in enumerate(names):
        part = whole.slice(i * size, size)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part, max_chunksize=2)
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names], "_fingerprint": "3a821cd45fe15c73", "_format_columns": None,
        "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps(state, indent=2))
    return folder


def save_splits(folder: Path, features: dict[str, Any], **splits: Sequence[Row]) -> Path:
    """What `DatasetDict.save_to_disk` writes."""
    for name, rows in splits.items():
        save_to_disk(folder / name, rows, features)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def parquet(path: Path, rows: Sequence[Row], features: dict[str, Any], *, group: int = 2, **options: Any) -> Path:
    """What `push_to_hub` uploads, in row groups of `group`."""
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'sdtune[parquet]'")
    from pyarrow import parquet as files

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_table(table(rows, features), path, row_group_size=group, **options)
    return path


def on_hub(cache: Path, name: str, source: Path, revision: str = "main") -> Path:
    """A copy of the folder `source` as the Hub's own cache holds it: links into blobs/."""
    repo = cache / f"datasets--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / ("0" * 40)
    (repo / "blobs").mkdir(parents=True)
    for i, path in enumerate(sorted(p for p in source.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = repo / "blobs" / f"{i:064x}"
        blob.write_bytes(path.read_bytes())
        link.symlink_to(blob)
    ref = repo / "refs" / revision
    ref.parent.mkdir(parents=True)
    ref.write_text("0" * 40)
    return snapshot
