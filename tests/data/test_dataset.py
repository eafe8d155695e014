"""Layouts, splits, and one list of everything that is wrong with a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdtune.data import dataset
from sdtune.data.caption import cut_off, decorate
from sdtune.data.config import DataConfig
from sdtune.data.dataset import Example, Splits
from sdtune.errors import DataError
from tests import tiny

CANARY = "never to be read"


def scan(path: Path, seed: int = 0, **options: Any) -> Splits:
    return dataset.scan(DataConfig(path=str(path), **{"validation_share": 0, **options}), seed=seed)


def faults(path: Path, **options: Any) -> list[str]:
    """The lines of the error, after the first."""
    with pytest.raises(DataError) as caught:
        scan(path, **options)
    head, *lines = str(caught.value).splitlines()
    assert head.startswith(str(path))
    return lines


def put(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny.picture(seed, size).save(path)
    return path


def pair(path: Path, caption: str | bytes, seed: int = 0) -> None:
    put(path, seed)
    path.with_suffix(".txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())


def jsonl(folder: Path, *rows: object) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def names(examples: Sequence[Example]) -> list[str]:
    return [e.image.name for e in examples]


def has(notes: Sequence[str], part: str) -> bool:
    return any(part in note for note in notes)


# ---- layouts


def test_metadata_jsonl(tmp_path: Path) -> None:
    put(tmp_path / "b.png", 1, (20, 10))
    put(tmp_path / "sub" / "a.jpg", 2)
    jsonl(
        tmp_path,
        {"file_name": "b.png", "text": " a cat ", "label": 3},
        "",
        {"file_name": "sub/a.jpg", "text": ["one", "two"]},
    )
    found = scan(tmp_path)
    assert [e.captions for e in found.train] == [("a cat",), ("one", "two")]
    assert found.train[0].size == (20, 10)
    assert found.train[0].image == tmp_path / "b.png"
    assert found.notes[:2] == [
        "imagefolder with metadata.jsonl: 2 pictures",
        "1 picture with several captions: one is drawn at each visit",
    ]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_metadata_csv(tmp_path: Path, mark: bytes) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "b.png", 1)
    text = 'file_name,note,caption\na.png,x,"a cat, sitting\nby a 猫"\nb.png,x,a dog\n'
    (tmp_path / "metadata.csv").write_bytes(mark + text.encode())
    found = scan(tmp_path, caption_column="caption")
    assert [e.captions for e in found.train] == [("a cat, sitting\nby a 猫",), ("a dog",)]
    assert found.notes[0] == "imagefolder with metadata.csv: 2 pictures"


def test_text_files_beside_pictures(tmp_path: Path) -> None:
    pair(tmp_path / "a.png", "\ufeffa cat 🐈\r\n\n  another line \n", 1)
    pair(tmp_path / "x" / "a.JPG", "عربي", 2)
    pair(tmp_path / "y" / "a.jpg", "third", 3)
    (tmp_path / "README.txt").write_text("hello")
    (tmp_path / "notes.md").write_text("hello")
    put(tmp_path / ".hidden" / "b.png")
    (tmp_path / "._a.png").write_bytes(b"\0")
    found = scan(tmp_path)
    assert [e.captions for e in found.train] == [("a cat 🐈", "another line"), ("عربي",), ("third",)]
    assert found.notes[0] == "pictures with .txt files: 3 pictures"
    assert has(found.notes, "1 .txt file without a picture: README.txt")
    assert has(found.notes, "1 other file not read: notes.md")


def test_captions_get_prefix_and_suffix(tmp_path: Path) -> None:
    pair(tmp_path / "a.png", "a cat\na dog")
    put(tmp_path / "b.png", 1)
    found = scan(tmp_path, caption_prefix="sks", caption_suffix=", drawn")
    assert [e.captions for e in found.train] == [("sks a cat, drawn", "sks a dog, drawn"), ("sks, drawn",)]
    assert has(found.notes, "1 picture without a caption, shown with 'sks, drawn' alone: b.png")


def test_decorate() -> None:
    assert decorate(" a cat ", DataConfig()) == "a cat"
    assert decorate("a cat", DataConfig(caption_prefix="sks ", caption_suffix=" style")) == "sks a cat style"
    assert decorate("", DataConfig(caption_suffix=", style")) == ", style"


def test_cut_off_is_the_part_that_is_not_read() -> None:
    def count(texts: Sequence[str]) -> list[int]:
        return [2 + len(re.findall(r"\w+|[^\w\s]", t)) for t in texts]

    caption = "one two, three  four five"
    assert [cut_off(caption, count, n) for n in (8, 7, 6, 5, 4, 2)] == [
        "", "five", "four five", "three  four five", ", three  four five", caption,
    ]  # fmt: skip


# ---- splits


def test_split_folders(tmp_path: Path) -> None:
    for i, part in enumerate(("train", "validation", "test")):
        tiny.imagefolder(tmp_path / part, [f"{part} {j}" for j in range(2)], seed=10 * i)
    put(tmp_path / "loose.png", 99)
    found = scan(tmp_path, validation_share=0.5)
    assert [e.captions[0] for e in found.train] == ["train 0", "train 1"]
    assert [e.captions[0] for e in found.validation] == ["validation 0", "validation 1"]
    assert found.notes[:3] == [
        "split folders: train/, validation/",
        "test/ is left alone: neither trained on nor validated with",
        "1 picture beside train/, left alone: loose.png",
    ]
    assert "validation/: imagefolder with metadata.jsonl: 2 pictures" in found.notes


def test_validation_folder_beside_loose_pictures(tmp_path: Path) -> None:
    pair(tmp_path / "a.png", "a", 1)
    for i, part in enumerate(("val", "test")):
        pair(tmp_path / part / "b.png", part, 2 + i)
    found = scan(tmp_path)
    assert (names(found.train), [e.captions for e in found.validation]) == (["a.png"], [("val",)])


def test_split_folders_in_the_rows_of_one_metadata_file(tmp_path: Path) -> None:
    paths = ["train/a.png", "validation/b.png", "test/c.png"]
    for i, path in enumerate(paths):
        put(tmp_path / path, i)
    jsonl(tmp_path, *({"file_name": p, "text": p} for p in paths))
    found = scan(tmp_path, validation_share=0.3)
    assert (names(found.train), names(found.validation)) == (["a.png"], ["b.png"])
    other = tiny.imagefolder(tmp_path.parent / "other", ["x"], seed=77)
    found = scan(tmp_path, validation=str(other))
    assert (names(found.train), names(found.validation)) == (["a.png"], ["000.png"])


def test_named_validation_folder(tmp_path: Path) -> None:
    for i, part in enumerate(("train", "validation", "mine")):
        tiny.imagefolder(tmp_path / part, [part], seed=10 * i)
    found = scan(tmp_path, validation=str(tmp_path / "mine"))
    assert found.validation[0].captions == ("mine",)
    assert has(found.notes, "validation/ is left alone: data.validation names another folder")


def held_out(path: Path, seed: int = 0, share: float = 0.25) -> set[str]:
    found = scan(path, validation_share=share, seed=seed)
    assert len(found.train) + len(found.validation) == len(list(path.rglob("*.png")))
    return {e.digest for e in found.validation}


def test_validation_share_follows_from_content(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for i in range(20):
        pair(here / f"{i}.png", "x", i)
        pair(there / f"deep/{99 - i}.png", "x", i)
    assert len(held_out(here)) == 5
    assert held_out(here) == held_out(there)
    assert held_out(here) != held_out(here, seed=1)
    pair(here / "0.png", "x", 1000)
    assert len(held_out(here) ^ held_out(there)) <= 2


def test_of_many_pictures_no_more_are_held_out_than_are_told(tmp_path: Path) -> None:
    tiny.imagefolder(tmp_path / "data", ["a cat"] * 12)
    found = scan(tmp_path / "data", validation_share=0.5, validation_most=2)
    assert (len(found.train), len(found.validation)) == (10, 2)


@pytest.mark.parametrize("count, share, expected", [(1, 0.5, 0), (2, 0.01, 1), (3, 1, 2), (3, 0, 0)])
def test_validation_share_of_few_pictures(tmp_path: Path, count: int, share: float, expected: int) -> None:
    for i in range(count):
        pair(tmp_path / f"{i}.png", "x", i)
    assert len(held_out(tmp_path, share=share)) == expected
    assert has(scan(tmp_path, validation_share=share).notes, "no validation pictures") == (not expected)


def test_copies_stay_on_one_side_and_are_told(tmp_path: Path) -> None:
    for i in range(6):
        pair(tmp_path / f"{i}.png", "x", i // 2)
    found = scan(tmp_path)
    for seed in range(5):
        found = scan(tmp_path, validation_share=0.3, seed=seed)
        assert len(found.validation) == 2
        assert not {e.digest for e in found.train} & {e.digest for e in found.validation}
    assert has(
        found.notes, "3 pictures with exact copies, seen more often than the others: 0.png = 1.png, 2.png = 3.png"
    )


def test_a_picture_in_train_and_validation_is_an_error(tmp_path: Path) -> None:
    tiny.imagefolder(tmp_path / "train", ["a", "b"])
    tiny.imagefolder(tmp_path / "validation", ["c"], seed=50)
    shutil.copy(tmp_path / "train" / "001.png", tmp_path / "validation" / "000.png")
    for policy in ("fail", "skip"):
        lines = faults(tmp_path, on_bad=policy)
        assert lines == [
            "validation/000.png: the same picture as train/001.png, which is trained on; remove one of them"
        ]


# ---- faults


def test_all_faults_come_in_one_list(tmp_path: Path) -> None:
    pair(tmp_path / "good.png", "x")
    pair(tmp_path / "latin.png", "caf\xe9".encode("latin-1"), 1)
    pair(tmp_path / "wide.png", "x".encode("utf-16"), 2)
    pair(tmp_path / "nul.png", "a\0b", 3)
    pair(tmp_path / "blank.png", " \n\t\n", 4)
    put(tmp_path / "bare.png", 5)
    pair(tmp_path / "twice.png", "x", 6)
    put(tmp_path / "twice.jpg", 7)
    (tmp_path / "empty.png").touch()
    (tmp_path / "empty.txt").write_text("x")
    whole = put(tmp_path / "cut.png", 8, (64, 64))
    whole.write_bytes(whole.read_bytes()[:-300])
    (tmp_path / "cut.txt").write_text("x")
    (tmp_path / "phone.heic").write_bytes(b"ftyp")
    assert sorted(faults(tmp_path)) == [
        "bare.png: no caption: bare.txt is missing; write one",
        "blank.png: no caption: blank.txt is empty; write one",
        "cut.png: damaged or cut off (image file is truncated); copy or export it again",
        "empty.png: the file is empty; copy it again",
        "latin.txt: is not UTF-8 at byte 3 (0xe9); save it as UTF-8",
        "nul.txt: a NUL character at byte 1; save it as UTF-8 text",
        "phone.heic: not one of the formats that are read; convert it to PNG or JPEG",
        "twice.txt: belongs to more than one picture (twice.jpg, twice.png); give the pictures different names",
        "wide.txt: is UTF-16 (byte 0); save it as UTF-8",
    ]
    assert faults(tmp_path, on_bad="skip") == [
        "twice.txt: belongs to more than one picture (twice.jpg, twice.png); give the pictures different names"
    ]
    (tmp_path / "twice.jpg").unlink()
    found = scan(tmp_path, on_bad="skip")
    assert names(found.train) == ["good.png", "twice.png"]
    assert "8 left out (data.on_bad=skip)" in found.notes
    assert sum(n.startswith("left out (data.on_bad=skip): ") for n in found.notes) == 8
    assert faults(tmp_path)[-1] == "mend them, or set data.on_bad=skip to leave them out"


def test_faults_of_both_splits_come_together(tmp_path: Path) -> None:
    put(tmp_path / "train" / "a.png")
    put(tmp_path / "validation" / "b.png", 1)
    lines = faults(tmp_path)
    assert lines[:2] == [
        "train/a.png: no caption: a.txt is missing; write one",
        "validation/b.png: no caption: b.txt is missing; write one",
    ]


def test_faults_in_metadata_have_line_numbers(tmp_path: Path) -> None:
    for i, name in enumerate(("a.png", "b.png", "c.png", "d.png", "extra.png")):
        put(tmp_path / name, i)
    jsonl(
        tmp_path,
        {"file_name": "a.png", "text": "x"},
        '{"file_name": "b.png", "text": ',
        {"file_name": "a.png", "text": "again"},
        {"file_name": "./a.png", "text": "again"},
        {"file_name": "gone.png", "text": "x"},
        ["b.png", "x"],
        {"text": "x"},
        {"file_name": "b.png", "text": 7},
        '{"file_name": "c.png", "text": "half \\ud800"}',
        {"file_name": "d.png"},
    )
    lines = faults(tmp_path)
    assert lines[0].startswith("metadata.jsonl:2: not valid JSON: ")
    assert lines[1:] == [
        'metadata.jsonl:6: not an object like {"file_name": "a.png", "text": "a cat"}',
        "metadata.jsonl:3: a.png is in line 1 too; put its captions into one row, as a list",
        "metadata.jsonl:4: ./a.png is in line 1 too; put its captions into one row, as a list",
        "metadata.jsonl:5: gone.png does not exist; remove the row or add the picture",
        "metadata.jsonl:7: file_name is None, not the name of a file",
        "metadata.jsonl:8: 'text' of b.png is no text or list of texts: 7",
        r"metadata.jsonl:9: 'text' of c.png is no text or list of texts: 'half \ud800'",
        "extra.png: not in metadata.jsonl; add a row for it or take it away",
        "d.png: no caption in metadata.jsonl:10; write one",
    ]


def test_metadata_that_is_not_utf8(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(b'\n{"file_name": "a.png", "text": "caf\xe9"}\n')
    assert faults(tmp_path)[0] == "metadata.jsonl:2: is not UTF-8 at byte 35 (0xe9); save it as UTF-8"
    (tmp_path / "metadata.jsonl").write_bytes('{"file_name": "a.png"}\n{}\n'.encode("utf-16"))
    assert faults(tmp_path)[0] == "metadata.jsonl:1: is UTF-16 (byte 0); save it as UTF-8"
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na.png,caf\xe9\n")
    assert faults(tmp_path)[0] == "metadata.csv:2: is not UTF-8 at byte 24 (0xe9); save it as UTF-8"


def test_csv_with_broken_rows(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,"two\nlines"\na.png,cat, dog\na.png\na.png,"open\n')
    lines = faults(tmp_path)
    assert lines[0] == "metadata.csv:4: other fields than the first line has; put captions with commas in quotes"
    assert lines[1] == "metadata.csv:5: other fields than the first line has; put captions with commas in quotes"
    assert lines[2].startswith("metadata.csv:6: not valid CSV: ")
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,x\ngone.png,"two\nlines"\n')
    assert faults(tmp_path)[0] == "metadata.csv:3: gone.png does not exist; remove the row or add the picture"


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    jsonl(tmp_path, {"file_name": "a.png", "caption": "x", "texts": "y"})
    assert faults(tmp_path)[0] == "metadata.jsonl: no column 'text'; did you mean 'texts'? (data.caption_column)"
    jsonl(tmp_path, {"image": "a.png", "text": "x"})
    assert faults(tmp_path)[0] == "metadata.jsonl: no column 'file_name'; it has: image, text"
    (tmp_path / "metadata.csv").touch()
    assert faults(tmp_path)[0] == "metadata.jsonl and metadata.csv: only one of them can count; remove the other"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A picture and a text that lie beside the data folder."""
    put(tmp_path / "secret.png", 9)
    (tmp_path / "secret.txt").write_text(CANARY)
    return tmp_path / "secret.png"


ESCAPES = {
    "../secret.png": "leaves the folder",
    "sub/../../secret.png": "leaves the folder",
    "..\\secret.png": "leaves the folder",
    "%2e%2e/secret.png": "leaves the folder",
    "{outside}": "is an absolute path",
    "/etc/passwd": "is an absolute path",
    "~/secret.png": "is an absolute path",
    "C:\\secret.png": "is an absolute path",
    "\\\\host\\secret.png": "is an absolute path",
    "file://{outside}": "is an address",
    "https://example.org/a.png": "is an address",
    "sub\\a.png": "has a backslash",
    "a.png\0": "holds characters that are no text",
    "a\ud800.png": "holds characters that are no text",
    "link.png": "is a link that leaves the folder",
    "folder/secret.png": "is a link that leaves the folder",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_no_row_leaves_the_folder(tmp_path: Path, outside: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    put(root / "a.png")
    (root / "link.png").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    jsonl(root, {"file_name": "a.png", "text": "x"}, {"file_name": name.format(outside=outside), "text": "x"})
    read, read_bytes = list[Path](), Path.read_bytes

    def recording(self: Path) -> bytes:
        read.append(self)
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", recording)
    for policy in ("fail", "skip"):
        line = next(x for x in faults(root, on_bad=policy) if x.startswith("metadata.jsonl:2: "))
        assert ESCAPES[name] in line
    assert {p.resolve() for p in read} == {root / "a.png", root / "metadata.jsonl"}


def test_no_link_beside_a_picture_leaves_the_folder(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "data"
    pair(root / "a.png", "x")
    (root / "b.png").symlink_to(outside)
    put(root / "c.png", 3)
    (root / "c.txt").symlink_to(outside.with_suffix(".txt"))
    (root / "more").symlink_to(tmp_path)
    with pytest.raises(DataError) as caught:
        scan(root, on_bad="skip", caption_prefix="sks")
    assert str(caught.value).splitlines()[1:] == [
        "b.png: a link that leaves the folder; copy the file into it",
        "c.txt: a link that leaves the folder; copy the file into it",
    ]
    (root / "b.png").unlink()
    (root / "c.txt").unlink()
    (root / "c.png").unlink()
    (root / "inside.png").symlink_to(root / "a.png")
    (root / "inside.txt").write_text("y")
    found = scan(root)
    assert names(found.train) == ["a.png", "inside.png"]
    assert has(found.notes, "links to folders are not followed: more")


def test_split_folder_that_is_a_link_out(tmp_path: Path) -> None:
    tiny.imagefolder(tmp_path / "elsewhere", ["x"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="train: a link that leaves"):
        scan(tmp_path / "data")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    pair(tmp_path / "a.png", "x")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    (tmp_path / os.fsdecode(b"caf\xe9.md")).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        scan(tmp_path, caption_prefix="sks")
    assert str(caught.value).encode().decode().splitlines()[1] == r"caf\udce9.png: the file is empty; copy it again"
    assert "\n".join(scan(tmp_path, on_bad="skip").notes).encode()


def test_what_is_no_file(tmp_path: Path) -> None:
    pair(tmp_path / "a.png", "x")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "pipe.txt").write_text("x")
    assert faults(tmp_path)[0] == "pipe.png: not a regular file; remove it"


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    assert faults(tmp_path) == [f"{tmp_path.name}: no pictures here; give a folder of pictures with captions"]
    with pytest.raises(DataError, match="no such folder"):
        scan(tmp_path / "gone")
    file = put(tmp_path / "a.png")
    with pytest.raises(DataError, match="is a file; give the folder"):
        scan(file)
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match="no picture is left to train on"):
        scan(tmp_path, on_bad="skip")
    with pytest.raises(DataError, match=r"data\.background"):
        scan(tmp_path, background="whit")


def test_scan_folder(tmp_path: Path) -> None:
    tiny.imagefolder(tmp_path / "good", ["a", "b"])
    examples, notes = dataset.scan_folder(tmp_path / "good", DataConfig())
    assert [e.captions for e in examples] == [("a",), ("b",)]
    assert notes == ["imagefolder with metadata.jsonl: 2 pictures"]
    put(tmp_path / "bad" / "a.png")
    with pytest.raises(DataError, match=r"1 fault\na\.png: no caption"):
        dataset.scan_folder(tmp_path / "bad", DataConfig())


def test_embedded_names_are_names(tmp_path: Path) -> None:
    for name in ("nothing", "..", "../base", "", "/etc"):
        with pytest.raises(DataError, match="no such embedded set; known: "):
            dataset.resolve(f"embedded:{name}")


def test_many_faults_are_cut_with_a_count(tmp_path: Path) -> None:
    picture = put(tmp_path / "0.png").read_bytes()
    for i in range(1, 230):
        (tmp_path / f"{i}.png").write_bytes(picture)
    lines = faults(tmp_path)
    assert len(lines) == 202
    assert lines[200] == "... and 30 more"


def test_pictures_are_remarked_upon(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGBA", (4, 4), (1, 2, 3, 99)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("x")
    assert has(scan(tmp_path).notes, "2 pictures transparent in part: drawn on white (data.background): a.png, b.png")


def test_scanning_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, sdtune.data.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
