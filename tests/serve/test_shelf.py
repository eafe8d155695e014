"""What can be looked at, under which ids; how the server is. Nothing here draws, and nothing imports torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdtune.runs import Run
from sdtune.serve import overview, registry
from sdtune.serve.app import Server
from sdtune.serve.errors import ApiError
from sdtune.serve.limits import Limits
from sdtune.serve.pages_of_runs import STRANGER
from sdtune.serve.shelf import Page, Shelf
from sdtune.serve.web.beside import differs, shared_pictures
from sdtune.serve.web.comparing import progress, share
from sdtune.serve.web.results import KEYS
from sdtune.serve.web.status import size
from sdtune.serve.workers import Worker
from tests.serve.conftest import App, run
from tests.serve.sights import BAD, GOOD, compared_run, experiment, finished_run

Make = Callable[..., App]


@pytest.fixture
def sights(tmp_path: Path) -> Path:
    """Runs good, bad and plain (not compared), and the experiment ranks."""
    folder = tmp_path / "sights"
    compared_run(folder / "good", GOOD)
    compared_run(folder / "bad", BAD, change=0.5)
    finished_run(folder / "plain")
    experiment(folder / "ranks")
    return folder


@pytest.fixture
def shelf(sights: Path) -> Shelf:
    known, _ = registry.build([str(sights)])
    found = Shelf(known)
    found.look()
    return found


# ---- what lies there


def test_every_run_has_what_came_out_of_it(shelf: Shelf) -> None:
    told = {r.id: (r.headline, r.pages) for r in shelf.seen.runs if not r.experiment}
    assert told == {
        "good": (("good says <i>so</i>.", "good"), ("report", "vote", "timeline", "scores")),
        "bad": (("bad says <i>so</i>.", "bad"), ("report", "vote", "timeline", "scores")),
        "plain": (("Not compared with its base yet: nobody knows whether it helped.", ""), ("timeline",)),
    }
    good = shelf.seen.run("good")
    assert (
        good.took == 3.0
        and good.model == "good"
        and good.base == "embedded"
        and good.row.primary == "kid −1.00 (−1.10 to −0.900)"
    )


def test_an_experiment_has_its_cells_with_their_states(shelf: Shelf) -> None:
    (found,) = shelf.seen.experiments
    assert (found.id, found.name, found.summary, found.decides) == (
        "ranks",
        "ranks",
        "best: r2",
        "KID to held-out pictures",
    )
    assert [(c.name, c.settings, [state for _, state, _ in c.runs]) for c in found.cells] == [
        ("r2", "method.rank 2", ["finished", "finished"]), ("r4", "method.rank 4", ["to compare", "failed"]),
    ]  # fmt: skip
    assert found.trainings == (2, 4) and found.pages == ("board", "sheet")
    assert {r.id for r in shelf.seen.runs if r.experiment == "ranks"} == {
        "ranks-r2-seed-0",
        "ranks-r2-seed-1",
        "ranks-r4-seed-0",
    }


def test_an_experiment_without_a_leaderboard_is_known_by_where_its_runs_lie(shelf: Shelf, sights: Path) -> None:
    for file in ("leaderboard.json", "index.html", "contact.png"):
        (sights / "ranks" / file).unlink()
    (found,) = shelf.look().experiments
    assert (found.id, found.summary, found.pages, len(found.cells)) == ("ranks", "", (), 2)


def test_leaderboards_alone_are_served(sights: Path) -> None:
    for cell in (sights / "ranks").glob("r*"):
        shutil.rmtree(cell)
    known, notes = registry.build([str(sights / "ranks")])
    assert known.first.id == "embedded" and "leaderboards are shown" in notes[0]
    assert [e.id for e in Shelf(known).look().experiments] == ["ranks"]


def test_ids_stay_while_runs_come_and_go(shelf: Shelf, sights: Path) -> None:
    compared_run(sights / "deeper" / "good", BAD)
    assert {r.id for r in shelf.look().runs if not r.experiment} == {"good", "good-2", "bad", "plain"}
    shutil.rmtree(sights / "good")
    assert shelf.look().run("good-2").path == sights / "deeper" / "good"
    with pytest.raises(ApiError, match="no such run"):
        shelf.seen.run("good")


def test_what_is_new_in_a_run_is_seen_and_what_is_not_is_not_read_again(
    shelf: Shelf, sights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdtune.experiments import listing

    read = list[Path]()
    real = listing.row

    def row(path: Path) -> listing.Row | None:
        read.append(path)
        return real(path)

    monkeypatch.setattr(listing, "row", row)
    shelf.look()
    assert read == []
    scores = sights / "bad" / "comparison" / "scores.json"
    scores.write_text(scores.read_text(encoding="utf-8").replace("bad says", "now says"), encoding="utf-8")
    assert shelf.look().run("bad").headline[0].startswith("now says") and read == [sights / "bad"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"figures": 3, "verdicts": [1]}', '{"figures": [{"key": "x"}], "verdicts": [{"key": "y"}]}'],
)
def test_a_comparison_that_is_none_of_ours_breaks_nothing(shelf: Shelf, sights: Path, text: str) -> None:
    (sights / "good" / "comparison" / "scores.json").write_text(text, encoding="utf-8")
    found = shelf.look().run("good")
    assert found.headline[1] == "" and found.scores.figures == () and found.took is None


def test_columns_sort_by_what_they_show(shelf: Shelf) -> None:
    rows = [r for r in shelf.seen.runs if not r.experiment]
    for key, first, last in (("verdict", "good", "plain"), ("figure", "good", "plain"), ("name", "bad", "plain")):
        told = [r.name for r in sorted(rows, key=KEYS[key])]
        assert (told[0], told[-1]) == (first, last), key


# ---- files


@pytest.mark.parametrize(
    ("name", "page", "kind"),
    [
        ("good", "report", "text/html; charset=utf-8"), ("good", "vote", "text/html; charset=utf-8"),
        ("good", "scores", "application/json"), ("good", "timeline", "image/png"),
        ("ranks", "board", "text/html; charset=utf-8"), ("ranks", "sheet", "image/png"),
    ],
)  # fmt: skip
def test_pages_are_sent_so_that_they_can_do_nothing_here(
    make_app: Make, sights: Path, name: str, page: Page, kind: str
) -> None:
    app = app_on(make_app, sights)
    answer = run(app.client.get(f"/api/results/{name}/{page}"))
    assert answer.status_code == 200 and answer.headers["content-type"] == kind and len(answer.content) > 90
    if "html" in kind:
        policy = answer.headers["content-security-policy"]
        assert STRANGER.items() <= dict(answer.headers).items() and answer.headers["x-frame-options"] == "SAMEORIGIN"
        assert policy.startswith("sandbox ") and "allow-same-origin" not in policy and "connect-src" not in policy
    saved = run(app.client.get(f"/api/results/{name}/{page}", params={"download": True})).headers["content-disposition"]
    assert saved.startswith(f'attachment; filename="{name}-{page}.')


@pytest.mark.parametrize(
    "path",
    [
        "good/sweep", "good/board", "plain/report", "ranks/report", "nobody/report", "good/config.toml", "good/..%2Fconfig.toml",
        "..%2F..%2Fetc/report", "good/pictures/2/base", "good/pictures/0/other", "good/pictures/-1/base", "plain/pictures/0/base",
        "%2e%2e/report", "good/", "sights%2Fgood/report",
    ],
)  # fmt: skip
def test_only_ids_open_anything(make_app: Make, sights: Path, path: str) -> None:
    answer = run(app_on(make_app, sights).client.get(f"/api/results/{path}"))
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"
    assert str(sights) not in answer.text


def test_a_picture_outside_the_comparison_is_not_opened(make_app: Make, sights: Path) -> None:
    scores = sights / "good" / "comparison" / "scores.json"
    told = json.loads(scores.read_text(encoding="utf-8"))
    told["pictures"][0]["base"] = "../../ranks/contact.png"
    (sights / "good" / "comparison" / "base" / "001-3.png").unlink()
    (sights / "good" / "comparison" / "base" / "001-3.png").symlink_to(sights / "ranks" / "contact.png")
    scores.write_text(json.dumps(told), encoding="utf-8")
    client = app_on(make_app, sights).client
    codes = [
        run(client.get(f"/api/results/good/pictures/{n}/{side}")).status_code
        for n, side in ((0, "base"), (1, "base"), (0, "tuned"))
    ]
    assert codes == [404, 404, 200]


def app_on(make_app: Make, sights: Path) -> App:
    app = make_app()
    app.server.shelf._registry = registry.build([str(sights)])[0]
    return app


# ---- two beside each other


def test_two_runs_are_only_held_against_each_other_if_they_were_asked_the_same(shelf: Shelf, sights: Path) -> None:
    good, bad = (shelf.seen.run(name) for name in ("good", "bad"))
    assert differs(good, bad) == ""
    assert shared_pictures(good, bad) == [("a red apple", 3, 0, 0), ("a blue <b>dog</b>", 3, 1, 1)]
    for change, why in (
        ({"seeds": [4]}, "different seeds"), ({"prompts": ["x"]}, "different prompts"), ({"reference": []}, "different pictures"),
    ):  # fmt: skip
        told: dict[str, Any] = {**bad.told, "plan": {**bad.told["plan"], **change}}
        assert why in differs(good, type(bad)(**{**vars_of(bad), "told": told}))


def vars_of(thing: Any) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in type(thing).__dataclass_fields__}


@pytest.mark.parametrize(
    ("state", "told", "text"),
    [
        ("queued", {}, "It waits for its turn."), ("running", {}, "It begins."), ("cancelled", {}, "It is cancelled."),
        ("running", {"what": "drawing pictures", "done": 3, "total": 8}, "Drawing pictures, 3 of 8"),
        ("running", {"what": "base pictures", "done": None, "total": 10}, "Base pictures, 0 of 10"),
        ("running", {"what": "reading", "done": None, "total": None}, "Reading"),
    ],
)  # fmt: skip
def test_progress_in_words(state: str, told: dict[str, Any], text: str) -> None:
    assert progress(state, told) == text and 0 <= share(told) <= 1


# ---- how the server is


def test_the_condition_says_what_is_wrong_and_what_to_do(make_app: Make) -> None:
    app = make_app(Limits(queue=1))
    server = app.server
    worker = hired(server)
    assert [tone for tone, _ in overview.condition(server)] == ["open"]  # being loaded
    worker.ready = True
    assert overview.condition(server) == []
    run(app.post({"prompt": "a"}))
    assert "queue is full" in overview.condition(server)[0][1]
    server.dispatcher.draining = True
    assert overview.condition(server)[0] == ("open", overview.condition(server)[0][1])
    worker.broken = "the worker cannot work"
    assert ("bad", "Worker: the worker cannot work. It is tried again; jobs wait meanwhile.") in overview.condition(
        server
    )


def hired(server: Server) -> Worker:
    """A worker that is not started."""
    worker = Worker(0, lambda: server.dispatcher.setup, lambda worker, told: None, lambda worker, why: None)
    server.dispatcher.workers.append(worker)
    return worker


def test_open_jobs_have_their_places(make_app: Make) -> None:
    app = make_app()
    for prompt in ("first", "second " * 40):
        run(app.post({"prompt": prompt, "seeds": [1, 2], "kind": "compare"}))
    told = overview.open_jobs(app.server.dispatcher)
    assert [(job.place, job.what) for job in told] == [(1, "4 pictures with full"), (2, "4 pictures with full")]
    assert told[1].prompt.endswith("…") and len(told[1].prompt) <= overview.PROMPT


def test_failures_are_those_of_the_queue(make_app: Make) -> None:
    app = make_app()
    name = run(app.post({"prompt": "a"})).json()["id"]
    app.server.queue.start([name])
    app.server.queue.end(name, "failed", {"code": "out_of_memory", "message": "too little"})
    assert [(f.job, f.code, f.message) for f in overview.failures(app.server.queue)] == [
        (name, "out_of_memory", "too little")
    ]


def test_addresses_are_of_what_is_there_and_never_hold_the_token(make_app: Make) -> None:
    app = make_app(token="a-secret-of-sixteen")
    told = overview.addresses(app.server.paths, "http://here", token=True)
    assert told[0][0] == "sdtune's own" and told[-1][1] == "http://here/openapi.json"
    assert "$SDTUNE_TOKEN" in told[0][2] and "a-secret" not in str(told)
    assert "Authorization" not in str(overview.addresses(app.server.paths, "http://here", token=False))


def test_the_example_is_a_request_that_is_taken(make_app: Make) -> None:
    import shlex

    app = make_app()
    words = shlex.split(overview.addresses(app.server.paths, "http://here", token=False)[0][2])
    assert run(app.post(words[words.index("-d") + 1])).status_code == 202


def test_versions_are_told_without_importing() -> None:
    import sys

    told = overview.versions()
    assert (
        told["torch"][0].isdigit()
        and told["sdtune"] == "0.1.0"
        and told["python"].startswith(f"{sys.version_info.major}.")
    )


def test_the_disk_is_counted_in_parts(tmp_path: Path) -> None:
    for name, n in (("pictures/a.png", 10), ("uploads/b.png", 5), ("queue.sqlite", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * n)
    told = overview.disk(tmp_path)
    assert (told.pictures, told.uploads, told.other) == (10, 5, 3) and told.free > 0


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (12, "12 bytes"), (1234, "1.2 kB"), (34e6, "34 MB"), (1.25e9, "1.2 GB")]
)
def test_sizes(value: int | None, text: str) -> None:
    assert size(value) == text


def test_a_run_of_a_folder_that_is_named_twice_is_there_once(sights: Path) -> None:
    known, _ = registry.build([str(sights / "good"), str(sights)])
    found = Shelf(known).look().runs
    assert [r.id for r in found].count("good") == 1 and len({r.path for r in found}) == len(found)
    assert Run(sights / "good").exists()
