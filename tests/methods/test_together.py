"""Several adapters on one model: their changes add up, each at its strength, whatever the method."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdtune
from sdtune import cli, tuned
from sdtune.config import SampleConfig
from sdtune.errors import ConfigError, ModelError
from sdtune.families.sd1 import Sd1
from sdtune.methods import adapters, together
from sdtune.methods.adapters import adapters_of
from sdtune.methods.dora import Dora
from sdtune.methods.files import read
from sdtune.methods.loha import Loha
from sdtune.methods.lokr import Lokr
from sdtune.methods.lora import Lora
from sdtune.methods.oft import Oft
from sdtune.methods.textual_inversion import TextualInversion
from sdtune.model import Model
from sdtune.opened import Opened
from sdtune.sample import sample
from sdtune.tuned import Named
from tests import tiny
from tests.families.common import load

METHODS: dict[str, Any] = {
    "lora": Lora(rank=2, targets="many", text_encoders=True), "dora": Dora(rank=2), "loha": Loha(rank=2),
    "lokr": Lokr(targets="transformer"), "oft": Oft(),
}  # fmt: skip
CONFIG = SampleConfig(prompts=("a red dog",), seeds=(3,), steps=2)


@dataclass(frozen=True)
class World:
    folder: Path
    files: dict[str, Path]

    def model(self) -> Model:
        return Sd1(path=str(self.folder)).load()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny model, and a file of each method with random values."""
    place = tmp_path_factory.mktemp("together")
    made = World(tiny.sd1_folder(place / "model"), {})
    words: dict[str, Any] = {
        name: TextualInversion(tokens={f"<{name}>": "dog"}, token_vectors=count)
        for name, count in (("one", 1), ("two", 2))
    }
    for i, (name, method) in enumerate({**METHODS, **words}.items()):
        model, rng = made.model(), torch.Generator().manual_seed(i)
        parameters = method.attach(model, seed=i)
        for p in parameters.values():
            p.data += 0.2 * torch.randn(p.shape, generator=rng)
        weights = {n: p.detach().clone() for n, p in parameters.items()}
        method.export(model, weights, place / name, name, {"base": "model"})
        (made.files[name],) = (place / name).rglob("*.safetensors")
    return made


def drawn(model: Model, config: SampleConfig = CONFIG) -> Any:
    return np.stack([np.asarray(s.image, np.int16) for s in sample(model, config)])


def weights_of(model: Model) -> dict[str, torch.Tensor]:
    return {f"{part}.{n}": v.clone() for part, m in model.parts.items() for n, v in m.state_dict().items()}


def test_the_sum_is_that_of_the_merged_weights(world: World) -> None:
    strengths = {"lora": 0.8, "dora": 0.5, "loha": 1.0, "lokr": -0.7, "oft": 1.5}
    merged, model = world.model(), world.model()
    base = drawn(model)
    total: dict[str, torch.Tensor] = {}
    for name, strength in strengths.items():
        alone = world.model()
        made = read(world.files[name], adapters.layers_of(alone.parts)).put_on(alone.parts, "x")
        for layer, adapter in made.items():
            total[layer] = total.get(layer, torch.zeros(())) + strength * adapter.change()
        tuned.add(model, Named(world.files[name], strength))
    layers = adapters.layers_of(merged.parts)
    for name, change in total.items():
        layers[name].weight.data += change.detach()  # type: ignore[operator]
    ours = drawn(model)
    assert abs(ours - drawn(merged)).max() <= 1 and abs(ours - base).max() > 5
    found = dict(adapters_of(model.parts))
    assert found.keys() == total.keys() and any(
        isinstance(a, together.Sum) and len(a.members) == 5 for a in found.values()
    )
    for name, adapter in found.items():
        torch.testing.assert_close(adapter.change() * adapter.strength, total[name], rtol=1e-4, atol=1e-5)
    adapters.merge(model.parts)
    assert not list(adapters_of(model.parts)) and abs(drawn(model) - drawn(merged)).max() <= 1


def test_the_order_does_not_matter_and_each_comes_off_by_itself(world: World) -> None:
    model = world.model()
    before, base = weights_of(model), drawn(model)
    names = ("lora", "dora", "lokr")
    changes = {name: tuned.add(model, Named(world.files[name], 0.6)) for name in names}
    forwards = drawn(model)
    changes["dora"].close()
    without = drawn(model)
    for name in ("lora", "lokr"):
        changes[name].close()
    assert np.array_equal(drawn(model), base) and not list(adapters_of(model.parts))
    after = weights_of(model)
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
    for name in reversed(names):
        changes[name] = tuned.add(model, Named(world.files[name], 0.6))
    assert abs(drawn(model) - forwards).max() <= 1
    changes["dora"].close()
    assert abs(drawn(model) - without).max() <= 1 and abs(without - forwards).max() > 2


def test_strength_0_is_the_base_byte_for_byte(world: World) -> None:
    model = world.model()
    base = drawn(model)
    for name in world.files:
        tuned.add(model, Named(world.files[name], 0.0))
    assert np.array_equal(drawn(model), base)


def test_one_file_at_strength_1_is_the_file_alone(world: World) -> None:
    one, other = world.model(), world.model()
    tuned.load(one, world.files["loha"])
    opened = Opened(other)
    opened.suit(SampleConfig(adapters=(str(world.files["loha"]),)))
    assert np.array_equal(drawn(one), drawn(other))


def test_on_top_of_the_run_that_is_named_first(world: World) -> None:
    model = world.model()
    opened, more = Opened(model, tuned.load(model, world.files["lora"])), (f"{world.files['loha']}:0.5",)
    alone = SampleConfig(strength=0.0, adapters=more)
    opened.suit(alone)
    fresh = world.model()
    tuned.add(fresh, Named(world.files["loha"], 0.5))
    assert abs(drawn(model) - drawn(fresh)).max() <= 1, "the first at strength 0 is not there"
    opened.suit(SampleConfig(strength=0.7, adapters=more))
    tuned.add(fresh, Named(world.files["lora"], 0.7))
    assert abs(drawn(model) - drawn(fresh)).max() <= 1
    opened.suit(SampleConfig(strength=0.0))
    assert np.array_equal(drawn(model), drawn(world.model()))


def test_what_failed_halfway_is_put_right_by_the_next_that_is_asked(world: World, tmp_path: Path) -> None:
    model = world.model()
    opened, loha = Opened(model), SampleConfig(adapters=(str(world.files["loha"]),))
    opened.suit(loha)
    wanted = drawn(model)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no weights")
    with pytest.raises(ModelError):
        opened.suit(SampleConfig(adapters=(str(broken),)))
    opened.suit(loha)
    assert np.array_equal(drawn(model), wanted)


def test_words_of_several_files_are_read_together(world: World) -> None:
    model = world.model()
    prompts = ["a <one> and a <two>", "a dog"]
    for name in ("one", "two"):
        tuned.add(model, Named(world.files[name], 1.0))
    both = model.encode_prompts(prompts).states_BLD
    alone = world.model()
    assert model.new_words and model.new_words.words == {"<one>": 1, "<two>": 2}
    last = tuned.load(alone, world.files["two"])
    torch.testing.assert_close(
        alone.encode_prompts(["a <two>"]).states_BLD, model.encode_prompts(["a <two>"]).states_BLD
    )
    one_more = tuned.add(alone, Named(world.files["one"], 1.0))
    torch.testing.assert_close(alone.encode_prompts(prompts).states_BLD, both)
    with pytest.raises(ModelError, match=r"'<one>' is a word that another file has taught already"):
        tuned.add(alone, Named(world.files["one"], 1.0))
    torch.testing.assert_close(alone.encode_prompts(prompts).states_BLD, both)
    one_more.close()
    assert alone.new_words and alone.new_words.words == {"<two>": 2}
    last.close()
    assert torch.equal(alone.encode_prompts(prompts).states_BLD, world.model().encode_prompts(prompts).states_BLD)


NAMES = {
    "a.safetensors": ("a.safetensors", 1.0), "runs/x:0.5": ("runs/x", 0.5), "a:-1.5": ("a", -1.5), "C:/a.st": ("C:/a.st", 1.0),
}  # fmt: skip


@pytest.mark.parametrize("text", NAMES)
def test_names_and_strengths(text: str) -> None:
    path, strength = NAMES[text]
    assert Named.read(text) == Named(Path(path), strength)


@pytest.mark.parametrize("text", ["a:5", ":1", "a:nan"])
def test_bad_strengths_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"sample.adapters: .*a strength from -4 to 4"):
        Named.read(text)


def test_what_does_not_fit_is_one_clear_line_and_leaves_the_model_as_it_was(world: World, tmp_path: Path) -> None:
    sdxl = tiny.family_folder("sdxl", tmp_path / "sdxl")
    model = load(sdxl)
    with pytest.raises(ModelError, match=r"\d+ of \d+ adapted layers fit .*another kind of model \(made for model\)"):
        tuned.add(model, Named(world.files["lora"], 1.0))
    assert not list(adapters_of(model.parts))
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    for path, says in ((tmp_path, "holds no adapter"), (tmp_path / "none", "no such adapter file or run")):
        with pytest.raises(ModelError, match=says):
            tuned.add(world.model(), Named(path, 1.0))


def test_the_command_line_records_them_and_asks_for_them_again(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as left:
            cli.main(["sample", str(world.folder), *arguments, "--quiet", "train.threads=1"])
        return int(left.value.code or 0)

    loras = ("--lora", f"{world.files['lora']}:0.5", "--lora", str(world.files["oft"]))
    few = ("-p", "a dog", "sample.steps=2", "sample.seeds=[1]")
    assert run(*few, *loras, "--out", str(tmp_path / "a")) == 0
    assert not capsys.readouterr().err
    (first,) = (tmp_path / "a").glob("*.png")
    rows = json.loads(first.with_suffix(".json").read_text())["adapters"]
    assert [(row["name"], row["strength"], len(row["sha256"])) for row in rows] == [
        ("lora.safetensors", 0.5, 64), ("oft.safetensors", 1.0, 64)
    ]  # fmt: skip
    assert run("--from", str(first), "--out", str(tmp_path / "b")) == 2
    assert "name their files: --lora lora.safetensors:0.5 --lora oft.safetensors:1" in capsys.readouterr().err
    assert run("--from", str(first), *loras, "--out", str(tmp_path / "b")) == 0
    (second,) = (tmp_path / "b").glob("*.png")
    assert second.read_bytes() == first.read_bytes() and not capsys.readouterr().err
    assert run("--from", str(first), *loras[:2], "--out", str(tmp_path / "c")) == 0
    assert "adapters: " in capsys.readouterr().err


def test_another_base_of_the_same_kind_is_noted(world: World, tmp_path: Path) -> None:
    other, said = tiny.sd1_folder(tmp_path / "other"), list[str]()
    overrides = (f'sample.adapters=["{world.files["lora"]}"]', "sample.steps=1", "sample.seeds=[1]", "train.threads=1")
    assert len(list(sdtune.sample(other, *overrides, prompts=["a"], say=said.append))) == 1
    assert len(said) == 1 and "was trained on model, this is other" in said[0]
