"""Runs and experiments as they lie on a disk once they were compared, without a model that drew them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

import sdtune
from sdtune.events import Event, Finished, Sampled, Started, to_line
from sdtune.judging.scores import Answer, Figure, Scores, Verdict
from sdtune.runs import Run
from sdtune.stats import Interval

REPORT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>report</title><body><h1>Report of {name}</h1>
<p id="told">still</p><script>const told = document.getElementById("told");
told.textContent = "the script ran";
try {{ document.cookie = "a=1"; told.append(", with cookies"); }} catch {{ told.append(", no cookies"); }}
fetch("/api/models").then(() => told.append(", reached the server"), () => told.append(", no server"));
</script></body></html>"""
"""A report whose script tries what it must not be able to do."""
GOOD: dict[str, Answer] = {"helped": "yes", "moved": "yes", "content": "yes", "overfit": "no"}
BAD: dict[str, Answer] = {"helped": "no", "moved": "yes", "content": "no", "overfit": "cannot tell"}


def interval(value: float, reach: float = 0.1) -> Interval:
    return Interval(value, value - reach, value + reach, 9)


def finished_run(path: Path, model: str = "embedded") -> Run:
    """A training that ended, with previews of two steps."""
    run = Run(path)
    run.write_config(sdtune.load_config(None, f"model.path={model}", f"name={path.name}", "train.steps=4"))
    run.final.mkdir()
    events: list[Event] = [Started(0, 4, path.name, "cpu", "fp32", 10, 100, 2, 2, 2)]
    for step in (0, 4):
        file = run.samples / f"step-{step:06d}" / "00-0.png"
        file.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32), (200, step * 20, 20)).save(file)
        events.append(Sampled(step, "a red apple", 0, str(file.relative_to(run.path))))
    events.append(Finished(4, 12.0, "final"))
    run.events_file.write_text("".join(to_line(e) + "\n" for e in events), encoding="utf-8")
    return run


def compared_run(path: Path, answers: dict[str, Answer], change: float = -1.0, model: str = "embedded") -> Run:
    """The same with a comparison of two pictures."""
    run = finished_run(path, model)
    figures = (
        Figure(
            "kid_target",
            "KID to held-out target pictures",
            "lower",
            interval(1.5),
            interval(1.5 + change),
            interval(change),
            interval(0),
        ),
        Figure("fd_target", "Frechet distance", "lower", evidence=False, note="refused: too few pictures"),
    )
    verdicts = tuple(Verdict.on(key, answer, f"because of {key}", "1 to 2") for key, answer in answers.items())
    pictures = []
    for number, prompt in enumerate(("a red apple", "a blue <b>dog</b>")):
        row: dict[str, Any] = {"prompt": prompt, "seed": 3}
        for side, colour in (("base", "gray"), ("tuned", "red" if answers == GOOD else "blue")):
            file = run.comparison / side / f"{number:03d}-3.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), colour).save(file)
            row[side] = f"{side}/{file.name}"
        pictures.append(row)
    told = {
        "format": "sdtune comparison 1", "headline": f"{path.name} says <i>so</i>.", "statistics": {"primary": "kid"},
        **Scores(figures, verdicts).as_dict(), "pictures": pictures, "seconds": {"drawing": 2.0, "judging": 1.0},
        "plan": {"prompts": [p["prompt"] for p in pictures], "seeds": [3], "reference": [{"file": "a.png"}]}, "config": {},
    }  # fmt: skip
    run.scores_file.write_text(json.dumps(told), encoding="utf-8")
    run.report_file.write_text(REPORT.format(name=path.name), encoding="utf-8")
    run.vote_file.write_text(REPORT.format(name=f"vote on {path.name}"), encoding="utf-8")
    return run


def experiment(folder: Path, model: str = "embedded") -> Path:
    """Two cells of two seeds: three finished, of which one is not compared, and one that failed."""
    for cell in ("r2-a7e1fc6c", "r4-2f0766c3"):
        for seed in (0, 1):
            path = folder / cell / f"seed-{seed}"
            path.mkdir(parents=True)
            if (cell[:2], seed) == ("r4", 0):
                finished_run(path, model)
            elif (cell[:2], seed) == ("r4", 1):
                (path / "failure.json").write_text(json.dumps({"message": "out of memory"}), encoding="utf-8")
            else:
                compared_run(path, GOOD, model=model)
    board = {
        "format": "sdtune experiment 1", "name": "ranks", "primary": "kid", "summary": "best: r2",
        "figures": {"kid": {"label": "KID to held-out pictures"}},
        "cells": {"r2": {"id": "a7e1fc6c", "settings": {"method.rank": 2}}, "r4": {"id": "2f0766c3", "settings": {"method.rank": 4}}},
    }  # fmt: skip
    (folder / "leaderboard.json").write_text(json.dumps(board), encoding="utf-8")
    (folder / "index.html").write_text(REPORT.format(name="leaderboard"), encoding="utf-8")
    Image.new("RGB", (900, 300), "teal").save(folder / "contact.png")
    return folder
