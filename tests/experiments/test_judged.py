"""A leaderboard by what pictures show: KID and content, seen by encoders laid out as the published ones are, which fit any base."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdtune import stats
from sdtune.contact import GAP, LINE, TITLE
from sdtune.errors import EvaluationError
from sdtune.experiments import page, shown
from sdtune.experiments.evidence import BASE, Eyes, Table, Trained, table
from sdtune.experiments.matrix import Matrix
from sdtune.experiments.run import tasks
from sdtune.metrics.panel import Panel
from sdtune.pairs import make_plan
from tests.experiments.conftest import in_process, write_matrix
from tests.metrics import tiny_encoders

KEYS = {"kid": "kid_target", "found_first": "found_first", "prompt_cosine": "prompt_cosine"}
"""A leaderboard's figures by the names that a run's own comparison has for them."""
PROMPTS = ("a red dog", "a blue cat", "the sun")
Answers = list[dict[str, Any]]


@pytest.fixture(scope="module")
def judged_once(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Matrix, Path, list[Answers]]]:
    """A matrix of two cells with a cache of their own, made, and what each worker said."""
    folder = tmp_path_factory.mktemp("judged")
    tiny_encoders.clip(folder / "encoders", "clip-b32")
    tiny_encoders.dinov2(folder / "encoders", "dinov2-b14")
    text = 'primary = "kid"\naxes.grid.method.rank = [1, 2]\n'
    text += f'set = {{evaluate.seeds = [3, 4], evaluate.unrelated = [], data.cache = "{folder / "cache"}"}}'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDTUNE_ENCODERS", str(folder / "encoders"))
        patch.setenv("HF_HUB_CACHE", str(folder / "none"))
        matrix, out = write_matrix(world, folder, text), folder / "out"
        yield matrix, out, [in_process(task.item, out) for task in tasks(matrix, out)]


@pytest.fixture
def judged(judged_once: tuple[Matrix, Path, list[Answers]], tmp_path: Path) -> tuple[Matrix, Path]:
    shutil.copytree(judged_once[1], tmp_path / "out", copy_function=os.link)
    return judged_once[0], tmp_path / "out"


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pictures at each look of the panel."""
    counts: list[int] = []
    see = Panel.see

    def counted(self: Panel, images: Any) -> Any:
        pictures = list(images)
        counts.append(len(pictures))
        return see(self, pictures)

    monkeypatch.setattr(Panel, "see", counted)
    return counts


def rows(matrix: Matrix, out: Path) -> dict[str, list[Trained]]:
    return {t.item.cell.name: [Trained.of(t.item.run, t.item.seed)] for t in tasks(matrix, out)}


def found(matrix: Matrix, out: Path) -> Table:
    return table(rows(matrix, out), matrix.cells[0].config, out / "seen")


def pictures_of(matrix: Matrix, out: Path) -> dict[str, list[Path]]:
    """The columns of the grid: a picture for each prompt, drawn with seed 3."""
    real = {e.captions[0]: e.image for e in make_plan(matrix.cells[0].config).reference}
    runs = rows(matrix, out)
    drawn = {name: trained.pictures("tuned")[::2] for name, (trained,) in runs.items()}
    return {"real": [real[p] for p in PROMPTS], "base": runs["rank-1"][0].pictures("base")[::2], **drawn}


def repaint(path: Path, colour: str = "red") -> None:
    """Another picture in the place of one that other folders may share."""
    path.unlink()
    Image.new("RGB", (32, 32), colour).save(path)


def test_a_second_cell_encodes_nothing(judged_once: tuple[Matrix, Path, list[Answers]]) -> None:
    """It finds all in the cache that the first has filled: with nothing to be told, or (while the files are new) after a look at them."""
    for answers, new in zip(judged_once[2], (True, False), strict=True):
        begun = dict[str, int]()
        for answer in answers:
            if answer.get("what", "").startswith("encoding "):
                begun.setdefault(answer["what"], answer["total"] - answer["done"])
        assert not new or begun.keys() >= {"encoding pictures", "encoding captions", "encoding validation pictures"}
        assert (begun.get("encoding pictures", 0), any(begun.values())) == (3 if new else 0, new)


def test_figures_are_those_of_each_runs_own_comparison(judged: tuple[Matrix, Path]) -> None:
    """The base is a row, real pictures against real ones are the ceiling."""
    matrix, out = judged
    ranked, runs = found(matrix, out), rows(matrix, out)
    assert ranked.primary == "kid" and ranked.rankings.keys() == {*KEYS, "validation_loss"}
    assert ranked.ceilings.keys() == {"kid", "found_first", "prompt_cosine"}
    for key, own in KEYS.items():
        ranking = ranked.rankings[key]
        assert {line.name for line in ranking.lines} == {"rank-1", "rank-2", BASE} and ranked.units[key] == 3
        for name, (trained,) in runs.items():
            figure = trained.figure(own)
            assert figure
            assert ranking.line(name).estimate.value == pytest.approx(figure["tuned"]["value"], abs=1e-6)
            assert ranking.line(BASE).estimate.value == pytest.approx(figure["base"]["value"], abs=1e-6)
            change = ranking.line(name).change
            assert change and change.value == pytest.approx(figure["difference"]["value"], abs=1e-6)
            assert ranked.ceilings[key] == figure["real"]["value"]
        assert ranking.line(BASE).change is None and all(
            line.estimate.low < line.estimate.high for line in ranking.lines
        )


def test_the_page_says_what_decides_and_where_the_ceiling_is(judged: tuple[Matrix, Path]) -> None:
    matrix, out = judged
    page.write(page.of_matrix(matrix, out, tasks(matrix, out)))
    told = json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))
    assert told["primary"] == "kid" and told["figures"]["kid"]["real"] == found(matrix, out).ceilings["kid"]
    html = (out / "index.html").read_text(encoding="utf-8")
    assert "KID to held-out pictures, fixed before the runs" in html and "real pictures against real ones" in html
    board = (out / "leaderboard.md").read_text(encoding="utf-8")
    assert "| | real pictures |" in board and "| did it help? |" in board
    for name, (trained,) in rows(matrix, out).items():
        (line,) = [line for line in board.splitlines() if f"| {name} | " in line and line.count("|") == 7]
        assert line.split(" | ")[4] == trained.verdict("helped")


def test_the_board_counts_what_the_trainings_answer(judged: tuple[Matrix, Path]) -> None:
    matrix, out = judged
    subject = page.of_matrix(matrix, out, tasks(matrix, out))
    entry = subject.entries[0]

    def saying(**given: str) -> Trained:
        verdicts = [{"key": key, "answer": answer} for key, answer in given.items()]
        return dataclasses.replace(entry.runs[0], scores={**entry.runs[0].scores, "verdicts": verdicts})

    runs = (saying(helped="no", moved="yes"), saying(helped="yes", moved="yes"), saying(helped="no", moved="yes"))
    entry = dataclasses.replace(entry, runs=runs)
    assert page.answers(entry, "helped") == "no (2 of 3), yes (1 of 3)"
    assert page.answers(entry, "moved") == "yes" and page.answers(entry, "forgot") == ""
    board = page.markdown(dataclasses.replace(subject, entries=(entry, *subject.entries[1:])), found(matrix, out))
    assert "| no (2 of 3), yes (1 of 3) | " in board


def test_the_page_shows_the_same_prompts_drawn_by_all(judged: tuple[Matrix, Path]) -> None:
    """Real, base, and each cell's: the very pixels, under the right words."""
    matrix, out = judged
    page.write(page.of_matrix(matrix, out, tasks(matrix, out)))
    images = re.findall(r'<img src="([^"]*)" alt="([^"]*)"', (out / "index.html").read_text(encoding="utf-8"))
    columns = pictures_of(matrix, out)
    assert [words for _, words in images] == [
        f"{head}: {prompt}" for prompt in PROMPTS for head in ("real picture", "base", "rank-1", "rank-2")
    ]
    files = [column[i] for i in range(len(PROMPTS)) for column in columns.values()]
    for (uri, words), file in zip(images, files, strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))
        assert np.array_equal(np.asarray(shown), np.asarray(Image.open(file).convert("RGB"))), words


def test_the_sheet_has_a_column_for_each_row_of_the_leaderboard(judged: tuple[Matrix, Path]) -> None:
    matrix, out = judged
    next(iter(rows(matrix, out)["rank-2"])).pictures("tuned")[0].unlink()  # one that is gone leaves its place white
    path = shown.write_sheet(page.of_matrix(matrix, out, tasks(matrix, out)))
    sheet = np.asarray(Image.open(path))
    columns = list(pictures_of(matrix, out).values())
    assert path == out / "contact.png"
    assert sheet.shape == (GAP + 2 * LINE + 3 * (TITLE + 192 + GAP), GAP + len(columns) * (192 + GAP), 3)
    for i in range(3):
        for k, column in enumerate(columns):
            y, x = GAP + 2 * LINE + i * (TITLE + 192 + GAP) + TITLE, GAP + k * (192 + GAP)
            cell = sheet[y : y + 192, x : x + 192]
            if column[i].exists():
                assert np.array_equal(cell[::6, ::6], np.asarray(Image.open(column[i]).convert("RGB"))), (i, k)
            else:
                assert (i, k) == (0, 3) and cell.min() == 255
    heads = sheet[GAP : GAP + 2 * LINE]
    assert all((heads[:, GAP + k * 200 : GAP + k * 200 + 192] < 128).any() for k in range(len(columns)))


def test_prompts_are_spread_evenly() -> None:
    assert stats.spread(list("abc"), 12) == list("abc")
    assert stats.spread(list("abcdefgh"), 4) == list("aceg")


def test_each_picture_is_looked_at_once(judged: tuple[Matrix, Path], looked_at: list[int]) -> None:
    matrix, out = judged
    first = found(matrix, out)
    assert looked_at == [3, 6, 6, 6], "the real ones, the base's, each cell's"
    looked_at.clear()
    again = found(matrix, out)
    assert looked_at == [3] and again.rankings == first.rankings
    cell, other = rows(matrix, out).values()
    repaint(cell[0].pictures("tuned")[0])
    looked_at.clear()
    changed = found(matrix, out)
    assert looked_at == [3, 6], "another picture in a set: that set again"
    assert changed.main.line("rank-1") != first.main.line("rank-1")
    assert changed.main.line("rank-2").estimate.value == first.main.line("rank-2").estimate.value
    assert other[0].pictures("base")[0].samefile(cell[0].pictures("base")[0]), "the base's were drawn once"


def test_what_another_scorer_saw_is_not_taken(judged: tuple[Matrix, Path], tmp_path: Path) -> None:
    matrix, out = judged
    panel = Panel.here(32)
    assert panel
    alone = dataclasses.replace(panel, pictures=panel.words)
    trained = rows(matrix, out)["rank-1"][0]
    asked = [row["prompt"] for row in trained.scores["pictures"]]
    prompts = trained.scores["plan"]["prompts"]
    files = trained.pictures("tuned")
    seen = Eyes(tmp_path / "kept", panel).see(files, asked, prompts)
    kept = Eyes(tmp_path / "kept", panel).see(files, asked, prompts)
    assert np.array_equal(seen.features_ND, kept.features_ND) and np.array_equal(seen.embeds_NE, kept.embeds_NE)
    assert np.array_equal(seen.asked_N, kept.asked_N) and list(seen.asked_N) == [0, 0, 1, 1, 2, 2]
    other = Eyes(tmp_path / "kept", alone).see(files, asked, prompts)
    assert np.array_equal(other.features_ND, other.embeds_NE) and other.features_ND.shape != seen.features_ND.shape
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 2


def test_pictures_of_the_target_itself_win(judged: tuple[Matrix, Path]) -> None:
    """Lower is better, and the change of the base is none: a cell that draws the held-out pictures is nearest to them."""
    matrix, out = judged
    (trained,) = rows(matrix, out)["rank-2"]
    real = [e.image for e in make_plan(matrix.cells[0].config).reference]
    for i, path in enumerate(trained.pictures("tuned")):
        path.unlink()
        shutil.copy(real[i // 2], path)
    ranked = found(matrix, out)
    assert ranked.main.lines[0].name == "rank-2"
    change = ranked.main.lines[0].change
    assert change and change.value < 0


def test_runs_that_were_asked_for_other_things_are_refused(judged: tuple[Matrix, Path]) -> None:
    matrix, out = judged
    asked = rows(matrix, out)
    asked["rank-2"][0].scores["plan"]["seeds"] = [3]
    with pytest.raises(EvaluationError, match="was compared with other prompts or seeds; compare it again"):
        table(asked, matrix.cells[0].config, out / "seen")


def test_without_encoders_the_primary_figure_is_missed_by_name(
    judged: tuple[Matrix, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, out = judged
    monkeypatch.setenv("SDTUNE_ENCODERS", str(tmp_path / "none"))
    unjudged = {
        name: [dataclasses.replace(t, scores={**t.scores, "figures": []}) for t in runs]
        for name, runs in rows(matrix, out).items()
    }
    with pytest.raises(EvaluationError, match=r"primary: 'kid' is not known of these runs: .*--get clip-l14"):
        table(unjudged, matrix.cells[0].config, out / "seen")
