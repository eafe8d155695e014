"""The report: one file that needs nothing else, and says what the scores say."""

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests import tiny
from tests.core.test_bands import measured

from sdtune import bands, charts, pages, report, sweep_page
from sdtune import config as configs
from sdtune.compare import Comparison
from sdtune.data.dataset import Example
from sdtune.evaluate import judge, judge_without_scorer
from sdtune.events import Finished, Sampled, Started, Validated
from sdtune.files import write_json, write_text
from sdtune.judging.scores import Evidence, Figure, Scores, Seen, Validation, Verdict
from sdtune.pairs import Pair, Plan
from sdtune.runs import Run
from sdtune.stats import Interval
from sdtune.sweep import Point, Sweep

VOID = {"meta", "img", "input", "br", "line", "path", "circle", "link"}


class Page(HTMLParser):
    """Collects tags and texts, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def drawn(path: Path, seed: int, side: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny.picture(seed, (side, side)).save(path)
    return path


PROMPTS = tuple(f"{w} in <ink> & 'line' style" for w in ("red apple", "dog", "<script>alert(1)</script>", "sun"))


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    run = Run(tmp_path / "runs" / "ink")
    run.path.mkdir(parents=True)
    run.log(Started(0, 40, "ink", "cpu", "fp32", 1000, 9_000_000, 8, 4, 4))
    for step in (0, 20, 40):
        file = drawn(run.samples / f"step-{step:06d}" / "00.png", step)
        run.log(Sampled(step, PROMPTS[0], 0, str(file.relative_to(run.path))))
    run.log(Finished(40, 75.0, "final", 40))
    pairs = tuple(
        Pair(
            p,
            s,
            drawn(run.comparison / "base" / f"{i:03d}-{s}.png", i),
            drawn(run.comparison / "tuned" / f"{i:03d}-{s}.png", 9 + i),
        )
        for i, p in enumerate(PROMPTS)
        for s in (1, 2)
    )
    real = tuple(Example(drawn(tmp_path / f"real{i}.png", 50 + i), (PROMPTS[i],), (32, 32)) for i in range(4))
    train = tuple(Example(drawn(tmp_path / f"train{i}.png", 80 + i), (f"thing {i}",), (32, 32)) for i in range(5))
    rng = np.random.default_rng(0)
    asked = np.repeat(np.arange(4), 2)

    def look(asked: np.ndarray[tuple[int], np.dtype[np.int64]], shift: float) -> Seen:
        return Seen(rng.normal(shift, 1, (len(asked), 6)), np.eye(4)[asked % 4], asked)

    evidence = Evidence(
        PROMPTS,
        np.eye(4),
        look(asked, 2),
        look(asked, 0),
        look(np.arange(4), 0),
        look(np.full(5, -1), 0),
        look(np.full(5, -1), 2),
    )
    validation = Validation(
        (0, 20, 40), np.array([[0.1] * 4, [0.08] * 4, [0.07] * 4]), tuple(range(1, 41)), (0.1,) * 40
    )
    plan = Plan(
        PROMPTS,
        train,
        real,
        (),
        {"prompts": "captions", "reference": "the test pictures", "control": "none", "unrelated": "evaluate.unrelated"},
        (),
        ("a boat",),
    )
    scores = judge(evidence, validation, primary="kid", draws=100)
    config = configs.load(None, ["name=ink"])
    other = Pair(
        "a boat",
        1,
        drawn(run.comparison / "base/unrelated-000-1.png", 70),
        drawn(run.comparison / "tuned/unrelated-000-1.png", 71),
    )
    return Comparison(
        run,
        config,
        "final",
        plan,
        pairs,
        scores,
        validation,
        "ab" * 32,
        {"drawing": 1.0, "judging": 2.0},
        (other,),
        "c0ffee",
        ({"title": "the eye"},),
    )


def test_page_is_whole_and_loads_nothing(comparison: Comparison) -> None:
    text = report.html(comparison)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "srcset", "href", "xlink:href", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
    css, script = (re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S) for tag in ("style", "script"))
    assert css is not None
    assert script is not None
    assert not re.search(r"url\(|@import|http", css[1])
    assert not re.search(r"fetch|XMLHttp|import\(|http|eval", script[1])
    policy = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1, "of the script's hash: test_pages"
    assert str(policy[0]).startswith(
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    )


def test_every_pair_is_there_in_order_and_none_is_picked(comparison: Comparison) -> None:
    page = Page(report.html(comparison))
    alts = [a.get("alt") or "" for t, a in page.tags if t == "img"]
    wanted = [f"{which}: {p}, seed {s}" for p in PROMPTS for s in (1, 2) for which in ("base", "tuned")]
    wanted += ["base: a boat, seed 1", "tuned: a boat, seed 1"]
    assert [a for a in alts if a.startswith(("base: ", "tuned: "))] == wanted
    assert all(alts)
    first = next(a["src"] for t, a in page.tags if t == "img")
    assert first is not None
    shown = Image.open(io.BytesIO(base64.b64decode(first.split(",")[1])))
    assert np.array_equal(np.asarray(shown), np.asarray(Image.open(comparison.pairs[0].base)))  # lossless


def test_captions_are_text_and_never_markup(comparison: Comparison) -> None:
    text = report.html(comparison)
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert len([t for t, _ in Page(text).tags if t == "script"]) == 1


def test_everything_has_a_name_without_being_seen(comparison: Comparison) -> None:
    page = Page(report.html(comparison))
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert ("html", {"lang": "en"}) in page.tags
    assert "ink: what the fine-tuning did" in page.texts
    for tag, a in page.tags:
        assert tag != "img" or a.get("alt")
        assert a.get("role") != "img" or a.get("aria-label")
        assert tag != "section" or a.get("aria-labelledby") in ids
        assert tag != "a" or (a.get("href") or "").removeprefix("#") in ids
    marks = [a for _, a in page.tags if "found" in (a.get("class") or "")]
    assert len(marks) == 2 * len(comparison.pairs) + 2
    assert all(a["role"] == "img" for a in marks)


def test_sliders_answer_to_keys_and_wait_for_the_script(comparison: Comparison) -> None:
    page, script, css = (
        Page(report.html(comparison)),
        pages.asset("report.js"),
        pages.asset("report.css") + pages.asset("slider.css"),
    )
    waiting = [a for _, a in page.tags if "sliding" in (a.get("class") or "").split()]
    assert len(waiting) == 4
    assert all("hidden" in a for a in waiting)
    assert "[hidden] { display: none !important; }" in css
    assert '".sliding")) part.hidden = false' in script
    assert 'type: "range", min: 0, max: 100' in script
    for name in ("aria-label", "aria-valuetext"):
        assert f'range.setAttribute("{name}"' in script
    assert "`${range.value}%`" in script  # within 0 and 100, unlike the pointer
    assert "::-webkit-slider-thumb { appearance: none; width: 1px;" in css
    assert ".slider:has(:focus-visible) .stack { outline:" in css


def test_paper_shows_all_pairs_in_light_colours() -> None:
    css, script = pages.asset("report.css"), pages.asset("report.js")
    paper = css[css.index("@media print") :]
    dark = re.search(r"prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}", css, re.S)
    assert dark is not None
    assert set(re.findall(r"--\w+(?=:)", dark[1])) <= set(re.findall(r"--\w+(?=:)", paper))
    assert "color-scheme: light;" in paper
    assert re.findall(r"([^{}]*)\{ display: none", paper) == [" .sliding, .more > summary "]
    assert re.search(r"\.verdict, \.prompt, \.chart, \.neighbours figure, tr \{ break-inside: avoid", paper)
    for event, state in (("beforeprint", "true"), ("afterprint", "false")):
        assert re.search(rf'"{event}".*d\.open = {state}', script)


def test_wide_tables_scroll_within_themselves(comparison: Comparison) -> None:
    assert ".scroll { overflow-x: auto; position: relative; }" in pages.asset("report.css")
    text = report.html(comparison)
    assert len(re.findall(r"<table", text)) == 2
    assert len(re.findall(r'<div class="scroll">\s*<table', text)) == 2


def test_page_says_what_the_scores_say(comparison: Comparison) -> None:
    text = " ".join(" ".join(Page(report.html(comparison)).texts).split())
    for v in comparison.scores.verdicts:
        assert v.question in text
        assert v.answer.capitalize() in text
    assert report.headline(comparison.scores)[0] in text
    for words in (
        "not evidence",
        "Nearest training pictures",
        "Step by step",
        "1 min 15 s",
    ):
        assert words in text
    assert "sdtune compare" in text
    assert 'path = "embedded:comic"' in text


def test_page_without_the_optional_parts(comparison: Comparison) -> None:
    comparison.run.events_file.unlink()
    bare = dataclasses.replace(comparison, scores=Scores(), validation=Validation(), scorer=None)
    text = " ".join(Page(report.html(bare)).texts)
    assert "Step by step" not in text
    assert "Nearest training pictures" not in text
    assert "These pictures cannot show" in text


def test_page_of_a_base_that_the_scorer_does_not_know(comparison: Comparison) -> None:
    why = "Only small drawings are known."
    scores = judge_without_scorer(Validation(), why, primary="kid")
    bare = dataclasses.replace(comparison, scores=scores, validation=Validation(), scorer=None)
    text = report.html(bare)
    assert text.count(why) == 1
    assert "..<" not in text
    assert "The figures" not in text


def with_bands(comparison: Comparison, pictures: int = 30) -> Comparison:
    rows = bands.changes(
        measured(0, (0, 0, 0), n=pictures, noise=0.02), measured(40, (-0.12, -0.004, 0.06), n=pictures, noise=0.02)
    )
    return dataclasses.replace(comparison, validation=dataclasses.replace(comparison.validation, bands=rows))


def test_bands_of_timesteps_have_their_numbers_and_their_drawing(comparison: Comparison) -> None:
    shown = with_bands(comparison)
    text = report.html(shown)
    words = " ".join(" ".join(Page(text).texts).split())
    assert "95% intervals over 30 pictures" in words
    assert "no verdict" not in words
    table = text[text.index('<table class="bands"') :].partition("</table>")[0]
    rows = re.findall(r'<tr class="(.*?)">(.*?)</tr>', table, re.S)
    assert [tone for tone, _ in rows] == ["good", "", "bad"]
    zero = float(re.findall(r'class="zero" x1="([\d.]+)"', table)[0])
    for (_, row), band in zip(rows, shown.validation.bands, strict=True):
        value, low, high = band.relative
        assert f"{band.name.capitalize()}<small>timesteps {band.timesteps}</small>" in row
        signed = [f"{100 * v:+.1f}".replace("-", "\N{MINUS SIGN}") for v in (value, low, high)]
        assert f"<b>{signed[0]}%</b><small>{signed[1]} to {signed[2]}%</small>" in row
        assert f">{band.verdict}</td>" in row
        left, right = map(float, re.findall(r'class="span" x1="([\d.]+)" x2="([\d.]+)" y1="20" y2="20"', row)[0])
        (at,) = map(float, re.findall(r'class="at" cx="([\d.]+)"', row))
        assert 0 < left < at < right < report.BAND_WIDE
        assert [x < zero for x in (left, at, right)] == [v < 0 for v in (low, value, high)]
        assert (right - left) / (at - zero) == pytest.approx((high - low) / value, rel=0.15), "to scale"
    assert len(re.findall(r"<table", text)) == len(re.findall(r'<div class="scroll">\s*<table', text)) == 3


def test_few_pictures_give_no_verdict_on_bands(comparison: Comparison) -> None:
    few = with_bands(comparison, pictures=4)
    assert "With fewer than 20 pictures there is no verdict." in report.html(few)
    assert [b["verdict"] for b in report.as_json(few)["validation"]["bands"]] == ["cannot tell"] * 3
    one = with_bands(comparison, pictures=1)
    assert 'class="span"' not in report.html(one)
    assert json.dumps(report.as_json(one), allow_nan=False)


def test_bands_are_in_the_other_files_too(comparison: Comparison) -> None:
    shown = with_bands(comparison)
    record = report.as_json(shown)["validation"]["bands"]
    first = shown.validation.bands[0]
    assert record[0] == {
        "name": "clean", "timesteps": [62, 312], "base": first.base, "tuned": first.now, "verdict": "lower",
        "change": {"value": first.change.value, "low": first.change.low, "high": first.change.high, "n": 30},
    }  # fmt: skip
    assert report.as_json(comparison)["validation"]["bands"] == []
    rows = [line for line in report.markdown(shown).splitlines() if line.startswith(("| clean, 62", "| noisy, 687"))]
    assert [row.split(" | ")[-1] for row in rows] == ["lower |", "higher |"]


def test_timeline_says_the_loss_at_each_step(comparison: Comparison) -> None:
    assert "validation loss." not in report.html(comparison)
    comparison.run.log(Validated(0, 0.21, (0.21,)))
    comparison.run.log(Validated(40, 0.1234, (0.1234,)))
    heads = re.findall(r'<th scope="col">(base|20|40)(?:<small>(.*?)</small>)?</th>', report.html(comparison))
    assert heads == [("base", "0.210"), ("20", ""), ("40", "0.123")]


def test_pictures_that_show_nothing_are_told_at_the_top(comparison: Comparison) -> None:
    assert 'class="alarm"' not in report.html(comparison)
    first, *others = comparison.pairs
    broken = dataclasses.replace(comparison, pairs=(dataclasses.replace(first, flaws=("", "NaN <all> over")), *others))
    page = Page(report.html(broken))
    assert any(t == "p" and a.get("class") == "alarm" for t, a in page.tags)
    text = " ".join(" ".join(page.texts).split())
    assert "1 of 8 tuned pictures (and 0 of the base's) show nothing" in text
    assert "seed 1: NaN <all> over" in text
    assert text.count("shows nothing") == 1
    assert report.as_json(broken)["flawed"] == {"base": 0, "tuned": 1}
    base = dataclasses.replace(comparison, pairs=(dataclasses.replace(first, flaws=("flat", "")), *others))
    assert "0 of 8 tuned pictures (and 1 of the base's) show nothing" in base.flawed
    assert base.flawed.endswith(": flat")


def test_report_is_the_same_each_time(comparison: Comparison) -> None:
    assert report.html(comparison) == report.html(comparison)
    assert report.as_json(comparison) == report.as_json(comparison)


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    uri = report.thumb(drawn(tmp_path / "large.png", 1, 1024), report.LARGE)
    assert uri.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (512, 512)


def test_json_and_markdown_hold_everything(comparison: Comparison) -> None:
    record = json.loads(json.dumps(report.as_json(comparison), allow_nan=False))
    assert [v["key"] for v in record["verdicts"]] == [
        "helped",
        "moved",
        "content",
        "away",
        "overfit",
        "forgot",
        "copied",
    ]
    assert {f["key"] for f in record["figures"]} >= {
        "kid_target",
        "fd_target",
        "found_first",
        "kid_control",
        "validation_loss",
    }
    assert len(record["pictures"]) == 8
    assert record["unrelated_pictures"][0]["tuned"] == "tuned/unrelated-000-1.png"
    assert record["plan"]["unrelated"] == ["a boat"]
    assert record["pictures"][0]["base"] == "base/000-1.png"
    assert record["config"]["name"] == "ink"
    assert record["plan"]["prompts_without_shared_words"][:2] == ["red apple", "dog"]
    rows = [line for line in report.markdown(comparison).splitlines() if line.startswith("|")]
    assert {line.count("|") - line.count("\\|") for line in rows} == {7}


def verdicts(**answers: str) -> Scores:
    return Scores(verdicts=tuple(Verdict(k, k, v, "yes", "") for k, v in answers.items()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answers, words, tone",
    [
        ({"moved": "yes", "content": "yes", "away": "yes", "overfit": "no", "copied": "no"}, "worked", "good"),
        ({"moved": "yes", "content": "no"}, "lost what it was asked", "bad"),
        ({"moved": "yes", "content": "cannot tell"}, "cannot be told", "open"),
        ({"moved": "cannot tell", "content": "yes"}, "cannot show", "open"),
        ({"moved": "no", "content": "yes"}, "did not move", "bad"),
        ({"moved": "cannot tell", "content": "no"}, "lost what it was asked", "bad"),
        ({"moved": "cannot tell", "content": "yes", "copied": "yes"}, "copies", "bad"),
        ({"moved": "yes", "content": "yes", "copied": "yes"}, "copies", "bad"),
        ({"moved": "yes", "content": "yes", "away": "no"}, "nearer to everything", "open"),
        ({"moved": "yes", "content": "yes", "forgot": "yes"}, "but forgot other things", "open"),
        (
            {"moved": "yes", "content": "yes", "forgot": "yes", "overfit": "yes"},
            "forgot other things and was trained",
            "open",
        ),
        ({}, "cannot show", "open"),
    ],
)
def test_headline(answers: dict[str, str], words: str, tone: str) -> None:
    sentence, got = report.headline(verdicts(**answers))
    assert words in sentence
    assert got == tone


def test_headline_names_a_short_way() -> None:
    def moved(way: float) -> str:
        rows = (Verdict("moved", "", "yes", "yes", "", "", way), Verdict("content", "", "yes", "yes", ""))
        return report.headline(Scores(verdicts=rows))[0]

    assert "moved 31% of the way" in moved(0.31)
    assert "worked" in moved(0.9)


def test_colours_follow_the_wanted_direction() -> None:
    lower = Interval(-1, -2, -0.5, 30, 0.3)
    rows = [
        Figure("a", "a", "lower", difference=lower),
        Figure("b", "b", "higher", difference=lower),
        Figure("c", "c", "lower", difference=lower, evidence=False),
        Figure("d", "d", "", difference=lower),
        Figure("e", "e", "lower", difference=Interval(-1, -2, 0.5, 30, 0.3)),
        Figure("f", "f", "lower", difference=lower, holm=0.04),
        Figure("g", "g", "lower", difference=lower, holm=0.05),
    ]
    table = report.table(rows)
    assert [r["side"] for r in table] == [1, -1, 0, 0, 0, 1, 0]
    assert [r["holm"] for r in table][4:] == ["", "corrected p = 0.040", "corrected p = 0.050"]


def test_the_validation_curve_has_its_band(comparison: Comparison) -> None:
    each_N = np.array([0.1, 0.2, 0.3, 0.4])
    losses = np.array([each_N, each_N - 0.05, each_N - np.array([0.02, 0.04, 0.06, 0.08])])
    band = report._band(Validation((0, 1, 2), losses))
    assert list(band[0]) == pytest.approx([0.25, 0.25]), "no change from itself"
    assert list(band[1]) == pytest.approx([0.2, 0.2]), "all pictures alike, though they differ among themselves"
    assert band[2][0] < 0.2 < band[2][1]
    assert report._band(Validation((0, 1), losses[:2, :1])) == []
    paths = [a for tag, a in Page(report.html(comparison)).tags if tag == "path"]
    assert [a["d"][-1] for a in paths if a.get("class") == "band" and a["d"]] == ["Z"]


def test_other_things_and_the_largest_changes_have_their_pictures(comparison: Comparison) -> None:
    page = Page(report.html(comparison))
    alts = [a.get("alt") for tag, a in page.tags if tag == "img"]
    assert "base: a boat, seed 1" in alts
    assert "tuned: a boat, seed 1" in alts
    assert "Where it changed most" not in page.texts, "of four prompts five are not picked"
    without = dataclasses.replace(comparison, unrelated=())
    assert "Other things" not in Page(report.html(without)).texts
    likeness = ((0.5, 0.9), (0.5, 0.7), (0.5, 0.4), (0.5, 0.4), (0.5, 0.5), (0.5, 0.5), (0.5, 0.1), (0.5, 0.3))
    scored = dataclasses.replace(comparison, scores=dataclasses.replace(comparison.scores, likeness=likeness))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "EXTREMES", 1)
        best, worst = report._extremes(scored)
    assert [(g["prompt"], g["change"]) for g in best["groups"]] == [(PROMPTS[0], "+0.30")]
    assert [(g["prompt"], g["change"]) for g in worst["groups"]] == [(PROMPTS[3], "\N{MINUS SIGN}0.30")]


@pytest.mark.parametrize("low, high", [(0, 400), (0.045, 0.07), (3, 3), (0, 0), (-0.2, 1e6)])
def test_axis_marks_are_few_and_span_the_values(low: float, high: float) -> None:
    ticks = charts.ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9


def test_the_sweep_of_the_run_stands_in_its_report(comparison: Comparison) -> None:
    text = " ".join(Page(report.html(comparison)).texts)
    assert "sdtune sweep " in text and "suggested" not in text

    def point(name: str, strength: float, kid: float) -> Point:
        return Point(
            name, strength, (), Interval(kid, kid - 0.1, kid + 0.1, 30), Interval(0.5, 0.4, 0.6, 30),
            Interval(0.04, 0, 0.1, 30), Interval(0, 0, 0, 30),
        )  # fmt: skip

    base, *points = point("base", 0.0, 0.9), point("step-000010", 0.75, 0.31), point("final", 1.0, 0.32)
    found = Sweep(comparison.run, ("a", "b"), (1, 2, 3), base, tuple(points), points[0], None, "the nearest")
    write_text(comparison.run.config_file, configs.to_toml(comparison.config))
    write_json(comparison.run.sweep / "sweep.json", sweep_page.as_json(found))
    page = " ".join(" ".join(Page(report.html(comparison)).texts).split())
    assert "The validation prompts (2, 3 seeds each)" in page and "The nearest." in page
    assert "step-000010 at 0.75 suggested 0.310 0.210 to 0.410" in page
    assert "final at 1 this report 0.320" in page and "4%" in page
    (comparison.run.sweep / "sweep.json").write_text("{")
    assert "suggested" not in " ".join(Page(report.html(comparison)).texts)
