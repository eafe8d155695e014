"""`sdtune train` as a real process: events, Ctrl-C, going on, refusals."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import sdtune
from sdtune.events import (
    Encoding,
    Failed,
    Finished,
    Sampled,
    Saved,
    Started,
    Step,
    Stopped,
    Validated,
    from_line,
    to_line,
)
from sdtune.runs import Run
from tests import tiny
from tests.front.conftest import COMMAND, Place


def test_json_lines_are_the_events(finished: subprocess.CompletedProcess[str], place: Place) -> None:
    events = [from_line(line) for line in finished.stdout.splitlines()]
    kinds = [type(event) for event in events]
    assert {Encoding, Started, Step, Validated, Saved, Finished} <= set(kinds)
    assert [e.step for e in events if isinstance(e, Step)] == list(range(1, 31))
    assert kinds[-1] is Finished
    assert finished.stderr == ""


def test_plain_output_is_lines_without_escapes(finished: subprocess.CompletedProcess[str], place: Place) -> None:
    again = subprocess.run(
        [*COMMAND, "train", "tiny.toml", "name=done"], cwd=place.folder, capture_output=True, check=True
    )
    assert b"this run is finished already" in again.stdout
    assert b"sdtune compare runs/done" in again.stdout
    assert_bands_shown(again.stdout.decode(), place)
    assert not re.search(rb"[\x1b\r\x08]", again.stdout)  # as bytes: text mode would hide a carriage return
    assert again.stderr == b""


def assert_bands_shown(text: str, place: Place, step: int = 30) -> None:
    """The table at the end of a run has the numbers of its log."""
    validated = {e.step: e for e in Run(place.folder / "runs" / "done").events() if isinstance(e, Validated)}
    assert f"validation loss by timestep, {len(validated[0].per_picture)} pictures; 95 % intervals" in text
    (head,) = (line.split() for line in text.splitlines() if line.startswith("timesteps"))
    assert head == ["timesteps", "step", "0", "step", str(step), "change", "interval", "verdict"]
    for name, covers, band in (("clean", (62, 312), 0), ("middle", (437, 562), 1), ("noisy", (687, 937), 2)):
        base, now = (sum(validated[s].per_band[band]) / len(validated[s].per_picture) for s in (0, step))
        change = re.escape(f"{100 * (now / base - 1):+.1f} %")
        wanted = rf"{name} \({covers[0]} to {covers[1]}\) +{base:.4f} +{now:.4f} +{change} +\S+ to \S+ % +cannot tell"
        assert re.search(wanted, text), text


def test_ctrl_c_saves_and_the_same_command_goes_on(finished: subprocess.CompletedProcess[str], place: Place) -> None:
    with place.popen("train", "tiny.toml", "name=stopped") as process:
        assert process.stdout is not None
        assert any(line.startswith("step ") and "loss" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with: sdtune train tiny.toml name=stopped\n" in err
    run = Run(place.folder / "runs" / "stopped")
    last = list(run.events())[-1]
    assert isinstance(last, Stopped)
    assert 0 < last.step < 30
    assert f"stopped after step {last.step}, which is saved" in out
    assert not run.lock_file.exists()

    on = place.run("train", "tiny.toml", "name=stopped")
    assert on.returncode == 0, on.stderr
    assert re.search(rf"^goes on +from step {last.step}$", on.stdout, re.MULTILINE)
    assert [e.step for e in run.events() if isinstance(e, Step)] == list(range(1, 31))
    one, other = (load_file(place.folder / f"runs/{n}/final/{n}.safetensors") for n in ("done", "stopped"))
    assert all(one[name].equal(other[name]) for name in one)


def test_sigterm_saves_too(place: Place) -> None:
    with place.popen("train", "tiny.toml", "name=terminated", "--json") as process:
        assert process.stdout is not None
        assert any(isinstance(from_line(line), Step) for line in process.stdout)
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "go on with: sdtune train tiny.toml name=terminated --json\n" in err
    assert isinstance(from_line(out.splitlines()[-1]), Stopped)
    assert list((place.folder / "runs/terminated/checkpoints").glob("step-*"))


def test_a_second_ctrl_c_leaves_at_once(place: Place) -> None:
    """The step in which the first is heard never ends here, so only the second can end the process."""
    code = (
        "import sys, time, sdtune.train\n"
        "def never(*a, **k):\n"
        "    print('in the step', flush=True)\n"
        "    while True: time.sleep(0.01)\n"
        "sdtune_train = sys.modules['sdtune.train']\n"
        "sdtune_train.train_step = never\n"
        "from sdtune.cli import main\n"
        "main(['train', 'tiny.toml', 'name=twice', '--quiet'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=place.folder, stdout=-1, stderr=-1, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "in the step\n"
        process.send_signal(signal.SIGINT)
        assert "once more leaves at once" in process.stderr.readline() + process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 130
    finally:
        process.kill()
        process.communicate()


def test_a_terminal_gets_a_live_display(finished: subprocess.CompletedProcess[str], place: Place) -> None:
    shown = in_terminal(place, "train", "tiny.toml", "name=done")
    assert "\x1b[" in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown), "a colour despite NO_COLOR"
    assert "sdtune compare runs/done" in shown


def in_terminal(place: Place, *arguments: str) -> str:
    """What `sdtune ARGUMENTS` writes to a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "46", "LINES": "30"}
    process = subprocess.Popen([*COMMAND, *arguments], cwd=place.folder, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 65536):
            shown += block
    except OSError:
        pass  # Linux says so when the other end is closed
    os.close(ours)
    assert process.wait(timeout=60) == 0, shown
    return shown.decode()


# ---- refusals: one line or list, the file or key, the remedy, the exit code


def test_all_typos_in_one_list(place: Place) -> None:
    error = place.fails(
        2, "train", "tiny.toml", "optimizer.learning_rte=1", "train.batch_sise=2", "train.steps=-3", "mehtod.rank=4"
    )
    assert error.startswith("error: 4 faults\n")
    assert "optimizer.learning_rte: no such key" in error
    assert "train.batch_sise: no such key; did you mean 'batch_size'?" in error
    assert "train.steps: input should be greater than 0, got -3" in error
    assert "did you mean 'method'?" in error


def test_unknown_choice_names_the_near_one(place: Place) -> None:
    error = place.fails(2, "train", "tiny.toml", "optimizer.schedule=cosin", "sample.scheduler=dim")
    assert "did you mean 'cosine'?" in error
    assert "did you mean 'ddim'?" in error


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "nowhere.toml"], "nowhere.toml: no such file or directory; `sdtune init` writes a recipe"),
        (["train", "tiny.toml", "steps"], "'steps' is not key=value"),
        (["init", "demo-lore"], "demo-lore: no such preset; did you mean 'demo-lora'?"),
        (["keys", "optimiser"], "optimiser: no key begins so"),
        (["sample", "--prompts", "nowhere.txt"], "nowhere.txt: cannot be read"),
    ],
)
def test_wrong_arguments(place: Place, arguments: list[str], words: str) -> None:
    assert words in place.fails(2, *arguments)


def test_what_the_system_refuses_is_one_line(place: Place) -> None:
    error = place.fails(1, "init", "--out", "tiny.toml/inside.toml")
    assert "tiny.toml" in error
    assert len(error.splitlines()) == 1


def test_json_error_is_an_event_too(place: Place) -> None:
    done = place.run("--json", "train", "nowhere.toml")
    assert done.returncode == 2
    (event,) = [from_line(line) for line in done.stdout.splitlines()]
    assert isinstance(event, Failed)
    assert event.message in done.stderr


def test_debug_shows_where(place: Place) -> None:
    done = place.run("train", "nowhere.toml", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_missing_model(place: Place) -> None:
    error = place.fails_after_opening(4, "train", "tiny.toml", "name=no-model", "model.path=./nowhere")
    assert "./nowhere: no such folder" in error


def test_no_pictures(place: Place) -> None:
    (place.folder / "empty").mkdir()
    error = place.fails_after_opening(3, "train", "tiny.toml", "name=no-data", "data.path=empty")
    assert "empty" in error


def test_a_folder_in_use_is_refused(place: Place) -> None:
    run = Run(place.folder / "runs" / "taken")
    run.path.mkdir(parents=True)
    me = {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}
    run.lock_file.write_text(json.dumps(me), encoding="utf-8")
    error = place.fails_after_opening(6, "train", "tiny.toml", "name=taken")
    assert f"in use by process {os.getpid()}" in error
    assert not run.config_file.exists()


def test_a_changed_config_is_refused(finished: subprocess.CompletedProcess[str], place: Place) -> None:
    before = (place.folder / "runs/done/config.toml").read_bytes()
    error = place.fails_after_opening(6, "train", "tiny.toml", "name=done", "method.rank=4")
    assert "method.rank: 2 -> 4" in error
    assert (place.folder / "runs/done/config.toml").read_bytes() == before


# ---- what else is done with a run


def test_sample_command_and_api_draw_the_same(finished: subprocess.CompletedProcess[str], place: Place) -> None:
    (place.folder / "prompts.txt").write_text("a red apple\n\n a blue dog \n", encoding="utf-8")
    done = place.run("sample", "runs/done", "--prompts", "prompts.txt", "--out", "drawn", "--sheet", "--quiet")
    assert done.returncode == 0, done.stderr
    names = ["drawn/000-a-red-apple-0.png", "drawn/001-a-blue-dog-0.png", "drawn-sheet.png"]
    assert done.stdout.split() == names
    assert all((place.folder / name).is_file() for name in names)
    assert (place.folder / "drawn/000-a-red-apple-0.json").is_file()
    samples = sdtune.sample(place.folder / "runs/done", prompts=["a red apple", "a blue dog"])
    for name, sample in zip(names[:2], samples, strict=True):
        with Image.open(place.folder / name) as image:
            assert image.tobytes() == sample.image.tobytes()


def test_sample_says_on_stderr_which_pictures_show_nothing(place: Place, tmp_path: Path) -> None:
    white = tiny.sd1_folder(tmp_path / "white")
    file = white / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_out.weight"].zero_()
    weights["decoder.conv_out.bias"].fill_(-3.0)
    save_file(weights, file, {"format": "pt"})
    out = tmp_path / "drawn"
    done = place.run(
        "sample", str(white), "-p", "a dog", "--out", str(out), "--json", "sample.steps=2", "sample.seeds=[1,2]"
    )
    assert done.returncode == 0
    drawn = [json.loads(line) for line in done.stdout.splitlines()]
    assert [d["flaw"].partition(";")[0] for d in drawn] == ["one colour all over, rgb(0, 0, 0)"] * 2
    assert done.stderr.splitlines() == [f"warning: {d['path']}: {d['flaw']}" for d in drawn]
    assert all(Path(d["path"]).is_file() for d in drawn)


def test_strength_0_is_the_base_and_1_is_not(finished: subprocess.CompletedProcess[str], place: Place) -> None:
    def drawn(source: str, *overrides: str) -> bytes:
        (one,) = sdtune.sample(place.folder / source, "train.precision=fp32", *overrides, prompts=["a dog"], seeds=[0])
        return one.image.tobytes()

    base = drawn("model", "sample.steps=2")
    assert drawn("runs/done", "sample.strength=0") == base
    assert drawn("runs/done") != base


def test_timeline_command(finished: subprocess.CompletedProcess[str], place: Place, tmp_path: Path) -> None:
    assert "has previews of fewer than two steps; train.sample_every" in place.fails(6, "timeline", "runs/done")
    assert "not a run folder" in place.fails(6, "timeline", str(tmp_path))
    shutil.copytree(place.folder / "runs" / "done", tmp_path / "run")
    run = Run(tmp_path / "run")
    for step in (0, 10, 20):
        path = run.samples / f"{step}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (step, 0, 0)).save(path)
        run.log(Sampled(step, "a dog", 0, f"samples/{step}.png"))
    done = place.run("timeline", str(run.path), "--columns", "2", "--json")
    assert json.loads(done.stdout) == {"timeline": str(run.path / "timeline.png"), "steps": [0, 20]}
    with Image.open(run.path / "timeline.png") as sheet:
        assert sheet.width == 8 + 2 * (128 + 8)
    done = place.run("timeline", str(run.path), "--out", str(tmp_path / "mine.png"), "--quiet")
    assert done.stdout == f"{tmp_path / 'mine.png'}\n" and (tmp_path / "mine.png").is_file()


def test_tensorboard_reads_the_log(finished: subprocess.CompletedProcess[str], place: Place, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from sdtune import tb

    run = Run(place.folder / "runs" / "done")
    for _ in range(2):  # the second call replaces what the first wrote
        tb.write(run, tmp_path)
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    losses = [(e.step, e.loss) for e in run.events() if isinstance(e, Step)]
    shown = [(s.step, s.value) for s in reader.Scalars("train/loss")]
    assert [step for step, _ in shown] == [step for step, _ in losses]
    assert [value for _, value in shown] == pytest.approx([loss for _, loss in losses])
    assert [s.step for s in reader.Scalars("validation/loss")] == [0, 10, 20, 30]


def test_follow_goes_along_with_a_living_run_until_it_ends(place: Place, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with place.popen("train", "tiny.toml", "name=followed") as trainer:
        assert trainer.stdout is not None
        assert any(line.startswith("step 0: validation") for line in trainer.stdout)
        done = place.run("follow", "runs/followed", "--to", "tensorboard", "--out", str(tmp_path), "--json")
        trainer.communicate(timeout=60)
    assert trainer.returncode == 0
    assert done.returncode == 0, done.stderr
    sent = json.loads(done.stdout)
    assert sent["outcome"] == "finished"
    assert sent["where"] == str(tmp_path)
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    assert [s.step for s in reader.Scalars("train/loss")] == list(range(1, 31))
    assert [s.step for s in reader.Scalars("validation/noisy")] == [0, 10, 20, 30]


def test_ctrl_c_ends_the_following_and_not_the_run(
    finished: subprocess.CompletedProcess[str], place: Place, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    run = Run(tmp_path / "run")
    shutil.copytree(place.folder / "runs" / "done", run.path)
    kept = [e for e in run.events() if not isinstance(e, Finished)]
    run.events_file.write_text("".join(f"{to_line(e)}\n" for e in kept), encoding="utf-8")
    me = {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}
    run.lock_file.write_text(json.dumps(me), encoding="utf-8")
    with place.popen("follow", str(run.path), "--to", "tensorboard") as process:
        while not list(run.path.glob("tensorboard/*")):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopping: what was logged so far is sent" in err
    assert "Traceback" not in err
    assert re.search(r"^run +not over yet$", out, re.MULTILINE)
    assert run.living()


def test_follow_refuses_what_it_cannot_do(
    finished: subprocess.CompletedProcess[str], place: Place, tmp_path: Path
) -> None:
    assert "not a run folder" in place.fails_after_opening(6, "follow", str(tmp_path), "--to", "tensorboard")
    assert "neptune" in place.run("follow", "runs/done", "--to", "neptune").stderr
