"""`sdtune data convert`: each layout written anew and read again, with the same bytes, captions and masks."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdtune.data import archives, write
from sdtune.data.config import DataConfig
from sdtune.data.convert import read_source
from sdtune.data.layouts import Entry
from sdtune.data.write import MARK, named, plain_name
from tests import command, tiny
from tests.data import sets
from tests.data.test_dataset import jsonl, pair, put
from tests.data.test_readers import TOML


def run(*arguments: object, name: str = "convert") -> command.Done:
    return command.run("data", name, *arguments)


def content(path: Path, **options: Any) -> list[tuple[str, bytes, tuple[str, ...], bytes | None]]:
    """Split, bytes, captions and bytes of the mask of each picture."""
    entries = read_source(DataConfig(path=str(path), **options)).entries
    return sorted(
        (
            split or "train",
            archives.read_bytes(e.image),
            e.captions,
            archives.read_bytes(e.mask.file) if e.mask else None,
        )
        for split, e, _ in entries
    )


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny.picture(77).convert("L").save(path)


@pytest.mark.parametrize("command", ["convert", "split", "encode"])
def test_a_download_is_seen(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bars of the Hub's library are hidden unless something is to be fetched."""
    hidden = []
    for download in (False, True):
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        arguments = ["hf:nobody/nothing", tmp_path / "out", *["--download"] * download]
        if command == "encode":
            (tmp_path / "recipe.toml").touch()
            arguments = [tmp_path / "recipe.toml", "data.path=hf:nobody/nothing", f"data.download={download}".lower()]
        assert "nobody/nothing: " in run(*arguments, name=command).err
        hidden.append("HF_HUB_DISABLE_PROGRESS_BARS" in os.environ)
    assert hidden == [True, False]


# ---- one folder of each layout


def imagefolder(folder: Path) -> Path:
    put(folder / "a.png", 1)
    put(folder / "b" / "a.png", 2)
    mask(folder / "m" / "a.png")
    jsonl(
        folder,
        {"file_name": "a.png", "text": ["a cat", "a red\ncat"], "mask": "m/a.png", "author": "Ada", "licence": "CC BY 4.0", "n": 3},
        {"file_name": "b/a.png", "text": "a dög", "author": None, "box": [1, 2], "deep": {"x": 1}},
    )  # fmt: skip
    return folder


def split_folders(folder: Path) -> Path:
    for i, name in enumerate(("train", "validation", "test")):
        pair(folder / name / "a.png", f"of {name}", i)
        mask(folder / name / "masks" / "a.png")
    return folder


def split_rows(folder: Path) -> Path:
    for i, name in enumerate(("train", "validation", "test")):
        put(folder / name / "a.png", i)
    jsonl(folder, *({"file_name": f"{n}/a.png", "text": f"of {n}"} for n in ("train", "validation", "test")))
    return folder


def sidecar(folder: Path) -> Path:
    pair(folder / "a.png", "a cat\na red cat", 1)
    put(folder / "deep" / "er" / "b.PNG", 2).with_suffix(".caption").write_text("a dog")
    put(folder / "bare.png", 3)
    put(folder / "bare.jpg", 4)
    mask(folder / "a-masklabel.png")
    return folder


def kohya(folder: Path) -> Path:
    put(folder / "10_sks dog" / "a.png", 1)
    pair(folder / "2_cat" / "a.png", "a cat", 2)
    return folder


def kohya_toml(folder: Path) -> Path:
    put(folder / "one" / "a.png", 1)
    put(folder / "two" / "b.png", 2).with_suffix(".caption").write_text("a house")
    (folder / "set.toml").write_text(TOML)
    return folder / "set.toml"


def kohya_json(folder: Path) -> Path:
    put(folder / "a.png", 1)
    (folder / "meta.json").write_text(json.dumps({"a": {"caption": "a cat", "tags": "x, y"}}))
    return folder / "meta.json"


def simpletuner(folder: Path) -> Path:
    put(folder / "pictures" / "red_apple.png", 1)
    backend = {
        "id": "x",
        "type": "local",
        "instance_data_dir": "pictures",
        "caption_strategy": "filename",
        "repeats": 3,
    }
    (folder / "multidatabackend.json").write_text(json.dumps([backend]))
    return folder


def flickr(folder: Path) -> Path:
    put(folder / "images" / "1.jpg", 1)
    (folder / "results_20130124.token").write_text("1.jpg#0\tA cat .\n1.jpg#1\tA red cat .\n")
    return folder


def unsplash(folder: Path) -> Path:
    put(folder / "abc.jpg", 1)
    head = "photo_id\tphoto_url\tphotographer_first_name\tphotographer_last_name\tphoto_description\n"
    (folder / "photos.tsv000").write_text(f"{head}abc\thttps://unsplash.com/photos/abc\tAda\tLovelace\ta tree\n")
    return folder


def webdataset(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    members = {
        "0.png": sets.png(1), "0.json": b'{"caption": ["a", "b"], "url": "https://example.org", "key": "0"}',
        "x/1.png": sets.png(2), "x/1.txt": b"a dog", "x/1.mask.png": sets.png(9),
    }  # fmt: skip
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder


def arrow(folder: Path) -> Path:
    features = {"image": sets.IMAGE, "mask": sets.IMAGE, "caption": sets.TEXT, "author": sets.TEXT}
    rows = [
        {"image": sets.cell(i), "mask": sets.cell(9) if i else None, "caption": f"number {i}", "author": "Ada"}
        for i in range(3)
    ]
    return sets.save_splits(folder, features, train=rows[:2], validation=rows[2:])


def parquet(folder: Path) -> Path:
    features = {"image": sets.IMAGE, "text": sets.TEXT}
    rows = [{"image": sets.cell(i, f"{i}.png"), "text": f"number {i}"} for i in range(3)]
    sets.parquet(folder / "data" / "train-00000-of-00001.parquet", rows[:2], features)
    sets.parquet(folder / "data" / "test-00000-of-00001.parquet", rows[2:], features)
    return folder


LAYOUTS = (
    imagefolder, split_folders, split_rows, sidecar, kohya, kohya_toml, kohya_json, simpletuner, flickr, unsplash, webdataset, arrow,
    parquet,
)  # fmt: skip


@pytest.mark.parametrize("to", ["imagefolder", "webdataset"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_round_trip_keeps_bytes_captions_masks_and_splits(
    layout: Callable[[Path], Path], to: str, tmp_path: Path
) -> None:
    source, out = layout(tmp_path / "source"), tmp_path / "out"
    done = run(source, out, "--to", to)
    assert done.code == 0, done.err
    assert content(out) == content(source)
    assert not [p for p in tmp_path.iterdir() if p.name not in ("source", "out")]
    again = read_source(DataConfig(path=str(out)))
    kind = "imagefolder with metadata.jsonl" if to == "imagefolder" else "WebDataset"
    assert any(kind in note for note in again.notes)


def test_every_layout_is_tried() -> None:
    from sdtune.data.readers import BY_NAME

    tried = {"split_folders", "split_rows", "parquet"}
    assert {
        f.__name__.replace("_", "-").replace("flickr", "flickr30k") for f in LAYOUTS if f.__name__ not in tried
    } == {*BY_NAME} - {"filename"}


def test_names_as_captions_where_that_is_said(tmp_path: Path) -> None:
    put(tmp_path / "s" / "red_apple.png")
    assert run(tmp_path / "s", tmp_path / "out", "--layout", "filename").code == 0
    assert content(tmp_path / "out")[0][2] == ("red apple",)


# ---- what is written


def test_other_columns_are_kept_and_what_is_not_is_told(tmp_path: Path) -> None:
    done = run(imagefolder(tmp_path / "s"), tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert rows == [
        {"file_name": "a.png", "text": ["a cat", "a red\ncat"], "mask_file_name": "masks/a.png", "author": "Ada",
         "licence": "CC BY 4.0", "n": 3},
        {"file_name": "b/a.png", "text": "a dög", "box": [1, 2]},
    ]  # fmt: skip
    assert "columns not kept, since they are no plain texts or numbers: deep" in done.out
    from sdtune.data.collect.folder import credits as owed

    assert [(c.file_name, c.author) for c in owed(tmp_path / "out")] == [("a.png", "Ada")]
    kohya(tmp_path / "k")
    done = run(tmp_path / "k", tmp_path / "k2")
    assert "repeats are not kept (1 picture 2 times, 1 picture 10 times in an epoch)" in done.out
    assert "2 pictures without a caption" in run(sidecar(tmp_path / "c"), tmp_path / "c2").out


def test_captions_of_another_column_and_a_column_called_text(tmp_path: Path) -> None:
    put(tmp_path / "s" / "a.png")
    jsonl(tmp_path / "s", {"file_name": "a.png", "text": "original", "blip": "a cat"})
    assert run(tmp_path / "s", tmp_path / "out", "--caption-column", "blip").code == 0
    row = json.loads((tmp_path / "out" / "metadata.jsonl").read_text())
    assert row == {"file_name": "a.png", "text": "a cat", "source_text": "original"}


@pytest.mark.parametrize(
    "path, name",
    [
        ("a/b.png", "a/b"), ("00000/x/1.png", "00000/x/1"), ("a.b.c.PNG", "a_b_c"), ("masks/a.png", "masks_/a"),
        ("x-masklabel.png", "x-masklabel_"), (".hidden/~a.png", "_hidden/_a"), ("a:b?.png", "a_b_"), ("100%2e%2e.png", "100_2e_2e"),
        ("Äpfel/ü.png", "Äpfel/ü"), ("con .png", "con"),
    ],
)  # fmt: skip
def test_names_that_every_file_system_and_reader_takes(path: str, name: str) -> None:
    assert plain_name(path) == name


def test_clashes_of_names_are_resolved(tmp_path: Path) -> None:
    entry = Entry(tmp_path / "a.png", (), "")
    paths = ["a.png", "A.PNG", "a.jpg", "a-2.png", "b/a.png"]
    assert [i.name for i in named([("", entry, p) for p in paths])] == ["a", "A-2", "a-3", "a-2-2", "b/a"]
    assert [i.name for i in named([("train", entry, "a.png"), ("test", entry, "a.png")])] == ["a", "a"]


def test_shards_have_a_largest_size_and_number(tmp_path: Path) -> None:
    for i in range(5):
        pair(tmp_path / "s" / f"{i}.png", f"number {i}", i)
    assert run(tmp_path / "s", tmp_path / "a", "--to", "webdataset", "--shard-pictures", 2).code == 0
    assert sorted(p.name for p in (tmp_path / "a").glob("*.tar")) == ["00000.tar", "00001.tar", "00002.tar"]
    for i in range(6):
        put(tmp_path / "big" / f"{i}.png", i, (900, 900)).with_suffix(".txt").write_text("large")
    assert (tmp_path / "big" / "0.png").stat().st_size > 2**20 / 6
    assert run(tmp_path / "big", tmp_path / "b", "--to", "webdataset", "--shard-mb", 1).code == 0
    assert len(list((tmp_path / "b").glob("*.tar"))) > 1
    assert content(tmp_path / "b") == content(tmp_path / "big")


def test_links(tmp_path: Path) -> None:
    done = run(imagefolder(tmp_path / "s"), tmp_path / "out", "--link")
    assert "3 of the files linked" in done.out
    assert (tmp_path / "out" / "a.png").samefile(tmp_path / "s" / "a.png")
    webdataset(tmp_path / "w")
    assert "linked" not in run(tmp_path / "w", tmp_path / "w2", "--link").out  # inside a tar nothing can be
    assert content(tmp_path / "w2") == content(tmp_path / "w")


# ---- where it is written


def test_again_does_nothing_and_another_source_is_refused(tmp_path: Path) -> None:
    source, out = sidecar(tmp_path / "s"), tmp_path / "out"
    run(source, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert "all 4 from before; nothing was to do" in run(source, out).out
    (source / "a.txt").write_text("another caption")
    changed = run(source, out)
    assert changed.code == 3 and "was made of" in changed.err and "as it was before" in changed.err
    assert run(kohya(tmp_path / "k"), out).err.startswith(f"error: {out}: was made of {source}; choose another folder")
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}


def test_places_that_are_refused(tmp_path: Path) -> None:
    source = sidecar(tmp_path / "s")
    put(tmp_path / "mine" / "x.png")
    for out, said in (
        (tmp_path / "mine", "holds something else (x.png); choose another folder, or empty it"),
        (source / "a.txt", "is a file; name a folder"),
        (source / "inside", "lies in"),
    ):
        done = run(source, out)
        assert done.code == 3 and said in done.err and len(done.err.splitlines()) == 1
    (tmp_path / ".out.part").mkdir()
    put(tmp_path / ".out.part" / "x.png")
    assert "was not begun by sdtune; remove it" in run(source, tmp_path / "out").err
    assert (tmp_path / ".out.part" / "x.png").exists() and not (source / "inside").exists()


def test_faults_are_told_with_options(tmp_path: Path) -> None:
    put(tmp_path / "s" / "a.png")
    jsonl(tmp_path / "s", {"file_name": "a.png", "text": "a cat"}, {"file_name": "gone.png", "text": "x"})
    done = run(tmp_path / "s", tmp_path / "out")
    assert done.code == 3 and "gone.png does not exist" in done.err
    assert "mend them, or give --skip-bad to leave them out" in done.err and not (tmp_path / "out").exists()
    done = run(tmp_path / "s", tmp_path / "out", "--skip-bad")
    assert done.code == 0 and "left out (--skip-bad)" in done.out
    for arguments, said in (
        (("--to", "zip"), "--to: 'zip' is no layout that is written"),
        (("--to", "webdataset", "--link"), "--link: has no effect"),
        (("--layout", "zip"), "--layout"),
    ):
        done = run(tmp_path / "s", tmp_path / "out2", *arguments)
        assert done.code == 2 and said in done.err
    assert "--caption-column" in run(tmp_path / "s", tmp_path / "o", "--caption-column", "x").err


@pytest.mark.parametrize("to", ["imagefolder", "webdataset"])
def test_a_killed_run_leaves_no_folder_and_the_same_command_goes_on(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(8):
        pair(tmp_path / "s" / f"{i}.png", f"number {i}", i)
    arguments = (tmp_path / "s", tmp_path / "out", "--to", to, *(("--shard-pictures", 2) if to == "webdataset" else ()))
    original, calls = archives.read_bytes, 0

    def dies(path: Path) -> bytes:
        nonlocal calls
        calls += path.suffix == ".png"
        if calls > 5:
            raise KeyboardInterrupt
        return original(path)

    monkeypatch.setattr(archives, "read_bytes", dies)
    assert run(*arguments).code == 130
    monkeypatch.setattr(archives, "read_bytes", original)
    assert not (tmp_path / "out").exists()
    done = run(*arguments)
    assert done.code == 0 and f"{5 if to == 'imagefolder' else 2} of the files from a run that was stopped" in done.out
    assert content(tmp_path / "out") == content(tmp_path / "s")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "s"]


def test_a_half_written_picture_of_a_crash_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sidecar(tmp_path / "s")

    def dies(*_: object) -> None:
        raise OSError(28, "No space left on device", "x")

    with monkeypatch.context() as patch:
        patch.setattr(write, "_finish", dies)
        done = run(source, tmp_path / "out")
    assert done.code == 3 and "no space left on device" in done.err and "the same command goes on" in done.err
    part = tmp_path / ".out.part"
    (part / "a.png").write_bytes(b"")  # what a lost disk cache leaves
    assert run(source, tmp_path / "out").code == 0
    assert content(tmp_path / "out") == content(source)
    run(source, tmp_path / "other")
    shutil.copytree(tmp_path / "other", tmp_path / ".third.part")
    (tmp_path / ".third.part" / MARK).unlink()
    (tmp_path / ".third.part" / write.BEGUN).write_text('"another source"')
    (tmp_path / ".third.part" / "old.png").write_bytes(b"old")
    assert run(source, tmp_path / "third").code == 0
    assert not (tmp_path / "third" / "old.png").exists()


def test_ctrl_c_and_going_on(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for i in range(600):
        (tmp_path / "s" / f"{i}.png").write_bytes(sets.png(i % 7))
    command = [sys.executable, "-m", "sdtune", "data", "convert", str(tmp_path / "s"), str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        ends = time.monotonic() + 60
        while len(list((tmp_path / ".out.part").glob("*.png"))) < 5 and time.monotonic() < ends:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "go on with: sdtune data convert" in err and not (tmp_path / "out").exists()
    assert "from a run that was stopped" in run(tmp_path / "s", tmp_path / "out").out
    assert len(list((tmp_path / "out").glob("*.png"))) == 600


def test_json_and_quiet(tmp_path: Path) -> None:
    source = split_folders(tmp_path / "s")
    events = [json.loads(line) for line in run(source, tmp_path / "out", "--json").out.splitlines()]
    assert [e["event"] for e in events] == ["Opened", "Written"]
    assert events[0]["pictures"] == {"train": 1, "validation": 1, "test": 1} and events[1]["done"] == 3
    assert run(source, tmp_path / "q", "--quiet").out == f"{tmp_path / 'q'}\n"
