"""`sdtune data split`: by content, groups and look-alikes together, stable when pictures come and go."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageEnhance

from sdtune.data import dataset, images
from sdtune.data.config import DataConfig
from sdtune.data.layouts import Entry
from sdtune.data.split import Divided, Rule, Seen, place_of, split
from sdtune.data.write import Wish
from sdtune.errors import ConfigError, DataError
from tests import command as cli_command
from tests import tiny
from tests.data.test_dataset import has, jsonl, pair, put

NEVER = Wish(Path("never-written"))


run = partial(cli_command.run, "data", "split")


def pictures(folder: Path, count: int, first: int = 0) -> Path:
    for i in range(first, first + count):
        pair(folder / f"{i:03d}.png", f"number {i}", i)
    return folder


def divided(path: Path, **rule: Any) -> Divided:
    events = split(DataConfig(path=str(path)), Rule(**rule), NEVER, dry_run=True)
    (found,) = [event for event in events if isinstance(event, Divided)]
    return found


def of(where: dict[str, str], names: Sequence[str]) -> set[str]:
    return {where[name] for name in names}


# ---- what goes where


def test_the_place_is_the_hash_that_training_ranks_by(tmp_path: Path) -> None:
    pictures(tmp_path, 60)
    where = divided(tmp_path, validation=0.2, test=0.1, alike=False, seed=3).where
    for name, got in where.items():
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        at = int.from_bytes(hashlib.sha256(f"3/{digest}".encode()).digest()) / 2**256
        assert got == ("validation" if at < 0.2 else "test" if at < 0.2 + 0.1 else "train")
        assert math.isclose(place_of(digest, 3), at, abs_tol=1e-12)
    held = {
        e.image.name for e in dataset.scan(DataConfig(path=str(tmp_path), validation_share=0.05), seed=3).validation
    }
    assert held <= {name for name, got in where.items() if got == "validation"}


def test_names_order_and_new_pictures_change_nothing(tmp_path: Path) -> None:
    pictures(tmp_path / "a", 40)
    before = divided(tmp_path / "a", alike=False).where
    for i, path in enumerate(sorted((tmp_path / "a").glob("*.png"), reverse=True)):
        (tmp_path / "b").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "b" / f"{i:02d}-{path.name}")
    for path in (tmp_path / "b").glob("*.png"):
        path.with_suffix(".txt").write_text("x")
    pictures(tmp_path / "b", 40, first=40)
    after = divided(tmp_path / "b", alike=False).where
    assert {n.partition("-")[2]: s for n, s in after.items() if "-" in n} == before
    assert divided(tmp_path / "a", alike=False, seed=1).where != before
    more = divided(tmp_path / "a", alike=False, test=0.3).where  # another share of one moves nothing out of the other
    assert all(more[name] == "validation" for name, got in before.items() if got == "validation")


def test_shares_are_met_on_average(tmp_path: Path) -> None:
    from sdtune.data.split import _Picture, _places

    entry = Entry(tmp_path, (), "")
    many = [
        _Picture(entry, str(i), hashlib.sha256(bytes([i % 256, i // 256])).hexdigest(), images.Checked((8, 8), ()))
        for i in range(10_000)
    ]
    places = list(_places(many, [[i] for i in range(10_000)], Rule(0.1, 0.2)).values())
    for name, share in (("validation", 0.1), ("test", 0.2), ("train", 0.7)):
        assert abs(places.count(name) / 10_000 - share) < 4 * math.sqrt(share * (1 - share) / 10_000)
    groups = [
        list(range(i, i + 10)) for i in range(0, 10_000, 10)
    ]  # the smallest digest of ten is hashed again: no lean to one end
    places = list(_places(many, groups, Rule(0.1, 0.2)).values())
    assert abs(places.count("validation") / 10_000 - 0.1) < 4 * math.sqrt(0.09 / 1000)


# ---- copies, look-alikes, groups


def test_exact_copies_are_left_out_or_kept_in_one_split(tmp_path: Path) -> None:
    pictures(tmp_path, 12)
    for i in range(12):
        shutil.copy(tmp_path / f"{i:03d}.png", tmp_path / f"{i:03d}-copy.png")
        (tmp_path / f"{i:03d}-copy.txt").write_text("other" if i < 2 else f"number {i}")
    found = divided(tmp_path)
    assert found.copies == 12 and sum(s.pictures for s in found.shares) == 12
    assert has(found.notes, "2 copies left out had other captions than the picture that is kept: 000.png, 001.png")
    both = divided(tmp_path, keep_copies=True, validation=0.4, test=0.3)
    assert sum(s.pictures for s in both.shares) == 24
    assert all(both.where[f"{i:03d}.png"] == both.where[f"{i:03d}-copy.png"] for i in range(12))
    assert len(set(both.where.values())) == 3


def test_a_copy_in_two_folders_holds_them_together(tmp_path: Path) -> None:
    for i in range(24):
        pair(tmp_path / f"f{i // 4}" / f"{i:02d}.png", "x", i)
    for i in range(0, 24, 8):
        shutil.copy(tmp_path / f"f{i // 4}" / f"{i:02d}.png", tmp_path / f"f{i // 4 + 1}" / "copy.png")
        (tmp_path / f"f{i // 4 + 1}" / "copy.txt").write_text("x")
    found = divided(tmp_path, group="folder", keep_copies=True, alike=False, validation=0.4, test=0.3)
    assert sum(s.groups for s in found.shares) == 3


def test_look_alikes_are_in_one_split(tmp_path: Path) -> None:
    for i in range(12):
        large = tiny.picture(i, (90, 80)).resize((9, 8)).resize((180, 160), Image.Resampling.BICUBIC)
        tmp_path.mkdir(exist_ok=True)
        large.save(tmp_path / f"{i:03d}.png")
        large.resize((90, 80)).save(tmp_path / f"{i:03d}-small.jpg", quality=80)
        for name in (f"{i:03d}", f"{i:03d}-small"):
            (tmp_path / f"{name}.txt").write_text("x")
    found = divided(tmp_path, validation=0.4, test=0.3)
    assert all(found.where[f"{i:03d}.png"] == found.where[f"{i:03d}-small.jpg"] for i in range(12))
    assert len(set(found.where.values())) == 3
    assert has(found.notes, "24 pictures look like another (12 groups); each group is in one split")
    apart = divided(tmp_path, validation=0.4, test=0.3, alike=False)
    assert any(apart.where[f"{i:03d}.png"] != apart.where[f"{i:03d}-small.jpg"] for i in range(12))


def test_groups_by_folder_column_and_expression(tmp_path: Path) -> None:
    rows = []
    for i in range(40):
        put(tmp_path / f"f{i % 8}" / f"clip{i % 10}_{i:02d}.png", i)
        rows.append({"file_name": f"f{i % 8}/clip{i % 10}_{i:02d}.png", "text": "x", "author": f"author {i % 5}"})
    jsonl(tmp_path, *rows)
    names = [str(row["file_name"]) for row in rows]
    for group, number in (("folder", 8), ("author", 5), (r"clip(\d+)_", 10)):
        found = divided(tmp_path, group=group, validation=0.4, test=0.3, alike=False)
        for value in range(10):
            members = [name for i, name in enumerate(names) if i % number == value]
            assert len(of(found.where, members)) <= 1, group
        assert len(set(found.where.values())) > 1, group
        assert has(found.notes, f"--group {group}: {number} groups")


def test_a_column_that_some_rows_lack(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path / f"{i}.png", i)
    jsonl(tmp_path, *({"file_name": f"{i}.png", "text": "x", **({"by": "a"} if i < 2 else {})} for i in range(4)))
    found = divided(tmp_path, group="by", alike=False)
    assert sum(s.groups for s in found.shares) == 3
    assert has(found.notes, "2 pictures without a by: each for itself")


def test_a_large_group_is_told(tmp_path: Path) -> None:
    for i in range(6):
        tiny.picture(1, (90, 80)).resize((9, 8)).resize((90 + i, 80), Image.Resampling.BICUBIC).save(
            tmp_path / f"{i}.png"
        )
        (tmp_path / f"{i}.txt").write_text("x")
    found = divided(tmp_path)
    assert has(found.notes, "one group has 6 of 6 pictures")
    assert has(found.notes, "; --no-alike makes smaller ones")


def test_what_the_split_keeps_together_is_what_the_check_calls_a_leak(tmp_path: Path) -> None:
    """Pictures that look alike pair by pair, along a chain, and others that only their brightness makes alike."""
    first = tiny.picture(1, (90, 80)).resize((9, 8)).resize((180, 160), Image.Resampling.BICUBIC)
    for i in range(12):
        ImageEnhance.Brightness(first).enhance(0.7 + 0.04 * i).save(tmp_path / f"{i:02d}.png")
        (tmp_path / f"{i:02d}.txt").write_text("x")
        put(tmp_path / f"other{i:02d}.png", 50 + i)
        (tmp_path / f"other{i:02d}.txt").write_text("y")
    assert divided(tmp_path, validation=0.4).where.keys() > {"00.png"}
    run(tmp_path, tmp_path.with_name("out"), "--validation", 0.4, "--test", 0)
    found = dataset.survey(DataConfig(path=str(tmp_path.with_name("out"))))
    assert not [fault for fault in found.faults if fault.kind in ("leak", "near_leak")]
    run(tmp_path, tmp_path.with_name("apart"), "--validation", 0.4, "--test", 0, "--no-alike")
    apart = dataset.survey(DataConfig(path=str(tmp_path.with_name("apart"))))
    assert [fault for fault in apart.faults if fault.kind == "near_leak"]


# ---- what is written


def test_what_is_written_is_what_training_reads(tmp_path: Path) -> None:
    pictures(tmp_path / "s", 30)
    for i in range(0, 30, 3):
        (tmp_path / "s" / "masks").mkdir(exist_ok=True)
        tiny.picture(7, (8, 8)).convert("L").save(tmp_path / "s" / "masks" / f"{i:03d}.png")
    arguments = (tmp_path / "s", tmp_path / "out", "--validation", 0.3, "--test", 0.2, "--no-alike")
    done = run(*arguments)
    assert done.code == 0, done.err
    where = divided(tmp_path / "s", validation=0.3, test=0.2, alike=False).where
    for name in ("train", "validation", "test"):
        assert {p.name for p in (tmp_path / "out" / name).glob("*.png")} == {n for n, s in where.items() if s == name}
    splits = dataset.scan(DataConfig(path=str(tmp_path / "out"), mask="files"))
    assert len(splits.train) == list(where.values()).count("train")
    assert len(splits.validation) == list(where.values()).count("validation")
    assert sum(e.mask is not None for e in splits.train) == sum(
        s == "train" and int(n[:3]) % 3 == 0 for n, s in where.items()
    )
    assert all(e.captions == (f"number {int(e.image.stem)}",) for e in splits.train)
    assert "nothing was to do" in run(*arguments).out
    again = run(
        tmp_path / "out", tmp_path / "again", *arguments[2:]
    )  # its own splits are pooled, and come out the same
    assert "the source's own splits are not kept" in again.out
    for name in ("train", "validation", "test"):
        assert {p.name for p in (tmp_path / "again" / name).glob("*.png")} == {n for n, s in where.items() if s == name}


def test_dry_run_table_and_json(tmp_path: Path) -> None:
    pictures(tmp_path / "s", 30)
    done = run(tmp_path / "s", tmp_path / "out", "--dry-run", "--no-alike")
    shares = {s.split: s for s in divided(tmp_path / "s", alike=False).shares}
    table = [line.split() for line in done.out.splitlines()]
    assert ["split", "pictures", "share", "wanted", "groups"] in table
    for name, wanted in (("train", "80.0%"), ("validation", "10.0%"), ("test", "10.0%")):
        n = shares[name].pictures
        assert [name, str(n), f"{n / 30:.1%}", wanted, str(n)] in table
    assert "wrote  nothing (--dry-run)" in done.out and not (tmp_path / "out").exists()
    events = [
        json.loads(line) for line in run(tmp_path / "s", tmp_path / "out", "--dry-run", "--json").out.splitlines()
    ]
    assert [e["event"] for e in events] == ["Divided"] and len(events[0]["where"]) == 30


def test_a_split_without_a_picture_is_a_warning(tmp_path: Path) -> None:
    pictures(tmp_path / "s", 3)
    done = run(tmp_path / "s", tmp_path / "out", "--validation", 0.0001, "--test", 0)
    assert done.code == 0 and "no picture for validation/: too few for that share; another --seed" in done.out
    assert "\ntest" not in done.out


def test_faults(tmp_path: Path) -> None:
    pictures(tmp_path / "s", 4)
    (tmp_path / "s" / "bad.png").write_bytes(b"\x89PNG")
    (tmp_path / "s" / "bad.txt").write_text("x")
    done = run(tmp_path / "s", tmp_path / "out")
    assert done.code == 3 and "bad.png: text, not a picture" in done.err and "--skip-bad" in done.err
    done = run(tmp_path / "s", tmp_path / "out", "--skip-bad")
    assert done.code == 0 and "left out (--skip-bad): bad.png" in done.out
    for arguments, said in (
        (("--validation", 1), "--validation: 1 is not a share from 0 to 1"),
        (("--validation", 0.6, "--test", 0.5), "together they leave nothing to train on"),
        (("--validation", 0, "--test", 0), "both are 0; `sdtune data convert` copies without a split"),
        (("--group", "author", "--skip-bad"), "--group author: no column of the metadata (it has no others)"),
        (("--group", "(", "--skip-bad"), "and no regular expression (missing )"),
        (("--group", "folder", "--skip-bad"), "--group folder: no picture lies in a folder inside the source"),
    ):
        done = run(tmp_path / "s", tmp_path / "o2", *arguments)
        assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 1, done.err
    with pytest.raises(DataError, match="holds something else"):
        list(split(DataConfig(path=str(tmp_path / "s")), Rule(), Wish(tmp_path)))
    with pytest.raises(ConfigError):
        Rule(validation=float("nan"))


def test_looking_is_told_as_it_goes(tmp_path: Path) -> None:
    pictures(tmp_path, 5)
    events = list(split(DataConfig(path=str(tmp_path)), Rule(), NEVER, dry_run=True))
    assert [(e.done, e.total) for e in events if isinstance(e, Seen)] == [(i, 5) for i in range(1, 6)]
