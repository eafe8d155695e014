"""What is remembered of files and sets, and when it is forgotten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from sdtune import config as configs
from sdtune import pictures
from sdtune.config import RunConfig
from sdtune.data import dataset, images, looking
from sdtune.data.cache import Cache
from sdtune.data.config import DataConfig
from sdtune.data.ledger import Ledger, state_of
from sdtune.data.listing import listing, state
from sdtune.data.sets import KnownSet
from sdtune.encode import encode
from sdtune.errors import ConfigError, DataError
from sdtune.events import Encoded, Encoding, Noted, Warned
from tests import command as cli_command
from tests import tiny


def age(folder: Path, seconds: float = 3600) -> None:
    """Make all files old: one that was changed a moment ago is never remembered."""
    for path in [folder, *folder.rglob("*")]:
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - int(seconds * 1e9)))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the entry itself (ctime) cannot be set back: nothing counts as too new."""
    monkeypatch.setattr("sdtune.data.listing.SETTLED_S", -1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.imagefolder(tmp_path / "data", ["a red apple", "a dog", "a cat", "a house", "the sun"])


# ---- listing


def test_a_listing_changes_with_what_is_there(folder: Path) -> None:
    first = listing([folder])
    assert first.files == 6 and listing([folder]) == first
    seen = {first.fingerprint}

    def new() -> bool:
        found = listing([folder]).fingerprint
        fresh = found not in seen
        seen.add(found)
        return fresh

    (folder / ".hidden").write_text("x")
    assert not new(), "hidden files are nobody's pictures"
    (folder / "sub").mkdir()
    tiny.picture(9).save(folder / "sub" / "9.png")
    assert new()
    (folder / "sub" / "9.png").rename(folder / "sub" / "8.png")
    assert new()
    os.utime(folder / "000.png")
    assert new()
    stat = (folder / "001.png").stat()
    data = bytearray((folder / "001.png").read_bytes())
    data[-1] ^= 1
    time.sleep(0.02)
    (folder / "001.png").write_bytes(data)
    os.utime(folder / "001.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert new(), "an edit whose time was set back"
    (folder / "sub" / "8.png").unlink()
    assert new()


def test_single_files_patterns_and_links(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"a")
    (tmp_path / "b.tar").write_bytes(b"b")
    assert listing([tmp_path / "*.tar"]).files == 2 and listing([tmp_path / "a.tar"]).files == 1
    target = tmp_path / "target.png"
    target.write_bytes(b"one")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.png").symlink_to(target)
    (inside / "nowhere.png").symlink_to(tmp_path / "gone")
    first = listing([inside])
    target.write_bytes(b"three")
    assert first.files == 2 and listing([inside]).fingerprint != first.fingerprint, "a link is what it leads to"


def test_what_has_just_changed_is_not_settled(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a")
    assert not listing([tmp_path]).settled and state(path) is None and state(tmp_path / "gone") is None


def test_what_is_old_is_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a")
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3_000_000_000)
    assert listing([tmp_path]).settled and state(path)


@pytest.mark.parametrize(("files", "seconds"), [(20_000, 2), pytest.param(100_000, 10, marks=pytest.mark.slow)])
def test_files_are_listed_10_000_a_second(tmp_path: Path, files: int, seconds: float) -> None:
    """The bound is that of a slow machine."""
    for i in range(files // 1000):
        (tmp_path / str(i)).mkdir()
        for j in range(1000):
            (tmp_path / str(i) / f"{j}.txt").touch()
    began = time.process_time()
    assert listing([tmp_path]).files == files
    assert time.process_time() - began < seconds


@pytest.mark.slow
def test_a_hundred_thousand_captioned_pictures_are_read_in_seconds(tmp_path: Path) -> None:
    """To find each with its caption; they are not looked into. And meanwhile it is told how far it is."""
    tiny.picture(1, (8, 8)).save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    for i in range(100):
        (tmp_path / "set" / f"{i:02}").mkdir(parents=True)
        for j in range(1000):
            (tmp_path / "set" / f"{i:02}" / f"{j:03}.png").write_bytes(data)
            (tmp_path / "set" / f"{i:02}" / f"{j:03}.txt").write_bytes(b"a dog")
    config, began, told = DataConfig(path=str(tmp_path / "set")), time.process_time(), list[tuple[int, int]]()
    reading = dataset.surveying(config, quick=True)
    told = [next(reading)]
    while not told[-1][1]:
        told.append(next(reading))
    assert told[-1] == (0, 100_000) and len(told) > 2
    reading.close()
    assert time.process_time() - began < 60


def test_reading_tells_how_far_it_is_and_ends_when_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(200):
        (tmp_path / f"{i:03}.png").touch()
        (tmp_path / f"{i:03}.txt").write_text("a dog")
    read = list[Path]()
    read_bytes = Path.read_bytes

    def slowly(path: Path) -> bytes:
        read.append(path)
        time.sleep(0.005)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", slowly)
    monkeypatch.setattr(dataset, "TOLD_S", 0.02)
    reading = dataset.surveying(DataConfig(path=str(tmp_path)), quick=True)
    told = [next(reading) for _ in range(5)]
    reading.close()
    assert {total for _, total in told} == {0} and [done for done, _ in told] == sorted({done for done, _ in told})
    assert 400 <= told[-1][0] < 500 and 0 < len(read) < 100, "400 files listed, some captions read, and no more"


# ---- ledger


@pytest.mark.usefixtures("settled")
def test_a_ledger_remembers_until_the_file_changes(tmp_path: Path) -> None:
    path, db = tmp_path / "ä 1.png", tmp_path / "new" / "ledger.sqlite"
    path.write_bytes(b"one")
    ledger = Ledger(db, "white")
    assert ledger.get(path) is None
    ledger.put(path, {"size": [1, 2]}, state_of(path))
    ledger.close()
    assert Ledger(db, "white").get(path) == {"size": [1, 2]}
    assert Ledger(db, "black").get(path) is None, "asked otherwise"
    path.write_bytes(b"three")
    assert Ledger(db, "white").get(path) is None


def test_what_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(b"one")
    ledger = Ledger(tmp_path / "l.sqlite", "")
    ledger.put(path, 1, state_of(path))
    ledger.close()
    assert Ledger(tmp_path / "l.sqlite", "").get(path) is None


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("harm", ["garbage", "a folder", "read only"])
def test_a_ledger_that_cannot_be_used_only_costs_time(tmp_path: Path, harm: str) -> None:
    path, db = tmp_path / "1.png", tmp_path / "l.sqlite"
    path.write_bytes(b"one")
    if harm == "garbage":
        db.write_bytes(b"no database" * 1000)
    elif harm == "a folder":
        db.mkdir()
    else:
        db = Path("/proc/l.sqlite")
    ledger = Ledger(db, "")
    ledger.put(path, 1, state_of(path))
    ledger.close()
    assert Ledger(db, "").get(path) is None


# ---- looking


@pytest.mark.usefixtures("settled")
def test_each_picture_is_read_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bad.png").write_bytes(b"no picture")
    paths = [*sorted(folder.glob("0*.png")), folder / "bad.png"]
    config = DataConfig(path=str(folder), cache=str(tmp_path / "cache"))
    read, check = list[int](), images.check

    def counting(data: bytes, **options: Any) -> images.Checked:
        read.append(1)
        return check(data, **options)

    monkeypatch.setattr(images, "check", counting)
    first = list(looking.look(paths, config))
    assert [type(f).__name__ for f in first] == ["Looked"] * 5 + ["Unusable"] and len(read) == 6
    again = list(looking.look(paths, config))
    assert again[:5] == first[:5] and len(read) == 7, "what cannot be used is looked at again"
    assert str(again[5]) == str(first[5])
    list(looking.look(paths, DataConfig(path=str(folder), cache=str(tmp_path / "cache"), background="red")))
    assert len(read) == 13
    tiny.picture(77).save(paths[2])
    assert next(iter(list(looking.look(paths, config))[2:3])) != first[2] and len(read) == 15


def test_warnings_are_quiet_in_all_threads(tmp_path: Path) -> None:
    """And heard as before afterwards: Python's own way puts the filters of one thread back in the midst of another."""
    tiny.picture(1, (64, 64)).save(tmp_path / "a.png")
    data, failed = (tmp_path / "a.png").read_bytes(), list[BaseException]()

    def decode() -> None:
        try:
            for _ in range(100):
                with images.QUIET:
                    warnings.warn("loud", stacklevel=1)
                images.check(data)
        except BaseException as error:
            failed.append(error)

    before = list(warnings.filters)
    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and warnings.filters == before


# ---- sets


def run_config(folder: Path, tmp_path: Path, *overrides: str) -> RunConfig:
    model = tmp_path / "model"
    if not model.exists() and not any("model.path" in override for override in overrides):
        tiny.sd1_folder(model)
    own = [f"model.path='{model}'", f"data.path='{folder}'", f"data.cache='{tmp_path / 'cache'}'", "data.resolution=32"]
    return configs.load(None, [*own, "data.validation_share=0.2", *overrides])


def told(config: RunConfig, **options: Any) -> list[Any]:
    return list(encode(config, **options))


def counted(events: list[Any]) -> dict[str, tuple[int, int]]:
    """What -> how many were there at first, and how many there are."""
    out: dict[str, tuple[int, int]] = {}
    for event in events:
        if isinstance(event, Encoding):
            out.setdefault(event.what, (event.done, event.total))
    return out


def notes(events: list[Any]) -> list[str]:
    return [event.message for event in events if isinstance(event, Noted)]


@pytest.mark.usefixtures("settled")
def test_an_unchanged_set_is_neither_scanned_nor_planned(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(folder, tmp_path)
    first = told(config)
    assert counted(first)["pictures"] == (0, 4) and isinstance(first[-1], Encoded)
    assert (first[-1].pictures, first[-1].validation_pictures) == (4, 1)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("looked at again")

    monkeypatch.setattr(looking, "look", never)
    monkeypatch.setattr("sdtune.data.cache.plan", never)
    again = told(config)
    assert notes(again) == notes(first) != []
    assert not counted(again) and (again[-1].pictures, again[-1].validation_pictures) == (4, 1)
    for change in ("data.flip=true", "data.caption_prefix=sks", "train.seed=1"):
        with pytest.raises(AssertionError, match="looked at again"):
            told(run_config(folder, tmp_path, change))
    time.sleep(0.02)
    os.utime(folder / "002.png")
    with pytest.raises(AssertionError, match="looked at again"):
        told(config)


def test_a_set_that_has_just_changed_is_not_remembered(folder: Path, tmp_path: Path) -> None:
    told(run_config(folder, tmp_path))
    assert not (tmp_path / "cache" / "sets").exists()


@pytest.mark.usefixtures("settled")
def test_a_cache_that_has_lost_a_part_is_filled_again(folder: Path, tmp_path: Path) -> None:
    config = run_config(folder, tmp_path)
    told(config)
    (file, *_) = (tmp_path / "cache").glob("pictures-*/*.safetensors")
    file.unlink()
    assert any(done < total for done, total in counted(told(config)).values()) and not counted(told(config))
    (file, *_) = (tmp_path / "cache").glob("pictures-*/*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    events = told(config)
    assert [e.message for e in events if isinstance(e, Warned)] == [f"cache: {file.name}: 1 damaged, encoded again"]
    assert not [e for e in told(config) if isinstance(e, Warned)], "said once"


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("harm", [b"", b"garbage", b'{"notes": []}'])
def test_a_damaged_memory_is_no_memory(folder: Path, tmp_path: Path, harm: bytes) -> None:
    config = run_config(folder, tmp_path)
    told(config)
    for path in (tmp_path / "cache" / "sets").rglob("*.*"):
        path.write_bytes(harm)
    assert counted(told(config))["pictures"] == (4, 4)


CROPS = b'\\"crops\\": 1'


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("where", ["a column", "the header"])
def test_a_flipped_bit_in_an_index_is_noticed(folder: Path, tmp_path: Path, where: str) -> None:
    """It would show another picture, or another caption with it."""
    config = run_config(folder, tmp_path)
    told(config)
    (file,) = (tmp_path / "cache" / "sets").rglob("*-train.safetensors")
    data = bytearray(file.read_bytes())
    at = len(data) - 1 if where == "a column" else data.index(CROPS) + len(CROPS) - 1
    data[at] ^= 2
    file.write_bytes(data)
    assert counted(told(config))["pictures"] == (4, 4), "looked at again, and nothing had to be encoded"
    assert not counted(told(config)), "and written anew"


@pytest.mark.usefixtures("settled")
def test_only_the_last_sets_are_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdtune.data.sets.KEPT", 2)
    made = [DataConfig(path=str(folder), cache=str(tmp_path / "cache"), caption_prefix=str(i)) for i in range(4)]
    for config in made:
        KnownSet(config, 0).remember(dataset.scan(config))
        time.sleep(0.02)
    assert len(list((tmp_path / "cache" / "sets").iterdir())) == 2
    assert KnownSet(made[-1], 0).scanned and not KnownSet(made[0], 0).scanned


# ---- encoding


def test_a_dry_run_says_how_much(folder: Path, tmp_path: Path) -> None:
    config = run_config(folder, tmp_path)
    (*_, last) = told(config, dry_run=True)
    assert isinstance(last, Noted) and last.message.startswith("to be encoded: 5 pictures, 7 captions; 0.0 MB, of ")
    assert not list((tmp_path / "cache").glob("*/*.safetensors"))
    told(config)
    assert told(config, dry_run=True)[-1].message == "all is encoded already"


def test_a_dry_run_counts_class_pictures(folder: Path, tmp_path: Path) -> None:
    """Those that are given, and those that the base would draw, all or some of them."""
    prior = ("data.class_prompt=a dog", "data.class_count=3", "sample.steps=1", "sample.guidance=1")
    given = tiny.imagefolder(tmp_path / "class", ["a cat", "the sun"], seed=50)
    said = notes(told(run_config(folder, tmp_path, *prior, f"data.class_path={given}"), dry_run=True))
    assert said[-1].startswith("to be encoded: 7 pictures, 7 captions; ")
    assert "class pictures: imagefolder with metadata.jsonl: 2 pictures" in said
    config = run_config(folder, tmp_path, *prior)
    said = notes(told(config, dry_run=True))
    assert said[-2] == "to be drawn by the base: 3 class pictures ('a dog')"
    assert said[-1].startswith("to be encoded: 8 pictures, 7 captions; ")
    assert not list((tmp_path / "cache").glob("class-*"))
    told(config)
    assert notes(told(config, dry_run=True))[-1] == "all is encoded already"
    next((tmp_path / "cache").glob("class-*/00001.png")).unlink()
    said = notes(told(config, dry_run=True))
    assert said[-2:-1] == ["to be drawn by the base: 1 class picture ('a dog')"] and " 1 picture; " in said[-1]


def test_a_dry_run_verifies_nothing_and_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--verify: has no effect with --dry-run"):
        told(run_config(folder, tmp_path), verify=True, dry_run=True)


def test_what_is_missing_is_counted_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted_up, missing = list[int](), Cache.missing

    def counting(cache: Cache) -> list[tuple[str, int, int]]:
        counted_up.append(1)
        return missing(cache)

    monkeypatch.setattr(Cache, "missing", counting)
    monkeypatch.setattr("sdtune.encode.TOLD_BYTES", 0)
    assert any(note.startswith("to be encoded: ") for note in notes(told(run_config(folder, tmp_path))))
    assert len(counted_up) == 2, "training and validation"


def test_the_size_that_is_told_is_what_it_takes(folder: Path, tmp_path: Path) -> None:
    from sdtune.encode import _missing, _opened

    config = run_config(folder, tmp_path, "data.flip=true", "data.buckets=true")
    model = config.model.load(device="cpu", dtype=None)
    splits = pictures.scan(config)
    needed = _missing(_opened(splits, [], model, config.data))[1]
    told(config)
    files = list((tmp_path / "cache").glob("*/*.safetensors"))
    assert needed < sum(file.stat().st_size for file in files) < needed + 2000 * len(files)
    halved = run_config(folder, tmp_path, "data.flip=true", "data.buckets=true", "data.cache_dtype=fp16")
    assert _missing(_opened(splits, [], model, halved.data))[1] == needed / 2


def test_no_room_is_told_before(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdtune.encode.free_bytes", lambda _: 100)
    with pytest.raises(
        DataError, match=r"needed for the encoded pictures and captions, 0\.0 MB free; make room, or set data\.cache"
    ):
        told(run_config(folder, tmp_path))
    assert not list((tmp_path / "cache").glob("*/*.safetensors"))


@pytest.mark.usefixtures("settled")
def test_verifying_reads_large_tables_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdtune.data.shards.CHECKED_BYTES", 0)
    config = run_config(folder, tmp_path)
    told(config)
    (file, *_) = (tmp_path / "cache").glob("pictures-*/*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert not counted(told(config)), "not looked at"
    assert any(done < total for done, total in counted(told(config, verify=True)).values())
    assert not counted(told(config))


@pytest.mark.usefixtures("settled")
def test_a_damaged_entry_of_a_large_table_is_found_when_it_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdtune.runs import Run
    from sdtune.train import train

    monkeypatch.setattr("sdtune.data.shards.CHECKED_BYTES", 0)
    config = run_config(
        folder, tmp_path, "train.steps=4", "train.batch_size=4", "data.validation_share=0", "train.sample_every=0"
    )
    told(config)
    (file, *_) = (tmp_path / "cache").glob("pictures-*/*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged and has been taken away; the same command encodes it again"):
        list(train(config, Run(tmp_path / "run")))
    assert counted(list(train(config, Run(tmp_path / "run"))))["pictures"] == (4, 5)


# ---- the command


command = partial(cli_command.run, "data", "encode")


def test_the_command_encodes_and_says_what(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(configs.to_toml(run_config(folder, tmp_path)), encoding="utf-8")
    done = command(recipe, "--dry-run")
    assert done.code == 0 and "to be encoded: 5 pictures, 7 captions; 0.0 MB, of " in done.out
    done = command(recipe)
    assert done.code == 0 and "encoding pictures (4) ..." in done.out
    assert f"4 pictures and 1 held out, encoded in {tmp_path / 'cache'}" in done.out
    assert "all is encoded already" in command(recipe, "--dry-run").out
    (folder / "002.png").write_bytes(b"no picture")
    done = command(recipe)
    assert done.code == 3 and "002.png: text, not a picture" in done.err
    assert command(recipe, "data.cach=x").code == 2 and command(tmp_path / "none.toml").code == 2


ALONE = [sys.executable, "-m", "sdtune", "data", "encode"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sdtune", "data", "encode"]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "more"), [(ALONE, ["--devices", "2"]), ([sys.executable, *TORCHRUN], [])])
def test_two_processes_encode_a_share_each(
    folder: Path, tmp_path: Path, command: Sequence[str], more: Sequence[str]
) -> None:
    recipe, config = tmp_path / "recipe.toml", run_config(folder, tmp_path, "data.flip=true", "data.jitter=0.1")
    recipe.write_text(configs.to_toml(config), encoding="utf-8")
    done = subprocess.run(
        [*command, str(recipe), *more],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("encoded in") == 1, "one process talks"
    both = list((tmp_path / "cache").glob("pictures-*/*.safetensors"))
    assert len(both) >= 3, "of training and validation, by two processes"
    assert told(config, dry_run=True)[-1].message == "all is encoded already"
    alone = run_config(folder, tmp_path, "data.flip=true", "data.jitter=0.1", f"data.cache='{tmp_path / 'alone'}'")
    told(alone)
    assert rows(both) == rows((tmp_path / "alone").glob("pictures-*/*.safetensors")), "bit by bit"


def rows(files: Iterable[Path]) -> dict[str, int]:
    """Key -> checksum."""
    found: dict[str, int] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            keys, sums = json.loads(opened.metadata()["keys"]), opened.get_tensor("crc32").tolist()
        found |= zip(keys, sums, strict=True)
    return found


def test_fp16_is_near(folder: Path, tmp_path: Path) -> None:
    import torch

    from sdtune.encode import _opened

    config, half = run_config(folder, tmp_path), run_config(folder, tmp_path, "data.cache_dtype=fp16")
    model = config.model.load(device="cpu", dtype=None)
    splits = pictures.scan(config)
    caches = [_opened(splits, [], model, c.data)[0] for c in (config, half)]
    for cache in caches:
        list(cache.fill())
    at, first = torch.arange(4), torch.zeros(4, dtype=torch.long)
    whole, halved = (cache.latents(at, first) for cache in caches)
    assert halved.mean_BCHW.dtype == torch.float32
    torch.testing.assert_close(halved.mean_BCHW, whole.mean_BCHW, atol=1e-3, rtol=1e-3)
    assert not torch.equal(halved.mean_BCHW, whole.mean_BCHW)


def test_a_picture_that_was_moved_is_not_encoded_again(folder: Path, tmp_path: Path) -> None:
    told(run_config(folder, tmp_path))
    Image.open(folder / "000.png").close()
    (folder / "000.png").rename(folder / "zero.png")
    text = (folder / "metadata.jsonl").read_text(encoding="utf-8").replace("000.png", "zero.png")
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")
    assert all(done == total for done, total in counted(told(run_config(folder, tmp_path))).values())
