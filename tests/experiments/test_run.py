"""A matrix over a tiny model, from nothing to its page: what is missing is made, what is there stays, what fails is noted."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sdtune.errors import ConfigError, RunError
from sdtune.events import Event as TrainingEvent
from sdtune.events import Finished, Started, Step
from sdtune.experiments import measure
from sdtune.experiments.events import Began, Broke, Event, Made, Planned, Ranked, Worked, plain
from sdtune.experiments.matrix import Matrix, load
from sdtune.experiments.measure import cost, rapl
from sdtune.experiments.page import of_matrix, write
from sdtune.experiments.run import Clock, Task, experiment, state_of, tasks
from sdtune.experiments.shared import keep, take
from sdtune.files import write_text
from sdtune.pages import asset
from sdtune.presets import folder
from sdtune.runs import Run
from tests import tiny
from tests.experiments.conftest import TWO, in_process

Make = Callable[..., Matrix]


def states(matrix: Matrix, out: Path) -> list[str]:
    return [task.state for task in tasks(matrix, out)]


def test_the_worker_trains_compares_and_measures(finished: tuple[Matrix, Path]) -> None:
    matrix, out = finished
    assert states(matrix, out) == ["finished", "finished"]
    item = tasks(matrix, out)[0].item
    spent = cost(item.run)
    assert spent.trainable and spent.total and spent.steps == 4 and spent.size_mb and spent.peak_memory_mb
    assert spent.seconds and spent.images_per_second and measure.wall(item.run)
    assert measure.wall(item.run) >= spent.seconds  # type: ignore[operator]


def test_base_pictures_are_drawn_once(finished: tuple[Matrix, Path], made: Make) -> None:
    _, out = finished
    matrix = made("axes.grid.method.rank = [1, 2, 3]")
    item = tasks(matrix, out)[-1].item
    answers = in_process(item, out)
    first = next(a for a in answers if a.get("what") == "base pictures")
    assert first["done"] == first["total"] == 3
    one, other = (
        next((t.item.run.comparison / "base").glob("000-*.png")).stat()
        for t in (tasks(matrix, out)[0], tasks(matrix, out)[-1])
    )
    assert (one.st_ino, one.st_nlink >= 3) == (other.st_ino, True)


def test_the_page_has_the_rows_the_base_and_the_cards(finished: tuple[Matrix, Path]) -> None:
    matrix, out = finished
    write(of_matrix(matrix, out, tasks(matrix, out)))
    found = json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))
    rows = found["figures"]["validation_loss"]["rows"]
    assert {row["name"] for row in rows} == {"rank-1", "rank-2", "base"}
    assert {row["claims"] for row in rows if row["name"] != "base"} == {False} and found["of"] == "runs"
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "rank-1" in page and "Content-Security-Policy" in page and "http" not in page.replace("http-equiv", "")
    assert asset("zoom.js") in page
    assert str(out.parent) not in page + (out / "leaderboard.json").read_text(encoding="utf-8")
    card = next(out.glob("rank-1-*")) / "card.md"
    assert [
        h
        for h in ("overview", "how it helps", "origin of the idea", "result", "why better or worse")
        if f"## {h}" in card.read_text()
    ]


def test_the_users_prose_stays_and_the_facts_are_written_anew(finished: tuple[Matrix, Path]) -> None:
    matrix, out = finished
    write(of_matrix(matrix, out, tasks(matrix, out)))
    path = next(out.glob("rank-1-*")) / "card.md"
    text = path.read_text(encoding="utf-8")
    mine = text.replace("<!-- Your reading of the result. -->", "Too few steps.\n\n## notes\n\nMine.")
    path.write_text(mine.replace("- 4 steps", "- 999 steps"), encoding="utf-8")
    write(of_matrix(matrix, out, tasks(matrix, out)))
    assert path.read_text(encoding="utf-8") == mine
    assert "Too few steps." in (out / "index.html").read_text(encoding="utf-8")


def test_another_comparison_is_work_to_do_and_another_cell_too(finished: tuple[Matrix, Path], made: Make) -> None:
    _, out = finished
    assert states(made(f"{TWO}\nset.evaluate.seeds = [3, 4]"), out) == ["to compare", "to compare"]
    assert states(made(f"{TWO}\nseeds = [0, 1]"), out) == ["finished", "finished", "missing", "missing"]
    assert states(made(TWO, steps=6), out) == ["missing", "missing"]


def test_stopped_work_is_gone_on_with(made: Make, tmp_path: Path) -> None:
    matrix, out = made("", steps=6), tmp_path / "out"
    (task,) = tasks(matrix, out)

    def at_two() -> bool:
        return sum(isinstance(e, Step) for e in task.item.run.events()) >= 2

    assert in_process(task.item, out, at_two)[-1] == {"stopped": True}
    assert states(matrix, out) == ["begun"]
    before = [e.step for e in task.item.run.events() if isinstance(e, Step)]
    assert in_process(task.item, out)[-1] == {"made": True}
    events = list(task.item.run.events())
    assert [e.step for e in events if isinstance(e, Step)] == [1, 2, 3, 4, 5, 6] and before[-1] < 6
    assert [e.step for e in events if isinstance(e, Started)] == [0, before[-1]]


# ---- in processes


def test_an_experiment_from_nothing_to_its_page_with_a_run_that_fails(made: Make, tmp_path: Path) -> None:
    text = (
        '[[axes.list]]\nname = "good"\nmethod.rank = 1\n[[axes.list]]\nname = "bad"\nmethod.targets = "nothing-like-it"'
    )
    matrix, out = made(text), tmp_path / "out"
    events = list(experiment(matrix, out, jobs=2))
    assert all(json.dumps(plain(event)) for event in events)
    assert isinstance(events[0], Planned) and (events[0].runs, events[0].todo) == (2, 2)
    assert [e.cell for e in events if isinstance(e, Made)] == ["good"]
    (broke,) = [e for e in events if isinstance(e, Broke)]
    assert broke.cell == "bad" and "no such set 'nothing-like-it'" in broke.message
    assert isinstance(events[-1], Ranked) and (events[-1].runs, events[-1].missing) == (1, 1)
    assert "no such set" in (out / "index.html").read_text(encoding="utf-8")
    again = list(experiment(matrix, out))
    assert [type(e) for e in again] == [Planned, Ranked]  # what failed is not tried again unasked
    assert sorted(states(matrix, out)) == ["failed", "finished"]


@pytest.mark.slow
def test_a_stop_ends_at_once_with_all_saved(made: Make, tmp_path: Path) -> None:
    matrix, out = made("", steps=5000), tmp_path / "out"
    seen: list[Event] = []

    def enough() -> bool:
        return any(isinstance(event, Worked) and event.what == "step" for event in seen)

    for event in experiment(matrix, out, stop=enough):
        seen += [event]
    (began,) = [event for event in seen if isinstance(event, Began)]
    assert (began.number, began.todo) == (1, 1)
    (task,) = tasks(matrix, out)
    assert task.state == "begun" and not task.item.run.living() and not task.item.failure
    assert list(task.item.run.checkpoints.glob("step-*"))


def test_one_experiment_at_a_time(made: Make, tmp_path: Path) -> None:
    matrix, out = made(TWO), tmp_path / "out"
    with Run(out).lock(), pytest.raises(RunError, match="in use by process"):
        next(experiment(matrix, out))


def test_cells_that_would_be_asked_for_other_things_are_refused(made: Make, tmp_path: Path) -> None:
    matrix = made('axes.grid.data.caption_suffix = ["", " in ink"]')
    with pytest.raises(ConfigError, match=r"has other prompts than .*; set evaluate.prompts in `set`"):
        list(experiment(matrix, tmp_path / "out"))
    pictures = f"{matrix.cells[0].config.data.path}/train"
    matrix = made(f'seeds = [0, 1]\nset.data.path = "{pictures}"\nset.data.validation_share = 0.5')
    with pytest.raises(ConfigError, match=r"with seed 1 it has other held-out pictures .*`sdtune data split`"):
        list(experiment(matrix, tmp_path / "out"))


@pytest.mark.slow
def test_kill_9_in_the_middle_and_the_same_again(made: Make, tmp_path: Path) -> None:
    """Killed without a word, the workers save and end by themselves, and the result is what it would have been."""
    matrix = made(f"{TWO}\nseeds = [0, 1]", steps=60)
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [
        sys.executable,
        "-m",
        "sdtune",
        "experiment",
        str(matrix.file),
        "--out",
        str(out),
        "--jobs",
        "2",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("what") == "step" and json.loads(line)["done"] > 5:
                os.kill(process.pid, signal.SIGKILL)
                break
    ends = time.monotonic() + 60
    while any(task.item.run.living() for task in tasks(matrix, out)) and time.monotonic() < ends:
        time.sleep(0.1)
    assert "begun" in states(matrix, out)
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert states(matrix, out) == ["finished"] * 4
    item = tasks(matrix, out)[0].item
    alone = tasks(matrix, whole)[0].item
    assert in_process(alone, whole)[-1] == {"made": True}
    one, other = (load_file(next(i.run.final.glob("*.safetensors"))) for i in (item, alone))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_six_qlora_experiments_on_a_tiny_sdxl(tmp_path: Path) -> None:
    """The matrix that comes along, but for what makes it large: NF4 wants widths of 64, so the quantised base is in int8 here."""
    tiny.family_folder("sdxl", tmp_path / "sdxl")
    tiny.imagefolder(tmp_path / "pictures" / "train", ["a red apple", "a blue dog", "a green cat"])
    tiny.imagefolder(tmp_path / "pictures" / "validation", ["a red dog", "the sun"], seed=9)
    text = (folder() / "matrices" / "qlora-six.toml").read_text(encoding="utf-8")
    small = (folder() / "sdxl_qlora_attention.toml").read_text(encoding="utf-8")
    for old, new in (
        ('"nf4"', '"int8"'),
        ('path = "stabilityai/stable-diffusion-xl-base-1.0"\nvariant = "fp16"', f'path = "{tmp_path / "sdxl"}"'),
        ('path = "pictures"', f'path = "{tmp_path / "pictures"}"\ncache = "{tmp_path / "cache"}"'),
        ("resolution = 1024", "resolution = 32"),
        ("steps = 1500", 'steps = 2\nprecision = "fp32"\nthreads = 1'),
        ("validate_every = 100", "validate_every = 1"),
        ("steps = 25", "steps = 2\nwidth = 32\nheight = 32"),
    ):
        assert old in small
        small = small.replace(old, new)
    (tmp_path / "sdxl_qlora_attention.toml").write_text(small, encoding="utf-8")
    (tmp_path / "matrices").mkdir()
    text = text.replace("seeds = [0, 1, 2]", "seeds = [0]").replace("[set]\n", "[set]\nevaluate.unrelated = []\n")
    (tmp_path / "matrices" / "six.toml").write_text(text, encoding="utf-8")
    matrix, out = load(tmp_path / "matrices" / "six.toml"), tmp_path / "out"
    for task in tasks(matrix, out):
        assert in_process(task.item, out)[-1] == {"made": True}
    assert [type(event) for event in experiment(matrix, out)] == [Planned, Ranked]  # nothing is left to do but the page
    found = json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))
    names = {row["name"] for row in found["figures"]["validation_loss"]["rows"]}
    assert names == {"base", *(cell.name for cell in matrix.cells)}


# ---- how long, how much


def test_the_time_left_is_that_of_the_cells_own_runs(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = made(f"{TWO}\nseeds = [0, 1]")
    found = tasks(matrix, tmp_path)
    known = [Task(t.item, "finished" if t.item.seed == 0 else "missing") for t in found]
    monkeypatch.setattr(measure, "wall", lambda run: 10.0 if "rank-1" in str(run.path) else 30.0)
    todo = [t for t in known if t.open]
    clock = Clock(todo, known, lanes=1)
    assert clock.left() == 40.0
    clock.begin(todo[1].item)
    clock.at(todo[1].item, 0.5)
    assert clock.left() == 25.0
    clock.drop(todo[1].item)
    assert clock.left() == 10.0


def test_time_of_several_sittings_adds_up(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.final.mkdir(parents=True)
    (run.final / "a.safetensors").write_bytes(bytes(2_000_000))
    common: dict[str, Any] = {
        "steps": 3, "run": "x", "device": "cpu", "precision": "fp32", "trainable": 5, "total": 50, "pictures": 3,
        "validation_pictures": 1, "batch_size": 4,
    }  # fmt: skip
    log: list[TrainingEvent] = [
        Started(step=0, **common, time=100.0), Step(1, 1.0, 1.0, 1.0, 9.0, time=109.0), Step(2, 1.0, 1.0, 1.0, 2.0, time=112.0),
        Started(step=2, **common, time=500.0), Step(3, 1.0, 1.0, 1.0, 2.0, time=503.0),
        Finished(3, 4.0, "final/a.safetensors", None, 321.0, time=504.0),
    ]  # fmt: skip
    for event in log:
        run.log(event)
    spent = cost(run)
    assert (spent.seconds, spent.images_per_second, spent.peak_memory_mb, spent.size_mb, spent.trainable) == (
        16.0,
        2.0,
        321.0,
        2.0,
        5,
    )
    assert (spent.joules, spent.energy) == (None, "not readable")


def test_energy_of_processors(tmp_path: Path) -> None:
    assert rapl(tmp_path) is None
    for name, joules in (("intel-rapl:0", 5), ("intel-rapl:0:0", 3), ("intel-rapl:1", 7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{joules * 1_000_000}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("100000000\n")
    before = rapl(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("2000000\n")  # began anew
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("9000000\n")
    after = rapl(tmp_path)
    assert before and after and after.since(before) == 97.0 + 2.0


@pytest.mark.parametrize("broken", ["energy_uj", "max_energy_range_uj"])
def test_energy_that_cannot_be_read_is_none(tmp_path: Path, broken: str) -> None:
    """One package without a reading, and the sum would be of half the machine."""
    for zone in ("intel-rapl:0", "intel-rapl:1"):
        (tmp_path / zone).mkdir()
        for name in ("energy_uj", "max_energy_range_uj"):
            (tmp_path / zone / name).write_text("5000000\n")
    assert rapl(tmp_path)
    (tmp_path / "intel-rapl:1" / broken).unlink()  # as for those who may not read it
    assert rapl(tmp_path) is None
    (tmp_path / "intel-rapl:1" / broken).write_text("unknown\n")
    assert rapl(tmp_path) is None


def test_energy_of_a_shared_processor_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([10.0, 30.0, 100.0, 140.0])
    monkeypatch.setattr(measure, "read_energy", lambda: measure.Energy("processors", "RAPL", {"a": next(readings)}, {}))
    run = Run(tmp_path)
    for _ in range(2):  # two sittings add up
        measure.Meter(run, shared=False).trained()
    assert cost(run).joules == 60.0
    readings = iter([0.0, 1.0])
    measure.Meter(run, shared=True).trained()
    assert (cost(run).joules, cost(run).energy) == (None, "not told: several runs shared the processors")


def test_shared_pictures_are_whole_files_under_two_names(tmp_path: Path) -> None:
    own, folder = tmp_path / "run", tmp_path / "shared"
    own.mkdir()
    for name in ("0.png", "index.json"):
        (own / name).write_text(name)
    keep(own, folder)
    take(folder, tmp_path / "other")
    assert sorted(p.name for p in (tmp_path / "other").iterdir()) == ["0.png", "index.json"]
    write_text(own / "index.json", "another comparison")
    (own / "1.png").write_text("of another")
    take(folder, own)
    assert sorted(p.name for p in own.iterdir()) == ["0.png", "index.json"]


def test_a_failure_is_a_file_in_the_run(made: Make, tmp_path: Path) -> None:
    item = tasks(made(""), tmp_path)[0].item
    item.note_failure("no memory", "line 1\nline 2")
    assert (state_of(item), item.failure) == ("failed", "no memory")
    assert dataclasses.replace(item).failure == "no memory"
