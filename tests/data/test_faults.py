"""Bad input and odd places, with real files made here, as the user meets them: the scan, `sdtune data check`, training of a tiny model."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.data import dataset, readers
from sdtune.data.config import DataConfig
from sdtune.encode import encode
from sdtune.errors import DataError
from sdtune.events import Encoding, Event, Finished, Noted, Step, Warned
from sdtune.runs import Run
from sdtune.sample import sample, save_png
from sdtune.train import train
from tests import tiny
from tests.data.test_check import run as check

SETTINGS = (
    "data.resolution=32", "data.validation_share=0", "train.steps=3", "train.batch_size=2", "train.precision=fp32", "train.threads=1",
    "train.device=cpu", "method.type=lora", "method.rank=2", "sample.steps=1", "sample.seeds=[0]", "train.sample_every=0",
)  # fmt: skip


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd1_folder(tmp_path_factory.mktemp("faults") / "model")


def put(
    path: Path, seed: int = 0, caption: str | None = "a red apple", size: tuple[int, int] = (32, 32), **options: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny.picture(seed, size).save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def quoted(key: str, path: Path) -> str:
    return f"{key}={json.dumps(str(path), ensure_ascii=False)}"


def config_of(model: Path, data: Path, cached: Path, *overrides: str) -> RunConfig:
    given = (quoted("model.path", model), quoted("data.path", data), quoted("data.cache", cached))
    return configs.load(None, [*given, *SETTINGS, *overrides])


def trained(config: RunConfig, folder: Path) -> list[Event]:
    events = list(train(config, Run(folder)))
    assert isinstance(events[-1], Finished)
    return events


def told(events: Iterable[Event]) -> str:
    return "\n".join(e.message for e in events if isinstance(e, Noted | Warned))


def faults(folder: Path, **options: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        dataset.scan(DataConfig(path=str(folder), **{"validation_share": 0, **options}))
    return str(caught.value).splitlines()[1:]


# ---- F19: bombs stay small


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(*chunks: bytes, size: tuple[int, int] = (32, 32), bits: int = 8) -> bytes:
    rows = (b"\0" + bytes((size[0] * bits + 7) // 8)) * size[1]
    ihdr = struct.pack(">IIBBBBB", *size, bits, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + b"".join(chunks) + pixels + chunk(b"IEND", b"")


@cache
def zeros(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes * 2**20), 1)


BOMBS: dict[str, Callable[[], bytes]] = {
    "20000x20000 of one bit": lambda: bomb(size=(20_000, 20_000), bits=1),
    "a profile of 250 MB": lambda: bomb(chunk(b"iCCP", b"p\0\0" + zeros(250))),
    "a text of 250 MB": lambda: bomb(chunk(b"zTXt", b"t\0\0" + zeros(250))),
    "a text of 250 MB, marked as UTF-8": lambda: bomb(chunk(b"iTXt", b"t\0\1\0\0\0" + zeros(250))),
    "five hundred texts of 1 MB": lambda: bomb(*[chunk(b"zTXt", b"t\0\0" + zeros(1))] * 500),
    "pixels of which there are far too many": lambda: bomb(chunk(b"IDAT", zeros(250))),
}
MOST_MB = 100

_CHECKED = """
import resource, sys
from pathlib import Path
from sdtune.data import images
images.check(Path(sys.argv[1]).read_bytes())  # what is imported late, and the buffers, once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[2:]:
    try:
        images.check(Path(name).read_bytes())
        print("read")
    except images.Unusable as error:
        print(error)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB there")
def test_bombs_take_no_memory(tmp_path: Path) -> None:
    put(tmp_path / "sound.png")
    names = []
    for i, make in enumerate(BOMBS.values()):
        names.append(tmp_path / f"{i}.png")
        names[-1].write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", _CHECKED, tmp_path / "sound.png", *names], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    said = dict(zip(BOMBS, zip(lines[::2], map(int, lines[1::2]), strict=True), strict=True))
    assert "pixels; make it smaller" in said["20000x20000 of one bit"][0]
    assert {name: mb for name, (_, mb) in said.items() if mb > MOST_MB} == {}, said


# ---- F20 to F26: colours, orientations, sizes, captions, through the scan to the encoded pixels


def test_every_mode_reaches_the_model_as_rgb(model: Path, tmp_path: Path) -> None:
    data, grey = tmp_path / "data", np.asarray(tiny.picture(1).convert("L"))
    for name, im in {
        "cmyk.jpg": tiny.picture(0).convert("CMYK"), "deep.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "float.tif": Image.fromarray((grey / 255).astype(np.float32)), "bit.png": tiny.picture(2).convert("1"),
        "palette.gif": tiny.picture(3).quantize(8), "clear.png": tiny.picture(4).convert("LA"), "grey.webp": tiny.picture(5).convert("L"),
    }.items():  # fmt: skip
        data.mkdir(exist_ok=True)
        im.save(data / name)
        (data / name).with_suffix(".txt").write_text("a cat", encoding="utf-8")
    events = trained(config_of(model, data, tmp_path / "cache", "data.on.near_copies='ignore'"), tmp_path / "run")
    assert sum(isinstance(e, Step) for e in events) == 3


def test_sizes_without_enlarging(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name, size in {
        "dot": (1, 1),
        "line": (1000, 10),
        "small": (24, 20),
        "fits": (32, 32),
        "tall": (40, 70),
    }.items():
        put(data / f"{name}.png", len(name), size=size)
    config = config_of(model, data, tmp_path / "cache", "data.enlarge=false")
    said = told(trained(config, tmp_path / "run"))
    assert "3 pictures too small for 32 pixels, and left out there (data.enlarge=false)" in said and "dot.png" in said
    config = config_of(model, data, tmp_path / "cache", "data.enlarge=false", "data.buckets=true", "data.bucket_step=8")
    said = told(trained(config, tmp_path / "framed"))
    assert "1 picture too small for 32 pixels" in said and "dot.png" in said
    assert "more than three times as long as wide, mostly cut away: line.png" in said, said


def test_long_captions_are_told_unless_chunks_read_them(model: Path, tmp_path: Path) -> None:
    long = " ".join(["a red apple"] * 9)
    for i in range(2):
        put(tmp_path / "data" / f"{i}.png", i, long)
    config = config_of(model, tmp_path / "data", tmp_path / "cache")
    said = told(trained(config, tmp_path / "run"))
    assert "of more than the 16 tokens" in said and "of which this is cut off: " in said, said
    config = config_of(model, tmp_path / "data", tmp_path / "cache", "data.caption_chunks=2")
    assert "cut off" not in told(trained(config, tmp_path / "chunks"))


def test_captions_of_every_script_are_kept(tmp_path: Path) -> None:
    texts = [
        "\ufeffa cat",
        "\u05d7\u05ea\u05d5\u05dc \u0642\u0637\u0629",
        "\N{CAT FACE}\u200d\N{ROCKET}",
        "cafe\u0301 na\u00efve",
        "\u732b",
    ]
    for i, text in enumerate(texts):
        put(tmp_path / f"{i}.png", i, text)
    found = dataset.scan(DataConfig(path=str(tmp_path), validation_share=0))
    assert [e.captions for e in found.train] == [(text.removeprefix("\ufeff"),) for text in texts]


# ---- F27, F28: names


def test_names_that_differ_in_folder_or_case_are_different_pictures(tmp_path: Path) -> None:
    data = tmp_path / "data"
    put(data / "x" / "a.png", 0, "a cat")
    put(data / "y" / "a.png", 1, "a dog")
    put(data / "A.png", 2, "a house")
    put(data / "a.png", 3, "the sun")
    if len(list(data.glob("?.png"))) == 1:
        pytest.skip("this file system takes A.png for a.png")
    found = dataset.scan(DataConfig(path=str(data), validation_share=0))
    assert {e.image.relative_to(data).as_posix(): e.captions[0] for e in found.train} == {
        "A.png": "a house", "a.png": "the sun", "x/a.png": "a cat", "y/a.png": "a dog",
    }  # fmt: skip
    put(data / "x" / "a.jpg", 4, None)
    assert "x/a.txt: belongs to more than one picture (a.jpg, a.png); give the pictures different names" in faults(data)


def test_nothing_outside_is_read(tmp_path: Path) -> None:
    """With a canary whose time of last reading would change, and with the system's own word for what was opened."""
    data, canary = tmp_path / "data", put(tmp_path / "canary.png", 9, "CANARY")
    for i, link in enumerate((canary, canary.with_suffix(".txt"))):
        put(data / f"{i}.png", i, None)
        (data / f"link{i}{link.suffix}").symlink_to(link)
    put(data / "link1.png", 5, None)
    (data / "metadata.jsonl").write_text('{"file_name": "../canary.png", "text": "x"}\n', encoding="utf-8")
    opened = list[str]()
    watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | Path):
            opened.append(os.path.realpath(arguments[0]))

    sys.addaudithook(watch)
    try:
        for metadata in (True, False):
            for arguments in ([data], [data, "--quick"], [data, "data.on_bad=skip"]):
                assert check(*arguments).code == 3
            if metadata:
                (data / "metadata.jsonl").unlink()
    finally:
        watching = False
    assert str(data / "0.png") in opened
    assert not [name for name in opened if "canary" in name]


# ---- F31: few pictures


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("buckets", [False, True])
def test_few_pictures_train(count: int, buckets: bool, model: Path, tmp_path: Path) -> None:
    for i in range(count):
        put(tmp_path / "data" / f"{i}.png", i, size=(32, 32 + 32 * i))
    more = (
        f"data.buckets={str(buckets).lower()}",
        "train.batch_size=4",
        "data.validation_share=0.1",
        "data.bucket_step=8"[: 99 * buckets],
    )
    events = trained(config_of(model, tmp_path / "data", tmp_path / "cache", *filter(None, more)), tmp_path / "run")
    assert sum(isinstance(e, Step) for e in events) == 3


def test_no_picture_is_an_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="no pictures here"):
        trained(config_of(model, tmp_path / "data", tmp_path / "cache"), tmp_path / "run")


def test_a_frame_of_one_picture_is_not_dropped(model: Path, tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / "data" / f"{i}.png", i)
    put(tmp_path / "data" / "wide.png", 7, size=(70, 35))
    more = ("data.buckets=true", "data.bucket_step=8", "train.batch_size=3", "train.steps=8")
    config = config_of(model, tmp_path / "data", tmp_path / "cache", *more)
    trained(config, tmp_path / "run")
    seen = check(tmp_path / "data", *SETTINGS, *more, quoted("model.path", model))
    assert seen.code == 0 and "small_frame" in seen.out


# ---- F32: what is cached


def test_a_half_written_cache_and_that_of_another_vae(model: Path, tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path / "data" / f"{i}.png", i)
    config = config_of(model, tmp_path / "data", tmp_path / "cache")
    list(encode(config))
    written = list((tmp_path / "cache").rglob("pictures*/*.safetensors"))
    assert written
    for path in written:
        path.write_bytes(path.read_bytes()[:-50])
    events = list(encode(config, verify=True))
    assert "damaged" in told(events) and found_there(events) < 4
    assert "damaged" not in told(again := list(encode(config, verify=True))) and found_there(again) == 4
    other = config_of(tiny.sd1_folder(tmp_path / "other", seed=1), tmp_path / "data", tmp_path / "cache")
    assert found_there(list(encode(other))) == 0
    assert found_there(list(encode(config, verify=True))) == 4


def found_there(events: Iterable[Event]) -> int:
    """How many pictures were encoded already."""
    return next(e.done for e in events if isinstance(e, Encoding) and e.what == "pictures")


# ---- odd places


ODD = 'it\'s 50% "done" & ' + unicodedata.normalize("NFD", "\u00e9t\u00e9") + " \u732b \N{CAT FACE}"


def test_odd_and_long_paths_from_scan_to_sample(model: Path, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(ODD, *["a folder of a long name " * 4] * 3)
    for i in range(4):
        put(deep / "pictures" / f"{ODD} {i}.png", i, "a red apple")
    (deep / "model").parent.mkdir(parents=True, exist_ok=True)
    (deep / "model").symlink_to(model)
    assert len(str(deep / "pictures")) > 300
    config = config_of(deep / "model", deep / "pictures", deep / "cache", "train.steps=4")
    run = Run(deep / "run")
    going = train(config, run)
    next(e for e in going if isinstance(e, Step) and e.step == 2)
    going.close()  # type: ignore[attr-defined]
    events = trained(config, deep / "run")
    assert [e.step for e in events if isinstance(e, Step)] == [3, 4]
    pipeline = config.model.load(device="cpu", dtype=None)
    (picture, *_) = sample(pipeline, replace(config.sample, prompts=("a red apple",)))
    save_png(picture, deep / "out" / f"{ODD}.png")
    with Image.open(deep / "out" / f"{ODD}.png") as im:
        assert im.size == (32, 32)
    done = check(deep / "pictures", "data.validation_share=0", "--html", deep / "page.html")
    assert done.code == 0 and "4 to train on" in done.out
    assert (deep / "page.html").exists()


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in [folder, *folder.rglob("*")]}


def test_nothing_is_written_where_the_pictures_are(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for i in range(3):
        put(data / f"{i}.png", i)
    (data / "link.png").symlink_to(data / "0.png")
    (data / "link.txt").write_text("the same", encoding="utf-8")
    before = tree(data)
    for path in [data, *data.iterdir()]:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        trained(config_of(model, data, tmp_path / "cache"), tmp_path / "run")
        assert check(data, "--html", tmp_path / "page.html").code == 0
        assert tree(data) == before
    finally:
        data.chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_folder_that_may_not_be_written(model: Path, tmp_path: Path) -> None:
    put(tmp_path / "data" / "a.png")
    (tmp_path / "cache").mkdir(mode=0o555)
    with pytest.raises(DataError, match=r"cache: cannot be written \(.*set data\.cache"):
        trained(config_of(model, tmp_path / "data", tmp_path / "cache"), tmp_path / "run")


def test_a_cache_folder_that_is_a_file(model: Path, tmp_path: Path) -> None:
    put(tmp_path / "data" / "a.png")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written \(.*set data\.cache") as caught:
        trained(config_of(model, tmp_path / "data", tmp_path / "file" / "cache"), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1


_ELSEWHERE = """
import sys
import time
from pathlib import Path
from sdtune import config as configs
from sdtune.encode import encode
config = configs.load(None, sys.argv[1:])
print(ascii([type(e).__name__ for e in encode(config)][-1]), len(list(config.data.cache_folder().rglob("*.safetensors"))))
"""


@pytest.mark.slow
def test_locale_c_hash_seed_and_tmpdir_elsewhere(model: Path, tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")  # another device on Linux
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other device here")
    for i in range(3):
        put(tmp_path / ODD / f"{ODD} {i}.png", i)
    own = [quoted("model.path", model), quoted("data.path", tmp_path / ODD), *SETTINGS]
    environment = {**os.environ, "LC_ALL": "C", "LANG": "C", "PYTHONHASHSEED": "7", "TMPDIR": str(elsewhere)}
    command = [sys.executable, "-c", _ELSEWHERE, *own, quoted("data.cache", tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.startswith("'Encoded'"), done.stderr
    config = configs.load(None, [*own, quoted("data.cache", tmp_path / "cache")])
    events = list(encode(config, verify=True))
    counts = [(e.what, e.done, e.total) for e in events if isinstance(e, Encoding)]
    assert ("pictures", 3, 3) in counts
    assert all(done == total for _, done, total in counts), "all was there, under the same keys"


# ---- many files


def test_training_tells_how_far_the_looking_is(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdtune.encode.TOLD_S", -1)
    for i in range(3):
        put(tmp_path / "data" / f"{i}.png", i)
    events = trained(config_of(model, tmp_path / "data", tmp_path / "cache"), tmp_path / "run")
    looking = [
        (e.done, e.total, e.words) for e in events if isinstance(e, Encoding) and e.what == "looking at pictures"
    ]
    assert looking == [(i, 3, "looking at pictures") for i in range(3)]


def test_a_large_folder_is_read_in_reasonable_time(tmp_path: Path) -> None:
    """5,000 pictures with captions, which take half a second; the bound is that of a slow machine."""
    first = put(tmp_path / "source" / "a.png")
    for i in range(5000):
        folder = tmp_path / "data" / f"{i // 500:02}"
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in (".png", ".txt"):
            os.link(first.with_suffix(suffix), folder / f"{i}{suffix}")
    began = time.process_time()
    found = readers.read(tmp_path / "data")
    assert len(found.entries) == 5000 and not found.faults
    assert time.process_time() - began < 4
