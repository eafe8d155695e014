"""`sdtune sample`: what it lists, and what it draws again from a picture's own text."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdtune import cli, emphasis, infotext
from sdtune.errors import ConfigError, DataError
from sdtune.samplers import SAMPLERS


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["sample", *arguments])
    return int(left.value.code or 0)


def test_samplers_are_listed_here_and_in_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list-schedulers", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["scheduler"] for row in rows] == list(SAMPLERS)
    assert run("--list-schedulers") == 0
    shown = capsys.readouterr().out.splitlines()
    page = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
    for line, (name, sampler) in zip(shown[1:], SAMPLERS.items(), strict=True):
        assert line.split() == [name, sampler.steps, *sampler.good_for.split()]
        assert f"| `{name}` | {sampler.good_for} | {sampler.steps} |" in page


def picture(path: Path, *, ours: object = None, foreign: str = "") -> Path:
    info = PngInfo()
    if foreign:
        info.add_itxt("parameters", foreign)
    if ours is not None:
        info.add_itxt("sdtune", ours if isinstance(ours, str) else json.dumps(ours))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_a_picture_is_drawn_again_from_its_own_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, out = ("sample.steps=2", "sample.width=32", "sample.height=32", "--quiet"), tmp_path / "out"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(tmp_path / "in.png")
    begin = ("--image", str(tmp_path / "in.png"), "--denoising-strength", "1")
    assert (
        run("-p", 'réd "apple" 🍎', "sample.seeds=[7]", "sample.negative=blue", *begin, *few, "--out", str(tmp_path))
        == 0
    )
    (first,) = tmp_path.glob("000-*.png")
    assert run("--from", str(first), "--quiet", "--out", str(out)) == 2
    assert "was drawn from the image 'in.png'; name the file with --image" in capsys.readouterr().err
    assert run("--from", str(first), "--image", str(tmp_path / "in.png"), "--quiet", "--out", str(out)) == 0
    (second,) = out.glob("*.png")
    assert second.read_bytes() == first.read_bytes() and not capsys.readouterr().err
    assert run("--from", str(first), *begin, "sample.seeds=[8]", "--quiet", "--out", str(tmp_path / "8")) == 0
    (third,) = (tmp_path / "8").glob("*.json")
    before, now = (json.loads(p.read_text(encoding="utf-8")) for p in (first.with_suffix(".json"), third))
    assert now == {**before, "seed": 8}, "what is set replaces what the picture says, and nothing else"


A1111 = (
    "a red apple, (best quality:1.2)\nNegative prompt: blue,\nugly\n"
    'Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 5, Size: 64x32, Model: mine, Lora hashes: "a: b, c: d"'
)


def test_the_settings_of_web_uis_are_taken(tmp_path: Path) -> None:
    found = infotext.read(picture(tmp_path / "a.png", foreign=A1111))
    assert not found.ours and found.notes == ("Lora hashes: a: b, c: d",)
    assert found.settings == {
        "prompt": "a red apple, (best quality:1.2)", "negative": "blue,\nugly", "scheduler": "dpm++2m-karras", "steps": 20,
        "guidance": 6.5, "seed": 5, "width": 64, "height": 32, "model": "mine", "prompt_weights": True,
    }  # fmt: skip
    assert 'sample.negative="blue,\\nugly"' in found.overrides(()) and "sample.seeds=[5]" in found.overrides(())
    assert found.overrides(("sample.seeds", "sample.steps"))[-1] == "sample.height=32"
    other = infotext.read(picture(tmp_path / "b.png", foreign=A1111.replace("DPM++ 2M,", "DPM adaptive,")))
    with pytest.raises(ConfigError, match=r"b.png: .*sampler 'DPM adaptive'.* not known here"):
        other.overrides(())
    assert other.overrides(("sample.scheduler",))


RECORD: dict[str, Any] = {
    "model": "mine", "scheduler": "ddim", "steps": 7, "guidance": 2.5, "width": 48, "height": 32, "strength": 0.7,
    "precision": "float32",
}  # fmt: skip


def by_their_text(path: Path, prompt: str, negative: str = "", seed: int = 3, **more: object) -> infotext.Drawn:
    """A picture of ours, read by what it says to web UIs."""
    from sdtune.sample import Sample, save_png

    save_png(Sample(prompt, negative, seed, Image.new("RGB", (8, 8)), {**RECORD, **more}), path)
    with Image.open(path) as im:
        text = im.info["parameters"]
    return infotext.read(picture(path, foreign=text))


@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_our_text_for_web_uis_says_what_was_drawn(tmp_path: Path, scheduler: str) -> None:
    prompt, negative = "a réd apple, 3: 4\u2028\non a table", "blue,\nugly"
    more = {"scheduler": scheduler, "model": 'an, odd: "name"', "denoising_strength": 0.5}
    found = by_their_text(tmp_path / "p.png", prompt, negative, 2**40, **more)
    said = {key: value for key, value in RECORD.items() if key not in ("strength", "precision")}
    assert found.settings == {**said, **more, "prompt": prompt, "negative": negative, "seed": 2**40}
    assert not found.ours and not found.notes


@pytest.mark.parametrize("prompt", ["a (red:1.3) [apple]", "((a", "b\\", "\\(a\\)", "a) \\\\ [b|c]", "plain"])
def test_letters_are_letters_in_web_uis_too(tmp_path: Path, prompt: str) -> None:
    """Web UIs always read weights: what none was here is escaped, and read again as it was."""
    found = by_their_text(tmp_path / "p.png", prompt, f"not {prompt}")
    assert (found.settings["prompt"], found.settings["negative"]) == (prompt, f"not {prompt}")
    assert "sample.prompt_weights=true" not in found.overrides(())
    (part,) = emphasis.parse(emphasis.escape(prompt))  # as they parse it
    assert part == [emphasis.Piece(prompt)]


def test_weights_are_weights_in_web_uis_too(tmp_path: Path) -> None:
    prompt = "a (red:1.3) apple \\(fruit\\)"
    found = by_their_text(tmp_path / "p.png", prompt, prompt_weights=True)
    assert found.settings["prompt"] == prompt and "sample.prompt_weights=true" in found.overrides(())


def test_what_was_on_the_model_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    row = {"name": "pip, b.safetensors", "strength": -0.5, "sha256": "0" * 64}
    found = by_their_text(tmp_path / "p.png", "a", tuned="mine@final", adapters=[row])
    assert found.settings["prompt"] == "a" and "adapters" not in found.settings
    assert found.notes == ("Tuned: mine@final: 0.7, pip, b.safetensors: -0.5",)


SOUND = {"prompt": "a", "seed": 1}


@pytest.mark.parametrize(
    ("ours", "foreign", "says"),
    [
        (None, "", "holds no text"),
        (None, "<script>alert(1)</script>", "ends without the settings"),
        (None, "Steps: 1e999x, Sampler: Euler, Seed: 3", "Steps is '1e999x', no number"),
        (None, "a\nSteps: 2, Sampler: Euler, Seed: -1", "its seed is -1; a picture may ask for 0 to"),
        (None, "x" * 100_001, "has 100001 characters"),
        (None, "a\n" + "b" * 90_000, "ends without the settings"),
        ("[" * 90_000, "", "nested too deeply"),
        ("{", "", "not the JSON that sdtune writes"),
        ("[1]", "", "not the JSON that sdtune writes"),
        ('{"prompt": "a", "seed": NaN}', "", "has NaN for a number"),
        ('{"prompt": "a", "seed": 1, "steps": ' + "9" * 5000 + "}", "", "has a number of 5000 digits"),
        ({**SOUND, "steps": 10**9}, "", "steps is 1000000000; a picture may ask for 0 to 1000"),
        ({**SOUND, "width": True}, "", "width is True, no whole number"),
        ({**SOUND, "guidance": [1]}, "", r"guidance is \[1\], no number"),
        ({**SOUND, "prompt": "a\x1b[2J"}, "", "its prompt is no text"),
        ({**SOUND, "prompt": "\ud800"}, "", "its prompt is no text"),
        ({"prompt": "a"}, "", "does not say the seed"),
    ],
)  # fmt: skip
def test_hostile_texts_are_one_clear_line(tmp_path: Path, ours: object, foreign: str, says: str) -> None:
    path = picture(tmp_path / "p.png", ours=ours, foreign=foreign)
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: .*{says}") as found:
        infotext.read(path)
    text = str(found.value)
    assert "\n" not in text and text.isprintable() and len(text) < 300 + len(str(path))


def test_what_is_no_png_or_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    info = PngInfo()
    info.add_itxt("parameters", "a" * 2_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", pnginfo=info)
    for name, says in (("a", "not a PNG"), ("b", "too large"), ("c", "no such file")):
        with pytest.raises(DataError, match=says):
            infotext.read(tmp_path / f"{name}.png")


def test_a_picture_chooses_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = picture(tmp_path / "a.png", ours={**SOUND, "model": "evil.toml"})
    tuned = picture(tmp_path / "b.png", ours={**SOUND, "model": "embedded", "tuned": "mine@final"})
    foreign = picture(tmp_path / "c.png", foreign=A1111)
    for path, says in (
        (ours, "its model is 'evil.toml'"),
        (tuned, "drawn with mine@final"),
        (foreign, "its model is 'mine'"),
    ):
        assert run("--from", str(path), "--out", str(tmp_path / "out")) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_keys_are_notes(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", ours={**SOUND, "html": "<b>\x1b", "deep": {"a": [1]}})
    assert infotext.read(path).notes == ("html: <b>?", "deep: {'a': [1]}")
