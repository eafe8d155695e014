"""Prompts with settings of their own, matrices and grids: what is drawn, in which order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sdtune
from sdtune import asks, cli
from sdtune import config as configs
from sdtune.asks import Ask, Axis, combinations, expanded
from sdtune.errors import ConfigError
from sdtune.guides import Text
from tests import tiny

RUN = configs.load(None, ["sample.seeds=[1, 2]"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd1_folder(tmp_path_factory.mktemp("asks") / "model")


FILES = {
    "a.txt": "# mine\n\nred apple --n blue, green --w 64 --h 32 --d 7 --l 3.5 --s 9\ndog\n",
    "a.jsonl": '{"prompt": "red apple", "negative": "blue, green", "width": 64, "height": 32, "seed": 7, "guidance": 3.5, "steps": 9}\n'
    '\n{"prompt": "dog"}\n',
    "a.json": '[{"prompt": "red apple", "negative_prompt": "blue, green", "width": 64, "height": 32, "seeds": [7], "scale": 3.5, '
    '"sample_steps": 9}, "dog"]',
    "a.csv": 'prompt,negative,width,height,seed,cfg_scale,steps\nred apple,"blue, green",64,32,7,3.5,9\ndog,,,,,,\n',
    "a.toml": '[[prompts]]\nprompt = "red apple"\nnegative = "blue, green"\nwidth = 64\nheight = 32\nseed = 7\nguidance = 3.5\n'
    'steps = 9\n[[prompts]]\nprompt = "dog"\n',
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_says_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name], encoding="utf-8-sig")
    first, second = asks.read(tmp_path / name)
    config = first.config(RUN)
    assert (first.prompt, second.prompt) == ("red apple", "dog")
    assert (config.negative, config.width, config.height, config.seeds) == ("blue, green", 64, 32, (7,))
    assert (config.guidance, config.steps, config.scheduler) == (3.5, 9, "dpm++2m")
    assert second.config(RUN) == RUN.sample


BAD = {
    "a.txt": ("\ndog --x 5", r"a.txt: line 2: --x is not known behind a prompt; known: --n \(negative\)"),
    "b.txt": ("# nothing\n", "b.txt: holds no prompt"),
    "c.txt": ("dog --s many", r"c.txt, line 1: sample.steps: .*integer.*got 'many'"),
    "a.jsonl": ('{"prompt": "a"}\n{', "a.jsonl: line 2: not JSON"),
    "b.jsonl": ('{"seed": 1}', "b.jsonl, line 1: has no prompt"),
    "c.jsonl": ('{"prompt": "a", "setps": 1}', r"c.jsonl, line 1: 'setps' is no key of a prompt; known: prompt, "),
    "d.jsonl": ('{"prompt": "a", "steps": 0}', r"d.jsonl, line 1: sample.steps: .*greater than 0"),
    "e.jsonl": ("[1]", "line 1: is no text and no table"),
    "a.json": ("{}", "a.json: holds no list of prompts"),
    "a.csv": ("prompt\na,b\n", "a.csv: line 2: has more cells"),
    "a.toml": ("x = 1", r"a.toml: a TOML file of prompts has tables called \[\[prompts\]\]"),
    "b.toml": ("[", "b.toml: "),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, name: str) -> None:
    text, says = BAD[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says) as error:
        [ask.config(RUN) for ask in asks.read(tmp_path / name)]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a dog", ["a dog"]),
        ("{red|blue} {dog|cat}", ["red dog", "red cat", "blue dog", "blue cat"]),
        ("a {big|} dog", ["a big dog", "a dog"]),
        ("{a|{b|c}}", ["a", "b", "c"]),
        ("{a {x|y}|b}", ["a x", "b", "a y"]),
        ("{open|", ["{open|"]),
    ],
)
def test_a_matrix_has_every_combination_once(prompt: str, wanted: list[str]) -> None:
    made = [ask.prompt for ask in expanded([Ask(prompt)], RUN, matrix=True)]
    assert sorted(made) == sorted(wanted) and (len(wanted) != 4 or made == wanted)
    assert combinations(prompt) >= len(wanted)
    assert [ask.prompt for ask in expanded([Ask(prompt)], RUN)] == [prompt]


def test_a_grid_has_every_cell() -> None:
    grid = asks.axes(["sample.steps=10,20", "guidance=1,5,9"])
    cells = expanded([Ask("a"), Ask("b", {"steps": 3, "negative": "c"})], RUN, grid=grid)
    assert [c.cell for c in cells[:3]] == [
        ("steps 10", "guidance 1"),
        ("steps 20", "guidance 1"),
        ("steps 10", "guidance 5"),
    ]
    drawn = [(c.number, c.config(RUN).steps, c.config(RUN).guidance) for c in cells]
    assert len(set(drawn)) == 12 and {c.config(RUN).negative for c in cells if c.number} == {"c"}
    nested = Axis.read("sample.guide.strength=0.1,0.5")
    guided = configs.load(None, ["sample.guide.type=text", "sample.guide.text=a"])
    (_, strong) = expanded([Ask("a")], guided, grid=[nested])
    assert strong.config(guided).guide == Text(text="a", strength=0.5)
    assert Axis.read('sample.negative=["a, b", ""]').values == ("a, b", "")
    seeds = expanded([Ask("a")], RUN, grid=[Axis.read("sample.seeds=7,8")])
    assert [c.config(RUN).seeds for c in seeds] == [(7,), (8,)] and seeds[0].cell == ("seed 7",)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["sample.stps=1"], r"--grid: sample.stps: no such key"),
        (["steps"], "write a key and its values"),
        (["steps=1,2", "sample.steps=3"], "the same key on two axes"),
        (["steps=1,1"], "the same value twice"),
        (["steps=1", "guidance=1", "width=64", "height=64"], "4 axes; at most 3"),
        (["prompts=a,b"], "no such key"),
    ],
)
def test_bad_grids_are_refused(texts: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        asks.axes(texts)


def test_a_product_that_explodes_is_said_before_anything_is_drawn() -> None:
    with pytest.raises(
        ConfigError,
        match=r"10,000 prompts x 2 values of sample.steps x 2 seeds would be 40,000 pictures, more than 1,000",
    ):
        expanded([Ask("{0|1|2|3|4|5|6|7|8|9}" * 4)], RUN, grid=asks.axes(["steps=1,2"]), matrix=True)
    assert len(expanded([Ask("{0|1}" * 3)], RUN, matrix=True, most=16)) == 8
    with pytest.raises(ConfigError, match="more than 15"):
        expanded([Ask("{0|1}" * 3)], RUN, matrix=True, most=15)
    four = Ask("{a|b}", changes={"seeds": (1, 2, 3, 4)})
    assert len(expanded([four], RUN, matrix=True, most=8)) == 2
    with pytest.raises(ConfigError, match="2 prompts x 4 seeds would be 8 pictures, more than 7"):
        expanded([four], RUN, matrix=True, most=7)
    assert combinations("{0|1|2|3|4|5|6|7|8|9}" * 30) == 10**30


def test_pictures_of_a_file_are_those_drawn_one_by_one(model: Path) -> None:
    fixed = ("sample.steps=2", "sample.seeds=[1, 2]", "train.threads=1")
    wanted = [
        Ask("a dog"),
        Ask("a cat", {"seeds": [5]}),
        Ask("the sun", {"steps": 3, "guidance": 2.0}),
        Ask("a dog", {"seeds": [5]}),
    ]
    drawn = list(sdtune.sample(model, *fixed, prompts=wanted))
    assert [(p.prompt, p.seed, p.settings["steps"]) for p in drawn] == [
        ("a dog", 1, 2), ("a dog", 2, 2), ("a cat", 5, 2), ("the sun", 1, 3), ("the sun", 2, 3), ("a dog", 5, 2)
    ]  # fmt: skip
    (alone,) = sdtune.sample(model, *fixed, "sample.steps=3", "sample.guidance=2", prompts=["the sun"], seeds=[2])
    assert abs(np.asarray(alone.image, int) - np.asarray(drawn[4].image, int)).max() <= 1


def test_the_command_line_draws_a_labelled_grid(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as left:
            cli.main(["sample", str(model), *arguments, "train.threads=1", "--quiet"])
        return int(left.value.code or 0)

    out = tmp_path / "out"
    grid = ("--grid", "sample.steps=1,2", "--grid", "sample.width=32,64")
    assert run("-p", "a {red|blue} dog", "--matrix", *grid, "sample.seeds=[1]", "--out", str(out)) == 0
    records = [json.loads(p.read_text()) for p in sorted(out.glob("*.json"))]
    assert [(r["prompt"], r["width"], r["steps"]) for r in records] == [
        (f"a {colour} dog", width, steps) for colour in ("red", "blue") for width in (32, 64) for steps in (1, 2)
    ]
    with Image.open(tmp_path / "out-sheet.png") as sheet:
        assert sheet.width > 2 * 128 and sheet.height > 4 * 64
    assert not capsys.readouterr().err
    assert run("-p", "a {red|blue} dog", "sample.steps=1", "sample.seeds=[1]", "--out", str(tmp_path / "b")) == 0
    assert "its braces are read as letters; --matrix" in capsys.readouterr().err
    assert run("-p", "{a|b}", "--matrix", "--at-most", "1", "--out", str(tmp_path / "c")) == 2
    assert "would be 4 pictures, more than 1" in capsys.readouterr().err and not (tmp_path / "c").exists()
