"""Layouts of other tools, each from real files: what is recognised, what is read, and what is said of the rest."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from sdtune import config as configs
from sdtune.data import archives, dataset
from sdtune.data.config import Layout
from sdtune.data.dataset import Example, Splits
from sdtune.data.images import load_image
from sdtune.data.readers import BY_NAME
from sdtune.data.readers.filename import caption_in
from sdtune.data.readers.kohya import concept
from sdtune.data.record import record
from sdtune.errors import ConfigError, DataError
from tests.data.test_dataset import faults, has, names, pair, put, scan


def captions(splits: Splits, *, below: Path | None = None) -> dict[str, tuple[str, ...]]:
    return {_name(e, below): e.captions for e in splits.train}


def repeats(splits: Splits) -> dict[str, int]:
    return {e.image.name: e.repeats for e in splits.train}


def _name(example: Example, below: Path | None) -> str:
    return example.image.relative_to(below).as_posix() if below else example.image.name


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (seed * 9 % 256, 40, 90)).save(stream, "PNG")
    return stream.getvalue()


def test_the_recipe_knows_the_readers_by_name() -> None:
    assert set(get_args(Layout)) == {"auto", *BY_NAME}


# ---- sidecars, names


def test_caption_files_of_kohyas_scripts_are_read(tmp_path: Path) -> None:
    put(tmp_path / "a.png").with_suffix(".caption").write_text("a cat\na red cat\n")
    pair(tmp_path / "b.png", "a dog", 1)
    (tmp_path / "b.caption").write_text("not this one")
    splits = scan(tmp_path)
    assert captions(splits) == {"a.png": ("a cat", "a red cat"), "b.png": ("a dog",)}
    assert splits.notes[0] == "pictures with .caption and .txt files: 2 pictures"
    assert has(splits.notes, "1 second caption file of a picture, not read: b.caption")


def test_multiply_shows_a_folder_more_often(tmp_path: Path) -> None:
    pair(tmp_path / "a" / "a.png", "a cat")
    pair(tmp_path / "b" / "b.png", "a dog", 1)
    (tmp_path / "b" / "multiply.txt").write_text("3\n")
    splits = scan(tmp_path)
    assert repeats(splits) == {"a.png": 1, "b.png": 3}
    assert has(splits.notes, "b/multiply.txt: the pictures there are shown 3 times as often")
    for odd in ("inf", "nan", "0", "-1", "x"):
        (tmp_path / "b" / "multiply.txt").write_text(odd)
        assert faults(tmp_path)[0].startswith(f"b/multiply.txt: holds '{odd}', not a whole number")
    pair(tmp_path / "c" / "multiply.png", "sheep", 2)
    (tmp_path / "b" / "multiply.txt").write_text("2.0")
    assert repeats(scan(tmp_path)) == {"a.png": 1, "b.png": 2, "multiply.png": 1}
    (tmp_path / "b" / "multiply.txt").write_text("0.5")
    assert faults(tmp_path) == [
        "b/multiply.txt: holds '0.5', not a whole number of times from 1 to 10000; mend or remove it"
    ]


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("red_apple_012", "red apple"), ("012 - red apple", "red apple"), ("apple (2)", "apple"), ("Apfel äöü", "Apfel äöü"),
        ("3d_model", "3d model"), ("007", "007"), ("two apples", "two apples"),
    ],
)  # fmt: skip
def test_a_name_as_a_caption(stem: str, caption: str) -> None:
    assert caption_in(stem) == caption


def test_names_are_captions_only_where_that_is_said(tmp_path: Path) -> None:
    put(tmp_path / "red_apple_1.png")
    assert faults(tmp_path) == [
        "red_apple_1.png: no caption: red_apple_1.txt is missing; write one",
        "mend them, or set data.on_bad=skip to leave them out",
    ]
    splits = scan(tmp_path, layout="filename")
    assert captions(splits) == {"red_apple_1.png": ("red apple",)}
    assert splits.notes[0] == "pictures whose name is their caption: 1 picture"


def test_captions_in_capitals_are_captions(tmp_path: Path) -> None:
    put(tmp_path / "a.png").with_suffix(".TXT").write_text("a cat")
    pair(tmp_path / "b.png", "a dog", 1)
    splits = scan(tmp_path)
    assert captions(splits) == {"a.png": ("a cat",), "b.png": ("a dog",)}
    (tmp_path / "c.TXT").write_text("nobody's")
    assert has(scan(tmp_path).notes, "1 other file not read: c.TXT") or has(
        scan(tmp_path).notes, "without a picture: c.TXT"
    )


def test_everydreams_other_settings_have_names_here(tmp_path: Path) -> None:
    pair(tmp_path / "a" / "a.png", "a cat")
    (tmp_path / "a" / "flip_p.txt").write_text("0.5")
    (tmp_path / "a" / "cond_dropout.txt").write_text("0.1")
    (tmp_path / "global.yaml").write_text("multiply: 2")
    assert has(
        scan(tmp_path).notes,
        "EveryDream's settings of a folder, not read, with what sets it here: global.yaml (the recipe), a/cond_dropout.txt "
        "(data.caption_dropout), a/flip_p.txt (data.flip)",
    )


def test_what_of_simpletuner_is_not_read_is_told(tmp_path: Path) -> None:
    pair(tmp_path / "mine" / "a.png", "a cat")
    row = {
        "id": "mine", "instance_data_dir": "mine", "caption_strategy": "textfile", "instance_prompt": "sks",
        "prepend_instance_prompt": True, "crop_aspect": "square", "cache_dir_vae": "x", "odd": 1,
    }  # fmt: skip
    (tmp_path / "multidatabackend.json").write_text(json.dumps([row]))
    said = "multidatabackend.json: not read, set it in the recipe: crop_aspect (data.buckets), odd, "
    assert has(scan(tmp_path).notes, said + "prepend_instance_prompt (data.caption_prefix)")


def test_flickrs_folder_may_lie_in_another(tmp_path: Path) -> None:
    inner = tmp_path / "flickr30k_images"
    put(inner / "flickr30k_images" / "1.jpg")
    (inner / "results.csv").write_text("image_name| comment_number| comment\n1.jpg| 0| a dog\n")
    splits = scan(tmp_path)
    assert captions(splits) == {"1.jpg": ("a dog",)} and splits.notes[0].startswith("Flickr's results.csv: 1 picture")
    pair(tmp_path / "more" / "2.png", "a cat")
    assert len(faults(tmp_path)) == 2, "pictures elsewhere: the list is not that of the folder"


def test_tar_files_below_and_of_other_names(tmp_path: Path) -> None:
    tar(tmp_path / "a" / "0.tar", {"0.png": png(0), "0.txt": b"a cat"})
    tar(tmp_path / "b" / "0.tar", {"0.png": png(1), "0.txt": b"a dog"})
    assert captions(scan(tmp_path), below=tmp_path) == {"a/0.tar/0.png": ("a cat",), "b/0.tar/0.png": ("a dog",)}
    (tmp_path / "b" / "0.tar").rename(tmp_path / "b" / "0.TAR")
    (tmp_path / "c.tar.gz").write_bytes(b"\x1f\x8b")
    assert faults(tmp_path) == [
        "c.tar.gz: not of the name or kind that is read; unpack it to .tar, to be read where it lies",
        "b/0.TAR: not of the name or kind that is read; rename it to .tar",
    ]
    with pytest.raises(DataError, match=r"c\.tar\.gz: not of the name or kind that is read; unpack it"):
        scan(tmp_path / "c.tar.gz")
    with pytest.raises(
        DataError, match=r"a pattern may stand in the name of the files alone; name each folder in data\.sources"
    ):
        scan(tmp_path / "*" / "0.tar")


# ---- metadata.parquet


def test_metadata_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'sdtune[parquet]'")
    from pyarrow import parquet

    put(tmp_path / "a.png")
    put(tmp_path / "b.png", 1)
    table = pyarrow.table({"file_name": ["a.png", "b.png"], "text": [["a cat", "a red cat"], ["a dog"]]})
    parquet.write_table(table, tmp_path / "metadata.parquet")
    assert captions(scan(tmp_path)) == {"a.png": ("a cat", "a red cat"), "b.png": ("a dog",)}
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 no")
    assert "not a Parquet file that can be read" in faults(tmp_path)[0]


# ---- kohya


def kohya(folder: Path) -> Path:
    put(folder / "10_sks dog" / "a.png")
    pair(folder / "10_sks dog" / "b.png", "sks dog on grass", 1)
    pair(folder / "2_cat" / "sub" / "c.png", "a cat", 2)
    return folder


def test_kohyas_folders(tmp_path: Path) -> None:
    splits = scan(kohya(tmp_path))
    assert captions(splits) == {"a.png": ("sks dog",), "b.png": ("sks dog on grass",), "c.png": ("a cat",)}
    assert repeats(splits) == {"a.png": 10, "b.png": 10, "c.png": 2}
    assert splits.notes[0] == "kohya's folders (repeats_name): 3 pictures: 2 of 'sks dog' x 10, 1 of 'cat' x 2"


def test_kohyas_folder_itself_is_understood(tmp_path: Path) -> None:
    splits = scan(kohya(tmp_path) / "10_sks dog")
    assert captions(splits) == {"a.png": ("sks dog",), "b.png": ("sks dog on grass",)}
    assert set(repeats(splits).values()) == {10}


def test_repeats_of_a_name_and_of_multiply_txt_are_multiplied(tmp_path: Path) -> None:
    (kohya(tmp_path) / "2_cat" / "multiply.txt").write_text("5")
    assert repeats(scan(tmp_path)) == {"a.png": 10, "b.png": 10, "c.png": 10}


def test_what_kohya_leaves_alone_is_told(tmp_path: Path) -> None:
    put(kohya(tmp_path) / "loose.png", 4)
    put(tmp_path / "reg" / "r.png", 5)
    put(tmp_path / "x_y" / "z.png", 6)
    splits = scan(tmp_path, layout="kohya")
    assert sorted(captions(splits)) == ["a.png", "b.png", "c.png"]
    assert has(splits.notes, "1 picture beside the folders 10_name/, left alone as kohya's scripts do: loose.png")
    assert has(
        splits.notes,
        "no number of repeats before the first _, left alone as kohya's scripts do: reg/, x_y/ (2 pictures)",
    )
    assert has(splits.notes, f"reg/ may hold class pictures: data.class_path={tmp_path / 'reg'} with data.class_prompt")
    assert scan(tmp_path).notes == splits.notes, "and it is recognised as kohya's all the same"


def test_what_kohya_would_leave_alone_is_not_most_of_a_folder(tmp_path: Path) -> None:
    for i in range(4):
        pair(kohya(tmp_path) / "dogs" / f"{i}.png", "a dog", 10 + i)
    (said,) = faults(tmp_path)
    assert said.startswith(
        f"{tmp_path.name}: 4 pictures in no folder 10_name/ (dogs/), 3 in such; name the folders so, or set "
    )
    assert said.endswith('data.layout="kohya" to leave the others alone, "sidecar" to read all alike')
    assert len(scan(tmp_path, layout="kohya").train) == 3
    assert len(scan(tmp_path, layout="sidecar", caption_prefix="x").train) == 7


def test_a_project_of_kohya_ss(tmp_path: Path) -> None:
    """Its pictures in img/; those in model/sample/ are what was drawn."""
    kohya(tmp_path / "img")
    for i in range(3):
        put(tmp_path / "reg" / "1_dog" / f"{i}.png", 10 + i)
    put(tmp_path / "model" / "sample" / "x.png", 20)
    (tmp_path / "log").mkdir()
    splits = scan(tmp_path)
    assert captions(splits) == {"a.png": ("sks dog",), "b.png": ("sks dog on grass",), "c.png": ("a cat",)}
    assert repeats(splits) == {"a.png": 10, "b.png": 10, "c.png": 2}
    assert splits.notes[0].startswith("kohya's folders (repeats_name) in img/: 3 pictures: ")
    assert has(splits.notes, "left alone as kohya's scripts do: model/, reg/ (4 pictures)")
    assert has(splits.notes, f"data.class_path={tmp_path / 'reg'} with data.class_prompt")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("10_sks dog", (10, "sks dog")),
        ("1_", (1, "")),
        ("0_x", None),
        ("dog", None),
        ("2024_summer", None),
        ("x_10", None),
    ],
)
def test_repeats_in_a_name(name: str, found: tuple[int, str] | None) -> None:
    assert concept(name) == found


def test_a_year_is_no_number_of_repeats(tmp_path: Path) -> None:
    pair(tmp_path / "2024_summer" / "a.png", "a beach")
    assert repeats(scan(tmp_path)) == {"a.png": 1}


TOML = """
[general]
caption_extension = ".txt"
enable_bucket = true
[[datasets]]
resolution = 512
num_repeats = 2
  [[datasets.subsets]]
  image_dir = "one"
  num_repeats = 3
  class_tokens = "sks dog"
  [[datasets.subsets]]
  image_dir = "two"
  caption_extension = ".caption"
  caption_prefix = "drawing,"
  [[datasets.subsets]]
  image_dir = "reg"
  is_reg = true
"""


def test_kohyas_toml(tmp_path: Path) -> None:
    put(tmp_path / "one" / "a.png")
    put(tmp_path / "two" / "b.png", 1).with_suffix(".caption").write_text("a cat")
    (tmp_path / "data.toml").write_text(TOML)
    splits = scan(tmp_path / "data.toml")
    assert captions(splits) == {"a.png": ("sks dog",), "b.png": ("drawing, a cat",)}
    assert repeats(splits) == {"a.png": 3, "b.png": 2}, "a lower level wins over a higher one"
    assert splits.notes[0] == "kohya's data.toml: 2 pictures"
    assert has(splits.notes, "class pictures are not read here; data.class_path=reg uses them")
    assert has(splits.notes, "data.toml: not read, set it in the recipe: enable_bucket, resolution (data.resolution)")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = ", "data.toml: not valid TOML"),
        ("[general]\na = 1", "data.toml: no [[datasets]] in it"),
        ("datasets = 5", "data.toml: no [[datasets]] in it"),
        ("[[datasets]]\nsubsets = 3", "data.toml: datasets[1]: has no [[datasets.subsets]]"),
        ("general = [1]\n[[datasets]]\na = 1", "data.toml: [general] is no table"),
        ("[[datasets]]\na = 1", "data.toml: datasets[1]: has no [[datasets.subsets]]"),
        ('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "gone"', "datasets[1].subsets[1]: gone: no such folder"),
        (
            '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "one"\nnum_repeats = 0',
            "num_repeats is 0, not a whole number",
        ),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2", "names no folder of pictures (None)"),
    ],
)
def test_faults_of_a_toml(tmp_path: Path, text: str, says: str) -> None:
    put(tmp_path / "one" / "a.png")
    (tmp_path / "data.toml").write_text(text)
    with pytest.raises(DataError) as caught:
        scan(tmp_path / "data.toml")
    assert says in str(caught.value)


def test_a_toml_leads_outside_only_into_roots(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "a.png").with_suffix(".caption").write_text("a cat")
    (tmp_path / "in").mkdir()
    text = f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{tmp_path / "elsewhere"}"'
    (tmp_path / "in" / "data.toml").write_text(text)
    with pytest.raises(DataError, match=r"is outside of .*; name it in data\.roots"):
        scan(tmp_path / "in" / "data.toml")
    splits = scan(tmp_path / "in" / "data.toml", roots=(str(tmp_path / "elsewhere"),))
    assert captions(splits) == {"a.png": ("a cat",)}


def test_kohyas_json(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    put(tmp_path / "b.png", 1)
    rows = {
        "/old/place/a.png": {"caption": "a cat\na red cat", "tags": "red, cat"},
        "b": {"tags": "dog"},
        "gone": {"caption": "x"},
    }
    (tmp_path / "meta.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"meta\.json: 'gone': no picture of this name here"):
        scan(tmp_path / "meta.json")
    splits = scan(tmp_path / "meta.json", on_bad="skip")
    assert captions(splits) == {"a.png": ("a cat, red, cat", "a red cat, red, cat"), "b.png": ("dog",)}


# ---- SimpleTuner


def test_simpletuners_backends(tmp_path: Path) -> None:
    pair(tmp_path / "one" / "a.png", "a cat")
    put(tmp_path / "two" / "red_dog.png", 1)
    put(tmp_path / "three" / "c.png", 2)
    rows: list[dict[str, Any]] = [
        {"id": "one", "type": "local", "instance_data_dir": "one", "caption_strategy": "textfile", "repeats": 2},
        {"id": "two", "type": "local", "instance_data_dir": "two", "caption_strategy": "filename"},
        {"id": "three", "instance_data_dir": "three", "caption_strategy": "instanceprompt", "instance_prompt": "sks"},
        {"id": "text", "dataset_type": "text_embeds"},
    ]
    (tmp_path / "multidatabackend.json").write_text(json.dumps(rows))
    splits = scan(tmp_path)
    assert captions(splits) == {"a.png": ("a cat",), "red_dog.png": ("red dog",), "c.png": ("sks",)}
    assert repeats(splits) == {"a.png": 3, "red_dog.png": 1, "c.png": 1}, "0 repeats mean once"
    assert has(splits.notes, "multidatabackend.json: no pictures to train on, or disabled: text")
    rows[0]["type"] = "aws"
    (tmp_path / "multidatabackend.json").write_text(json.dumps(rows))
    assert faults(tmp_path)[0] == (
        "multidatabackend.json: one: its type is 'aws'; copy the pictures into a folder and set it to local"
    )


# ---- Flickr30k, Unsplash

FORMS = {
    "results_20130124.token": "1.png#0\ta cat\n1.png#1\ta red cat\n2.png#0\ta dog\n",
    "results.csv": "image_name| comment_number| comment\n1.png| 0| a cat\n1.png| 1   a red cat\n2.png| 0| a dog\n",
    "captions.txt": 'image,caption\n1.png,a cat\n1.png,a red cat\n2.png,"a dog"\n',
}


@pytest.mark.parametrize("form", list(FORMS))
def test_flickrs_captions(tmp_path: Path, form: str) -> None:
    """The second row of results.csv lacks its second bar, as one of the published file does."""
    (tmp_path / form).write_text(FORMS[form])
    put(tmp_path / "flickr30k_images" / "1.png")
    put(tmp_path / "flickr30k_images" / "3.png", 3)
    with pytest.raises(DataError, match=r"1 picture of it not here \(2\.png\); add them"):
        scan(tmp_path)
    put(tmp_path / "flickr30k_images" / "2.png", 1)
    splits = scan(tmp_path)
    assert captions(splits) == {"1.png": ("a cat", "a red cat"), "2.png": ("a dog",)}
    assert splits.notes[0] == f"Flickr's {form}: 2 pictures"
    assert has(splits.notes, f"1 picture not in {form}, left alone: flickr30k_images/3.png")
    assert captions(scan(tmp_path / form)) == captions(splits), "the file may be named instead of its folder"


def test_a_line_without_a_caption_is_told(tmp_path: Path) -> None:
    put(tmp_path / "1.png")
    (tmp_path / "results_20130124.token").write_text("1.png#0\ta cat\nnonsense\n")
    assert faults(tmp_path) == [
        "results_20130124.token:2: not a picture, a number and a caption: 'nonsense'; mend or remove the line"
    ]


def test_a_captions_txt_of_something_else_is_not_flickrs(tmp_path: Path) -> None:
    put(tmp_path / "captions.png")
    (tmp_path / "captions.txt").write_text("a page of captions")
    assert captions(scan(tmp_path)) == {"captions.png": ("a page of captions",)}


def test_unsplash(tmp_path: Path) -> None:
    head = "photo_id\tphoto_url\tphoto_description\tai_description\n"
    rows = 'A1\thttps://x\t"a ""fine"" cat"\ta cat\nB2\thttps://x\t\ta dog\nC3\thttps://x\t\t\nD4\thttps://x\tgone\t\n'
    (tmp_path / "photos.tsv000").write_text(head + rows)
    keys = "photo_id\tkeyword\tai_service_1_confidence\tai_service_2_confidence\tsuggested_by_user\n"
    words = "C3\tsea\t99.5\t\tf\nC3\tfog\t12.0\t\tf\nC3\tbeach\t\t\tt\n"
    (tmp_path / "keywords.tsv000").write_text(keys + words)
    for i, name in enumerate(("A1", "B2", "C3")):
        put(tmp_path / "photos" / f"{name}.png", i)
    splits = scan(tmp_path)
    assert captions(splits) == {"A1.png": ('a "fine" cat',), "B2.png": ("a dog",), "C3.png": ("beach, sea",)}
    assert has(splits.notes, "1 photo of photos.tsv000 not here: D4; `sdtune data collect --source ")
    only = scan(tmp_path, caption_column="keywords", on_bad="skip")
    assert captions(only) == {"C3.png": ("beach, sea",)}
    with pytest.raises(
        DataError, match=r"data\.caption_column: 'text2', but Unsplash's captions are photo_description"
    ):
        scan(tmp_path, caption_column="text2")


# ---- WebDataset


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def shards(folder: Path) -> Path:
    tar(
        folder / "00000.tar",
        {"000.png": png(0), "000.txt": b"a cat", "001.png": png(1), "001.json": b'{"caption": "a dog"}'},
    )
    tar(folder / "00001.tar", {"sub/2.png": png(2), "sub/2.txt": "ein Bär".encode(), "3.json": b'{"status": "failed"}'})
    return folder


def test_webdataset(tmp_path: Path) -> None:
    splits = scan(shards(tmp_path))
    assert captions(splits, below=tmp_path) == {
        "00000.tar/000.png": ("a cat",), "00000.tar/001.png": ("a dog",), "00001.tar/sub/2.png": ("ein Bär",),
    }  # fmt: skip
    assert splits.notes[:1] == ["WebDataset: 3 pictures in 2 tar files"]
    assert has(splits.notes, "1 sample without a picture: 00001.tar/3")
    assert archives.read_bytes(tmp_path / "00000.tar" / "001.png") == png(1)
    with pytest.raises(FileNotFoundError, match="no such member of the archive"):
        archives.read_bytes(tmp_path / "00000.tar" / "002.png")
    tar(tmp_path / "00000.tar", {"001.png": png(5)})
    assert archives.read_bytes(tmp_path / "00000.tar" / "001.png") == png(5), "a changed archive is read anew"


@pytest.mark.parametrize("pattern", ["00001.tar", "*1.tar", "{00001..00001}.tar"])
def test_a_pattern_names_shards(tmp_path: Path, pattern: str) -> None:
    assert len(scan(shards(tmp_path) / pattern).train) == 1


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"a.png": png(), "a.jpg": png(1), "a.txt": b"x"}, "00000.tar/a: has 2 pictures (a.png, a.jpg); one is needed"),
        (
            {"../a.png": png(), "../a.txt": b"x"},
            "00000.tar: its member '../a.png' leaves the folder; write the file again",
        ),
        ({"a.png": png(), "a.json": b"{"}, "00000.tar/a: its .json is not valid"),
        (
            {"a.png": png(), "a.json": b'{"caption": 3}'},
            "00000.tar/a: 'caption' in its .json is no text or list of texts",
        ),
        ({"a.png": png(), "a.txt": b"\xff\xfea"}, "00000.tar/a: its text is UTF-16"),
        ({"a.png": b"no picture", "a.txt": b"x"}, "00000.tar/a.png: text, not a picture"),
    ],
)
def test_faults_of_a_shard(tmp_path: Path, members: dict[str, bytes], says: str) -> None:
    tar(tmp_path / "00000.tar", members)
    assert any(line.startswith(says) for line in faults(tmp_path))


def test_a_damaged_shard_is_told(tmp_path: Path) -> None:
    (shards(tmp_path) / "00002.tar").write_bytes(b"\x1f\x8b not a tar" * 100)
    assert any(line.startswith("00002.tar: not an uncompressed tar file, or damaged") for line in faults(tmp_path))


def test_what_macos_puts_into_a_tar_is_passed_over(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"a.png": png(), "a.txt": b"a cat", "._a.png": b"\0\5\26", "._000.png": b"x"})
    assert captions(scan(tmp_path)) == {"a.png": ("a cat",)}


def test_a_shard_that_is_missing_is_told(tmp_path: Path) -> None:
    shards(tmp_path)
    with pytest.raises(DataError, match=r"2 shards of it not here \(00002\.tar, 00003\.tar\)"):
        scan(tmp_path / "{00000..00003}.tar")


def test_pictures_in_a_tar_are_shown_like_others(tmp_path: Path) -> None:
    """In comparisons and reports, too."""
    shards(tmp_path)
    assert load_image(tmp_path / "00000.tar" / "000.png").size == (8, 8)


# ---- masks, links, splits


def test_no_reader_takes_masks_for_pictures(tmp_path: Path) -> None:
    def masked(folder: Path, name: str) -> None:
        put(folder / f"{name}.png", 1)
        for mask in (folder / "masks" / f"{name}.png", folder / "masks" / f"{name}-masklabel.png")[:1]:
            mask.parent.mkdir(exist_ok=True)
            Image.new("L", (8, 8), 255).save(mask)

    masked(tmp_path / "kohya" / "10_sks dog", "a")
    assert repeats(scan(tmp_path / "kohya")) == {"a.png": 10}
    masked(tmp_path / "json", "a")
    (tmp_path / "json" / "m.json").write_text('{"a": {"caption": "x"}}')
    assert captions(scan(tmp_path / "json" / "m.json"), below=tmp_path / "json") == {"a.png": ("x",)}
    masked(tmp_path / "unsplash", "A1")
    (tmp_path / "unsplash" / "photos.tsv000").write_text("photo_id\tphoto_description\nA1\tx\n")
    assert captions(scan(tmp_path / "unsplash"), below=tmp_path / "unsplash") == {"A1.png": ("x",)}
    masked(tmp_path / "toml" / "one", "a")
    (tmp_path / "toml" / "d.toml").write_text(
        '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "one"\nclass_tokens = "sks"'
    )
    splits = scan(tmp_path / "toml" / "d.toml", mask="files")
    assert captions(splits, below=tmp_path / "toml") == {"one/a.png": ("sks",)}
    (example,) = splits.train
    assert example.mask == tmp_path / "toml" / "one" / "masks" / "a.png"


@pytest.mark.parametrize("listing", ["photos.tsv000", "captions.txt", "plain"])
def test_no_reader_follows_a_link_out_of_the_folder(tmp_path: Path, listing: str) -> None:
    put(tmp_path / "secret.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "secret.png")
    text = {"photos.tsv000": "photo_id\tphoto_description\na\tx\n", "captions.txt": "image,caption\na.png,x\n"}
    if listing in text:
        (tmp_path / "in" / listing).write_text(text[listing])
    assert "a.png: a link that leaves the folder; copy the file into it" in faults(tmp_path / "in", on_bad="skip")


def test_a_caption_is_no_link_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("never to be read")
    put(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "a.txt").symlink_to(tmp_path / "secret.txt")
    assert faults(tmp_path / "in")[0] == "a.txt: a link that leaves the folder; copy the file into it"


def test_the_layout_holds_for_the_split_folders(tmp_path: Path) -> None:
    put(tmp_path / "train" / "red cup_0.png")
    put(tmp_path / "validation" / "blue cup_0.png", 1)
    splits = scan(tmp_path, layout="filename")
    assert [e.captions for e in (*splits.train, *splits.validation)] == [("red cup",), ("blue cup",)]


@pytest.mark.parametrize("layout", ["sidecar", "filename", "kohya", "imagefolder"])
def test_a_file_is_no_folder_of_pictures(tmp_path: Path, layout: str) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "x.toml").write_text("")
    with pytest.raises(DataError, match=rf"x\.toml: data\.layout='{layout}' needs a folder"):
        scan(tmp_path / "x.toml", layout=layout)


def test_pictures_of_a_file_are_recorded_by_its_folder(tmp_path: Path) -> None:
    config = configs.from_dict({"data": {"path": str(shards(tmp_path) / "*.tar"), "validation_share": 0}}).data
    names = record(dataset.scan(config), dataset.root_of(config))["train"]
    assert sorted(names) == ["00000.tar/000.png", "00000.tar/001.png", "00001.tar/sub/2.png"]


# ---- several sources


def test_several_sources_with_repeats_and_weights(tmp_path: Path) -> None:
    pair(tmp_path / "one" / "x.png", "a cat", 7)
    kohya(tmp_path / "two")
    places = [{"path": str(tmp_path / "one"), "weight": 0.5}, {"path": str(tmp_path / "two"), "repeats": 3}]
    splits = dataset.scan(configs.from_dict({"data": {"sources": places, "validation_share": 0}}).data)
    found = {e.image.name: (e.repeats, e.weight) for e in splits.train}
    assert found == {"x.png": (1, 0.5), "a.png": (30, 1.0), "b.png": (30, 1.0), "c.png": (6, 1.0)}
    assert has(splits.notes, f"{tmp_path / 'one'}: the loss of its pictures counts 0.5")
    assert has(splits.notes, f"{tmp_path / 'two'}: each picture 3 times in an epoch")


def test_each_source_keeps_its_own_validation_folder(tmp_path: Path) -> None:
    for i, name in enumerate(("one", "two")):
        pair(tmp_path / name / "train" / f"{name}.png", "a cat", 2 * i)
        pair(tmp_path / name / "validation" / f"{name}-v.png", "a dog", 2 * i + 1)
    places = [{"path": str(tmp_path / "one")}, {"path": str(tmp_path / "two")}]
    splits = dataset.scan(configs.from_dict({"data": {"sources": places}}).data)
    assert names(splits.train) == ["one.png", "two.png"] and names(splits.validation) == ["one-v.png", "two-v.png"]


def test_a_copy_in_another_source_is_told(tmp_path: Path) -> None:
    pair(tmp_path / "one" / "x.png", "a cat")
    pair(tmp_path / "two" / "y.png", "a cat")
    places = [{"path": str(tmp_path / "one")}, {"path": str(tmp_path / "two")}]
    splits = dataset.scan(configs.from_dict({"data": {"sources": places, "validation_share": 0}}).data)
    assert has(splits.notes, "1 picture with exact copies, seen more often than the others")


def test_sources_and_a_path_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"data\.path: data\.sources names the places; remove one of the two"):
        configs.from_dict({"data": {"path": "a", "sources": [{"path": "b"}]}})
    with pytest.raises(ConfigError, match=r"data\.sources\.0\.repeats"):
        configs.from_dict({"data": {"sources": [{"path": "b", "repeats": 0}]}})


# ---- absolute names


def test_absolute_names_lead_into_roots_alone(tmp_path: Path) -> None:
    put(tmp_path / "pictures" / "a.png")
    put(tmp_path / "secret" / "b.png", 1)
    (tmp_path / "in").mkdir()
    rows = [{"file_name": str(tmp_path / "pictures" / "a.png"), "text": "a cat"}]
    (tmp_path / "in" / "metadata.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert "is an absolute path; use a path inside the folder" in faults(tmp_path / "in")[0]
    roots = (str(tmp_path / "pictures"),)
    assert captions(scan(tmp_path / "in", roots=roots)) == {"a.png": ("a cat",)}
    for name in (tmp_path / "secret" / "b.png", f"{tmp_path}/pictures/../secret/b.png"):
        (tmp_path / "in" / "metadata.jsonl").write_text(json.dumps({"file_name": str(name), "text": "x"}) + "\n")
        assert any(w in faults(tmp_path / "in", roots=roots)[0] for w in ("outside of the folder", "leaves the folder"))
