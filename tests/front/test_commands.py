"""Help, recipes, keys, doctor, inspect, the Python API and the notebook."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sdtune
from sdtune import config as configs
from sdtune import console, demo_run, doctor, errors, inspection, presets
from sdtune.cli import EXIT_CODES
from sdtune.console import Progress, duration, pack, sparkline
from sdtune.events import Event, Started, Step, Validated
from sdtune.methods.lora import Lora
from sdtune.methods.targets import TARGETS, TEXT_TARGETS
from sdtune.runs import Run
from sdtune.schema import field_help
from tests import command, tiny
from tests.front.conftest import COMMAND, Place

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "demo",
    "init",
    "train",
    "sample",
    "compare",
    "evaluate",
    "sweep",
    "protocol",
    "metrics",
    "experiment",
    "ls",
    "doctor",
    "inspect",
    "keys",
    "timeline",
    "tensorboard",
]


def output(*arguments: str, folder: Path | None = None, **environment: str) -> str:
    """What a quick command writes on stdout."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def inside(*arguments: str, folder: Path | None = None) -> str:
    """The same of a command that loads torch."""
    done = command.run(*arguments, folder=folder)
    assert (done.code, done.err) == (0, "")
    return done.out


# ---- help


def test_help_shows_commands_and_exit_codes() -> None:
    text = output("--help")
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^ +{code} +{re.escape(meaning)}", text, re.MULTILINE)
    assert [name for name in COMMANDS if re.search(rf"│ {name} ", text)] == COMMANDS


def test_exit_codes_are_those_of_the_errors_and_of_the_documentation() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.SdtuneError)]
    assert {c.exit_code for c in classes} <= EXIT_CODES.keys()
    documented = re.findall(r"^\| (\d+) \| ", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(code) for code in documented] == list(EXIT_CODES)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_fits_80_columns(command: str) -> None:
    text = output(command, "--help", COLUMNS="80")
    purpose = text[: text.index("╭")]
    assert re.search(rf"^ +Example +sdtune {command}", purpose, re.MULTILINE)
    assert re.search(r"^ +Writes +\S", purpose, re.MULTILINE)
    lines = purpose.splitlines()[3:]  # after the usage
    assert not [line for line in lines if len(line.rstrip()) > 80]
    assert "\\" not in text


@pytest.mark.parametrize(
    "arguments", [["train", "--help"], ["keys"], ["init", "--out", os.devnull + "/x"], ["--version"]]
)
def test_quick_commands_import_no_torch(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sdtune", *arguments], capture_output=True, text=True, check=False
    )
    roots = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "sdtune" in roots
    assert not roots & {"torch", "diffusers", "transformers", "numpy"}


RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_the_plan_of_every_recipe_can_be_told(recipe: Path) -> None:
    """Of methods too that cannot be made without being told something."""
    config = configs.load(recipe)
    started = Started(
        0, 10, "r", "cpu", "float32", trainable=5, total=100, pictures=3, validation_pictures=1, batch_size=2
    )
    rows = dict(console.plan(config, started, Path("r")))
    assert rows["method"].split(",")[0] == config.method.type and rows["trains"].startswith("5 parameters (5 %")
    if recipe.stem == "sdxl_pivotal":
        assert rows["method"] == "lora, tokens <sks> = dog, token_vectors 2, targets attention, rank 16"


# ---- keys and recipes


def test_every_key_has_help_and_default() -> None:
    listed = presets.keys("")
    assert not [key for key in listed if "MISSING" in key.default]
    assert {key.name for key in listed if key.default == "required"} == {"sample.guide.colour", "sample.guide.text"}
    assert not [key.name for key in listed if not key.help or not key.kind]
    names = [key.name for key in listed]
    kinds = [(key.name, kind) for key in listed for kind in key.only.split(", ")]
    assert len(set(kinds)) == len(kinds)

    def leaves(at: str, value: object) -> Iterator[str]:
        """The keys below `at`; a table of the user's own, such as method.ranks, is one key."""
        if isinstance(value, dict) and at not in names:
            for key, inner in value.items():
                yield from leaves(f"{at}.{key}".lstrip("."), inner)
        else:
            yield at

    constant: set[str] = set()  # of one kind only: nothing to choose
    found = {key for key in leaves("", configs.to_dict(configs.load())) if "." in key}
    assert "data.on.near_copies" in found
    unset = {key for key in found if any(name.startswith(f"{key}.") for name in names)}  # groups that may be left out
    assert found - constant - unset <= set(names) and unset == {"sample.guide"}


def test_keys_command() -> None:
    assert 'train.precision = "auto"  (one of "auto", "fp32", "bf16", "fp16")' in output("keys", "train")
    listed = json.loads(output("keys", "method", "--json"))
    assert {
        "name": "method.rank",
        "kind": "integer > 0",
        "default": "16",
        "help": field_help(Lora)["rank"],
        "only": "lora, dora, qlora",
    } in listed


@pytest.mark.parametrize("name", presets.names())
def test_preset_is_its_recipe_with_every_key_explained(name: str) -> None:
    text = presets.commented(name, "mine.toml")
    path = presets.recipe(name)
    assert presets.header(path).keys() == {"purpose", "hardware", "time", "expected", "command"}
    lines = text.splitlines()
    keys = [i for i, line in enumerate(lines) if "=" in line and not line.startswith("#")]
    assert keys
    assert not [lines[i] for i in keys if not lines[i - 1].startswith("# ")]
    import tomllib

    assert tomllib.loads(text) == tomllib.loads(path.read_text(encoding="utf-8"))


def test_init_writes_a_recipe_once(tmp_path: Path) -> None:
    shown = output("init", "demo-subject", folder=tmp_path)
    path = tmp_path / "demo_subject.toml"
    assert configs.load(path) == configs.load(presets.recipe("demo-pip"))
    assert "sdtune train demo_subject.toml" in shown
    path.write_text("mine", encoding="utf-8")
    again = subprocess.run(
        [*COMMAND, "init", "demo-subject"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert again.returncode == 2
    assert "demo_subject.toml: exists already" in again.stderr
    assert path.read_text(encoding="utf-8") == "mine"


def test_help_of_init_names_every_preset() -> None:
    text = " ".join(output("init", "--help").replace("│", " ").split())
    for name in presets.names():
        assert re.search(rf"{name}[ ,.]", text), name


# ---- doctor and inspect


def test_doctor_command(place: Place) -> None:
    done = place.run("doctor", "--json")
    found = {check["name"]: check for check in map(json.loads, done.stdout.splitlines())}
    assert {
        "python",
        "packages",
        "device",
        "cpu",
        "memory",
        "disk",
        "writing",
        "hub cache",
        "embedded base",
    } <= found.keys()
    assert done.returncode == (1 if any(c["status"] == "fail" for c in found.values()) else 0)


def test_doctor_of_a_sound_recipe(place: Place) -> None:
    found = {check.name: check for check in doctor.checks(str(place.recipe))}
    assert {found[name].status for name in ("recipe", "model")} == {"ok"}
    assert "trains" in found["model"].detail


def test_doctor_names_what_is_wrong(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr(doctor, "floors", lambda: {"torch": "99.0", "no-such-package": "1.0"})
    found = {c.name: c for c in doctor.checks("tiny.toml", ("data.path=nowhere", "model.path=./nowhere"))}
    assert found["packages"].status == "fail"
    assert found["packages"].remedy == "pip install --upgrade 'torch>=99.0' 'no-such-package>=1.0'"
    assert found["pictures"].status == "fail"
    assert "nowhere" in found["pictures"].detail
    assert found["model"].status == "fail"
    assert [c.detail for c in doctor.checks("tiny.toml", ("train.step=1",)) if c.name == "recipe"] == [
        "tiny.toml: train.step: no such key; did you mean 'steps'?"
    ]


def test_doctor_counts_captions_that_are_cut(place: Place, tmp_path: Path) -> None:
    data = tiny.imagefolder(tmp_path / "data", ["a dog", "a cat", "a dog " * 20])
    found = list(doctor.checks(str(place.recipe), (f"data.path={data}", "data.validation_share=0")))
    (said,) = [c for c in found if "tokens that the text encoder reads" in c.detail]
    assert (said.name, said.status) == ("captions", "warn")
    assert said.detail.startswith(
        "1 picture with a caption of more than the 16 tokens that the text encoder reads: 002.png"
    )
    assert said.remedy.endswith("or set data.caption_chunks=3"), "(42 - 2) / 14"
    ignored = ("data.on.long_caption=ignore", f"data.path={data}", "data.validation_share=0")
    assert not [c for c in doctor.checks(str(place.recipe), ignored) if c.name == "captions"]


def test_doctor_outlives_a_broken_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = {c.name: c for c in doctor.checks()}
    assert found["device"].status == "fail"
    assert found["disk"].status in ("ok", "warn")


def test_inspect_counts_what_attach_trains(place: Place) -> None:
    report = inspection.inspect(str(place.folder / "model"), rank=3)
    assert isinstance(report, inspection.ModelReport)
    assert {part.name for part in report.parts} == {"vae", "text_encoder", "denoiser"}
    for target in report.targets:
        model = inspection.load(str(place.folder / "model"))
        trained = Lora(targets=target.name, rank=3).attach(model, seed=0)
        assert target.parameters == sum(p.numel() for p in trained.values())
        assert len(target.layers) == len(trained) / 2
    assert [target.name for target in report.targets] == [n for n in TARGETS if n not in ("style", "content")]
    denoiser = sum(p.numel() for p in Lora(rank=3).attach(inspection.load(report.source), seed=0).values())
    for target in report.text_targets:
        both = Lora(rank=3, text_encoders=True, text_targets=target.name).attach(inspection.load(report.source), seed=0)
        assert target.parameters == sum(p.numel() for p in both.values()) - denoiser
    assert [(t.part, t.name) for t in report.text_targets] == [("text_encoder", n) for n in TEXT_TARGETS]
    assert "method.text_targets at rank 16" in inside("inspect", str(place.folder / "model"))


def test_inspect_tells_what_a_recipe_would_train() -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "demo_text.toml"
    report = inspection.inspect_recipe(recipe)
    config = configs.load(recipe)
    parameters = config.method.attach(config.model.load(), seed=0)
    assert report.trainable == sum(p.numel() for p in parameters.values()) == sum(g.parameters for g in report.groups)
    assert {g.part for g in report.groups} == {"unet", "text_encoder"} and report.total == 10_934_404
    places = {(g.part, g.name): g.tensors for g in report.groups}
    assert places["unet", "ff.net.0.proj"] == 2 * sum(".ff.net.0.proj.lora_A" in n for n in parameters)
    shown = inside("inspect", str(recipe))
    assert f"trains  {report.trainable:,}, 14.54 %" in shown and "self_attn.q_proj" in shown


def test_inspect_reads_embeddings_and_recipes_stand_for_their_model(tmp_path: Path) -> None:
    file = tmp_path / "sks.safetensors"
    save_file({"<sks>": torch.zeros(3, 160)}, file)
    assert "<sks> 3 x 160" in inside("inspect", str(file))
    (tmp_path / "base.toml").write_text("[sample]\nsteps = 1\nseeds = [3]\n")
    inside("sample", "base.toml", "-p", "dog", "--out", "out", folder=tmp_path)
    assert [p.name for p in (tmp_path / "out").glob("*.png")] == ["000-dog-3.png"]


def test_inspect_measures_the_change(place: Place, tmp_path: Path) -> None:
    import torch

    from sdtune.methods.adapters import adapters_of

    model = inspection.load(str(place.folder / "model"))
    method = Lora(rank=2, alpha=6, targets="many")
    parameters = method.attach(model, seed=0)
    with torch.no_grad():
        for i, p in enumerate(parameters.values()):
            p.normal_(generator=torch.Generator().manual_seed(i))
    weights = {name: p.detach() for name, p in parameters.items()}
    path = method.export(model, weights, tmp_path, "it", {"base": "tiny"})
    report = inspection.inspect(str(path))
    assert isinstance(report, inspection.AdapterReport)
    assert (report.rank, report.alpha, report.about["base"]) == (2, 6.0, "tiny")
    true = {name: float(adapter.change().detach().norm()) for name, adapter in adapters_of(model.parts)}
    assert {f"unet.{name}": norm for name, _, norm in report.layers} == pytest.approx(true, rel=1e-5)


def test_inspect_takes_a_pattern_for_a_set(place: Place) -> None:
    found = inspection.target_set(inspection.load(str(place.folder / "model")).denoiser, "*.attn2.to_k", 4)
    assert found.layers
    assert all(name.endswith(".attn2.to_k") for name in found.layers)


# ---- drawing


def test_progress_knows_speed_loss_and_change() -> None:
    progress = Progress()
    started = Started(0, 10, "runs/x", "cpu", "float32", 1, 2, 3, 4, 8)
    events: list[Event] = [started, Validated(0, 0.5, (0.5,)), *(Step(i, 1.0, 1.0, 1e-4, 0.5) for i in range(1, 5))]
    for event in events:
        progress.take(event)
    assert progress.rate == pytest.approx(2)
    assert progress.speed() == ["2.00 it/s", "16.0 img/s"]
    assert progress.loss == pytest.approx(1.0)
    assert progress.validated() == "validation 0.5000"
    progress.take(Validated(4, 0.4, (0.4,)))
    assert progress.validated() == "validation 0.4000 (-20.0 % to step 0)"


def test_a_resumed_run_remembers_its_first_validation(finished: object, place: Place) -> None:
    progress = Progress()
    progress.recall(place.folder / "runs" / "done")
    assert progress.base_validation is not None
    assert len(progress.losses) == 30
    assert progress.rate == 0  # the speed is this session's own


def test_words_for_numbers() -> None:
    assert [duration(s) for s in (2.34, 45, 90, 7500)] == ["2.3 s", "45 s", "1 min 30 s", "2 h 05 min"]
    assert [console.count(n) for n in (950, 12_300, 8_840_000)] == ["950", "12.3 k", "8.84 M"]
    assert sparkline([0, 1, 2, 3], 4) == "▁▃▆█"
    assert sparkline([float("nan"), 1.0], 4) == sparkline([1, 1], 4) == ""
    assert pack(["aaaa", "", "bb", "cccc"], 9) == ["aaaa   bb", "cccc"]


# ---- the Python API


def test_functions_stay_functions_when_the_modules_are_imported() -> None:
    import importlib

    for name in ("train", "sample", "compare", "evaluate", "sweep"):
        module = importlib.import_module(f"sdtune.{name}")
        assert getattr(sdtune, name) is not module
        assert callable(getattr(sdtune, name))
    assert sdtune.Run.__name__ == "Run"
    assert set(sdtune.__all__) <= {*vars(sdtune), "Run", "RunConfig"}


def test_import_is_quick() -> None:
    code = "import sys, sdtune; sys.exit(bool({'torch', 'numpy', 'pydantic', 'rich'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_api_refuses_what_it_cannot_draw(place: Place) -> None:
    with pytest.raises(errors.ConfigError, match="nothing to draw"):
        list(sdtune.sample(place.folder / "model"))


def test_evaluate_reads_folders_and_the_prompts_beside_pictures(place: Place, tmp_path: Path) -> None:
    pictures = [tiny.picture(i) for i in range(3)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.json").write_text(json.dumps({"prompt": f"drawing {i}"}), encoding="utf-8")
    with_prompts = sdtune.evaluate(tmp_path, place.folder / "data" / "train")
    (tmp_path / "1.json").unlink()
    without = sdtune.evaluate(tmp_path, place.folder / "data" / "train")
    assert {f.key for f in without.figures} == {"kid_target", "fd_target"}
    assert {f.key for f in without.figures} < {f.key for f in with_prompts.figures}
    with pytest.raises(errors.DataError, match="no pictures there"):
        sdtune.evaluate(tmp_path, place.folder)


# ---- the demo and the notebook


def test_fresh_demo_deletes_runs_only(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(errors.RunError, match="is no run folder"):
        demo_run.clear(Run(tmp_path / "mine"))
    assert (tmp_path / "mine" / "letter.txt").exists()
    run = Run(tmp_path / "demo")
    run.write_config(demo_run.config("lora"))
    (run.path / "checkpoints").mkdir()
    demo_run.clear(run)
    assert not list(run.path.iterdir())


def test_demo_says_what_it_does_and_how_long() -> None:
    assert re.search(r"like a comic\..*\nTakes .+\.", demo_run.intention("lora"))
    with pytest.raises(errors.ConfigError, match="did you mean 'demo-full'"):
        demo_run.config("ful")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_demo(tmp_path: Path) -> None:
    shown = output("demo", folder=tmp_path, SDTUNE_CACHE=str(tmp_path / "cache"))
    assert shown.rstrip().endswith("report  runs/demo-lora/comparison/report.html")
    assert "Moved to the target?" in shown
    assert "this run is finished already" in output("demo", folder=tmp_path)


def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("SDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert (tmp_path / "runs/quickstart/comparison/report.html").is_file()
    compared = json.loads(inside("compare", "runs/quickstart", "--json", folder=tmp_path))
    assert compared["report"] == "runs/quickstart/comparison/report.html"
    _vote_and_sweep(tmp_path)


def _vote_and_sweep(folder: Path) -> None:
    """The other commands that judge, on the notebook's run."""
    page = (folder / "runs/quickstart/comparison/vote.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    votes = {
        "format": data["format"],
        "ballot": data["ballot"],
        "voter": "ann",
        "votes": [{"pair": 0, "choice": "left"}],
    }
    (folder / "votes.json").write_text(json.dumps(votes), encoding="utf-8")
    found = json.loads(inside("compare", "runs/quickstart", "--votes", "votes.json", "--json", folder=folder))
    row = next(f for f in found["scores"]["figures"] if f["key"] == "votes")
    assert "1 blind choice on 1 prompt by 1 voter" in row["note"]
    assert (folder / "runs/quickstart/comparison/votes/ann.json").is_file()
    (folder / "votes.json").write_text("{}", encoding="utf-8")
    refused = command.run("compare", "runs/quickstart", "--votes", "votes.json", folder=folder)
    assert (refused.code, refused.out) == (7, "")
    assert refused.err.startswith("error: votes.json: no votes of sdtune")
    swept = json.loads(
        inside(
            "sweep", "runs/quickstart", "--strength", "1", "evaluate.max_prompts=2", "--json", folder=folder
        ).splitlines()[-1]
    )
    assert swept["report"] == "runs/quickstart/sweep/report.html"
    assert swept["points"][0]["checkpoint"] == "base"
