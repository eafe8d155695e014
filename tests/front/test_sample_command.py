"""`sdtune sample`: what it lists."""

import json
from pathlib import Path

import pytest

from sdtune import cli
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
