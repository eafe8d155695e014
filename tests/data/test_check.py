"""`sdtune data check`: each kind of finding in files made here, what is done about it, the table, the page and the JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdtune import config as configs
from sdtune import pictures
from sdtune.config import RunConfig
from sdtune.data import dataset, images, likeness
from sdtune.data.check import findings, kinds, page, report
from sdtune.data.check.findings import Fit
from sdtune.data.check.report import Report
from sdtune.data.config import DataConfig
from sdtune.data.dataset import Example, Splits
from sdtune.errors import ConfigError, DataError
from sdtune.families import settings
from sdtune.families.sd1 import Sd1
from tests import command, tiny

SIDE = 64
"""Of the embedded base, and of the sound pictures here."""


@cache
def fit() -> Fit:
    folder = settings.folder_of(Sd1())
    side = settings.resolution(folder)
    assert side == SIDE
    return Fit((side,), settings.grid(folder), settings.words(folder))


def drawing(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """A picture with structure, unlike that of any other seed: large fields of colour, smoothed."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def put(path: Path, seed: int = 0, caption: str | bytes | None = "a red apple", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = options.pop("size", (SIDE, SIDE))
    drawing(seed, size).save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four sound pictures, of which nothing is to be said."""
    root = tmp_path / "set"
    for i in range(4):
        put(root / f"sound{i}.png", 100 + i)
    return root


def examined(folder: Path, *, words: tuple[str, ...] = (), **options: Any) -> Report:
    config = DataConfig(path=str(folder), **{"validation_share": 0, **options})
    return report.examine(dataset.survey(config, fit=fit()), fit(), words=words)


def found(folder: Path, **options: Any) -> dict[str, list[str]]:
    """Kind -> where."""
    return {row.kind.name: [f.where for f in row.faults] for row in examined(folder, **options).rows}


def scan(folder: Path, **options: Any) -> Splits:
    return dataset.scan(DataConfig(path=str(folder), **{"validation_share": 0, **options}), fit=fit())


def names(splits: Splits) -> list[str]:
    return [e.image.name for e in splits.train]


# ---- each kind


def cut(root: Path) -> None:
    path = put(root / "bad.png", 1)
    path.write_bytes(path.read_bytes()[:-300])


def web_page(root: Path) -> None:
    put(root / "bad.png", 1).write_text("<!doctype html><html>", encoding="utf-8")


def empty(root: Path) -> None:
    put(root / "bad.png", 1).write_bytes(b"")


def bomb(root: Path) -> None:
    put(root / "bad.png", 1)
    Image.new("1", (14000, 14000)).save(root / "bad.png")


def jpeg_called_png(root: Path) -> None:
    put(root / "bad.png", 1, format="JPEG")


def animation(root: Path) -> None:
    put(root / "bad.webp", 1, save_all=True, append_images=[drawing(2)], lossless=True)


def cmyk(root: Path) -> None:
    put(root / "bad.jpg", 1)
    drawing(1).convert("CMYK").save(root / "bad.jpg")


def sixteen_bits(root: Path) -> None:
    put(root / "bad.png", 1)
    Image.fromarray(np.asarray(drawing(1).convert("L"), np.uint16) * 257).save(root / "bad.png")


def palette(root: Path) -> None:
    put(root / "bad.png", 1)
    drawing(1).quantize(16).save(root / "bad.png")


def floats(root: Path) -> None:
    put(root / "bad.tif", 1)
    Image.fromarray(np.asarray(drawing(1).convert("L"), np.float32) / 255).save(root / "bad.tif")


def see_through(root: Path) -> None:
    put(root / "bad.png", 1)
    im = drawing(1).convert("RGBA")
    im.putalpha(Image.linear_gradient("L").resize(im.size))
    im.save(root / "bad.png")


def turned(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    put(root / "bad.jpg", 1, exif=exif)


def profile(root: Path) -> None:
    put(root / "bad.png", 1, icc_profile=b"no profile")


def bare(root: Path) -> None:
    put(root / "bad.png", 1, None)


def blank(root: Path) -> None:
    put(root / "bad.png", 1, " \n\t\n")


def latin(root: Path) -> None:
    put(root / "bad.png", 1, "caf\xe9".encode("latin-1"))


def foreign(root: Path) -> None:
    (root / "bad.heic").write_bytes(b"ftyp")


def clash(root: Path) -> None:
    put(root / "bad.png", 1)
    put(root / "bad.jpg", 2)


def wordy(root: Path) -> None:
    put(root / "bad.png", 1, "a red apple " * 30)


def twice(root: Path) -> None:
    shutil.copy(root / "sound0.png", root / "very_bad.png")
    (root / "very_bad.txt").write_text("a red apple", encoding="utf-8")


def smaller_jpeg(root: Path) -> None:
    put(root / "large.png", 1, size=(128, 128))
    put(root / "bad.jpg", 1, size=(100, 100), quality=60)


def tiny_one(root: Path) -> None:
    put(root / "bad.png", 1, size=(15, 15))


def small(root: Path) -> None:
    put(root / "bad.png", 1, size=(63, 70))


def long(root: Path) -> None:
    put(root / "bad.png", 1, size=(300, 70))


def wide(root: Path) -> None:
    put(root / "bad.png", 1, size=(160, 90))


MADE: list[tuple[str, Callable[[Path], None], kinds.Policy]] = [
    ("unreadable", cut, "fail"), ("unreadable", web_page, "fail"), ("empty_file", empty, "fail"), ("too_large", bomb, "fail"),
    ("mislabelled", jpeg_called_png, "warn"), ("animated", animation, "warn"), ("odd_mode", cmyk, "ignore"),
    ("odd_mode", sixteen_bits, "ignore"), ("odd_mode", palette, "ignore"), ("odd_mode", floats, "ignore"),
    ("transparent", see_through, "warn"), ("turned", turned, "ignore"), ("colour_profile", profile, "warn"),
    ("no_caption", bare, "fail"), ("no_caption", blank, "fail"), ("not_utf8", latin, "fail"),
    ("other_format", foreign, "fail"), ("name_clash", clash, "fail"), ("long_caption", wordy, "warn"),
    ("copies", twice, "warn"), ("near_copies", smaller_jpeg, "warn"), ("tiny", tiny_one, "warn"), ("enlarged", small, "warn"),
    ("elongated", long, "warn"), ("cropped", wide, "warn"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "options", "kinds_found"),
    [
        ((400, 100), {}, ["elongated"]), ((400, 100), {"crop": "random"}, ["elongated"]), ((300, 100), {}, ["cropped"]),
        ((400, 100), {"buckets": True}, []), ((1000, 100), {"buckets": True}, ["elongated"]),
    ],
)  # fmt: skip
def test_elongated_is_what_also_loses_a_third(
    size: tuple[int, int], options: dict[str, Any], kinds_found: list[str]
) -> None:
    """Frames of 64 pixels reach from 1:4 to 4:1: a panorama that fits one loses nothing."""
    config, example = DataConfig(path="x", **options), Example(Path("a.png"), ("a",), size)
    assert [f.kind for f in findings.of_sizes([example], config, Fit((64,), 8), str)] == kinds_found


def test_of_sound_pictures_nothing_is_said(folder: Path) -> None:
    assert found(folder) == {}
    assert examined(folder).headline == "Ready to train on"


@pytest.mark.parametrize("kind, make, usual", MADE, ids=[make.__name__ for _, make, _ in MADE])
def test_each_kind_is_found_and_its_policy_obeyed(
    kind: str, make: Callable[[Path], None], usual: kinds.Policy, folder: Path
) -> None:
    make(folder)
    seen = examined(folder)
    assert [row.kind.name for row in seen.rows] == [kind], "this, and nothing else"
    (row,), known = seen.rows, kinds.kinds()[kind]
    assert "bad" in row.faults[0].where and row.policy == usual
    for policy in known.policies:
        options: dict[str, Any] = {"on": kinds.On(**{kind: policy})} if len(known.policies) > 1 else {}  # type: ignore[arg-type]
        assert bool(examined(folder, **options).stopping) == (policy == "fail")
        if policy == "fail":
            with pytest.raises(DataError, match="bad"):
                scan(folder, **options)
            continue
        splits = scan(folder, **options)
        assert any("bad" in n for n in names(splits)) == (policy != "skip")
        assert {f"sound{i}.png" for i in range(4)} <= set(names(splits)), "only what is at fault is left out"
        said = "\n".join(splits.notes)
        assert (f"left out (data.on.{kind}=skip): " in said) == (policy == "skip")
        assert ("bad" in said) == (policy != "ignore")


def test_pairs_keep_one_of_each(folder: Path) -> None:
    twice(folder)
    smaller_jpeg(folder)
    assert "large.png" in names(scan(folder, on=kinds.On(near_copies="skip")))
    assert found(folder) == {"copies": ["sound0.png = very_bad.png"], "near_copies": ["large.png ~ bad.jpg"]}


def test_colours_tell_drawings_apart_that_have_one_shape(folder: Path) -> None:
    im = drawing(1)
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        bands = im.convert("L").point(lambda v: v // 4), *([Image.new("L", im.size, 90)] * 2)
        put(folder / f"{name}.png", 1)
        Image.merge("RGB", [bands[i] for i in order]).save(folder / f"{name}.png")
    a, b = (images.check((folder / f"{n}.png").read_bytes()) for n in "ab")
    assert bin(a.look ^ b.look).count("1") <= likeness.BROAD, "the brightness alone takes one for the other"
    assert found(folder) == {}


def test_metadata_and_masks(tmp_path: Path) -> None:
    root = tmp_path / "meta"
    for i, name in enumerate(("a.png", "extra.png")):
        put(root / name, i, None)
    rows = [
        {"file_name": "a.png", "text": "x"},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "../b.png", "text": "x"},
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert found(root) == {"outside": ["metadata.jsonl:3"], "unlisted": ["extra.png"], "missing": ["metadata.jsonl:2"]}
    masked = tmp_path / "masked"
    for i in range(3):
        put(masked / f"{i}.png", i)
    Image.new("L", (SIDE, SIDE), 255).save(masked / "0-masklabel.png")
    Image.new("L", (9, 9), 255).save(masked / "1-masklabel.png")
    assert found(masked, mask="files") == {"bad_mask": ["1.png"], "no_mask": ["2.png"]}


def test_a_link_that_leaves_is_told_and_never_shown(folder: Path, tmp_path: Path) -> None:
    secret = put(tmp_path / "elsewhere" / "secret.png", 7)
    (folder / "bad.png").symlink_to(secret)
    (folder / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": f"sound{i}.png", "text": "x"}) for i in range(4)), encoding="utf-8"
    )
    seen = examined(folder)
    assert {row.kind.name for row in seen.rows} == {"unlisted"}
    assert not any(f.pictures for row in seen.rows for f in row.faults)


def test_leaks_and_near_leaks(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i in range(4):
        put(root / "train" / f"{i}.png", i, size=(128, 128))
    put(root / "validation" / "v.png", 50)
    shutil.copy(root / "train" / "0.png", root / "validation" / "same.png")
    (root / "validation" / "same.txt").write_text("x", encoding="utf-8")
    put(root / "validation" / "alike.jpg", 1, size=(100, 100), quality=60)
    assert found(root) == {"leak": ["validation/same.png"], "near_leak": ["train/1.png ~ validation/alike.jpg"]}
    with pytest.raises(DataError, match=r"same\.png: the same picture as train/0\.png, which is trained on"):
        scan(root, on_bad="skip")
    splits = scan(root, on=kinds.On(leak="skip"))
    assert (names(splits), len(splits.validation)) == (["1.png", "2.png", "3.png"], 3), "what is held out stays"
    assert "1 picture much like one that is validated with: train/1.png ~ validation/alike.jpg" in "\n".join(
        splits.notes
    )
    assert names(scan(root, on=kinds.On(leak="skip", near_leak="skip"))) == ["2.png", "3.png"]


def test_pictures_without_a_caption_of_their_own(folder: Path) -> None:
    bare(folder)
    assert found(folder, caption_prefix="sks") == {"bare": ["bad.png"]}
    assert "bad.png" not in names(scan(folder, caption_prefix="sks", on=kinds.On(bare="skip")))


def test_class_pictures_need_no_captions_of_their_own(folder: Path) -> None:
    bare(folder)
    config = DataConfig(path="unused", class_prompt="a dog", on=kinds.On(bare="fail"))
    assert {e.captions for e in dataset.scan_class(folder, config)[0]} == {("a dog",)}


def test_on_bad_stands_for_what_is_unset(folder: Path) -> None:
    cut(folder)
    bare_one = put(folder / "silent.png", 9, None)
    assert len(scan(folder, on_bad="skip").train) == 4
    with pytest.raises(DataError) as caught:
        scan(folder, on_bad="skip", on=kinds.On(no_caption="fail"))
    assert str(caught.value).splitlines()[1:] == [
        f"{bare_one.name}: no caption: silent.txt is missing; write one",
        "mend them, or set data.on.no_caption=skip to leave them out",
    ]
    notes = scan(folder, on_bad="skip", on=kinds.On(no_caption="skip")).notes
    assert {"1 left out (data.on_bad=skip)", "1 left out (data.on.no_caption=skip)"} <= set(notes)


def test_all_pictures_left_out_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "set" / "a.png", 1, size=(30, 30))
    seen = examined(tmp_path / "set", on=kinds.On(enlarged="skip"))
    assert [row.policy for row in seen.rows] == ["fail", "skip"]
    with pytest.raises(DataError, match="no picture is left to train on"):
        scan(tmp_path / "set", on=kinds.On(enlarged="skip"))


def test_frames(folder: Path) -> None:
    for i in range(3):
        put(folder / f"wide{i}.png", i, size=(176, 96))
    square = examined(folder, crop="center")
    assert [(r.frame, r.count) for r in square.frames] == [("64x64", 7)]
    assert square.frames[0].cropped == pytest.approx(3 / 7 * (1 - 96 / 176), abs=1e-3)
    assert [row.kind.name for row in square.rows] == ["cropped"]
    survey = dataset.survey(DataConfig(path=str(folder), validation_share=0, buckets=True), fit=fit())
    seen = report.examine(survey, fit(), batch=4)
    assert [(r.frame, r.count, r.enlarged) for r in seen.frames] == [("64x64", 4, 0), (seen.frames[1].frame, 3, 0)]
    assert seen.frames[1].cropped < 0.1
    (row,) = seen.rows
    assert (row.kind.name, row.faults[0].what) == ("small_frame", "holds 3 pictures, fewer than a batch of 4")
    small(folder)
    held = examined(folder, buckets=True, enlarge=False, resolution=64)
    assert held.left_out == 0 and any(r.frame == "56x64" for r in held.frames), "a frame of its own size"
    many = dataset.survey(DataConfig(path=str(folder), validation_share=0), fit=replace(fit(), resolutions=(64, 32)))
    assert {r.resolution for r in report.examine(many, replace(fit(), resolutions=(64, 32))).frames} == {32, 64}


# ---- captions


def test_the_text_that_is_cut_off_is_the_models_own_account(folder: Path) -> None:
    wordy(folder)
    (row,) = examined(folder).rows
    match = re.fullmatch(r"(\d+) tokens, of which this is cut off: '(.*)'", row.faults[0].detail)
    assert match
    words = settings.words(settings.folder_of(Sd1()))
    caption = ("a red apple " * 30).strip()
    assert int(match[1]) == words.token_counts([caption])[0] > words.max_tokens
    kept = caption.removesuffix(match[2]).strip()
    assert caption.endswith(match[2])
    first_cut = re.match(r"\w+", match[2])
    assert first_cut
    assert words.token_counts([kept])[0] <= words.max_tokens < words.token_counts([f"{kept} {first_cut[0]}"])[0]


def test_the_tokenizer_without_weights_counts_as_the_model_does(tmp_path: Path) -> None:
    whole = tiny.sd1_folder(tmp_path / "whole")
    model = Sd1(path=str(whole)).load()
    bare_folder = tmp_path / "bare"
    shutil.copytree(whole, bare_folder, ignore=shutil.ignore_patterns("*.safetensors"))
    words, texts = settings.words(bare_folder), ["a red apple", "sks " * 40, ""]
    assert words.token_counts(texts) == model.token_counts(texts)
    assert words.max_tokens == model.max_tokens
    assert (settings.resolution(bare_folder), settings.grid(bare_folder)) == (model.resolution, model.grid)


def test_another_tokenizer_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"tokenizer": ["os", "system"]}', encoding="utf-8")
    with pytest.raises(Exception, match="names system as tokenizer; known: CLIPTokenizer"):
        settings.words(tmp_path)


def test_trigger_words(folder: Path) -> None:
    put(folder / "bad.png", 1, "SKS a red apple")
    seen = examined(folder, words=("sks", "red"))
    assert [(t.word, t.having) for t in seen.triggers] == [("sks", 1), ("red", 5)]
    (row,) = seen.rows
    assert (row.kind.name, len(row.faults), row.policy) == ("no_trigger", 4, "warn")
    config = configs.load(None, ["data.caption_prefix=art of", 'method.tokens={"<sks>" = "dog"}'])
    assert pictures.trigger_words(config, ["red"]) == ["art of", "<sks>", "red"]


# ---- the configuration


def test_every_kind_can_be_chosen_and_has_its_words() -> None:
    for kind in kinds.kinds().values():
        assert kind.about.endswith(".") and kind.remedy and kind.policies, kind.name
        assert kind.default in (*kind.policies, None)
    assert len(kinds.kinds()) == len(kinds.FIXED) + len(kinds.REMEDIES)


def test_policies_in_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[data.on]\nunreadable = "skip"\nnear_copies = "ignore"\n', encoding="utf-8")
    config = configs.load(recipe, ["data.on.enlarged=skip"])
    assert (config.data.on.unreadable, config.data.on.near_copies, config.data.on.enlarged) == (
        "skip",
        "ignore",
        "skip",
    )
    recipe.write_text(configs.to_toml(config), encoding="utf-8")
    assert configs.load(recipe) == config
    with pytest.raises(ConfigError, match=r"data\.on\.unreadable: .*got 'warn'"):
        configs.load(None, ["data.on.unreadable=warn"])
    with pytest.raises(ConfigError, match=r"data\.on\.near_copys: no such key; did you mean 'near_copies'"):
        configs.load(None, ["data.on.near_copys=warn"])


def test_training_goes_by_the_model_of_the_recipe(folder: Path) -> None:
    small(folder)
    config = RunConfig(data=DataConfig(path=str(folder), validation_share=0, on=kinds.On(enlarged="skip")))
    assert len(pictures.scan(config).train) == 4
    other = replace(config, data=replace(config.data, resolution=32))
    assert len(pictures.scan(other).train) == 5
    assert pictures.reading(replace(config, model=Sd1(path="no/where"))).unknown.startswith(
        "no/where: neither a folder nor"
    )


# ---- the command


run = partial(command.run, "data", "check")


def test_the_table(folder: Path) -> None:
    all_of = "data.validation_share=0"
    done = run(folder, "--trigger", "red", all_of)
    assert (done.code, done.err) == (0, "")
    assert "Ready to train on" in done.out and "4 of 4 pictures" in done.out
    assert re.search(r"^model +embedded: 64 pixels, captions of 32 tokens$", done.out, re.MULTILINE)
    for make in (cut, wordy):
        make(folder / "..")
        for path in folder.parent.glob("bad.*"):
            path.rename(folder / f"{make.__name__}{path.suffix}")
    done = run(folder, all_of)
    assert (done.code, done.err) == (3, f"error: {folder}: training would stop: 1 thing to mend\n")
    assert re.search(r"^unreadable +1  fail +cut.png +copy or export them again", done.out, re.MULTILINE)
    assert re.search(r"^long_caption +1  warn +wordy.png ", done.out, re.MULTILINE)
    assert "unreadable: cut.png: damaged or cut off" in done.out and "of which this is cut off: " in done.out
    assert run(folder, "data.on_bad=skip", "data.on.long_caption=ignore").code == 0
    assert run(folder, "--quiet", "data.on_bad=skip").out == ""


def test_a_recipe_a_dataset_file_and_neither(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f"[data]\npath = {json.dumps(str(folder))}\n", encoding="utf-8")
    assert "4 to train on" in run(recipe, "data.validation_share=0").out
    kohya = folder / "kohya.toml"
    kohya.write_text(
        '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "."\ncaption_extension = ".txt"\n', encoding="utf-8"
    )
    assert "4 to train on" in run(kohya, "data.validation_share=0").out
    assert "4 to train on" in run(f"data.path={folder}", "data.validation_share=0", "data.layout=sidecar").out
    gone = run(tmp_path / "gone")
    assert (gone.code, gone.err) == (3, f"error: {tmp_path / 'gone'}: no such folder\n")
    assert run(tmp_path / "gone.toml").code == 2


def test_json_for_programs_and_as_a_file(folder: Path, tmp_path: Path) -> None:
    twice(folder)
    file = tmp_path / "check.json"
    line = json.loads(run(folder, "--json", "data.validation_share=0").out)
    run(folder, "data.validation_share=0", "--json-file", file)
    assert json.loads(file.read_text(encoding="utf-8")) == line
    assert (line["format"], line["stops"], line["train"]) == ("sdtune data check 1", False, 5)
    (kind,) = line["kinds"]
    assert (kind["kind"], kind["policy"], kind["key"], kind["count"]) == ("copies", "warn", "data.on.copies", 1)
    assert kind["findings"][0]["pictures"] == ["sound0.png", "very_bad.png"]
    assert run(folder, "--json-file", file).code == 0, "its own file is replaced"


class Page(HTMLParser):
    """What a page would load, and the tags in it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.loads = list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "style")]
        assert not any(name.startswith("on") for name, _ in attrs)


def test_the_page_is_whole_in_itself_and_escapes_what_strangers_wrote(folder: Path, tmp_path: Path) -> None:
    put(folder / "evil.png", 1, "<script>alert(1)</script><img src=x onerror=alert(1)> " * 9)
    put(folder / "<b>&'.png", 2, size=(30, 30))
    cut(folder)
    smaller_jpeg(folder / "sub")
    file = tmp_path / "check.html"
    assert run(folder, "--html", file, "--trigger", "</dt><script>").code == 3
    text = file.read_text(encoding="utf-8")
    seen = Page()
    seen.feed(text)
    assert "script" not in seen.tags
    assert all(load.startswith(("data:image/jpeg;base64,", "data:image/png;base64,", "#")) for load in seen.loads)
    assert text.count("<svg") >= 3 and seen.tags.count("img") >= 4
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert not re.search(r"url\(|@import|https?://", text)


def test_the_page_shows_a_bounded_number_of_each_kind(folder: Path, tmp_path: Path) -> None:
    for i in range(page.SHOWN + 3):
        put(folder / f"small{i}.png", i, size=(40, 40))
    run(folder, "--html", tmp_path / "check.html")
    text = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert "and 3 more" in text
    assert text.count("<img") == page.SHOWN


@pytest.mark.parametrize("option", ["--html", "--json-file"])
def test_files_of_others_are_never_replaced(option: str, folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("{}", encoding="utf-8")
    done = run(folder, option, mine)
    assert (done.code, mine.read_text(encoding="utf-8")) == (3, "{}")
    assert re.fullmatch(
        rf"error: {mine}: exists and is no (page|report) of `sdtune data check`; move it away\n", done.err
    )
    assert done.out == "", "before anything is read"


def test_ctrl_c_ends_it_and_writes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = images.check

    def interrupted(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return look(*arguments, **options)

    monkeypatch.setattr(images, "check", interrupted)
    monkeypatch.setattr("sdtune.console.Screen.stopping", lambda *_: None)
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail(f"a second signal: {code}"))
    monkeypatch.setattr(os, "kill", _once(os.kill))
    done = run(folder, "--html", tmp_path / "check.html")
    assert done.code == 130
    assert not list(tmp_path.glob("check*"))


def _once(call: Callable[..., None]) -> Callable[..., None]:
    calls: list[int] = []

    def first(*arguments: Any) -> None:
        if not calls:
            calls.append(1)
            call(*arguments)

    return first


def test_a_quick_look_reads_headers_alone(folder: Path, tmp_path: Path) -> None:
    cut(folder)  # which only decoding shows
    twice(folder)
    put(folder / "lying.jpg", 7, "a red apple " * 30, size=(200, 100), exif=_turned(6))
    put(folder / "page.png", 8).write_text("<html>", encoding="utf-8")
    put(folder / "none.png", 9, None)
    Image.new("1", (14000, 14000)).save(put(folder / "huge.png", 10))
    json_file = tmp_path / "quick.json"
    done = run(folder, "--quick", "--json-file", json_file)
    said = json.loads(json_file.read_text())
    kinds_of = {row["kind"]: [f["where"] for f in row["findings"]] for row in said["kinds"]}
    assert done.code == 3 and said["quick"] is True
    assert (kinds_of["unreadable"], kinds_of["too_large"], kinds_of["no_caption"]) == (
        ["page.png"],
        ["huge.png"],
        ["none.png"],
    )
    assert kinds_of["long_caption"] == ["lying.jpg"] and "copies" not in kinds_of and "near_copies" not in kinds_of
    assert "not looked at are damage" in " ".join(done.out.split())
    assert {bar["label"]: bar["count"] for bar in said["proportions"]}["9:16"] == 1


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif
