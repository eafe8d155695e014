"""What happens to a folder: whose captions are touched, how they are written, and how a stopped run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from sdtune.captioners import Blip, CaptionConfig, Captioned, Event, Finished, LeftOut, Opened, caption, store
from sdtune.captioners import run as run_module
from sdtune.captioners import text as words
from sdtune.data import dataset, readers
from sdtune.data.config import DataConfig
from sdtune.errors import ConfigError, DataError
from tests.captioners import tiny_captioners as tiny

Write = Literal["sidecar", "metadata"]
RECORDS = ".sdtune-captions.json"


def run(folder: Path, config: CaptionConfig) -> list[Event]:
    return list(caption(folder, config))


def of(kind: type, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def captions_in(folder: Path, write: Write) -> dict[str, list[str]]:
    """Read here without sdtune."""
    if write == "sidecar":
        texts = {p: p.read_text(encoding="utf-8") for p in folder.rglob("*.txt")}
        return {p.relative_to(folder).with_suffix(".png").as_posix(): t.splitlines() for p, t in texts.items()}
    path = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return {
        row["file_name"]: [row["text"]] if isinstance(row["text"], str) else row["text"]
        for row in rows
        if "text" in row
    }


def write_captions(folder: Path, write: Write, captions: Mapping[str, list[str]]) -> None:
    """As a person would; replaces all of metadata.jsonl."""
    if write == "sidecar":
        for name, texts in captions.items():
            (folder / name).with_suffix(".txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        return
    rows = [
        {"id": i, "file_name": name, "text": texts[0] if len(texts) == 1 else texts}
        for i, (name, texts) in enumerate(captions.items())
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


# ---- whose captions are touched

THEIRS = {"mensch ü.png": ["von Hand: Äpfel"], "two.png": ["first one", "second one."]}
MODES = [{"overwrite": o, "append": a, "again": g} for o, a, g in product((False, True), repeat=3) if not (o and a)]


def prepared(folder: Path, quick: Blip, write: Write) -> dict[str, list[str]]:
    """A folder with captions by people, by sdtune, by sdtune and then edited, and a picture without; gives its captions."""
    tiny.pictures(folder, [*THEIRS, "sub/ours 猫.png", "edited.png"])
    write_captions(folder, write, THEIRS)
    run(folder, CaptionConfig(model=quick, write=write, prefix="old"))
    there = captions_in(folder, write)
    assert there["sub/ours 猫.png"][0].startswith("old ") and there["edited.png"][0].startswith("old ")
    assert {name: there[name] for name in THEIRS} == THEIRS
    there["edited.png"] = ["old but edited"]
    write_captions(folder, write, there if write == "metadata" else {"edited.png": there["edited.png"]})
    tiny.pictures(folder, ["nobody.png"], seed=1)
    return there


@pytest.mark.parametrize("mode", MODES, ids=lambda m: "+".join(k for k, v in m.items() if v) or "default")
@pytest.mark.parametrize("write", ["sidecar", "metadata"])
def test_whose_captions_are_touched(write: Write, mode: dict[str, bool], quick: Blip, tmp_path: Path) -> None:
    before = prepared(tmp_path, quick, write)
    config = CaptionConfig(model=quick, prefix="new", **mode)  # type: ignore[arg-type]
    events = run(tmp_path, config)
    after = captions_in(tmp_path, write)
    (made,) = after["nobody.png"]
    assert made.startswith("new ")
    for name in [*THEIRS, "edited.png"]:
        if mode["overwrite"]:
            assert len(after[name]) == 1 and after[name][0].startswith("new ")
        elif mode["append"]:
            assert [text.partition("new ")[0].rstrip(" ,") for text in after[name]] == before[name]
            assert all("new " in text for text in after[name])
        else:
            assert after[name] == before[name]
    (ours,) = after["sub/ours 猫.png"]
    assert ours == (
        before["sub/ours 猫.png"][0].replace("old", "new", 1) if mode["again"] else before["sub/ours 猫.png"][0]
    )
    told = {event.picture: list(event.captions) for event in of(Captioned, events)}
    assert told == {name: texts for name, texts in after.items() if texts != before.get(name)}
    (opened,) = of(Opened, events)
    assert (opened.todo, opened.human, opened.ours) == (
        len(told), 0 if mode["overwrite"] or mode["append"] else 3, 0 if mode["again"] else 1,
    )  # fmt: skip
    if not mode["again"]:  # once more: nothing is left to be done, and nothing is touched
        seen = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        assert of(Opened, run(tmp_path, config))[0].todo == 0
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == seen


@pytest.mark.parametrize("write", ["sidecar", "metadata"])
def test_what_was_added_is_made_anew_and_the_persons_part_stays(write: Write, quick: Blip, tmp_path: Path) -> None:
    tiny.pictures(tmp_path, ["a.png"])
    write_captions(tmp_path, write, {"a.png": ["mine"]})
    run(tmp_path, CaptionConfig(model=quick, prefix="one", append=True))
    assert captions_in(tmp_path, write)["a.png"][0].startswith("mine, one ")
    run(tmp_path, CaptionConfig(model=quick, prefix="two", append=True))
    assert captions_in(tmp_path, write)["a.png"][0].startswith("mine, one ")
    run(tmp_path, CaptionConfig(model=quick, prefix="two", again=True))
    assert captions_in(tmp_path, write)["a.png"][0].startswith("mine, two ")
    run(tmp_path, CaptionConfig(model=quick, prefix="three", overwrite=True, again=True))
    assert captions_in(tmp_path, write)["a.png"][0].startswith("three ")


def test_either_replace_or_add() -> None:
    with pytest.raises(ConfigError, match="contradicts append"):
        CaptionConfig(overwrite=True, append=True)


# ---- metadata.jsonl


def test_other_lines_of_metadata_stay_byte_for_byte(quick: Blip, tmp_path: Path) -> None:
    tiny.pictures(tmp_path, ["a.png", "b.png", "c/ü.png"])
    first = b'\xef\xbb\xbf{"file_name":  "a.png", "text": "mine \\u00fc"}\r\n\n'
    (tmp_path / "metadata.jsonl").write_bytes(
        first + '{"more": [1, "é"], "file_name": "./b.png", "text": null}'.encode()
    )
    run(tmp_path, CaptionConfig(model=quick))
    raw = (tmp_path / "metadata.jsonl").read_bytes()
    assert raw.startswith(first) and raw.endswith(b"}\n")
    second, third = (json.loads(line) for line in raw.removeprefix(first).splitlines())
    assert second["more"] == [1, "é"] and second["text"] and second["file_name"] == "./b.png"
    assert third["file_name"] == "c/ü.png" and "ü".encode() in raw


def test_another_column(quick: Blip, tmp_path: Path) -> None:
    tiny.pictures(tmp_path, ["a.png"])
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "mine"}\n', encoding="utf-8")
    run(tmp_path, CaptionConfig(model=quick, column="blip"))
    row = json.loads((tmp_path / "metadata.jsonl").read_text(encoding="utf-8"))
    assert row["text"] == "mine" and row["blip"]


def test_text_files_go_into_new_metadata(quick: Blip, tmp_path: Path) -> None:
    """Training does not read them any more from then on, so what they say must be in it."""
    tiny.pictures(tmp_path, ["a.png", "b.png", "c.png"])
    write_captions(tmp_path, "sidecar", {"a.png": ["mine"], "b.png": ["one", "two"]})
    config = CaptionConfig(model=quick, write="metadata")
    run(tmp_path, config)
    there = captions_in(tmp_path, "metadata")
    assert there["a.png"] == ["mine"] and there["b.png"] == ["one", "two"] and there["c.png"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "mine\n"
    assert of(Opened, run(tmp_path, config))[0].human == 2


def test_metadata_and_text_files_do_not_mix(quick: Blip, tmp_path: Path) -> None:
    tiny.pictures(tmp_path, ["train/a.png"])
    (tmp_path / "train" / "metadata.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"caption that folder by itself: .*train"):
        run(tmp_path, CaptionConfig(model=quick))
    with pytest.raises(DataError, match=r"so that \.txt files would not be read"):
        run(tmp_path / "train", CaptionConfig(model=quick, write="sidecar"))
    (tmp_path / "train" / "metadata.jsonl").rename(tmp_path / "train" / "metadata.csv")
    with pytest.raises(DataError, match=r"metadata.csv: captions are written to .txt files or metadata.jsonl"):
        run(tmp_path / "train", CaptionConfig(model=quick))


def test_other_layouts(quick: Blip, tmp_path: Path) -> None:
    """Those that would not read what is written are refused; kohya's folders are captioned, and keep their repeats."""
    flickr = tiny.pictures(tmp_path / "f", ["a.png"])
    (flickr / "captions.txt").write_text("image,caption\na.png,a dog\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"is laid out as flickr30k, which says in a file of its own"):
        run(flickr, CaptionConfig(model=quick))
    kohya = tiny.pictures(tmp_path / "k", ["3_sks dog/a.png", "3_sks dog/b.png"])
    (kohya / "3_sks dog" / "b.caption").write_text("mine\n", encoding="utf-8")
    with pytest.raises(DataError, match="would hide the repeats"):
        run(kohya, CaptionConfig(model=quick, write="metadata"))
    run(kohya, CaptionConfig(model=quick, append=True))
    entries = readers.read(kohya).entries
    assert [entry.repeats for entry in entries] == [3, 3] and not (kohya / "3_sks dog" / "b.txt").exists()
    assert entries[0].captions[0].startswith("a ") and entries[1].captions[0].startswith("mine, a ")


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "metadata.jsonl:2: not valid JSON"),
        ('{"text": "no name"}', "metadata.jsonl:2: no file_name"),
        ('{"file_name": "b.png", "text": 3}', "metadata.jsonl:2: 'text' is no text or list of texts: 3"),
        ('{"file_name": "a.png", "text": ""}', "metadata.jsonl:2: a.png is in another line, too"),
    ],
)
def test_faulty_metadata_is_not_written_to(line: str, said: str, quick: Blip, tmp_path: Path) -> None:
    tiny.pictures(tmp_path, ["a.png", "b.png"])
    text = '{"file_name": "a.png", "text": ""}\n' + line + "\n"
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        run(tmp_path, CaptionConfig(model=quick))
    assert (tmp_path / "metadata.jsonl").read_text(encoding="utf-8") == text and not (tmp_path / RECORDS).exists()


# ---- what is left out


def test_what_cannot_be_captioned_is_listed(quick: Blip, tmp_path: Path) -> None:
    tiny.pictures(
        tmp_path, ["good.png", "x.png", "same.png", "same.jpg", "latin.png", "p-masklabel.png", "p.png", "nul.png"]
    )
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:300])
    (tmp_path / "empty é.png").write_bytes(b"")
    (tmp_path / "photo.heic").write_bytes(b"heic")
    (tmp_path / "latin.txt").write_bytes("\xe9t\xe9".encode("latin-1"))
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / "link.png").symlink_to(tmp_path.parent / "elsewhere.png")
    Image.new("RGB", (8, 8)).save(tmp_path.parent / "elsewhere.png")
    events = run(tmp_path, CaptionConfig(model=quick))
    left = {event.where: event.what for event in of(LeftOut, events)}
    assert left.keys() == {
        "x.png",
        "empty é.png",
        "photo.heic",
        "latin.png",
        "same.png",
        "same.jpg",
        "link.png",
        "nul.png",
    }
    assert "damaged or cut off" in left["x.png"] and "empty" in left["empty é.png"] and "convert" in left["photo.heic"]
    assert "NUL character" in left["nul.png"]  # which training would not read
    assert "UTF-8" in left["latin.png"] and "would share a text file" in left["same.png"] and "link" in left["link.png"]
    assert sorted(event.picture for event in of(Captioned, events)) == ["good.png", "p.png"]
    assert (tmp_path / "latin.txt").read_bytes() == b"\xe9t\xe9" and not (tmp_path / "same.txt").exists()
    assert of(Finished, events)[0].left_out == 8 and of(Opened, events)[0].notes == ("1 mask left alone",)
    (end,) = of(
        Finished, run(tmp_path, CaptionConfig(model=quick, overwrite=True))
    )  # the others have captions: no error
    assert (end.captioned, end.left_out) == (0, 8)
    assert (tmp_path / "latin.txt").read_bytes() == b"\xe9t\xe9"


def test_not_one_picture_can_be_read(quick: Blip, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        run(tmp_path / "gone", CaptionConfig(model=quick))
    with pytest.raises(DataError, match="no pictures there"):
        run(tmp_path, CaptionConfig(model=quick))
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    (tmp_path / "b.png").write_bytes(b"")
    events = list[Event]()
    with pytest.raises(DataError, match=r"not one of 2 pictures can be read: a.png: "):
        events.extend(caption(tmp_path, CaptionConfig(model=quick)))
    assert len(of(LeftOut, events)) == 2 and not list(tmp_path.glob("*.txt"))


def test_nothing_left_of_a_caption(quick: Blip, tmp_path: Path) -> None:
    tiny.pictures(tmp_path, ["a.png"])
    config = CaptionConfig(model=quick, blacklist=tuple(tiny.WORDS), prefix="sks")
    (left,) = of(LeftOut, run(tmp_path, config))
    assert "nothing is left of its caption" in left.what and not (tmp_path / "a.txt").exists()


# ---- stopped, and gone on with

NAMES = [f"{i:02d}.png" for i in range(9)]


def stopped(folder: Path, config: CaptionConfig, k: int) -> list[str]:
    """Close the iterator at the k-th caption."""
    events = caption(folder, config)
    seen: list[str] = []
    for event in events:
        if isinstance(event, Captioned):
            seen.append(event.picture)
            if len(seen) == k:
                break
    events.close()
    return seen


@pytest.mark.parametrize("write", ["sidecar", "metadata"])
@pytest.mark.parametrize("k", [1, 4])
def test_a_stopped_run_goes_on(write: Write, k: int, quick: Blip, tmp_path: Path) -> None:
    whole, parts = (tiny.pictures(tmp_path / name, NAMES) for name in ("whole", "parts"))
    config = CaptionConfig(model=quick, write=write, batch_size=2)
    run(whole, config)
    seen = stopped(parts, config, k)
    written = captions_in(parts, write)
    assert set(seen) <= set(written) and k <= len(written) < 9
    before = {p: p.stat().st_mtime_ns for p in parts.glob("*.txt")}
    events = run(parts, config)
    assert {event.picture for event in of(Captioned, events)} == set(NAMES) - set(written)
    assert of(Opened, events)[0].ours == len(written)
    assert captions_in(parts, write) == captions_in(whole, write)
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())


@pytest.mark.parametrize("patience", [0, 1e9])
def test_closing_keeps_the_batch(patience: float, quick: Blip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether captions are written one by one or wait for each other."""
    monkeypatch.setattr(store, "PATIENCE", patience)
    tiny.pictures(tmp_path, NAMES)
    assert stopped(tmp_path, CaptionConfig(model=quick, batch_size=4), 1) == NAMES[:1]
    assert sorted(captions_in(tmp_path, "sidecar")) == NAMES[:4]


def test_a_fault_in_the_last_writing_is_heard(quick: Blip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE", 1e9)
    tiny.pictures(tmp_path, NAMES)
    events = caption(tmp_path, CaptionConfig(model=quick, batch_size=4))
    assert next(e for e in events if isinstance(e, Captioned)).picture == NAMES[0]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.Writer, "_write", full)
    with pytest.raises(OSError, match="No space"):
        events.close()


@pytest.mark.parametrize("write", ["sidecar", "metadata"])
def test_what_waits_to_be_written_is_written_at_a_stop(
    write: Write, quick: Blip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where writing is slow, captions wait for each other."""
    tiny.pictures(tmp_path, NAMES)
    write_records = store.write_records

    def slow(*arguments: Any) -> None:
        time.sleep(0.5)
        write_records(*arguments)

    monkeypatch.setattr(store, "write_records", slow)
    monkeypatch.setattr(store, "PATIENCE", 10)
    config = CaptionConfig(model=quick, write=write, batch_size=1)
    events = caption(tmp_path, config)
    told = next(event for event in events if isinstance(event, Captioned))
    assert list(captions_in(tmp_path, write)) == [told.picture] == NAMES[:1]
    made: list[str] = []
    finish = words.finish

    def counted(*arguments: Any, **named: Any) -> str:
        made.append("")
        if len(made) == 3:
            raise KeyboardInterrupt
        return finish(*arguments, **named)

    monkeypatch.setattr(run_module, "finish", counted)
    with pytest.raises(KeyboardInterrupt):
        next(events)
    assert sorted(captions_in(tmp_path, write)) == NAMES[:3]


@pytest.mark.parametrize("write", ["sidecar", "metadata"])
def test_a_stopped_run_with_again_goes_on(write: Write, quick: Blip, tmp_path: Path) -> None:
    tiny.pictures(tmp_path, NAMES)
    first = CaptionConfig(model=quick, write=write, prefix="one", batch_size=1)
    run(tmp_path, first)
    again = replace(first, prefix="two", again=True)
    stopped(tmp_path, again, 4)
    done = [name for name, texts in captions_in(tmp_path, write).items() if texts[0].startswith("two")]
    assert 4 <= len(done) < 9
    events = run(tmp_path, again)
    assert {event.picture for event in of(Captioned, events)} == set(NAMES) - set(done)
    assert all(texts[0].startswith("two") for texts in captions_in(tmp_path, write).values())
    assert of(Opened, run(tmp_path, again))[0].todo == 9  # it was finished: again is again
    stopped(tmp_path, again, 2)
    assert of(Opened, run(tmp_path, replace(again, prefix="three")))[0].todo == 9  # other settings: a run of its own


@pytest.mark.parametrize("write", ["sidecar", "metadata"])
@pytest.mark.parametrize("again", [False, True])
def test_a_fault_between_record_and_caption_harms_nothing(
    again: bool, write: Write, quick: Blip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is written first; if the caption is not, its owner must be the same as before."""
    tiny.pictures(tmp_path, ["a.png", "b.png"])
    write_captions(tmp_path, write, {"b.png": ["mine"]})
    config = CaptionConfig(model=quick, prefix="one")
    if again:
        run(tmp_path, config)
    before = captions_in(tmp_path, write)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.Writer, "_write", full)
        with pytest.raises(OSError, match="No space"):
            run(tmp_path, replace(config, prefix="two", again=again, append=True))
    assert captions_in(tmp_path, write) == before
    opened = of(Opened, run(tmp_path, replace(config, dry_run=1)))[0]
    assert (opened.todo, opened.human, opened.ours) == (0 if again else 1, 1, 1 if again else 0)


@pytest.mark.parametrize("write", ["sidecar", "metadata"])
def test_a_caption_written_meanwhile_stays(write: Write, quick: Blip, tmp_path: Path) -> None:
    tiny.pictures(tmp_path, ["a.png", "b.png"])
    write_captions(tmp_path, write, {"a.png": ["mine"]})
    events = caption(tmp_path, CaptionConfig(model=quick, overwrite=True))
    next(events)
    write_captions(tmp_path, write, {"a.png": ["mine, better"]})
    rest = list(events)
    assert captions_in(tmp_path, write)["a.png"] == ["mine, better"]
    (left,) = of(LeftOut, rest)
    assert left.where == "a.png" and "changed meanwhile" in left.what
    assert [event.picture for event in of(Captioned, rest)] == ["b.png"]


# ---- records, dry run, training


def test_records(quick: Blip, tmp_path: Path) -> None:
    tiny.pictures(tmp_path, ["ü.png"])
    run(tmp_path, CaptionConfig(model=quick, prefix="sks"))
    found = json.loads((tmp_path / RECORDS).read_text(encoding="utf-8"))
    (record,) = found["captions"].values()
    import hashlib

    text = (tmp_path / "ü.txt").read_text(encoding="utf-8").strip()
    assert record["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert record["model"] == f"blip {quick.path}" and list(found["captions"]) == ["ü.png"]
    assert record["settings"] == {"type": "blip", "prompt": "a", "max_tokens": 3, "beams": 1, "prefix": "sks"}
    (tmp_path / RECORDS).write_text("{", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"sdtune-captions.json: cannot be read .*all captions then count as written by people"
    ):
        run(tmp_path, CaptionConfig(model=quick))


def test_a_dry_run_writes_nothing(quick: Blip, tmp_path: Path) -> None:
    tiny.pictures(tmp_path, NAMES)
    events = run(tmp_path, CaptionConfig(model=quick, dry_run=3, again=True))
    assert [event.picture for event in of(Captioned, events)] == NAMES[:3]
    assert sorted(p.name for p in tmp_path.iterdir()) == NAMES


@pytest.mark.parametrize("write", ["sidecar", "metadata"])
def test_training_reads_what_is_written(write: Write, quick: Blip, tmp_path: Path) -> None:
    tiny.pictures(tmp_path, [*NAMES, "sub dir/猫.png"])
    run(tmp_path, CaptionConfig(model=quick, write=write))
    splits = dataset.scan(DataConfig(path=str(tmp_path)))
    read = {e.image.relative_to(tmp_path).as_posix(): list(e.captions) for e in [*splits.train, *splits.validation]}
    assert read == captions_in(tmp_path, write) and len(read) == 10


def test_progress_says_how_fast_it_goes(quick: Blip, tmp_path: Path) -> None:
    tiny.pictures(tmp_path, NAMES)
    events: Iterator[Captioned] = iter(of(Captioned, run(tmp_path, CaptionConfig(model=quick, batch_size=4))))
    seen = list(events)
    assert [event.done for event in seen] == list(range(1, 10)) and {event.total for event in seen} == {9}
    assert all(event.per_second > 0 for event in seen)
