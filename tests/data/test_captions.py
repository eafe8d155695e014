"""The versions of a caption: tags shuffled and left out, wildcards, and what stays where it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sdtune.data.caption import every_variant, variants
from sdtune.data.config import DataConfig
from sdtune.data.dataset import scan
from sdtune.data.wildcards import balanced, choose
from sdtune.errors import ConfigError
from tests import tiny

TAGS = "1girl, red hair, hat, smile, night, stars"


def made(caption: str, **settings: Any) -> tuple[str, ...]:
    return variants(caption, DataConfig(**settings))


def test_without_chance_a_caption_is_itself() -> None:
    assert made("a, b ||| {c|d}") == ("a, b ||| {c|d}",)
    assert made("a", caption_prefix="sks", caption_suffix=", oil") == ("sks a, oil",)


def test_tags_are_shuffled_the_first_is_in_order_and_all_is_the_same_again() -> None:
    first, *others = made(TAGS, shuffle_tags=True, caption_variants=8)
    assert first == TAGS and len(others) == 6, "one was drawn twice"
    assert all(sorted(o.split(", ")) == sorted(TAGS.split(", ")) and o != TAGS for o in others)
    assert made(TAGS, shuffle_tags=True, caption_variants=4) == (first, *others)[:4], "more versions change none"
    assert made(TAGS, shuffle_tags=True, caption_variants=2)[1] == "smile, 1girl, night, stars, red hair, hat"


def test_every_place_is_equally_likely() -> None:
    drawn = [v.split(", ") for n in range(400) for v in made(f"a, b, c, d, e, f, g, {n}", shuffle_tags=True)[1:]]
    for place in (0, 3, 7):
        found = Counter(v[place] for v in drawn)
        assert all(abs(found[tag] / len(drawn) - 1 / 8) < 0.03 for tag in "abcdefg")  # 3 standard errors


def test_kept_tags_prefix_and_suffix_stay() -> None:
    own = made(TAGS, shuffle_tags=True, keep_tags=2, caption_prefix="sks", caption_suffix=", oil", caption_variants=9)
    assert len(own) > 5 and all(v.startswith("sks 1girl, red hair, ") and v.endswith(", oil") for v in own)


@pytest.mark.parametrize("settings", [{"shuffle_tags": True}, {"tag_dropout": 0.5}])
def test_the_marks_keep_and_join_tags_and_go(settings: dict[str, Any]) -> None:
    caption = "solo, sks ||| hat;;;gloves, smile, night, stars ||| best, hd"
    own = made(caption, **settings, caption_variants=12)
    assert own[0] == "solo, sks, hat, gloves, smile, night, stars, best, hd"
    assert len(own) > 6 and all(v.startswith("solo, sks, ") and v.endswith(", best, hd") for v in own)
    assert all(("hat, gloves" in v) == ("hat" in v) == ("gloves" in v) for v in own)


def test_tags_are_left_out_as_often_as_said_and_kept_ones_never() -> None:
    drawn = [
        v.split(", ")
        for n in range(300)
        for v in made(f"keep, b, c, d, e, f, g, h, {n}", tag_dropout=0.3, keep_tags=1)[1:]
    ]
    assert all(v[0] == "keep" for v in drawn)
    shares = [sum(tag in v for v in drawn) / len(drawn) for tag in "bcdefgh"]
    assert all(abs(share - 0.7) < 0.05 for share in shares)  # 3 standard errors
    assert made("a, b, c", tag_dropout=1.0) == ("a, b, c", "")


def test_wildcards_draw_one_of_each_and_the_first_takes_the_first() -> None:
    own = made(
        "a {red|blue {dark|light}|} car", wildcards=True, caption_variants=20, caption_prefix="{photo|picture} of"
    )
    assert own[0] == "photo of a red car"
    cars = {v.split(" a ")[1] for v in own}
    assert cars == {"red car", "blue dark car", "blue light car", "car"}
    assert {v.split(" of")[0] for v in own} == {"photo", "picture"}
    drawn = Counter(choose("{a|b|c}", str(n)) for n in range(600))
    assert all(abs(n - 200) < 40 for n in drawn.values()) and len(drawn) == 3


@pytest.mark.parametrize("text", ["a {b", "a} {b", "{a|b}} c", "{{a|b}"])
def test_a_brace_too_many_leaves_the_text_alone(text: str) -> None:
    assert not balanced(text) and made(text, wildcards=True) == (text,) and choose(text, "k") == text


def test_captions_of_one_picture_are_drawn_equally_often() -> None:
    config = DataConfig(shuffle_tags=True, caption_variants=4)
    own = every_variant(("one tag alone", "a, b, c, d"), config)
    assert own[0] == "one tag alone" and own.count("one tag alone") == 4 == len(set(own[4:]))
    assert every_variant((), DataConfig(caption_prefix="sks")) == ("sks",)


def test_a_folder_tells_of_versions_and_its_held_out_pictures_have_none(tmp_path: Path) -> None:
    tiny.imagefolder(tmp_path, ["a, b, c, {d|e}", "x {y", "a, b, c, d, f", "a, b, c, d, g"])
    found = scan(DataConfig(path=str(tmp_path), shuffle_tags=True, wildcards=True, validation_share=0.3))
    assert {len(e.captions) for e in found.validation} == {1} and max(len(e.captions) for e in found.train) == 4
    (said,) = [note for note in found.notes if "versions" in note]
    assert said.startswith(
        "3 of 4 captions in up to 4 versions (data.shuffle_tags, data.wildcards); the first is 'a, b, c, d'"
    )
    assert "1 caption with a brace too many, left as it stands: 'x {y'" in found.notes
    prose = tiny.imagefolder(tmp_path / "prose", ["a red dog", "a cat"])
    notes = scan(DataConfig(path=str(prose), shuffle_tags=True)).notes
    assert "data.shuffle_tags: no effect, no caption has anything to vary" in notes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_tags": 1}, "data.keep_tags: has an effect only with data.shuffle_tags or data.tag_dropout"),
        ({"keep_tags": 1, "wildcards": True}, "data.keep_tags: has an effect only with data.shuffle_tags or data.tag_dropout"),
        ({"caption_variants": 8}, "data.caption_variants: has an effect only with data.shuffle_tags, data.tag_dropout or data.wildcards"),
        ({"jitters": 3}, "data.jitters: has an effect only with data.jitter above 0"),
    ],
)  # fmt: skip
def test_an_idle_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        DataConfig(**settings)
    assert str(error.value) == message
