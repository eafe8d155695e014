"""Masks: found wherever they may lie, never taken for pictures, refused when wrong, and cut as their pictures are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sdtune.data import dataset, filling, images, masks
from sdtune.data.batch import batches, validation_batches
from sdtune.data.cache import Cache
from sdtune.data.config import DataConfig
from sdtune.data.dataset import Splits, scan_class, scan_folder
from sdtune.data.record import changes, record
from sdtune.errors import ConfigError, DataError
from sdtune.families.sd1 import Sd1
from sdtune.model import Latents, Model
from tests import tiny

SIZE = (12, 8)


def scan(path: Path, mask: str = "files", **options: Any) -> Splits:
    return dataset.scan(DataConfig(path=str(path), mask=mask, **{"validation_share": 0, **options}))  # type: ignore[arg-type]


def faults(path: Path, mask: str = "files", **options: Any) -> list[str]:
    """The lines of the error, after the first."""
    with pytest.raises(DataError) as caught:
        scan(path, mask, **options)
    return str(caught.value).splitlines()[1:]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE, caption: str = "a dog") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny.picture(seed, size).save(path)
    if caption:
        path.with_suffix(".txt").write_text(caption)
    return path


def mask(path: Path, white: float = 0.5, size: tuple[int, int] = SIZE) -> Path:
    """Its left part white, the rest black."""
    values = np.zeros(size[::-1], np.uint8)
    values[:, : round(size[0] * white)] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def rows(folder: Path, *lines: dict[str, Any]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def has(notes: Sequence[str], part: str) -> bool:
    return any(part in note for note in notes)


# ---- where masks come from


def beside(root: Path) -> Path:
    picture(root / "x" / "a.png")
    return mask(root / "x" / "a-masklabel.png")


def in_a_folder(root: Path) -> Path:
    picture(root / "x" / "a.png")
    return mask(root / "x" / "Masks" / "a.bmp")


def in_a_mirrored_folder(root: Path) -> Path:
    picture(root / "x" / "a.png")
    return mask(root / "mask" / "x" / "a.png")


def in_a_folder_with_a_label(root: Path) -> Path:
    picture(root / "x" / "a.png")
    return mask(root / "x" / "masks" / "a-masklabel.png")


def in_a_column(root: Path) -> Path:
    picture(root / "x" / "a.png", caption="")
    rows(root, {"file_name": "x/a.png", "text": "a dog", "mask": "what/ever.png"})
    return mask(root / "what" / "ever.png")


def in_the_column_of_datasets(root: Path) -> Path:
    picture(root / "x" / "a.png", caption="")
    (root / "metadata.csv").write_text("file_name,text,mask_file_name\nx/a.png,a dog,m.png\n")
    return mask(root / "m.png")


def beside_with_metadata(root: Path) -> Path:
    picture(root / "x" / "a.png", caption="")
    rows(root, {"file_name": "x/a.png", "text": "a dog", "mask": ""})
    return mask(root / "x" / "a-masklabel.png")


SOURCES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "beside": (beside, "-masklabel.png"),
    "folder": (in_a_folder, "Masks/"),
    "mirrored": (in_a_mirrored_folder, "mask/"),
    "both": (in_a_folder_with_a_label, "masks/"),
    "column": (in_a_column, 'the column "mask"'),
    "datasets": (in_the_column_of_datasets, 'the column "mask_file_name"'),
    "metadata": (beside_with_metadata, "-masklabel.png"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_picture_its_mask(tmp_path: Path, name: str) -> None:
    make, kind = SOURCES[name]
    file = make(tmp_path)
    found = scan(tmp_path)
    (example,) = found.train
    assert (example.image.name, example.mask, example.mask_mean) == ("a.png", file, 0.5)
    assert has(
        found.notes, f"1 of 1 picture has a mask ({kind}); what counts is 50% to 50% of a picture, 50% on average"
    )


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("mode", ["none", "alpha"])
def test_a_mask_is_never_trained_on(tmp_path: Path, name: str, mode: str) -> None:
    """Even with a prefix, which makes a caption out of nothing; and the picture has no mask then."""
    SOURCES[name][0](tmp_path)
    Image.new("RGBA", (4, 4), (9, 9, 9, 99)).save(tmp_path / "clear.png")
    if (tmp_path / "metadata.jsonl").exists():
        rows(
            tmp_path,
            *map(json.loads, (tmp_path / "metadata.jsonl").read_text().splitlines()),
            {"file_name": "clear.png", "text": "x"},
        )
    elif (tmp_path / "metadata.csv").exists():
        (tmp_path / "metadata.csv").write_text((tmp_path / "metadata.csv").read_text() + "clear.png,x,\n")
    found = scan(tmp_path, mode, caption_prefix="sks")
    assert sorted(e.image.name for e in found.train) == ["a.png", "clear.png"]
    assert [e.mask for e in found.train if e.image.name == "a.png"] == [None]
    named = name not in ("column", "datasets")
    assert has(found.notes, '1 mask not used (data.mask="files" uses them): ') == named


def test_pictures_of_masks_stay_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    mask(tmp_path / "a-masklabel.png")
    picture(tmp_path / "masks" / "venice.png", 1)
    found = scan(tmp_path)
    assert [e.image.name for e in found.train] == ["a.png", "venice.png"]
    assert has(found.notes, "1 picture without a mask, counted in full: masks/venice.png")


@pytest.mark.parametrize("layout", ["flat", "by split"])
def test_a_folder_that_is_named(tmp_path: Path, layout: str) -> None:
    """As kohya and ai-toolkit have it: anywhere, the same names. For split folders either way, and even inside the data."""
    elsewhere = tmp_path / "data" / "inside" if layout == "flat" else tmp_path / "elsewhere"
    for i, part in enumerate(("train", "validation")):
        name = "ab"[i] + ".png"
        picture(tmp_path / "data" / part / name, i)
        mask(elsewhere / name if layout == "flat" else elsewhere / part / name, 0.25 + i / 2)
    found = scan(tmp_path / "data", mask_path=str(elsewhere), caption_prefix="sks")
    assert [(e.image.name, e.mask_mean) for e in (*found.train, *found.validation)] == [
        ("a.png", 0.25),
        ("b.png", 0.75),
    ]
    assert has(found.notes, "train/: 1 of 1 picture has a mask (data.mask_path)")


def test_a_named_folder_inside_the_pictures_is_not_trained_on(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "a.png", 1)
    mask(tmp_path / "white_is_dog" / "a.png")
    found = scan(tmp_path, mask_path=str(tmp_path / "white_is_dog"), caption_prefix="sks")
    assert [(e.image.relative_to(tmp_path).as_posix(), e.mask is not None) for e in found.train] == [
        ("a.png", True),
        ("sub/a.png", False),
    ]
    with pytest.raises(DataError, match=r"data\.mask_path: .* holds the pictures, too; masks beside their pictures"):
        scan(tmp_path / "sub", mask_path=str(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        scan(tmp_path, mask_path=str(tmp_path / "gone"))


def test_the_pictures_own_opacity(tmp_path: Path) -> None:
    for i, alpha in enumerate((0, 51, 255)):
        im = tiny.picture(i, SIZE).convert("RGBA")
        im.putalpha(Image.fromarray(np.array([[alpha, 255]], np.uint8)).resize(SIZE, Image.Resampling.NEAREST))
        im.save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("x")
    found = scan(tmp_path, "alpha")
    assert [e.mask for e in found.train] == [tmp_path / "0.png", tmp_path / "1.png", None]
    assert [e.mask_mean for e in found.train] == pytest.approx([0.5, 0.6, 1])
    assert has(
        found.notes, "2 of 3 pictures have a mask (opacity); what counts is 50% to 60% of a picture, 55% on average"
    )
    assert has(found.notes, "1 picture without a mask, counted in full: 2.png")
    assert all(e.mask is None for e in scan(tmp_path, "none").train)
    Image.new("RGBA", SIZE).save(tmp_path / "3.png")
    (tmp_path / "3.txt").write_text("x")
    assert faults(tmp_path, "alpha")[0] == (
        '3.png: transparent everywhere, so that nothing of it counts (data.mask="alpha"); take it away'
    )


def test_masks_that_belong_to_nothing_are_told(tmp_path: Path) -> None:
    beside(tmp_path)
    mask(tmp_path / "gone-masklabel.png")
    assert has(scan(tmp_path).notes, "1 mask without a picture: gone-masklabel.png")


def test_doctor_shows_them(tmp_path: Path) -> None:
    from sdtune.doctor import checks

    beside(tmp_path / "data")
    (tmp_path / "r.toml").write_text(
        f'data = {{ path = "{tmp_path / "data"}", mask = "files", cache = "{tmp_path}" }}\n'
    )
    said = [check.detail for check in checks(str(tmp_path / "r.toml")) if check.name == "pictures"]
    assert has(said, "1 of 1 picture has a mask (-masklabel.png)")


def test_class_pictures_and_comparisons_have_none(tmp_path: Path) -> None:
    beside(tmp_path)
    config = DataConfig(path=str(tmp_path), mask="files", class_prompt="a dog")
    assert [e.mask for e in scan_class(tmp_path, config)[0]] == [None]
    assert [e.mask for e in scan_folder(tmp_path, config)[0]] == [None]
    assert [e.mask is None for e in scan_folder(tmp_path, config, masked=True)[0]] == [False]


# ---- faults


def test_all_that_is_wrong_with_masks_comes_in_one_list(tmp_path: Path) -> None:
    for i, name in enumerate(("black", "cut", "dark", "good", "large", "text", "turned")):
        picture(tmp_path / f"{name}.png", i)
    mask(tmp_path / "black-masklabel.png", 0)
    whole = mask(tmp_path / "cut-masklabel.png", size=(12, 800))
    whole.write_bytes(whole.read_bytes()[:-30])
    Image.fromarray(np.full(SIZE[::-1], 3, np.uint8)).save(tmp_path / "dark-masklabel.png")
    mask(tmp_path / "good-masklabel.png")
    mask(tmp_path / "large-masklabel.png", size=(24, 16))
    (tmp_path / "text-masklabel.png").write_text("hello")
    mask(tmp_path / "masks" / "turned.png", size=SIZE[::-1])
    remedy = "make white what counts, or take both away"
    assert sorted(faults(tmp_path)) == [
        f"black.png: its mask black-masklabel.png: all black, so that nothing of the picture counts; {remedy}",
        "cut.png: its mask cut-masklabel.png: damaged or cut off (image file is truncated); copy or export it again",
        "dark.png: its mask dark-masklabel.png: its brightest value is 3 of 255; make white (255) what counts",
        "large.png: its mask large-masklabel.png: 24x16 pixels for a picture of 12x8; make it of that size",
        "mend them, or set data.on_bad=skip to leave them out",
        "text.png: its mask text-masklabel.png: text, not a picture; remove or replace it",
        "turned.png: its mask masks/turned.png: 8x12 pixels for a picture of 12x8 (turned by its EXIF?); make it of that size",
    ]
    assert [e.image.name for e in scan(tmp_path, on_bad="skip").train] == ["good.png"], "not trained on as a whole"


def test_a_mask_fits_the_picture_as_exif_turns_it(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    tiny.picture(0, SIZE).save(tmp_path / "a.png", exif=exif)
    mask(tmp_path / "a-masklabel.png", size=SIZE[::-1])
    assert scan(tmp_path).train[0].size == SIZE[::-1]
    mask(tmp_path / "a-masklabel.png")
    assert "12x8 pixels for a picture of 8x12 (turned by its EXIF?)" in faults(tmp_path)[0]


def test_what_is_ambiguous_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    mask(tmp_path / "a-masklabel.png")
    mask(tmp_path / "masks" / "a.png")
    picture(tmp_path / "b.png", 1, caption="")
    picture(tmp_path / "b.bmp", 2, caption="")
    mask(tmp_path / "b-masklabel.png")
    for policy in ("fail", "skip"):
        assert faults(tmp_path, caption_prefix="sks", on_bad=policy) == [
            "a.png: has more than one mask (a-masklabel.png, masks/a.png); remove all but one",
            "b-masklabel.png: belongs to more than one picture (b.bmp, b.png); give the pictures different names",
        ]


@pytest.mark.parametrize("mode", ["files", "none"])
def test_what_may_be_picture_or_mask_is_refused(tmp_path: Path, mode: str) -> None:
    beside(tmp_path / "one")
    picture(tmp_path / "one" / "x" / "b.png", 1)
    picture(tmp_path / "one" / "masks" / "x" / "b.png", 2)
    both = "has a caption like a picture and the name of a mask"
    (line,) = faults(tmp_path / "one", mode)
    assert line == f"masks/x/b.png: {both} (masks/) of x/b; rename the folder, or remove masks/x/b.txt"
    beside_with_metadata(tmp_path / "two")
    row = {"file_name": "x/a.png", "text": "x"}
    rows(tmp_path / "two", row, row | {"file_name": "x/a-masklabel.png"})
    (line,) = faults(tmp_path / "two", mode)
    assert line == f"metadata.jsonl:2: x/a-masklabel.png {both} (-masklabel.png) of x/a; rename it, or remove the row"


def test_columns_name_files_inside_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    names: list[Any] = ["gone.png", "../secret.png", "/etc/passwd", 7, "link.png"]
    for i in range(len(names)):
        picture(root / f"{i}.png", i, caption="")
    mask(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    rows(root, *({"file_name": f"{i}.png", "text": "x", "mask": name} for i, name in enumerate(names)))
    assert faults(root)[:5] == [
        "metadata.jsonl:2: mask '../secret.png' leaves the folder; use a path inside the folder, relative to it",
        "metadata.jsonl:3: mask '/etc/passwd' is an absolute path; use a path inside the folder, relative to it",
        "metadata.jsonl:4: mask is 7, not the name of a file",
        "metadata.jsonl:5: mask link.png is a link that leaves the folder; copy the mask into it",
        "link.png: not in metadata.jsonl; add a row for it or take it away",
    ]
    assert faults(root)[5] == "0.png: its mask gone.png: no such file or directory; check the file and its permissions"
    (root / "link.png").unlink()
    assert len(scan(root, "none").train) == 5, (
        "another meaning of the column is no concern where masks are not asked for"
    )


def test_no_mask_is_a_link_out_of_the_folder(tmp_path: Path) -> None:
    mask(tmp_path / "secret.png")
    picture(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a-masklabel.png").symlink_to(tmp_path / "secret.png")
    assert faults(tmp_path / "data") == ["a-masklabel.png: a link that leaves the folder; copy the file into it"]


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_masks_that_are_asked_for_and_not_there(tmp_path: Path, policy: str) -> None:
    """kohya's users train for hours before they find out that their masks were never read."""
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", 1).write_bytes(b"")
    lines = faults(tmp_path, on_bad=policy)
    where = 'a-masklabel.png beside a.png, masks/a.png, a column "mask", data.mask_path'
    assert f'data.mask="files": no picture has a mask; looked for: {where}' in lines
    assert 'data.mask="alpha": no picture is transparent anywhere; JPEG, for one, cannot be' in faults(
        tmp_path, "alpha", on_bad=policy
    )


def test_settings_of_masks_without_masks_are_refused() -> None:
    for options in ({"mask_floor": 0.2}, {"mask_normalize": False}, {"mask_path": "x"}):
        with pytest.raises(ConfigError, match=rf"data\.{next(iter(options))}: has an effect only with data\.mask"):
            DataConfig(**options)
    with pytest.raises(ConfigError, match=r"data\.mask_path: has an effect only with data\.mask \"files\""):
        DataConfig(mask="alpha", mask_path="x")


# ---- what a mask's file says


@pytest.mark.parametrize(
    ("im", "expected"),
    [
        (Image.new("L", (2, 1), 77), 77),
        (Image.new("1", (2, 1), 1), 255),
        (Image.new("RGB", (2, 1), (255, 255, 255)), 255),
        (Image.new("RGB", (2, 1), (0, 0, 0)).quantize(2), 0),
        (Image.new("RGBA", (2, 1), (255, 255, 255, 128)), 128),
        (Image.new("LA", (2, 1), (255, 0)), 0),
        (Image.fromarray(np.full((1, 2), 0x8080, np.uint16)), 128),
    ],
    ids=["grey", "1 bit", "rgb", "palette", "clear in part", "clear", "16 bit"],
)
def test_brightness_on_black(tmp_path: Path, im: Image.Image, expected: int) -> None:
    im.save(tmp_path / "m.png")
    assert images.read_mask((tmp_path / "m.png").read_bytes()).tolist() == [[expected] * 2]


def test_masks_are_turned_by_their_own_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[10, 20], [30, 40], [50, 60]], np.uint8)).save(tmp_path / "m.png", exif=exif)
    assert images.read_mask((tmp_path / "m.png").read_bytes()).tolist() == [[50, 30, 10], [60, 40, 20]]


def test_opacity_of_a_file(tmp_path: Path) -> None:
    im = Image.new("RGBA", (2, 1), (1, 2, 3, 255))
    im.putpixel((0, 0), (255, 255, 255, 40))
    im.save(tmp_path / "m.png")
    assert images.read_mask((tmp_path / "m.png").read_bytes(), opacity=True).tolist() == [[40, 255]]
    im.convert("RGB").save(tmp_path / "m.jpg")
    assert images.read_mask((tmp_path / "m.jpg").read_bytes(), opacity=True).tolist() == [[255, 255]]
    with pytest.raises(DataError, match=r"more than data\.max_pixels=1"):
        images.read_mask((tmp_path / "m.jpg").read_bytes(), max_pixels=1)


# ---- from pixels to latents


def by_brute_force(values: images.Pixels, side: int, cell: int, box: images.Box, pad: bool, fine: int = 48) -> Any:
    """Each of the `side` pixels is cut into `fine` x `fine` parts, and the mask is looked up in the middle of each."""
    size, corner = images.placed(box, (side, side), pad=pad)
    at = (np.arange(side * fine) + 0.5) / fine
    x, y = (box[i] + (at - corner[i]) * ((box[i + 2] - box[i]) / size[i]) for i in (0, 1))
    inside = ((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))[None]
    seen = np.where(
        inside, values[np.clip(y.astype(int), 0, len(values) - 1)][:, np.clip(x.astype(int), 0, values.shape[1] - 1)], 0
    )
    n = side // cell
    return seen.reshape(n, cell * fine, n, cell * fine).mean((1, 3)) / 255


@pytest.mark.parametrize(
    ("size", "box", "pad"),
    [
        ((16, 16), (0, 0, 16, 16), False),
        ((48, 48), (0, 0, 48, 48), False),
        ((24, 16), (5, 0, 21, 16), False),  # cut
        ((24, 16), (0, 0, 24, 16), False),  # squash
        ((24, 16), (0, 0, 24, 16), True),  # pad, from 24 to 16 pixels
        ((7, 16), (0, 0, 7, 16), True),
        ((4, 4), (0, 0, 4, 4), False),  # enlarged
    ],
)
def test_a_latent_counts_what_of_it_is_white(size: tuple[int, int], box: images.Box, pad: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, size[::-1], np.uint8)
    got = masks.to_latents(values, (16, 16), 4, box=box, pad=pad)
    assert got.shape == (1, 4, 4) and got.dtype == np.float32
    np.testing.assert_allclose(got[0], by_brute_force(values, 16, 4, box, pad), atol=1e-6)


def test_white_is_one_to_the_last_bit() -> None:
    rng = np.random.default_rng(1)
    for width, height in rng.integers(3, 200, (20, 2)).tolist():
        for crop in ("center", "squash"):
            (box,) = images.crop_boxes((width, height), crop, 1, "")
            got = masks.to_latents(np.full((height, width), 255, np.uint8), (64, 64), 8, box=box, pad=False)
            assert (got == 1).all(), (width, height, crop)


def test_floor_and_mean() -> None:
    mask_V1HW = torch.tensor([[0.0, 1.0], [0.5, 1.0], [0.0, 0.0]]).view(3, 1, 1, 2)
    plain = masks.weights(mask_V1HW, 0.1)
    assert plain.flatten().tolist() == pytest.approx([0.1, 1, 0.55, 1, 0.1, 0.1])
    assert masks.mean_weight(mask_V1HW, 0.1, normalize=True) == pytest.approx(float(plain.mean()))
    assert masks.mean_weight(mask_V1HW, 0.1, normalize=False) == 1
    nothing = torch.zeros(2, 1, 4, 4)
    assert torch.equal(masks.weights(torch.ones(2, 1, 4, 4), 0.3), torch.ones(2, 1, 4, 4))
    for normalize in (False, True):
        assert masks.mean_weight(nothing, 0.3, normalize=normalize) == 1, "not raised to a whole picture"
        assert masks.mean_weight(nothing, 0.0, normalize=normalize) == 1, "and never divided by nothing"


# ---- in the cache


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Sd1(path=str(tiny.sd1_folder(tmp_path_factory.mktemp("base") / "model"))).load()


@pytest.fixture
def model(base: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The model, counting in `encoded` the times that it is asked for latents; and masks that are read, in `read`."""
    encoded.clear()
    read.clear()
    encode, read_mask = base.encode_images, images.read_mask

    def encode_images(pixels_BCHW: Tensor) -> Latents:
        encoded.append(len(pixels_BCHW))
        return encode(pixels_BCHW)

    def reading(data: bytes, **options: Any) -> images.Pixels:
        read.append(len(data))
        return read_mask(data, **options)

    monkeypatch.setattr(base, "encode_images", encode_images)
    monkeypatch.setattr(filling, "read_mask", reading)
    return base


encoded: list[int] = []
read: list[int] = []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of 48x32; the first two have masks: their left fourth, the right half."""
    root = tmp_path / "data"
    for i in range(3):
        picture(root / f"{i}.png", i, (48, 32), f"a dog {i}")
    mask(root / "0-masklabel.png", 0.25, (48, 32))
    right = np.zeros((32, 48), np.uint8)
    right[:, 24:] = 255
    Image.fromarray(right).save(root / "1-masklabel.png")
    return root


def config_of(folder: Path, **options: Any) -> DataConfig:
    return DataConfig(
        path=str(folder), cache=str(folder.parent / "cache"), **{"mask": "files", "mask_floor": 0.0, **options}
    )


def filled(folder: Path, model: Model, *, augment: bool = True, **options: Any) -> Cache:
    config = config_of(folder, **options)
    examples, _ = scan_folder(folder, config, masked=True)
    cache = Cache.open(examples, model, config, resolution=32, augment=augment)
    list(cache.fill())
    return cache


def masks_of(cache: Cache, variant: int = 0) -> Tensor:
    found = cache.masks(torch.arange(len(cache)), torch.full((len(cache),), variant))
    assert found is not None and found.shape == (len(cache), 1, 16, 16)
    return found


def columns(mask_1HW: Tensor) -> list[float]:
    """The mask's one row, since all of them are the same."""
    assert torch.equal(mask_1HW, mask_1HW[:, :1].expand_as(mask_1HW))
    return mask_1HW[0, 0].tolist()


def test_cut_as_the_picture_is(folder: Path, model: Model) -> None:
    """48 pixels of which the middle 32 are 16 latents: the mask's edge at 12 is that of the second latent."""
    plain = masks_of(filled(folder, model, mask_normalize=False))
    assert columns(plain[0]) == [1] * 2 + [0] * 14
    assert columns(plain[1]) == [0] * 8 + [1] * 8
    assert columns(plain[2]) == [1] * 16
    squashed = masks_of(filled(folder, model, mask_normalize=False, crop="squash"))
    assert columns(squashed[0]) == [1] * 4 + [0] * 12
    padded = masks_of(filled(folder, model, mask_normalize=False, crop="pad"))
    assert padded[1, 0, :, 3].tolist() == [0] * 16
    assert padded[1, 0, :, 12].tolist() == pytest.approx([0, 0, 0.5] + [1] * 10 + [0, 0, 0]), (
        "32 pixels become 21 of 32"
    )
    assert columns(padded[2]) == [1] * 16, "a picture without a mask counts in full, with what was added"


def test_mirrored_and_cut_anywhere(folder: Path, model: Model) -> None:
    cache = filled(folder, model, mask_normalize=False, crop="random", crops=3, flip=True)
    lefts = [view.box[0] for view in tiny.planned(cache).views_NV[0][:3]]
    for v, left in enumerate(lefts):
        expected = [min(max((12 - left - 2 * i) / 2, 0), 1) for i in range(16)]
        assert columns(masks_of(cache, v)[0]) == pytest.approx(expected, abs=1e-6)
        assert torch.equal(masks_of(cache, v + 3), masks_of(cache, v).flip(-1))
    assert len({tuple(columns(masks_of(cache, v)[0])) for v in range(3)}) > 1
    whole = filled(folder, model, crop="random", crops=3, flip=True, mask_floor=0.2)
    for i, v in product(range(2), range(6)):
        ratio = masks_of(whole, v)[i] / (0.2 + 0.8 * masks_of(cache, v)[i])
        torch.testing.assert_close(ratio, ratio[:1, :1, :1].expand_as(ratio))
    means = torch.stack([masks_of(whole, v).mean((1, 2, 3)) for v in range(6)])
    assert means.mean(0).tolist() == pytest.approx([1, 1, 1]), "over its cuts, each picture counts 1"
    assert float(means[:, 0].max() - means[:, 0].min()) > 0.1, "a cut counts by what it shows"


def test_opacity_is_cut_as_well(folder: Path, model: Model) -> None:
    im = Image.open(folder / "0.png").convert("RGBA")
    im.putalpha(Image.open(folder / "0-masklabel.png"))
    im.save(folder / "0.png")
    (folder / "0-masklabel.png").unlink()
    cache = filled(folder, model, mask="alpha", mask_normalize=False)
    assert columns(masks_of(cache)[0]) == [1] * 2 + [0] * 14
    assert columns(masks_of(cache)[1]) == [1] * 16


def test_without_masks_there_is_nothing(folder: Path, model: Model) -> None:
    config = config_of(folder)
    examples, _ = scan_folder(folder, config)
    cache = Cache.open(examples, model, config, resolution=32)
    assert [what for what, *_ in cache.fill()] == ["pictures", "pictures", "captions", "captions"]
    assert cache.masks(torch.arange(3), torch.zeros(3, dtype=torch.long)) is None
    assert validation_batches(cache)[0].mask_B1HW is None
    assert not read


def test_masks_are_kept_by_content(folder: Path, model: Model) -> None:
    """An edited mask is read again alone, and no picture is encoded for it; floor and mean are no part of what is kept."""
    before = masks_of(filled(folder, model))
    assert len(read) == 2 and encoded
    read.clear()
    encoded.clear()
    assert torch.equal(masks_of(filled(folder, model)), before) and not read and not encoded
    filled(folder, model, mask_floor=0.5)
    filled(folder, model, mask_normalize=False)
    assert not read
    mask(folder / "0-masklabel.png", 0.5, (48, 32))
    after = masks_of(filled(folder, model))
    assert len(read) == 1 and not encoded
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [False, True, True]
    (folder / "0-masklabel.png").rename(folder / "2-masklabel.png")
    assert torch.equal(masks_of(filled(folder, model))[2], after[0]) and len(read) == 1 and not encoded
    filled(folder, model, crop="squash")
    assert len(read) == 3, "cut in another way"


def test_another_resolution_is_another_mask(folder: Path, model: Model) -> None:
    filled(folder, model)
    config = config_of(folder)
    cache = Cache.open(scan_folder(folder, config, masked=True)[0], model, config, resolution=16)
    list(cache.fill())
    found = cache.masks(torch.arange(1), torch.zeros(1, dtype=torch.long))
    assert found is not None and found.shape == (1, 1, 8, 8)


def test_a_mask_that_changes_meanwhile(folder: Path, model: Model) -> None:
    config = config_of(folder)
    cache = Cache.open(scan_folder(folder, config, masked=True)[0], model, config, resolution=32)
    mask(folder / "0-masklabel.png", 0.5, (48, 32))
    with pytest.raises(DataError, match=r"0-masklabel\.png: changed while it was being read"):
        list(cache.fill())


def test_a_cut_that_loses_the_mask_is_told(folder: Path, model: Model) -> None:
    mask(folder / "0-masklabel.png", 0.125, (48, 32))
    cache = filled(folder, model, mask_floor=0.3)
    assert cache.notes == ["1 picture cut so that nothing is left of what its mask lets count: 0.png"]
    assert torch.equal(masks_of(cache)[0], torch.full((1, 16, 16), 0.3))
    assert filled(folder, model, crop="squash").notes == []


def test_batches_have_the_masks_of_their_pictures(folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(folder, crop="random", crops=2, flip=True)
    cache = filled(folder, model, crop="random", crops=2, flip=True)
    means = [cache.latents(torch.arange(3), torch.full((3,), v)).mean_BCHW for v in range(4)]
    monkeypatch.setattr(Latents, "sample", lambda latents, _: latents.mean_BCHW)
    met = set()
    for batch in islice(batches(cache, config, batch_size=4, seed=3, start=0), 20):
        assert batch.mask_B1HW is not None
        for i, latents_CHW, mask_1HW in zip(batch.indices_B.tolist(), batch.latents_BCHW, batch.mask_B1HW, strict=True):
            variant = int(torch.stack([(m[i] - latents_CHW).square().mean() for m in means]).argmin())
            assert torch.equal(mask_1HW, masks_of(cache, variant)[i])
            met.add((i, variant))
    assert len(met) == 12
    held_out = filled(folder, model, augment=False, crop="random", crops=2, flip=True)
    batch = validation_batches(held_out)[0]
    assert batch.mask_B1HW is not None and torch.equal(batch.mask_B1HW, masks_of(filled(folder, model)))


# ---- what a run remembers


def test_a_record_tells_an_edited_mask_from_an_edited_picture(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for i in range(4):
        picture(root / f"{i}.png", i)
        mask(root / f"{i}-masklabel.png")
    old = record(scan(root), root)
    assert changes(old, record(scan(root), root)) == ""
    mask(root / "0-masklabel.png", 0.25)
    (root / "1-masklabel.png").unlink()
    picture(root / "2.png", 9)
    new = record(scan(root), root)
    assert (
        changes(old, new)
        == "1 picture edited, or their captions: 2.png; 2 pictures with another mask than before: 0.png, 1.png"
    )
    shutil.rmtree(root)


def test_a_record_without_masks_is_what_it_was(tmp_path: Path) -> None:
    beside(tmp_path)
    (name,) = record(scan(tmp_path, "none"), tmp_path)["train"].values()
    (masked,) = record(scan(tmp_path), tmp_path)["train"].values()
    assert len(name) == 16 and masked.startswith(f"{name}+")
