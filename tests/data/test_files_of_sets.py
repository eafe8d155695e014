"""Sets that a file or a pattern names: what is edited beside it is seen by the next run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sdtune.events import Encoded
from tests import tiny
from tests.data.test_dataset import put
from tests.data.test_readers import png, tar
from tests.data.test_sets import counted, run_config, told
from tests.data.test_sets import settled as settled  # a fixture, which pytest finds by its name

Said = dict[str, str]
SAID = {"0": "a dog", "1": "a cat", "2": "the sun"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd1_folder(tmp_path_factory.mktemp("base") / "model")


def pictures(folder: Path, said: Said) -> None:
    """Those that are named, written once."""
    for path in folder.glob("*.png"):
        if path.stem not in said:
            path.unlink()
    for name in said:
        if not (folder / f"{name}.png").exists():
            put(folder / f"{name}.png", int(name))


def texts(folder: Path, said: Said) -> None:
    pictures(folder, said)
    for path in folder.glob("*.txt"):
        path.unlink()
    for name, text in said.items():
        (folder / f"{name}.txt").write_text(text)


def kohya_toml(folder: Path, said: Said) -> Path:
    texts(folder / "pictures", said)
    if not (folder / "data.toml").exists():
        subset = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "pictures"\ncaption_extension = ".txt"\n'
        (folder / "data.toml").write_text(subset)
    return folder / "data.toml"


def kohya_json(folder: Path, said: Said) -> Path:
    pictures(folder, said)
    (folder / "meta.json").write_text(json.dumps({name: {"caption": text} for name, text in said.items()}))
    return folder / "meta.json"


def simpletuner(folder: Path, said: Said) -> Path:
    texts(folder / "mine", said)
    if not (folder / "backends.json").exists():
        row = {"id": "mine", "type": "local", "instance_data_dir": "mine", "caption_strategy": "textfile"}
        (folder / "backends.json").write_text(json.dumps([row]))
    return folder / "backends.json"


def flickr(folder: Path, said: Said) -> Path:
    pictures(folder / "images", said)
    rows = [f"{name}.png,{text}" for name, text in said.items()]
    (folder / "captions.txt").write_text("\n".join(["image,caption", *rows]))
    return folder / "captions.txt"


def unsplash(folder: Path, said: Said) -> Path:
    pictures(folder / "photos", said)
    rows = [f"{name}\t{text}" for name, text in said.items()]
    (folder / "photos.tsv000").write_text("\n".join(["photo_id\tphoto_description", *rows]))
    return folder / "photos.tsv000"


def braces(folder: Path, said: Said) -> Path:
    """The second shard holds all but the first picture, and is written anew; the first stays as it is."""
    if not (folder / "000.tar").exists():
        tar(folder / "000.tar", {"0.png": png(0), "0.txt": said["0"].encode()})
    more = {n: text for n, text in said.items() if n != "0"}
    tar(
        folder / "001.tar",
        {k: v for n, t in more.items() for k, v in ((f"{n}.png", png(int(n))), (f"{n}.txt", t.encode()))},
    )
    return folder / "{000..001}.tar"


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("write", [kohya_toml, kohya_json, simpletuner, flickr, unsplash, braces])
def test_an_edit_beside_a_file_is_seen(write: Callable[[Path, Said], Path], tmp_path: Path, model: Path) -> None:
    (tmp_path / "set").mkdir()
    named = write(tmp_path / "set", SAID)
    config = run_config(named, tmp_path, f"model.path='{model}'", "data.validation_share=0")
    first = told(config)
    assert counted(first) == {"pictures": (0, 3), "captions": (0, 4), "validation captions": (1, 1)}
    assert isinstance(first[-1], Encoded) and not counted(told(config)), "known"
    write(tmp_path / "set", SAID | {"2": "the moon"})
    assert counted(told(config)) == {"pictures": (3, 3), "captions": (3, 4), "validation captions": (1, 1)}
    write(tmp_path / "set", {"0": "a dog", "2": "the moon"})
    last = told(config)
    assert last[-1].pictures == 2 and counted(last)["pictures"] == (2, 2)
