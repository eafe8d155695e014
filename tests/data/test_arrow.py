"""Hugging Face's datasets: Arrow files, Parquet files, Hub ids. What `datasets` writes, pyarrow writes here in the same form."""

from __future__ import annotations

import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sdtune.data import archives, rows
from sdtune.data.dataset import Splits, locate
from sdtune.data.images import load_image
from sdtune.errors import DataError
from tests.data import sets
from tests.data.sets import IMAGE, TEXT, cell
from tests.data.test_dataset import faults, has, put, scan

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'sdtune[parquet]'")

PLAIN = {"image": IMAGE, "text": TEXT}


def plain(count: int, first: int = 0) -> list[sets.Row]:
    return [{"image": cell(i, f"{i}.png"), "text": f"number {i}"} for i in range(first, first + count)]


def captions(splits: Splits, root: Path) -> dict[str, tuple[str, ...]]:
    return {e.image.relative_to(root).as_posix(): e.captions for e in splits.train}


# ---- files


def test_a_dataset_saved_to_disk(tmp_path: Path) -> None:
    sets.save_to_disk(tmp_path, plain(5), PLAIN, shards=2)
    (tmp_path / "cache-0123.arrow").write_bytes(b"what map() keeps")
    splits = scan(tmp_path)
    assert captions(splits, tmp_path) == {
        "data-00000-of-00002.arrow/000000.png": ("number 0",),
        "data-00000-of-00002.arrow/000001.png": ("number 1",),
        "data-00000-of-00002.arrow/000002.png": ("number 2",),
        "data-00001-of-00002.arrow/000000.png": ("number 3",),
        "data-00001-of-00002.arrow/000001.png": ("number 4",),
    }
    assert splits.notes[0] == (
        "datasets in Arrow files: 5 pictures in 2 files; pictures from 'image', captions from 'text'"
    )
    for i, e in enumerate(splits.train):
        assert archives.read_bytes(e.image) == sets.png(i)
        assert archives.size(e.image) == len(sets.png(i))
    assert load_image(splits.train[3].image).size == (8, 8)


def test_the_cache_of_datasets(tmp_path: Path) -> None:
    """Where load_dataset prepares: name-train.arrow, and beside it what map() keeps."""
    sets.save_to_disk(tmp_path, plain(4), PLAIN)
    (tmp_path / "state.json").unlink()
    (tmp_path / "data-00000-of-00001.arrow").rename(tmp_path / "name-train.arrow")
    (tmp_path / "cache-0123.arrow").write_bytes(b"what map() keeps")
    sets.save_to_disk(tmp_path / "other", plain(1, 4), PLAIN)
    (tmp_path / "other" / "data-00000-of-00001.arrow").rename(tmp_path / "name-validation.arrow")
    shutil.rmtree(tmp_path / "other")
    splits = scan(tmp_path)
    assert (len(splits.train), len(splits.validation)) == (4, 1)


def test_splits_saved_to_disk(tmp_path: Path) -> None:
    sets.save_splits(tmp_path, PLAIN, train=plain(3), validation=plain(2, 3), test=plain(1, 5))
    splits = scan(tmp_path)
    assert [e.captions for e in splits.train] == [("number 0",), ("number 1",), ("number 2",)]
    assert [e.captions for e in splits.validation] == [("number 3",), ("number 4",)]
    assert has(splits.notes, "test/ is left alone")


@pytest.mark.parametrize("group", [1, 2, 100])
def test_parquet_files_of_the_hub(tmp_path: Path, group: int) -> None:
    sets.parquet(tmp_path / "data" / "train-00000-of-00002.parquet", plain(3), PLAIN, group=group)
    sets.parquet(tmp_path / "data" / "train-00001-of-00002.parquet", plain(2, 3), PLAIN, group=group)
    sets.parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", plain(2, 5), PLAIN, group=group)
    sets.parquet(tmp_path / "data" / "test-00000-of-00001.parquet", plain(1, 7), PLAIN, group=group)
    splits = scan(tmp_path)
    assert [e.captions[0] for e in splits.train] == [f"number {i}" for i in range(5)]
    assert [e.captions[0] for e in splits.validation] == ["number 5", "number 6"]
    assert has(splits.notes, "1 picture in test/: neither trained on nor validated with")
    assert [archives.read_bytes(e.image) for e in splits.train] == [sets.png(i) for i in range(5)]
    backwards = reversed(splits.train)  # not in the order of the rows
    assert [archives.read_bytes(e.image) for e in backwards] == [sets.png(i) for i in (4, 3, 2, 1, 0)]
    named = scan(tmp_path / "data" / "test-*.parquet")
    assert [e.captions[0] for e in named.train] == ["number 7"]


def test_folders_of_splits_as_the_hub_converts_to(tmp_path: Path) -> None:
    sets.parquet(tmp_path / "default" / "partial-train" / "0000.parquet", plain(3), PLAIN)
    sets.parquet(tmp_path / "default" / "validation" / "0000.parquet", plain(1, 3), PLAIN)
    splits = scan(tmp_path)
    assert (len(splits.train), len(splits.validation)) == (3, 1)


def test_a_row_group_is_all_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    path = sets.parquet(tmp_path / "a.parquet", plain(6), PLAIN, group=2)
    read: list[tuple[int, tuple[str, ...]]] = []
    original = parquet.ParquetFile.read_row_group

    def spy(self: Any, i: int, columns: Any = None, **options: Any) -> Any:
        read.append((i, tuple(columns)))
        return original(self, i, columns=columns, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", spy)
    rows._read_group.cache_clear()
    splits = scan(tmp_path)
    assert len(splits.train) == 6
    bytes_read = [group for group, columns in read if columns == ("image",)]
    assert bytes_read == [0, 1, 2]  # each once, by the check of the pictures; none to list them
    archives.read_bytes(path / "000005.png")
    assert [group for group, columns in read if columns == ("image",)] == [0, 1, 2]


def test_an_arrow_file_is_mapped_rather_than_read(tmp_path: Path) -> None:
    import pyarrow as pa

    large = [{"image": {"bytes": bytes(2**22), "path": None}, "text": "x"} for _ in range(2)]
    path = sets.save_to_disk(tmp_path, large, PLAIN) / "data-00000-of-00001.arrow"
    rows._open.cache_clear()
    before = pa.total_allocated_bytes()
    assert archives.size(path / "000001") == 2**22
    assert pa.total_allocated_bytes() - before < 2**16


def test_without_statistics_and_with_empty_rows(tmp_path: Path) -> None:
    rows_ = [*plain(2), {"image": None, "text": "nothing"}, {"image": {"bytes": None, "path": None}, "text": "none"}]
    sets.parquet(tmp_path / "a.parquet", rows_, PLAIN, write_statistics=False)
    splits = scan(tmp_path, on_bad="skip")
    assert len(splits.train) == 2
    assert has(splits.notes, "a.parquet:2: no picture in this row; remove it")
    assert has(splits.notes, "a.parquet:3: no picture in this row; remove it")


# ---- columns


@pytest.mark.parametrize("name", ["caption", "captions", "sentence", "Prompt", "description"])
def test_the_caption_is_found(tmp_path: Path, name: str) -> None:
    features = {"image": IMAGE, "id": {"dtype": "int64", "_type": "Value"}, name: TEXT}
    sets.save_to_disk(tmp_path, [{"image": cell(), "id": 7, name: "a cat"}], features)
    splits = scan(tmp_path)
    assert splits.train[0].captions == ("a cat",)
    assert has(splits.notes, f"captions from '{name}'")


def test_lists_labels_and_named_columns(tmp_path: Path) -> None:
    features = {
        "photo": IMAGE, "captions": {"feature": TEXT, "_type": "List"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    }  # fmt: skip
    sets.save_to_disk(tmp_path, [{"photo": cell(), "captions": ["a cat", " ", "a red cat"], "label": 1}], features)
    assert scan(tmp_path).train[0].captions == ("a cat", "a red cat")
    assert scan(tmp_path, caption_column="label").train[0].captions == ("dog",)
    assert faults(tmp_path, caption_column="lable") == [
        "data-00000-of-00001.arrow: no column 'lable'; did you mean 'label'? (data.caption_column)"
    ]


def test_no_column_of_captions_is_told(tmp_path: Path) -> None:
    sets.save_to_disk(tmp_path, [{"image": cell(), "author": "Ada"}], {"image": IMAGE, "author": TEXT})
    assert "data-00000-of-00001.arrow/000000: no caption in data-00000-of-00001.arrow:0; write one" in faults(tmp_path)
    splits = scan(tmp_path, caption_prefix="sks")
    assert has(splits.notes, "no column of captions (there are: author); data.caption_column names one")


def test_masks_in_a_column(tmp_path: Path) -> None:
    features = {"image": IMAGE, "mask": IMAGE, "depth": IMAGE, "text": TEXT}
    rows_: list[sets.Row] = [
        {"image": cell(1), "mask": cell(2), "depth": cell(3), "text": "a"},
        {"image": cell(4), "mask": None, "text": "b"},
    ]
    sets.save_to_disk(tmp_path, rows_, features)
    splits = scan(tmp_path, mask="files")
    assert splits.train[0].mask == tmp_path / "data-00000-of-00001.arrow" / "mask" / "000000"
    assert archives.read_bytes(splits.train[0].mask) == sets.png(2)
    assert splits.train[1].mask is None
    assert has(splits.notes, "other columns of pictures, not read: depth")
    assert has(scan(tmp_path).notes, "other columns of pictures, not read: mask, depth")


# ---- pictures that rows only name


def test_named_pictures_stay_inside_the_folder_and_its_roots(tmp_path: Path) -> None:
    inside, outside = put(tmp_path / "set" / "img" / "a.png"), put(tmp_path / "other" / "b.png", 1)
    names = ["img/a.png", str(outside), "../other/b.png", "https://example.org/c.png", "img/gone.png"]
    rows_: list[sets.Row] = [
        {"image": {"bytes": None, "path": name}, "text": f"number {i}"} for i, name in enumerate(names)
    ]
    sets.parquet(tmp_path / "set" / "a.parquet", rows_[:1], PLAIN)
    assert [e.image for e in scan(tmp_path / "set" / "*.parquet").train] == [inside]
    sets.parquet(tmp_path / "set" / "a.parquet", rows_, PLAIN)
    told = faults(tmp_path / "set" / "a.parquet")
    assert told[0].startswith(
        f"a.parquet:1: its path {str(outside)!r} is an absolute path; use a path inside the folder"
    )
    assert told[1].startswith("a.parquet:2: its path '../other/b.png' leaves the folder")
    assert told[2].startswith("a.parquet:3: its path 'https://example.org/c.png' is an address")
    assert told[3] == "a.parquet:4: img/gone.png does not exist; remove the row or add the picture"
    sets.parquet(tmp_path / "set" / "a.parquet", rows_[:2], PLAIN)
    splits = scan(tmp_path / "set" / "a.parquet", roots=(str(tmp_path / "other"),))
    assert [e.image for e in splits.train] == [inside, outside]


# ---- what is wrong with files


def test_damaged_and_missing_files_are_told(tmp_path: Path) -> None:
    sets.save_to_disk(tmp_path / "s", plain(4), PLAIN, shards=2)
    first = tmp_path / "s" / "data-00000-of-00002.arrow"
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    assert faults(tmp_path / "s")[0].startswith("data-00000-of-00002.arrow: damaged or not of its kind (")
    first.unlink()
    assert faults(tmp_path / "s")[0].startswith("state.json: 1 file of it not here (data-00000-of-00002.arrow)")
    sets.parquet(tmp_path / "p" / "train-00000-of-00003.parquet", plain(2), PLAIN)
    assert faults(tmp_path / "p")[0].startswith(
        "p: 2 shards not here (train-00001-of-00003.parquet, train-00002-of-00003.parquet); add them"
    )
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "a.parquet").write_bytes(b"PAR1 no")
    assert "a.parquet: damaged or not of its kind" in faults(tmp_path / "q")[0]


def test_offsets_out_of_bounds_are_not_followed(tmp_path: Path) -> None:
    import pyarrow as pa

    offsets = pa.py_buffer(
        b"".join(n.to_bytes(4, "little") for n in (0, 2**20, 5))
    )  # the last one alone is looked at by itself
    liar = pa.Array.from_buffers(pa.binary(), 2, [None, offsets, pa.py_buffer(b"short")])
    batch = pa.RecordBatch.from_arrays([liar, pa.array(["a", "b"])], names=["image", "text"])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    assert "a.arrow: damaged or not of its kind" in faults(tmp_path)[0]


def test_a_link_out_of_the_folder_is_not_opened(tmp_path: Path) -> None:
    elsewhere = sets.parquet(tmp_path / "elsewhere.parquet", plain(1), PLAIN)
    sets.parquet(tmp_path / "s" / "a.parquet", plain(1, 1), PLAIN)
    (tmp_path / "s" / "b.parquet").symlink_to(elsewhere)
    assert faults(tmp_path / "s")[0] == "b.parquet: a link that leaves the folder; copy the file into it"


def test_pyarrow_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets.save_to_disk(tmp_path, plain(1), PLAIN)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    rows._open.cache_clear()
    assert faults(tmp_path)[0] == "data-00000-of-00001.arrow: needs pyarrow: pip install 'sdtune[parquet]'"


def test_rows_that_are_not_there(tmp_path: Path) -> None:
    sets.save_to_disk(tmp_path, plain(1), PLAIN)
    for name in ("000001.png", "x.png", "mask/000000.png", "a/b/000000.png"):
        with pytest.raises(FileNotFoundError):
            archives.read_bytes(tmp_path / "data-00000-of-00001.arrow" / name)


def test_tars_with_tables_beside_them_stay_tars(tmp_path: Path) -> None:
    """img2dataset writes 00000.tar with 00000.parquet, of addresses and captions."""
    import io
    import tarfile

    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, data in (("0.png", sets.png()), ("0.txt", b"a cat")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    sets.parquet(tmp_path / "00000.parquet", [{"url": "x", "caption": "a cat"}], {"url": TEXT, "caption": TEXT})
    assert scan(tmp_path).notes[0] == "WebDataset: 1 picture in 1 tar file"


# ---- the Hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_dataset_of_the_hub_by_its_id(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "source"
    sets.parquet(source / "data" / "train-00000-of-00001.parquet", plain(3), PLAIN)
    sets.parquet(source / "data" / "validation-00000-of-00001.parquet", plain(1, 3), PLAIN)
    snapshot = sets.on_hub(cache, "owner/name", source)
    for path in ("hf:owner/name", "hf:owner/name@main", f"hf:owner/name@{'0' * 40}", "hf:owner/name/data"):
        splits = scan(Path(path))
        assert (len(splits.train), len(splits.validation)) == (3, 1), path
    splits = scan(Path("hf:owner/name"))
    assert splits.train[0].image == snapshot / "data" / "train-00000-of-00001.parquet" / "000000.png"
    assert len(scan(Path("hf:owner/name/data/validation-*.parquet")).train) == 1


def test_an_imagefolder_and_a_converted_branch_of_the_hub(tmp_path: Path, cache: Path) -> None:
    put(tmp_path / "a" / "train" / "x.png")
    (tmp_path / "a" / "train" / "metadata.jsonl").write_text(json.dumps({"file_name": "x.png", "text": "a cat"}))
    sets.on_hub(cache, "owner/folder", tmp_path / "a")
    assert [e.captions for e in scan(Path("hf:owner/folder")).train] == [("a cat",)]
    sets.parquet(tmp_path / "b" / "default" / "train" / "0000.parquet", plain(2), PLAIN)
    sets.on_hub(cache, "owner/converted", tmp_path / "b", revision="refs/convert/parquet")
    assert len(scan(Path("hf:owner/converted@refs/convert/parquet/default")).train) == 2


@pytest.mark.parametrize(
    "path, said",
    [
        ("hf:owner/other", "owner/other: neither a folder nor in the local Hub cache; data.download=true fetches it (HF_TOKEN"),
        ("hf:owner/name@v2", "owner/name (revision v2): neither a folder nor in the local Hub cache"),
        ("hf:owner/name/gone", "hf:owner/name/gone: no gone in it; in the local Hub cache are: data/ (data.download=true"),
        ("hf:name", "hf:name: not of the form hf:owner/name"),
        ("hf:owner/name/../../x", "hf:owner/name/../../x: not of the form"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_id(path: str, said: str, tmp_path: Path, cache: Path) -> None:
    sets.parquet(tmp_path / "s" / "data" / "train-00000-of-00001.parquet", plain(1), PLAIN)
    sets.on_hub(cache, "owner/name", tmp_path / "s")
    with pytest.raises(DataError) as caught:
        locate(path)
    assert str(caught.value).startswith(said)


def test_a_hub_copy_with_a_shard_missing_says_how_to_get_it(tmp_path: Path, cache: Path) -> None:
    sets.parquet(tmp_path / "s" / "train-00000-of-00002.parquet", plain(1), PLAIN)
    sets.on_hub(cache, "owner/name", tmp_path / "s")
    assert "add them (data.download=true those of a Hub id)" in faults(Path("hf:owner/name"))[0]


def test_nothing_is_downloaded_unless_asked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdtune import hub

    asked: list[dict[str, Any]] = []

    def fetch(repo: str, wanted: Any, **options: Any) -> Path:
        asked.append(options)
        raise DataError("no network here")

    monkeypatch.setattr(hub, "snapshot", fetch)
    for download in (False, True):
        with pytest.raises(DataError, match="no network here"):
            locate("hf:owner/name", download=download)
    assert [(o["download"], o["kind"]) for o in asked] == [(False, "dataset"), (True, "dataset")]


def test_of_many_threads_one_opens_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To open an Arrow file is to check all of it."""
    path = sets.save_to_disk(tmp_path / "set", plain(4), PLAIN) / "data-00000-of-00001.arrow"
    opened, begin = list[Path](), rows._Arrow.__init__

    def slowly(self: Any, path: Path) -> None:
        opened.append(path)
        time.sleep(0.05)
        begin(self, path)

    monkeypatch.setattr(rows._Arrow, "__init__", slowly)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: rows.read_bytes(path, f"{i % 4}.png"), range(16)))
    assert opened == [path] and read[:4] == read[4:8] and len(set(read)) == 4
