"""Plugins: the example of docs/extending.md through the real loop, and what is refused in which words."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sdtune import config as configs
from sdtune import plugins, tuned
from sdtune.config import RunConfig
from sdtune.errors import ConfigError
from sdtune.events import Finished, Step, Warned
from sdtune.methods.adapters import adapters_of
from sdtune.methods.targets import TARGETS
from sdtune.model import Cond
from sdtune.objective import Objective
from sdtune.runs import Run
from sdtune.train import train
from tests import tiny

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "my_method.py"
OWN = (
    f'plugins=["{EXAMPLE}"]', "method.type=vera", "method.rank=4", "method.targets=values", "objective.type=edges",
    "optimizer.type=momentum", "optimizer.lr=1",
)  # fmt: skip
SETTINGS = (
    "train.steps=4", "train.batch_size=2", "train.validate_every=2", "train.sample_every=0", "train.threads=1",
    "train.precision=fp32", "train.device=cpu", "optimizer.schedule=constant", "sample.steps=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    tiny.sd1_folder(folder / "model")
    tiny.imagefolder(folder / "pictures", ["a red dog", "a blue house", "the sun", "a green cat"])
    return folder


def config_of(world: Path, *overrides: str) -> RunConfig:
    paths = (f"model.path={world / 'model'}", f"data.path={world / 'pictures'}", f"data.cache={world / 'cache'}")
    return configs.load(None, [*paths, *SETTINGS, *overrides])


def test_the_example_trains_resumes_and_is_read_again(world: Path, tmp_path: Path) -> None:
    config, run = config_of(world, *OWN), Run(tmp_path / "run")
    events = list(train(config, run))
    assert isinstance(events[-1], Finished) and not [e for e in events if isinstance(e, Warned)]
    assert run.config() == config, "the run folder names the plugin by its absolute path"

    half = Run(tmp_path / "half")
    first = train(config, half)
    next(e for e in first if isinstance(e, Step) and e.step == 2)
    first.close()  # type: ignore[attr-defined]
    rest = [e.loss for e in train(config, half) if isinstance(e, Step)]
    assert rest == [e.loss for e in events if isinstance(e, Step)][2:]

    model = config.model.load()
    tuned.of_run(model, run)
    from_file = {name: a.change() for name, a in adapters_of(model.parts)}
    assert {name.rpartition(".")[2] for name in from_file} == {"to_v", "0"} and all(c.any() for c in from_file.values())
    (file,) = run.final.glob("*.safetensors")
    assert {key.rpartition(".lora_")[2] for key in load_file(file)} == {"A.weight", "B.weight"}, "any tool reads it"
    again = config.model.load()
    tuned.of_run(again, run, "step-000004")
    for name, adapter in adapters_of(again.parts):
        torch.testing.assert_close(adapter.change(), from_file[name])


def test_the_example_loss_is_what_it_says() -> None:
    config = configs.load(None, [*OWN, "objective.edges=2", "objective.weighting=none"])
    ones = torch.ones(10) * 0.5**0.5
    rng = torch.Generator().manual_seed(0)
    x0, noise, out = (torch.randn(3, 4, 6, 6, generator=rng) for _ in range(3))
    model = config.model.load()
    built = config.objective.build(model)
    assert isinstance(built, Objective)
    ours = dataclasses.replace(built, alphas_T=ones, sigmas_T=ones, prediction="epsilon")
    t_B = torch.tensor([1, 2, 3])
    loss = ours.error(lambda *_: out, x0, Cond(torch.zeros(3, 1, 1)), t_B, noise, distance=ours.distance)
    e = out - noise
    edges = sum((e - e.roll(1, d)).narrow(d, 1, 5).square().mean((1, 2, 3)) for d in (2, 3))
    torch.testing.assert_close(loss, e.square().mean((1, 2, 3)) + 2 * edges)


def test_the_example_layer_merges_to_what_it_adds() -> None:
    from sys import modules

    configs.load(None, OWN)
    module = next(m for name, m in modules.items() if name.startswith("sdtune_plugin_my_method"))
    layer = module.VeraLayer(nn.Linear(6, 5), rank=3, dropout=0.0)
    with torch.no_grad():
        layer.initialise(torch.Generator().manual_seed(0))
        layer.b += torch.randn(5, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 7, 6)
    torch.testing.assert_close(layer(x), layer.base(x) + x @ layer.change().t())
    file = layer.tensors({"d": layer.d.detach(), "b": layer.b.detach()})
    torch.testing.assert_close(file["lora_B"] @ file["lora_A"], layer.change())


def test_the_recipe_of_the_example_finds_the_file_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = configs.load(EXAMPLE.parent / "recipe.toml")
    chosen: list[str] = [config.method.type, config.objective.type]
    assert config.plugins == (str(EXAMPLE),) and chosen == ["vera", "edges"]
    assert configs.from_dict(configs.to_dict(config)) == config and TARGETS["values"] == ("*.to_v", "*.to_out.0")
    assert "'vera'" in str(configs.json_schema(config.plugins)) and "'vera'" not in str(configs.json_schema())


def test_own_keys_have_the_same_help_and_errors() -> None:
    with pytest.raises(ConfigError) as error:
        configs.load(None, [*OWN, "method.rnk=4", "objective.edges=-1"])
    assert "method.rnk: no such key; did you mean 'rank'?" in str(error.value)
    assert "objective.edges: input should be greater than or equal to 0, got -1" in str(error.value)
    with pytest.raises(ConfigError, match="did you mean 'vera'"):
        configs.load(None, [OWN[0], "method.type=vero"])


def test_without_the_plugin_its_method_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"method.type: unknown type, known: .*'lora'"):
        configs.load(None, ["method.type=vera"])


HEAD = """
from dataclasses import dataclass
from typing import Literal
from sdtune.methods.lora import Lora
from sdtune.schema import Section
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0", r"cannot be loaded: ZeroDivisionError: division by zero \(bad.py, line 1\)"),
        ("x = 1", "brings nothing; it needs one of FAMILIES, GUIDES, METHODS, OBJECTIVES, OPTIMIZERS, TARGETS"),
        ("METHODS = int", "METHODS is no tuple of classes"),
        ("METHODS = (int,)", "METHODS: int is no dataclass that derives from sdtune.schema.Section"),
        (HEAD + "class A(Lora): pass\nMETHODS = (A,)", "A is no dataclass"),
        (HEAD + "@dataclass(frozen=True)\nclass A(Section):\n    x: int = 1\nMETHODS = (A,)", "A has no tag"),
        (
            HEAD + '@dataclass(frozen=True)\nclass A(Section):\n    type: Literal["a"] = "a"\nMETHODS = (A,)',
            r"A lacks attach, apply, detach, export\(\)",
        ),
        (
            HEAD + '@dataclass(frozen=True, kw_only=True)\nclass A(Lora):\n    type: Literal["dora"] = "dora"\nMETHODS = (A,)',
            "there is a method.type 'dora' already",
        ),
        ('TARGETS = {"attention": ("*.x",)}', "there is a set 'attention' already"),
    ],
)  # fmt: skip
def test_a_bad_plugin_is_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ConfigError, match=says) as error:
        configs.load(None, [f'plugins=["{tmp_path / "bad.py"}"]'])
    assert "\n" not in str(error.value)


def test_a_plugin_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("nowhere.py", "no_such_package_anywhere", "a/b"):
        with pytest.raises(ConfigError, match=f"'{name}': no such file, package folder or installed module"):
            configs.load(None, [f'plugins=["{name}"]'])
    with pytest.raises(ConfigError, match=r"plugins.*valid"):
        configs.from_dict({"plugins": [1]})


def test_packages_and_installed_modules_are_plugins_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "house_style"
    package.mkdir()
    (package / "sets.py").write_text('TARGETS = {"house": ("*.to_q",)}\n')
    (package / "__init__.py").write_text("from .sets import TARGETS\n")
    config = configs.load(None, [f'plugins=["{package}"]', "method.targets=house"])
    assert config.plugins == (str(package),) and TARGETS.pop("house") == ("*.to_q",)
    monkeypatch.syspath_prepend(tmp_path)
    assert configs.load(None, ['plugins=["house_style.sets"]']).plugins == ("house_style.sets",)
    assert TARGETS.pop("house") == ("*.to_q",)


def test_a_run_folder_runs_no_code_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil, mark = tmp_path / "evil.py", tmp_path / "ran"
    evil.write_text(f'from pathlib import Path\nPath({str(mark)!r}).touch()\nTARGETS = {{"evil": ("*",)}}\n')
    run = Run(tmp_path / "run")
    run.path.mkdir()
    run.config_file.write_text(f'plugins = ["{evil}"]\n')
    for overrides in ([], ["train.steps=3"]):
        with pytest.raises(ConfigError, match=r"this run was made with .*evil.py, which is code; .*SDTUNE_PLUGINS="):
            run.config(overrides)
    assert not mark.exists()
    assert run.config([f'plugins=["{evil}"]']).plugins == (str(evil),), "named again"
    assert mark.exists()
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setenv("SDTUNE_PLUGINS", os.pathsep.join([str(EXAMPLE), str(evil)]))
    assert run.config().plugins == (str(evil),)
    TARGETS.pop("evil")


def test_the_command_line_says_it_in_one_line(world: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.path.mkdir()
    run.config_file.write_text(f'plugins = ["{EXAMPLE}"]\n[method]\ntype = "vera"\n')
    command = [sys.executable, "-m", "sdtune", "inspect", str(run.path)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "SDTUNE_PLUGINS=" in refused.stderr and "Traceback" not in refused.stderr
    allowed = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "SDTUNE_PLUGINS": str(EXAMPLE)}
    )
    assert allowed.returncode == 0 and "vera" in allowed.stdout
