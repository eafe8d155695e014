"""What becomes of a caption on its way."""

from __future__ import annotations

import pytest

from sdtune.captioners.config import CaptionConfig
from sdtune.captioners.text import added, finish, without_phrases, without_tags


@pytest.mark.parametrize(
    "text, phrases, left",
    [
        ("a photo of a dog", ["a photo of"], "a dog"),
        ("A  Photo of a dog", ["a photo of"], "a dog"),
        ("arafed dog on a table", ["arafed"], "dog on a table"),
        ("there is a dog, arafed, and a cat", ["arafed"], "there is a dog, and a cat"),
        ("a dog, arafed.", ["arafed"], "a dog."),
        ("arafed", ["arafed"], ""),
        ("a photo of a photo of a dog", ["a photo of"], "a dog"),
        ("a photograph of a dog", ["a photo"], "a photograph of a dog"),
        ("ein Foto: Äpfel", ["foto"], "ein: Äpfel"),
        ("über übermut", ["über"], "übermut"),
        ("50% (off) a+b", ["(off)", "a+b"], "50%"),
        ("one\ntwo\t three", [], "one two three"),
        ("kept , as it is", ["missing"], "kept , as it is"),
        ("a photo of a dog", ["a photo of", "a photo of a"], "dog"),
    ],
)
def test_phrases_are_taken_out(text: str, phrases: list[str], left: str) -> None:
    assert without_phrases(text, phrases) == left


def test_tags_are_taken_out_whole() -> None:
    assert without_tags("1girl, blue sky, sky, ^_^", ["Blue_Sky", "girl", "^_^"]) == "1girl, sky"


def test_prefix_and_suffix() -> None:
    config = CaptionConfig(prefix="sks\n dog,", suffix=", comic style", blacklist=("a photo of",))
    assert finish("a photo of a dog", config, tags=False) == "sks dog, a dog, comic style"
    assert finish("a photo of", config, tags=False) == ""


@pytest.mark.parametrize(
    "theirs, made, tags, together",
    [
        ("mine", "a dog", False, "mine, a dog"),
        ("Mine.", "a dog", False, "Mine. a dog"),
        ("sks, 1girl", "1girl, blue sky", True, "sks, 1girl, blue sky"),
        ("sks, blue_sky", "blue sky", True, "sks, blue_sky"),
        ("A dog, mine", "a dog", False, "A dog, mine"),
    ],
)
def test_adding(theirs: str, made: str, tags: bool, together: str) -> None:
    assert added(theirs, made, tags=tags) == together
