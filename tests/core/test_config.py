"""The config: what it refuses, in which words, and that it survives a round trip."""

import dataclasses
import tomllib
from pathlib import Path

import jsonschema
import pytest

from sdtune import config
from sdtune.config import RunConfig
from sdtune.errors import ConfigError
from sdtune.schema import Section, field_help


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method.rnk=4"], "method.rnk: no such key; did you mean 'rank'?"),
        (["method.type=full", "method.rank=4"], "method.rank: no such key"),
        (["train.steps=2.5"], "train.steps: input should be a valid integer"),
        (["optimizer.lr=-1"], "optimizer.lr: input should be greater than 0, got -1"),
        (["sample.scheduler=dimm"], "did you mean 'ddim'?"),
        (["method.type=loro"], "did you mean 'lora'?"),
        (["train.steps"], "'train.steps' is not key=value"),
        ([["train.steps=1"]], "settings are texts, one by one"),
        (["name=a", "name.x=1"], "name.x: 'name' is a value, not a group of keys"),
        (["name=../elsewhere"], "name: string should match pattern"),
        (["trian.steps=1"], "trian: no such key; did you mean 'train'?"),
    ],
)
def test_errors_name_the_key_and_the_remedy(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(overrides=overrides)
    assert says in str(error.value)


def test_all_faults_are_in_one_list() -> None:
    with pytest.raises(ConfigError) as error:
        config.load(overrides=["train.stesp=3", "optimizer.lrr=2", "method.rank=-1"])
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "method.rank",
        "optimizer.lrr",
        "train.stesp",
    ]


def test_a_recipe_is_read_and_the_last_override_wins(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('name = "a"\n[method]\nrank = 4\n')
    run = config.load(tmp_path / "r.toml", ["method.rank=8", "method.rank=16", 'data.path="x y"', "optimizer.lr=1e-3"])
    assert (run.name, run.method.rank, run.data.path, run.optimizer.lr) == ("a", 16, "x y", 1e-3)  # type: ignore[union-attr]


@pytest.mark.parametrize(("text", "says"), [("[method\nrank=1", "not valid TOML"), (None, "no such file")])
def test_an_unreadable_recipe_is_one_clear_line(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ConfigError, match=says) as error:
        config.load(tmp_path / "r.toml")
    assert "r.toml" in str(error.value) and "\n" not in str(error.value)


def test_round_trips() -> None:
    run = config.load(
        overrides=["method.type=full", "sample.prompts=['a \"b\"', 'ü']", "train.ema=0.99", "optimizer.lr=1e-7"]
    )
    assert config.from_dict(config.to_dict(run)) == run
    assert config.from_dict(tomllib.loads(config.to_toml(run))) == run


def test_the_schema_describes_every_field_and_accepts_the_defaults() -> None:
    schema = config.json_schema()
    jsonschema.validate(_json(config.to_dict(RunConfig())), schema)
    for name, part in schema["$defs"].items():
        for key, field in part["properties"].items():
            assert key == "type" or field.get("description"), f"{name}.{key} has no help"


def test_every_field_has_help() -> None:
    for section in _all(Section):
        texts = field_help(section)  # type: ignore[arg-type]
        missing = {f.name for f in dataclasses.fields(section)} - texts.keys() - {"type"}  # type: ignore[arg-type]
        assert not missing, f"{section.__name__}: no help under {missing}"


def _all(cls: type[Section]) -> list[type[Section]]:
    return [c for s in cls.__subclasses__() for c in (s, *_all(s))]


def _json(value: object) -> object:
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    return [_json(v) for v in value] if isinstance(value, tuple) else value
