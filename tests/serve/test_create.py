"""What the pages of Create ask for, as far as it needs no browser."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdtune import stats
from sdtune.errors import DataError
from sdtune.serve import registry
from sdtune.serve.limits import Limits
from sdtune.serve.registry import Registry
from sdtune.serve.web import axes, wishes
from sdtune.serve.web.book import Axis, Book, Vote
from sdtune.serve.web.tally import tally
from sdtune.serve.wish import limited, read


@pytest.fixture
def known(named: Path) -> Registry:
    return registry.build([str(named)])[0]


def values(known: Registry, **changed: Any) -> dict[str, Any]:
    return wishes.usual(known.entries["lora"]) | {"prompt": "a red apple", "chance": False, "seed": 7} | changed


def asked(known: Registry, **changed: Any) -> dict[str, Any]:
    """What is asked for, after the server's own check."""
    body = wishes.body(values(known, **changed), known)
    return read(json.dumps(body).encode(), limited(Limits()), Limits()).dumped()


# ---- the form


def test_the_form_begins_as_the_runs_previews_are_drawn(known: Registry) -> None:
    entry = known.get("lora")
    assert entry
    sample = wishes.config_of(entry)
    found = wishes.usual(entry)
    assert (found["steps"], found["guidance"], found["scheduler"]) == (sample.steps, sample.guidance, sample.scheduler)
    assert (found["width"], found["draw"]) == (64, "compare")


@pytest.mark.parametrize(
    ("changed", "kind", "model"),
    [
        ({}, "compare", "lora"),
        ({"draw": "tuned"}, "txt2img", "lora"),
        ({"draw": "original"}, "txt2img", "model"),
        ({"model": "model"}, "txt2img", "model"),
        ({"draw": "tuned", "image": "a" * 32}, "img2img", "lora"),
        ({"draw": "tuned", "image": "a" * 32, "mask": "b" * 32}, "inpaint", "lora"),
        ({"image": "a" * 32, "mask": "b" * 32}, "compare", "lora"),
    ],
)
def test_what_is_chosen_is_what_is_asked_for(known: Registry, changed: dict[str, Any], kind: str, model: str) -> None:
    wish = asked(known, **changed)
    assert (wish["kind"], wish["model"]) == (kind, model)
    assert (wish["image"], wish["mask"]) == (changed.get("image"), changed.get("mask"))
    assert (wish["width"] is None) == ("image" in changed)


def test_seeds_follow_one_another_from_the_one_that_was_given(known: Registry) -> None:
    assert asked(known, count=3)["seeds"] == [7, 8, 9]
    assert asked(known, count=3.0, seed=7.0)["seeds"] == [7, 8, 9]  # as browsers send it
    first, second = asked(known, count=2, chance=True)["seeds"]
    assert second == first + 1
    assert asked(known, chance=True)["seeds"] != asked(known, chance=True)["seeds"]


def test_adapters_at_nothing_are_not_asked_for_and_the_original_has_none(known: Registry) -> None:
    some = {"lora": 0.5, "other": 0}
    assert asked(known, model="full", draw="tuned", adapters=some)["adapters"] == [{"id": "lora", "strength": 0.5}]
    assert asked(known, model="full", draw="original", adapters=some)["adapters"] == []


def test_a_jobs_picture_is_drawn_again_by_the_form(known: Registry) -> None:
    wish = asked(known, count=3, guidance=2.5, scheduler="euler", negative="blue", draw="tuned", strength=0.5)
    again = wishes.usual(known.entries["full"]) | wishes.of_job(wish, 8, known)
    assert asked(known, **again) == wish | {"seeds": [8]}


def png(**texts: str) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def test_a_png_of_a_web_ui_fills_the_form(known: Registry) -> None:
    text = "a boat\nNegative prompt: fog\nSteps: 9, Sampler: Euler a, CFG scale: 4, Seed: 77, Size: 64x64, Model: lora@final, Clip skip: 2"
    found, notes = wishes.of_file(png(parameters=text), "a.png", known)
    wish = asked(known, **found)
    assert (wish["prompt"], wish["negative"], wish["steps"], wish["seeds"]) == ("a boat", "fog", 9, [77])
    assert (wish["scheduler"], wish["guidance"], wish["model"]) == ("euler-a", 4, "lora")
    assert notes == ["Clip skip: 2"]


def test_what_it_asks_for_and_is_not_here_is_said(known: Registry) -> None:
    text = "a boat\nSteps: 9, Sampler: Restart, CFG scale: 4, Seed: 77, Size: 64x64, Model: dream"
    found, notes = wishes.of_file(png(parameters=text), "a.png", known)
    assert "scheduler" not in found
    assert "model" not in found
    assert notes == ["sampler: Restart is not known here", "model: dream is not served here; the chosen one stays"]


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"parameters": "x" * 200_000},
        {"sdtune": "[" * 50_000},
        {"sdtune": '{"prompt": "a", "seed": 1, "steps": 1e9}'},
    ],
)
def test_a_png_without_settings_or_with_hostile_ones_is_refused(known: Registry, texts: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"^a\.png: .{10,120}$"):
        wishes.of_file(png(**texts), "a.png", known)


def test_a_text_that_nobody_wrote_by_hand_is_not_read(known: Registry) -> None:
    text = "a boat, " * 20_000 + "\nSteps: 9, Sampler: Euler a, CFG scale: 4, Seed: 77"
    with pytest.raises(DataError, match="at most 100000 are read"):
        wishes.of_file(png(parameters=text), "a.png", known)


# ---- grids


def test_a_cell_differs_in_the_two_settings_alone(known: Registry) -> None:
    one = values(known, count=4)
    found = axes.cells(one, axes.read("strength", "0, 0.5, 1"), Axis("model", ("lora", "full")))
    assert [(c["model"], c["strength"]) for c in found] == [(m, s) for m in ("lora", "full") for s in (0, 0.5, 1)]
    bodies = [asked(known, **cell) for cell in found]
    assert all(b["seeds"] == [7] and b["kind"] == "txt2img" for b in bodies)
    assert len({json.dumps({**b, "model": "", "strength": 0}) for b in bodies}) == 1


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (Axis("steps", (1, 2)), Axis("steps", (3,)), "the same setting"),
        (Axis("steps", tuple(range(1, 9))), Axis("seed", (1, 2, 3, 4, 5)), "8 x 5 pictures are more than 36"),
        (Axis("denoising_strength", (0.5,)), Axis("seed", (1,)), "no picture to begin with"),
    ],
)
def test_grids_that_cannot_be_are_refused_in_words(known: Registry, x: Axis, y: Axis, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        axes.cells(values(known), x, y)


@pytest.mark.parametrize(("key", "text"), [("steps", "8, many"), ("guidance", " , "), ("seed", "1.5")])
def test_values_that_are_none_are_refused_with_an_example(key: str, text: str) -> None:
    with pytest.raises(ValueError, match="as in"):
        axes.read(key, text)


def test_prompts_may_hold_commas() -> None:
    assert axes.read("prompt", "a cat, sleeping; a dog;;").values == ("a cat, sleeping", "a dog")


# ---- votes


def votes(*choices: str, model: str = "lora") -> list[Vote]:
    return [Vote(f"job{i}", 1, model, f"prompt {i}", c) for i, c in enumerate(choices)]  # type: ignore[arg-type]


def test_a_prompt_has_one_voice() -> None:
    many = [Vote("job", seed, "lora", "one", "tuned") for seed in range(50)]
    found = tally([*many, *votes("original", "same")])
    assert (found.votes, found.prompts, found.wins, found.losses) == (52, 3, 1, 1)
    assert found.verdict[0] == "open"


@pytest.mark.parametrize(
    ("choices", "colour"),
    [
        (["tuned"] * 20, "good"),
        (["original"] * 20, "bad"),
        (["tuned"] * 11 + ["original"] * 9, "open"),
        (["tuned"] * (stats.MIN_UNITS - 1), "open"),
        (["same"] * 30, "open"),
    ],
)
def test_the_verdict_is_no_more_than_was_seen(choices: list[str], colour: str) -> None:
    assert tally(votes(*choices)).verdict[0] == colour


def test_a_vote_is_kept_once_for_each_pair_and_model(tmp_path: Path) -> None:
    book = Book(tmp_path / "web.sqlite")
    for vote in (*votes("tuned", "same"), *votes("original")):
        book.vote(vote)
    assert [v.choice for v in Book(tmp_path / "web.sqlite").votes("lora")] == ["same", "original"]
    assert book.votes("full") == []


def test_a_grid_is_there_after_a_restart(tmp_path: Path) -> None:
    x, y = Axis("strength", (0.0, 1.0)), Axis("model", ("lora@step-000002", "lora"))
    made = Book(tmp_path / "web.sqlite").add_grid(x, y, ["a", "b", "c", "d"], "<b>a dog</b>")
    book = Book(tmp_path / "web.sqlite")
    assert book.grid(made.id) == made
    assert book.grids() == [made]
    assert book.grid("x") is None
    assert [axes.named(y, v) for v in y.values] == ["step 2", "lora, result"]
