"""The pages of trainings: their form is the config's own, and a newcomer trains, watches, stops, goes on and mends a caption."""

from __future__ import annotations

import json
import math
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdtune import config as configs
from sdtune import presets
from sdtune.serve.views import Curves, SetPicture
from sdtune.serve.web import train_charts
from sdtune.serve.web.train_draft import Draft, free_name
from sdtune.serve.web.train_fields import Field, by_key, faults, groups, search
from tests.serve.browser import browsing, shot, too_wide
from tests.serve.browser import faults as axe_faults
from tests.serve.conftest import Live, serving

SCHEMA = configs.json_schema()
KEYS = presets.keys()


def field(key: str, config: dict[str, Any] | None = None) -> Field:
    return next(f for g in groups(SCHEMA, config or {}) for f in g.fields if f.key == key)


def begun(preset: str) -> Draft:
    return Draft(tomllib.loads(presets.recipe(preset).read_text(encoding="utf-8")), preset)


# ---- schema -> fields


def all_configs() -> Iterator[dict[str, Any]]:
    """One for each kind of each section."""
    for group in groups(SCHEMA, {}):
        for kind in group.kinds:
            config: dict[str, Any] = {}
            configs.put(config, f"{group.key}.type", kind) if kind else None
            yield config


def test_the_form_has_every_key_of_the_config_and_no_other() -> None:
    found = set[str]()
    for config in [{}, *all_configs()]:
        for group in groups(SCHEMA, config):
            found |= {f.key for f in group.fields} | ({f"{group.key}.type"} if group.kinds else set())
    assert found == {key.name for key in KEYS} - {"data.sources.path", "data.sources.layout"}


def test_every_field_has_the_help_of_its_key() -> None:
    helps = {(key.name, " ".join(key.help.replace("`", "").split())) for key in KEYS}
    for group in groups(SCHEMA, {}):
        for f in group.fields:
            assert (f.key, f.help) in helps


@pytest.mark.parametrize("config", [{}, *all_configs()], ids=str)
def test_a_default_is_read_back_as_it_is_shown(config: dict[str, Any]) -> None:
    for group in groups(SCHEMA, config):
        for f in group.fields:
            if f.kind not in ("flag", "choice") and not (f.usual is None and not f.unset):
                assert f.read(f.shown(f.usual)) == f.usual, f.key


@pytest.mark.parametrize(
    ("key", "kind", "bounds"),
    [
        ("train.steps", "whole", "more than 0"),
        ("data.flip", "flag", ""),
        ("train.precision", "choice", ""),
        ("train.gradient_checkpointing", "choice", ""),
        ("optimizer.lr", "number", "more than 0"),
        ("optimizer.betas", "numbers", ""),
        ("sample.prompts", "lines", ""),
        ("data.validation_share", "number", "0 to 1"),
        ("train.ema", "number", "from 0 and less than 1"),
        ("method.targets", "other", ""),
    ],
)
def test_fields_are_of_their_kind(key: str, kind: str, bounds: str) -> None:
    assert (field(key).kind, field(key).bounds) == (kind, bounds)


def test_choices_are_all_values_that_the_key_takes() -> None:
    assert field("train.gradient_checkpointing").choices == (False, True, "feed-forward")
    assert field("train.result").choices == ("last", "best")


def test_sections_change_their_fields_with_their_type() -> None:
    oft = next(g for g in groups(SCHEMA, {"method": {"type": "oft"}}) if g.key == "method")
    keys = {f.key for f in oft.fields}
    assert "method.block" in keys and "method.rank" not in keys
    assert oft.kind == "oft" and "lora" in oft.kinds and dict(zip(oft.kinds, oft.helps, strict=True))["oft"]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "200", 200),
        ("train.steps", "2e2", 200),
        ("optimizer.lr", "1e-4", 1e-4),
        ("optimizer.lr", "1", 1),
        ("train.ema", "", None),
        ("sample.seeds", "[1, 2]", [1, 2]),
        ("sample.seeds", "1 2", [1, 2]),
        ("sample.prompts", "a\n\n b ", ["a", "b"]),
        ("method.targets", "many", "many"),
        ("method.targets", '["*.attn2.*"]', ["*.attn2.*"]),
        ("method.tokens", '{"<sks>" = "dog"}', {"<sks>": "dog"}),
        ("data.caption_prefix", "<b> & co", "<b> & co"),
    ],
)
def test_what_is_typed_is_read(key: str, text: str, value: Any) -> None:
    assert field(key).read(text) == value


@pytest.mark.parametrize(
    ("key", "text"), [("train.steps", "1.5"), ("train.steps", "many"), ("train.steps", ""), ("optimizer.lr", "1,5")]
)
def test_what_cannot_be_read_is_told(key: str, text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        field(key).read(text)


def test_all_faults_are_told_at_once_by_key() -> None:
    found = faults({"name": "a b", "train": {"steps": 0}, "method": {"type": "lora", "rank": -1}})
    assert set(found) == {"name", "train.steps", "method.rank"}
    contradiction = faults({"optimizer": {"type": "adamw", "fused_backward": True}, "train": {"accumulate": 2}})
    assert set(contradiction) == {"optimizer.fused_backward"}
    assert faults({}) == {}


def test_a_line_without_a_key_is_kept() -> None:
    assert by_key("the disk is full: no room\ntrain.steps: too few\ntrain.steps: odd") == {
        "": "the disk is full: no room",
        "train.steps": "too few; odd",
    }


def test_settings_are_found_by_name_first_then_by_help() -> None:
    found = groups(SCHEMA, {})
    assert search(found, "rank")[0].key == "method.rank"
    assert search(found, "Learning RATE")[0].key == "optimizer.lr"
    assert search(found, "min_snr")[0].key == "objective.min_snr_gamma"
    assert search(found, "optimizer.lr")[0].key == "optimizer.lr"
    assert search(found, "  ") == search(found, "xyzzy") == []


# ---- drafts


def test_a_change_is_marked_and_taken_back() -> None:
    draft = begun("demo-lora")
    draft.put("train.steps", 7, 1000)
    draft.put("train.ema", 0.9, None)
    assert draft.changed("train.steps", 1000) and draft.changed("train.ema")
    draft.reset("train.steps")
    draft.reset("train.ema")
    assert draft.config == draft.begun and not draft.changed("train.steps", 1000)


def test_another_type_keeps_what_both_have() -> None:
    draft = begun("demo-lora")
    draft.turn("method", "dora")
    assert draft.get("method.type") == "dora" and draft.get("method.rank") == 16
    draft.turn("method", "oft")
    assert draft.get("method.rank") is None and draft.get("method.targets") == "many"
    draft.turn("sample.guide", "colour")
    draft.turn("sample.guide", "")
    assert draft.get("sample.guide") is None
    assert faults(draft.config) == {}


CHANGES: dict[str, dict[str, Any]] = {
    "none": {},
    "numbers": {"train.steps": 7, "optimizer.lr": 2e-5, "train.ema": 0.99, "sample.seeds": [4]},
    "words": {
        "sample.prompts": ['it\'s a "red" $apple; `x`', "b"],
        "data.caption_prefix": " true",
        "name": "5",
        "sample.negative": "#",
    },
    "as usual": {"method.rank": 16, "train.steps": 1000},
    "tables": {"method.tokens": {"<sks>": "dog"}, "optimizer.lr_scale": {"*.words.*": 10}},
    "findings": {"data.on.leak": "skip"},
}


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("preset", ["demo-lora", "demo-full", "sdxl-pivotal"])
def test_command_and_recipe_train_the_same(preset: str, changes: str, tmp_path: Path) -> None:
    draft = begun(preset)
    for key, value in CHANGES[changes].items():
        if key.partition(".")[0] != "method" or preset == "demo-lora":
            draft.put(key, value)
    wanted = configs.from_dict(draft.config)
    file = tmp_path / f"{wanted.name}.toml"
    file.write_text(draft.recipe(), encoding="utf-8")
    assert configs.load(file) == wanted
    init, both, train = draft.command().partition(" && ")
    if both:
        assert shlex.split(init) == ["sdtune", "init", preset, "--out", file.name]
        file.write_text(presets.commented(preset, file.name), encoding="utf-8")
    words = shlex.split(train or init)
    assert words[:3] == ["sdtune", "train", file.name]
    assert configs.load(file, words[3:]) == wanted


def test_what_no_override_can_say_needs_the_recipe() -> None:
    draft = begun("demo-lora")
    assert draft.command().startswith("sdtune init demo-lora")
    draft.turn("method", "oft")  # of the preset's keys, oft has no rank
    assert draft.command() == "sdtune train demo-lora.toml"


def test_a_name_that_is_taken_gets_a_number() -> None:
    assert free_name("a", []) == "a"
    assert free_name("a", ["a", "a-2"]) == "a-3"
    assert free_name("demo-lora-2", ["demo-lora-2"]) == "demo-lora-3"


# ---- curves


def curves(loss: list[float], validation: list[float]) -> Curves:
    steps = list(range(1, len(loss) + 1))
    return Curves(steps, loss, [], [], [i * 10 for i in range(len(validation))], validation, [None] * len(validation))


def test_curves_are_smoothed_without_a_pull_and_thinned_to_the_end() -> None:
    assert train_charts.smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    assert train_charts.smoothed([1.0, math.nan, 1.0]) == pytest.approx([1.0, 1.0, 1.0])
    thin = train_charts.thinned(list(range(5000)), 500)
    assert len(thin) == 500 and (thin[0], thin[-1]) == (0, 4999)


def test_a_chart_is_valid_json_and_marks_the_lowest_validation() -> None:
    made = train_charts.options(curves([3.0, math.nan, 1.0], [2.0, 1.5, 1.7]), log=True)
    json.dumps(made, allow_nan=False)
    assert made["series"][2]["markPoint"]["data"][0]["coord"] == [10, 1.5]
    assert [len(s["data"]) for s in made["series"]] == [3, 2, 3]
    assert made["yAxis"][0]["type"] == "log"
    json.dumps(train_charts.options(curves([], [])), allow_nan=False)


def test_curves_are_told_in_words() -> None:
    said = train_charts.words(curves([3.0, 1.0], [2.0, 1.5, 1.7]))
    assert said == "Loss 1.889 at step 2. Validation loss 2 at step 0, the base; lowest 1.5 at step 10; 1.7 at step 20."
    assert "never below" in train_charts.words(curves([3.0], [1.0, 1.5]))
    assert train_charts.words(curves([], [])) == "No step has been taken yet."
    assert train_charts.words(curves([], [2.0])) == "Validation loss 2 at step 0."


def test_pictures_are_filtered_by_words() -> None:
    from sdtune.serve.web.train_data import filtered

    found = [
        SetPicture(i, name, [text], "nobody", "")
        for i, (name, text) in enumerate([("a.png", "A red apple"), ("b.png", "a dog")])
    ]
    assert [p.n for p in filtered(found, "RED apple")] == [0]
    assert [p.n for p in filtered(found, "b.png")] == [1]
    assert [p.n for p in filtered(found, "a -dog")] == [0]
    assert filtered(found, " ") == found


# ---- in a browser


HOSTILE = "<img src=x onerror=alert(1)> a green pear"
PICTURES = {
    "a": ("red", "a red thing"), "b": ("blue", "a blue thing"), "c": ("green", HOSTILE), "d": ("black", "a dark thing"),
}  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Path]]:
    """A server with nothing but the embedded base and a folder of four pictures."""
    folder = tmp_path_factory.mktemp("shop")
    data = folder / "mine"
    data.mkdir()
    for name, (colour, caption) in PICTURES.items():
        Image.new("RGB", (64, 64), colour).save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(caption, encoding="utf-8")
    arguments = ("--runs", str(folder / "runs"), "--data", str(data))
    with serving(Path("embedded"), folder / "served", *arguments) as live:
        yield live, data


def base(live: Live) -> str:
    return str(live.http.base_url).rstrip("/")


def state(page: Any, word: str, seconds: float = 400) -> None:
    page.locator(".run-head .state", has_text=re.compile(f"^({word})$")).wait_for(timeout=seconds * 1000)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_newcomer_begins_with_one_click(shop: tuple[Live, Path]) -> None:
    with browsing(base(shop[0])) as browser:
        page = browser.page("/ui/train")
        page.get_by_role("heading", name="Teach a model something").wait_for()
        assert axe_faults(page) == []
        page.get_by_role("button", name="Train the demo now").click()
        page.get_by_role("heading", level=1, name="demo-lora").wait_for()
        page.get_by_role("button", name=re.compile("^(Stop|Cancel)")).first.wait_for()
        state(page, "running")
        page.get_by_role("button", name="Stop").click()
        state(page, "stopping|stopped")  # it has 24 pictures to validate on before its first step ends


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_newcomer_trains_watches_stops_and_goes_on(shop: tuple[Live, Path]) -> None:
    with browsing(base(shop[0])) as browser:
        page = browser.page("/ui/train/new")
        page.get_by_label("Steps", exact=True).fill("0")
        page.get_by_label("Steps", exact=True).blur()
        page.get_by_role("button", name="train.steps", exact=True).wait_for()
        assert page.get_by_role("button", name="Start training").is_disabled()
        for label, text in {
            "Name": "first", "Steps": "60", "Batch size": "2", "Previews every so many steps": "30",
            "Prompts of the previews, one a line": "a red apple",
        }.items():  # fmt: skip
            page.get_by_label(label, exact=True).fill(text)
        page.get_by_role("button", name=re.compile("^mine")).click()
        find = page.get_by_label("Find a setting")
        for words, label, text in (
            ("sample.seeds", "Seeds", "3"),
            ("sample.steps", "Steps", "2"),
            ("validate_every", "Validate every", "20"),
        ):
            find.fill(words)
            page.get_by_role("status").filter(has_text="setting").wait_for()
            page.locator(".new-all").get_by_label(label, exact=True).first.fill(text)
            page.locator(".new-all").get_by_label(label, exact=True).first.blur()
        page.get_by_text("train.steps=60").wait_for()
        assert "sample.steps=2" in page.locator(".command").inner_text()
        shot(page, "train-new")
        page.get_by_role("button", name="Start training").click()

        page.get_by_role("heading", level=1, name="first").wait_for()
        state(page, "running")
        page.locator(".run-where", has_text=re.compile(r"^step [1-9]\d? of 60")).wait_for(timeout=400_000)
        page.get_by_role("button", name="Save now").click()
        page.get_by_role("button", name="Stop").click()
        state(page, "stopped")
        shot(page, "train-stopped")
        page.get_by_role("button", name="Go on").click()
        state(page, "finished")
        _check_finished(page)
        assert axe_faults(page) == []
        shot(page, "train-finished")

        page.get_by_role("link", name="Train", exact=True).click()
        row = page.locator(".run", has_text="first")
        row.get_by_text("finished").wait_for()
        row.get_by_text(re.compile("lowest validation loss")).wait_for()


def _check_finished(page: Any) -> None:
    assert page.get_by_role("link", name="Create with it").get_attribute("href") == "/ui/?model=first"
    slider = page.get_by_role("slider", name="Step")
    assert (slider.get_attribute("aria-valuetext"), slider.input_value()) == ("step 60", "2")
    last = page.locator(".previews img").get_attribute("src")
    slider.press("Home")
    page.locator(".timeline-step", has_text="0, the base").wait_for()
    page.wait_for_timeout(300)
    assert slider.input_value() == "0"
    first = page.locator(".previews img")
    assert first.get_attribute("src") != last and first.get_attribute("alt") == "a red apple, seed 3, step 0"
    page.wait_for_function("document.querySelector('.previews img').naturalWidth == 64")
    assert page.locator(".curves path").count() > 2
    assert "lowest" in page.get_by_role("img", name=re.compile("^Curves")).get_attribute("aria-label")


@pytest.mark.slow
def test_a_caption_is_mended_in_place_and_taken_back(shop: tuple[Live, Path]) -> None:
    live, data = shop
    with browsing(base(live)) as browser:
        page = browser.page("/ui/train/data/mine")
        box = page.get_by_label("Captions of a.png, one a line")
        box.fill("a crimson thing\nanother wording")
        box.blur()
        page.locator(".set-picture", has_text="a.png").get_by_text("saved").wait_for()
        assert (data / "a.txt").read_text(encoding="utf-8").split("\n")[:2] == ["a crimson thing", "another wording"]
        page.get_by_role("button", name="Undo").click()
        page.locator(".set-picture", has_text="a.png").get_by_text("as before").wait_for()
        assert (data / "a.txt").read_text(encoding="utf-8").strip() == "a red thing"
        assert box.input_value() == "a red thing"

        page.get_by_label("Filter by name or caption").fill("onerror")
        page.get_by_text("1 of 4 pictures").wait_for()
        assert page.get_by_label("Captions of c.png, one a line").input_value() == HOSTILE
        assert page.locator("img[src=x]").count() == 0
        page.locator(".headline, .alarm").first.wait_for()
        assert axe_faults(page) == []


@pytest.mark.slow
def test_a_set_that_comes_along_is_read_only_and_says_so(shop: tuple[Live, Path]) -> None:
    with browsing(base(shop[0])) as browser:
        page = browser.page("/ui/train/data/embedded:comic")
        page.get_by_text("Captions can be read here, not changed").wait_for()
        page.locator(".caption").first.wait_for()
        assert page.locator(".set-pictures textarea").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_page_of_trainings_is_accessible_and_fits(live: Live, width: int, dark: bool) -> None:
    with browsing(base(live)) as browser:
        for path in ("/ui/train/new", "/ui/train/run/lora", "/ui/train/run/nobody", "/ui/train/data/embedded:pip"):
            page = browser.page(path, width=width, dark=dark)
            page.wait_for_timeout(1500)
            shot(
                page,
                f"{path.split('/')[3]}-{path.rpartition('/')[2].replace(':', '-')}-{width}{'-dark' if dark else ''}",
            )
            assert axe_faults(page) == []
            assert too_wide(page) <= 0
            assert page.context.cookies() == []
