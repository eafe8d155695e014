"""`sdtune data caption`, in this process where that is the same and quicker."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from sdtune import console
from tests import command
from tests.captioners import tiny_captioners as tiny

COMMAND = [sys.executable, "-m", "sdtune", "data", "caption"]
NAMES = [f"{i:02d} ü.png" for i in range(6)]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def popen(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )


def run(*arguments: object) -> Done:
    return Done(*command.run("data", "caption", *arguments))


@pytest.fixture
def fast(blip_folder: Path) -> list[object]:
    return ["--path", blip_folder, "--max-tokens", 3, "--beams", 1, "--prompt", "a"]


def test_captions_progress_and_again(fast: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SPEAK_EVERY", 0.0)
    folder = tiny.pictures(tmp_path / "p", NAMES)
    (folder / "00 ü.txt").write_text("mine\n", encoding="utf-8")
    (folder / "bad.png").write_bytes(b"\x89PNG")
    done = run(folder, *fast, "--batch-size", 2, "--prefix", "sks,", "--sheet")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^to do +6, with blip", done.stdout, re.MULTILINE)
    assert re.search(r"^kept +1 by people", done.stdout, re.MULTILINE)
    assert re.search(r"^captioning \d/6, [\d.e+]+ pictures/s, [\d.]+ s left$", done.stdout, re.MULTILINE)
    assert re.search(r"^5 captions in .*, 1 left out$", done.stdout, re.MULTILINE)
    assert "warning: bad.png: " in done.stdout and done.stderr == ""
    texts = {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.txt")}
    assert (
        len(texts) == 6 and texts.pop("00 ü.txt") == "mine\n" and all(t.startswith("sks, a ") for t in texts.values())
    )
    page = (tmp_path / "p-captions.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/') == 6
    assert "<h1>Captions of p</h1>" in page and str(tmp_path) not in page  # it may travel
    assert "mine<br>" in page and "00 ü.png, by a person" in page and page.count("by sdtune") == 5
    more = run(folder, *fast, "--quiet", "--sheet")  # the page is made again
    assert more.returncode == 0 and more.stdout == f"{tmp_path / 'p-captions.html'}\n"
    (tmp_path / "p-captions.html").write_text("mine", encoding="utf-8")
    (folder / "05 ü.txt").unlink()
    other = run(folder, *fast, "--sheet")
    assert other.returncode == 3 and "exists and is no page of captions" in other.stderr
    assert not (folder / "05 ü.txt").exists()  # it is told before anything is captioned


def test_dry_run_and_json(fast: list[object], tmp_path: Path) -> None:
    folder = tiny.pictures(tmp_path / "p", NAMES)
    done = run(folder, *fast, "--dry-run", 2, "--sheet")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^00 ü.png: a ", done.stdout, re.MULTILINE) and "02 ü.png" not in done.stdout
    assert "a dry run: nothing is written" in done.stdout and sorted(p.name for p in folder.iterdir()) == NAMES
    assert (tmp_path / "p-captions.html").read_text(encoding="utf-8").count("<img") == 2
    (folder / "bad.png").write_bytes(b"")
    done = run(folder, *fast, "--json", "--write", "metadata", "--batch-size", 7)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["event"] for e in events] == [
        "Opened",
        "Loaded",
        *["Captioned"] * 6,
        "LeftOut",
        "Finished",
    ]  # and no warning beside
    assert len((folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()) == 6


def test_captions_are_escaped_on_the_sheet(fast: list[object], tmp_path: Path) -> None:
    folder = tiny.pictures(tmp_path / "p", ["<b>.png"])
    (folder / "<b>.txt").write_text("<script>alert(1)</script>\n", encoding="utf-8")
    assert run(folder, *fast, "--sheet").returncode == 0
    page = (tmp_path / "p-captions.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;.png" in page


def test_a_folder_that_cannot_be_written_is_told_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the user of these tests, who may be root, any folder can be written: the refusal is that of the kernel's call."""
    folder = tiny.pictures(tmp_path / "p", ["a.png"])

    def refused(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    done = run(folder, "--path", tmp_path / "no model")
    assert done.returncode == 3 and done.stderr == (
        f"error: {folder}: captions cannot be written there (read-only file system); copy the pictures into a folder of your "
        "own, or look at captions with --dry-run\n"
    )


def test_pictures_that_are_not_on_the_sheet_are_named(fast: list[object], tmp_path: Path) -> None:
    folder = tiny.pictures(tmp_path / "p", ["a.png"])
    (folder / "bad.png").write_bytes(b"\x89PNG")
    for name in ("a", "bad"):
        (folder / f"{name}.txt").write_text("mine\n", encoding="utf-8")
    done = run(folder, *fast, "--sheet")
    assert "not on the sheet, 1 could not be read: bad.png" in done.stdout
    page = (tmp_path / "p-captions.html").read_text(encoding="utf-8")
    assert "<p>1 picture; 1 could not be read: bad.png</p>" in page and page.count("<figure>") == 1


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["--model", "clip"], 2, "error: --model: no such captioner 'clip'; known: blip, florence2, wd14"),
        (["--threshold", "0.2"], 2, "error: --threshold: has no effect with --model blip; leave it out"),
        (["--overwrite", "--append"], 2, "error: --overwrite: contradicts append"),
        (
            ["--path", "nobody/nothing"],
            4,
            "error: nobody/nothing: neither a folder nor in the local Hub cache; --download",
        ),
        (["--device", "cuda"], 2, "error: --device: cuda was asked for"),
    ],
)
def test_faults_are_one_line(arguments: list[str], code: int, said: str, tmp_path: Path) -> None:
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    folder = tiny.pictures(tmp_path / "p", ["a.png"])
    done = run(folder, *arguments)
    assert done.returncode == code and done.stderr.startswith(said) and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 and sorted(p.name for p in folder.iterdir()) == ["a.png"]


def test_exit_code_where_nothing_can_be_read(fast: list[object], tmp_path: Path) -> None:
    for path, said in ((tmp_path / "gone", "no such folder"), (tmp_path, "no pictures there")):
        done = run(path, *fast)
        assert done.returncode == 3 and said in done.stderr
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    done = run(tmp_path, *fast)
    assert done.returncode == 3 and "warning: a.png" in done.stdout and done.stderr.startswith("error: ")


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(fast: list[object], tmp_path: Path) -> None:
    folder = tiny.pictures(tmp_path / "p", [f"{i:03d}.png" for i in range(60)])
    with popen(folder, *fast, "--batch-size", 1) as process:
        ends = time.monotonic() + 60
        while not list(folder.glob("*.txt")) and time.monotonic() < ends:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*.txt")}
    assert process.returncode == 130 and 0 < len(before) < 60
    assert "stopping: the batch ends and is written" in err and "stopped; what was captioned is written" in out
    assert "go on with: sdtune data caption" in err and "Traceback" not in err
    assert not [p for p in folder.iterdir() if p.suffix == ".tmp"]
    done = run(folder, *fast)
    assert done.returncode == 0 and f"kept    {len(before)} by sdtune" in done.stdout
    assert len(list(folder.glob("*.txt"))) == 60 and all(p.stat().st_mtime_ns == at for p, at in before.items())


def test_help_fits_80_columns_and_loads_no_torch() -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sdtune", "data", "caption", "--help"],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    assert not [line for line in done.stdout.splitlines()[3:] if len(line.rstrip()) > 80]
    purpose = done.stdout[: done.stdout.index("╭")]
    assert re.search(r"^ +Example +sdtune data caption", purpose, re.MULTILINE)
    assert re.search(r"^ +Writes +\S", purpose, re.MULTILINE) and "\\" not in done.stdout
    roots = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not roots & {"torch", "transformers", "numpy", "onnxruntime"}
