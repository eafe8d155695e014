"""Weights in prompts: the grammar, and what the states of the text encoders become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdtune import cli
from sdtune.config import SampleConfig
from sdtune.emphasis import looks_weighted, parse
from sdtune.errors import ConfigError
from sdtune.model import Cond, Model
from sdtune.sample import sample
from sdtune.texts import Texts
from tests import tiny
from tests.families.common import drawn, load

FamilyFolder = Callable[[str], Path]


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a red dog", [("a red dog", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("((a)) [b] [[c]]", [("a", 1.21), (" ", 1), ("b", 1 / 1.1), (" ", 1), ("c", 1 / 1.21)]),
        ("(a red:1.3) dog", [("a red", 1.3), (" dog", 1)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1), (" c", 0.5)]),
        ("(unclosed", [("unclosed", 1.1)]),
        ("[un (closed", [("un ", 1 / 1.1), ("closed", 1)]),
        ("unopened) ]", [("unopened) ]", 1)]),
        (r"miku \(vocaloid\) \[x\] \\", [(r"miku (vocaloid) [x] " + "\\", 1)]),
        ("(a\\):1.3)", [("a)", 1.3)]),
        ("(12:30 o'clock)", [("12:30 o'clock", 1.1)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:-.5)", [("a", -0.5)]),
        ("(a:.5.5)", [("a:.5.5", 1.1)]),
        ("()", []),
        ("(a)(b)", [("ab", 1.1)]),
        ("", []),
    ],
)  # fmt: skip
def test_the_grammar(prompt: str, pieces: list[tuple[str, float]]) -> None:
    (part,) = parse(prompt)
    assert [p.text for p in part] == [text for text, _ in pieces]
    assert [p.weight for p in part] == pytest.approx([weight for _, weight in pieces])


def test_break_divides_a_prompt() -> None:
    parts = parse("a (red BREAK blue:1.2)  BREAK dog BREAKFAST")
    assert [[(p.text, p.weight) for p in part] for part in parts] == [
        [("a ", 1.0), ("red", 1.2)], [("blue", 1.2)], [("dog BREAKFAST", 1.0)]
    ]  # fmt: skip


@pytest.mark.parametrize("prompt", ["[cat:dog:0.5]", "a [dog:3]", "[a|b]", "a cat AND a dog", "a <lora:mine:0.8>"])
def test_what_is_not_supported_is_said_and_not_drawn(prompt: str) -> None:
    with pytest.raises(ConfigError, match=r"is not supported; take it out") as error:
        parse(prompt)
    assert "\n" not in str(error.value)
    assert parse(prompt.replace("[", r"\[").replace("<", "").replace("AND", "and"))


def test_what_looks_weighted() -> None:
    assert looks_weighted("a (red:1.3) dog") and looks_weighted("(a b: .5)")
    assert not any(looks_weighted(p) for p in ("a (red) dog", r"\(a:1.3\)", "miku_(vocaloid)", "ratio 1:2"))


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def model(request: pytest.FixtureRequest, folder_of: FamilyFolder) -> Model:
    return load(folder_of(request.param))


def test_states_are_multiplied_and_their_mean_is_restored(model: Model) -> None:
    texts = Texts(model, weights=True)
    plain, weighed = model.encode_prompts(["a red dog"]), texts.encode(["a (red:1.3) [dog]"], 1)
    widths = [e.config.hidden_size for e in model.text_encoders]  # type: ignore[union-attr]
    weights_L = torch.ones(tiny.MAX_TOKENS)
    weights_L[2], weights_L[3] = 1.3, 1 / 1.1  # behind the start and "a"
    for before, after in zip(plain.states_BLD.split(widths, 2), weighed.states_BLD.split(widths, 2), strict=True):
        wanted = before * weights_L[:, None]
        ratio = before.mean() / wanted.mean()
        torch.testing.assert_close(after, wanted * (ratio if 0.5 < ratio < 2 else 1), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after[:, 2], before[:, 2], rtol=1e-2)
    if plain.pooled_BD is not None:
        assert weighed.pooled_BD is not None and torch.allclose(plain.pooled_BD, weighed.pooled_BD, atol=1e-5)


def test_without_weights_nothing_changes(model: Model) -> None:
    config = SampleConfig(prompts=("a red dog", "a " * 20 + "dog"), negative="blue, cat", seeds=(3,), steps=2)
    assert np.array_equal(drawn(model, config), drawn(model, replace(config, prompt_weights=True)))
    one = Texts(model, weights=True).encode(["(a red:1.0) dog"], 1)
    torch.testing.assert_close(one.states_BLD, model.encode_prompts(["a red dog"]).states_BLD)


def test_break_begins_a_chunk(model: Model) -> None:
    texts = Texts(model, weights=True)
    prompt = "a red dog BREAK (the sun:1.2)"
    assert texts.chunks([prompt, ""]) == 2 and texts.chunks(["a"]) == 1
    whole = texts.encode([prompt], 3).states_BLD
    each = [texts.encode([p], 1).states_BLD for p in ("a red dog", "(the sun:1.2)", "")]
    if model.family != "sdxl":  # whose empty prompt is zeros where it stands alone
        torch.testing.assert_close(whole, torch.cat(each, 1))
    torch.testing.assert_close(whole[:, : 2 * tiny.MAX_TOKENS], torch.cat(each[:2], 1))
    long = texts.chunks(["(red:1.2) " * (tiny.MAX_TOKENS - 2) + "dog"])
    assert long == 2


def test_weights_move_the_picture_the_more_the_heavier(folder_of: FamilyFolder) -> None:
    model = load(folder_of("sd1"))
    config = SampleConfig(seeds=(3,), steps=3, prompt_weights=True)
    plain, some, much = (
        np.asarray(next(sample(model, config, prompts=[p])).image, float) for p in ("a dog", "a (dog:1.2)", "a (dog:3)")
    )
    assert 0 < abs(some - plain).mean() < abs(much - plain).mean()
    (picture,) = sample(model, config, prompts=["a (dog:3)"])
    assert picture.settings["prompt_weights"] is True


def test_a_prompt_is_encoded_once(folder_of: FamilyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = load(folder_of("sd1")), list[str]()
    encode = model.encode_prompts

    def encode_and_count(prompts: Sequence[str], chunks: int | None = None) -> Cond:
        read.extend(prompts)
        return encode(prompts, chunks)

    monkeypatch.setattr(model, "encode_prompts", encode_and_count)
    config = SampleConfig(prompts=("a dog", "a cat", "a dog"), seeds=(1, 2, 3), steps=1, batch_size=2)
    assert len(list(sample(model, config))) == 9
    assert sorted(read) == ["", "a cat", "a dog"]


def test_models_that_read_no_weights_say_so(folder_of: FamilyFolder) -> None:
    with pytest.raises(ConfigError, match=r"sample.prompt_weights: sd3 does not read weights"):
        list(sample(load(folder_of("sd3")), SampleConfig(prompts=("a",), prompt_weights=True, scheduler="euler")))


def test_a_weight_that_is_not_read_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = (
        "sample.steps=1",
        "sample.width=32",
        "sample.height=32",
        "sample.seeds=[1]",
        "--quiet",
        "--out",
        str(tmp_path),
    )
    for more, says in (((), "its brackets are read as letters"), (("sample.prompt_weights=true",), "")):
        with pytest.raises(SystemExit):
            cli.main(["sample", "-p", "a (red:1.3) apple", *few, *more])
        err = capsys.readouterr().err
        assert says in err and bool(err) == bool(says)
