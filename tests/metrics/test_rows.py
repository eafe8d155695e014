"""Rows of the protocol for sets, seeds, copies and preference: each against its definition, and what makes it evidence."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sdtune import protocol, stats
from sdtune.data.images import load_image
from sdtune.errors import ConfigError, DataError, EvaluationError
from sdtune.judging.figures import corrected
from sdtune.judging.scores import Figure
from sdtune.metrics import cmmd, copying, diversity, frechet, image_reward, kid, prdc
from sdtune.metrics.nets import trunks
from sdtune.metrics.registry import METRICS
from sdtune.protocol import choosing, measures, pairing
from sdtune.protocol.choosing import choice_of
from sdtune.protocol.measures import Sides, told
from sdtune.stats import Interval
from tests.metrics import tiny_encoders as tiny

Array = NDArray[np.float64]
N = 20


def normal(seed: int, n: int, d: int, shift: float = 0.0) -> Array:
    return np.random.default_rng(seed).normal(shift, 1, (n, d))


def sides(n: int, original: float = 1.0, tuned: float = 0.1, seeds: int = 1, d: int = 4) -> Sides:
    """Real pictures, and drawn ones as far from them as is said."""
    real, own = normal(0, n, d), np.repeat(np.arange(n), seeds)
    return Sides(
        real, real[own] + original * normal(1, n * seeds, d), own, real[own] + tuned * normal(2, n * seeds, d), own
    )


# ---- what makes a figure evidence


def rows(name: str, n: int) -> list[Figure]:
    """The figures of a metric for n real pictures."""
    choice, two, few = choice_of(name), sides(n, seeds=2), 100
    match name:
        case "kid" | "cmmd":
            return [measures.discrepancy(choice, sides(n), *measures.kernels(name), few, 0)]
        case "fid" | "fd-dinov2":
            return [measures.distance(choice, sides(n), few, 0)]
        case "prdc":
            return measures.prdcs(choice, sides(n), few, 0)
        case "vendi":
            return [measures.vendis(choice, sides(n), few, 0)]
        case "drift":
            return [measures.drifted(choice, two, few, 0)]
        case "copies":
            found = [copying.copies(x, two.real_ND) for x in (two.original_ND, two.tuned_ND, two.real_ND)]
            return [measures.copied(choice, two, found[:2], found[2], few, 0)]
        case "diversity":
            original, tuned = (diversity.cosine_diversity(*side) for side in two.drawn)
            return [measures.varied(choice, original, tuned, few, 0)]
        case _:
            figure = measures.each(
                choice, METRICS[name].better, normal(0, n, 1)[:, 0], normal(1, n, 1)[:, 0], None, few, 0
            )
            return [figure, measures.won(choice, figure)] if name in choosing.PREFERENCE else [figure]


@pytest.mark.parametrize("name", METRICS)
def test_the_registry_says_from_when_on_a_figure_is_evidence(name: str) -> None:
    m = METRICS[name]
    for figure in rows(name, m.needs - 1):
        assert not figure.evidence and told(figure) == "not evidence"
        assert figure.note.startswith(f"not evidence: {m.needs - 1:,} {m.unit}, needs {m.needs:,}")
    for figure in rows(name, m.needs):
        assert figure.evidence and "not evidence" not in figure.note


def test_limits_of_formulas_are_those_of_the_registry() -> None:
    assert METRICS["kid"].needs == kid.MIN_PICTURES and METRICS["cmmd"].needs == cmmd.MIN_PICTURES
    assert METRICS["fid"].needs == METRICS["fd-dinov2"].needs == frechet.MIN_PICTURES


def test_every_metric_of_the_registry_can_be_asked_for() -> None:
    found = protocol.choices(",".join(METRICS))
    assert [choice.key for choice in found] == list(METRICS)
    parts = [
        c.of(p) for c in found for p in {"prdc": ("precision", "recall", "density", "coverage")}.get(c.metric, ("",))
    ]
    assert all(c.label and c.short for c in parts)
    assert choice_of("prdc.recall:shipped") == protocol.Choice("prdc", "shipped", "recall")
    assert choice_of("prdc.recall").key == "prdc.recall" and choice_of("pickscore.wins").encoder == "pickscore"


# ---- sets


def counted(real: Array, drawn: Array, own: NDArray[np.int64], w: Array, k: int) -> list[float]:
    """The four figures from their definitions, one weighted picture after the other."""
    wd = w[own]

    def reach(x: Array, weights: Array, i: int) -> float:
        others = sorted((float(((x[i] - x[j]) ** 2).sum()), weights[j]) for j in range(len(x)) if j != i)
        total = 0.0
        for apart, weight in others:
            total += weight
            if total >= k:
                return apart
        return others[-1][0]

    d = ((real[:, None] - drawn[None]) ** 2).sum(-1)
    r = [reach(real, w, i) for i in range(len(real))]
    g = [reach(drawn, wd, j) for j in range(len(drawn))]
    there_r, there_d = [i for i in range(len(real)) if w[i]], [j for j in range(len(drawn)) if wd[j]]
    precision = sum(wd[j] for j in there_d if any(d[i, j] < r[i] for i in there_r)) / wd.sum()
    recall = sum(w[i] for i in there_r if any(d[i, j] < g[j] for j in there_d)) / w.sum()
    density = sum(w[i] * wd[j] for i in there_r for j in there_d if d[i, j] < r[i]) / (k * wd.sum())
    coverage = sum(w[i] for i in there_r if any(d[i, j] < r[i] for j in there_d)) / w.sum()
    return [precision, recall, density, coverage]


def test_prdc_of_units_drawn_again() -> None:
    real, own = normal(0, 30, 2), np.repeat(np.arange(30), 2)
    drawn = real[own] + 0.4 * normal(1, 60, 2)
    again = prdc.Redrawn(real, drawn, own, 3)
    weights = np.vstack([np.ones(30), stats.resample(np.zeros(30, np.int64), 4, 0)])
    found = again(weights)
    assert found[0] == pytest.approx(dataclasses.astuple(prdc.prdc(real, drawn, 3)))
    for got, w in zip(found, weights, strict=True):
        assert got == pytest.approx(counted(real, drawn, own, w, 3))


def test_prdc_keeps_near_pairs_alone() -> None:
    """Of many pictures a few neighbours each are kept, and nothing is lost by it."""
    s = sides(200, tuned=0.5)
    again = prdc.Redrawn(s.real_ND, s.tuned_ND, s.tuned_own)
    assert again._real[0].shape == (200, 40) and len(again._i) < 200 * 200
    (w,) = stats.resample(np.zeros(200, np.int64), 1, 3)
    assert again(w[None])[0] == pytest.approx(counted(s.real_ND, s.tuned_ND, s.tuned_own, w, 5))


def test_prdc_rows_see_a_collapse_and_have_bounds() -> None:
    n = 1000
    real, own = normal(0, n, 3), np.arange(n)
    s = Sides(real, real + normal(1, n, 3), own, 0.05 * normal(2, n, 3), own)
    found = {f.key: f for f in measures.prdcs(choice_of("prdc"), s, 100, 0)}
    assert list(found) == ["prdc.precision", "prdc.recall", "prdc.density", "prdc.coverage"]
    assert told(found["prdc.recall"]) == told(found["prdc.coverage"]) == "worse"
    assert told(found["prdc.precision"]) == "better"  # this is why it never stands alone
    for figure in found.values():
        assert figure.base and figure.tuned and figure.real and figure.difference
        assert 0 <= figure.tuned.low <= figure.tuned.value <= figure.tuned.high
        assert figure.key == "prdc.density" or figure.tuned.high <= 1
    real_half = found["prdc.coverage"].real
    assert real_half and real_half.n == n // 2 and 0.8 < real_half.value <= 1


def test_vendi_weights_count_pictures_and_rows_have_no_better_side() -> None:
    x, times = normal(0, 6, 10), np.array([2, 0, 1, 3, 0, 1])
    assert diversity.vendi(x, times.astype(float)) == pytest.approx(diversity.vendi(np.repeat(x, times, 0)))
    s = sides(60, d=30)
    s = dataclasses.replace(s, tuned_ND=s.tuned_ND[:1] + 0.1 * normal(3, 60, 30))
    figure = measures.vendis(choice_of("vendi"), s, 200, 0)
    assert told(figure) == "lower" and figure.better == ""
    assert figure.tuned and figure.base and figure.real and figure.tuned.value < 3 < figure.base.value
    assert figure.base.low < figure.base.value < figure.base.high
    assert figure.real.value == pytest.approx(diversity.vendi(s.real_ND)) and math.isnan(figure.real.low)
    assert measures.vendis(choice_of("vendi"), sides(60, seeds=2), 10, 0).real is None  # of half as many pictures


def test_sets_are_taken_of_equally_many() -> None:
    real, x = normal(0, 3, 2), normal(1, 6, 2)
    s = Sides(real, x, np.array([0, 0, 0, 1, 1, 2]), x[:4], np.array([0, 0, 1, 2])).even()
    assert s.original_own.tolist() == s.tuned_own.tolist() == [0, 0, 1, 2]
    assert s.original_ND == pytest.approx(x[[0, 1, 3, 5]]) and s.tuned_ND == pytest.approx(x[:4])


# ---- seeds


def test_drift_is_held_against_two_seeds_of_the_original() -> None:
    s = sides(60, original=1.0, seeds=2, d=16)
    near, far = (
        measures.drifted(
            choice_of("drift"), dataclasses.replace(s, tuned_ND=s.original_ND + size * normal(5, 120, 16)), 200, 0
        )
        for size in (0.1, 9.0)
    )
    assert told(near) == "lower" and told(far) == "higher" and near.better == ""
    assert near.base and near.base.value == pytest.approx(
        diversity.cosine_diversity(s.original_ND, s.original_own).mean()
    )
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(s.original_ND, s.original_ND + 0.1 * normal(5, 120, 16), strict=True)
    ]
    assert near.tuned and near.tuned.value == pytest.approx(1 - np.mean(cosines))
    kept = s.tuned_own != 7  # one caption with another number of pictures
    kept[15] = True
    uneven = dataclasses.replace(s, tuned_ND=s.tuned_ND[kept], tuned_own=s.tuned_own[kept])
    figure = measures.drifted(choice_of("drift"), uneven, 100, 0)
    assert (
        figure.tuned
        and figure.tuned.n == 59
        and "1 captions with other numbers of pictures are left out" in figure.note
    )
    alone = measures.drifted(choice_of("drift"), sides(60), 100, 0)
    assert told(alone) == "not evidence" and alone.base is None and "without a second seed" in alone.note
    assert alone.tuned and alone.tuned.value > 0


def test_seeds_that_became_alike_are_lower_and_not_worse() -> None:
    s = sides(30, original=1.0, tuned=0.01, seeds=3, d=8)
    original, tuned = (diversity.cosine_diversity(*side) for side in s.drawn)
    figure = measures.varied(choice_of("diversity:shipped"), original, tuned, 200, 0)
    assert told(figure) == "lower" and figure.wins is None
    tuned[:3] = np.nan
    figure = measures.varied(choice_of("diversity:shipped"), original, tuned, 200, 0)
    assert figure.difference and figure.difference.n == 27 and "3 captions were drawn once" in figure.note


def test_figures_without_a_better_side_are_not_corrected_and_do_not_count() -> None:
    def figure(key: str, better: str) -> Figure:
        return Figure(key, key, better, difference=Interval(0.3, 0.1, 0.5, 100, 0.12))  # type: ignore[arg-type]

    found = corrected([figure("lpips", "lower"), figure("vendi", ""), figure("clip", "higher")], "lpips", measures.p_of)
    assert [f.holm is None for f in found] == [True, True, False]
    assert found[2].holm == pytest.approx(measures.p_of(found[2]))


# ---- copies


def test_copies_are_counted_by_caption_with_open_bounds_at_none() -> None:
    n = 40
    train, real, own = np.eye(n), np.roll(np.eye(n), 1, 1) + 2 * np.ones((n, n)), np.arange(n)
    drawn = np.ones((n, n)) + np.eye(n)
    copied = drawn.copy()
    copied[:30] = train[:30] + 0.01
    s = Sides(real, drawn, own, copied, own)
    a, b, held_out = (copying.copies(x, train, real) for x in (s.original_ND, s.tuned_ND, s.real_ND))
    figure = measures.copied(choice_of("copies"), s, (a, b), held_out, 200, 0)
    assert told(figure) == "worse" and figure.better == "lower"
    assert figure.base and figure.tuned and figure.real
    assert figure.tuned.value == 0.75 and figure.base.value == 0
    assert figure.base.low == 0 and figure.base.high == pytest.approx(stats.share(0, n).high)
    assert figure.real == stats.share(0, n)
    assert "cosine above 0.5" in figure.note and "real test pictures 0." in figure.note
    same = measures.copied(choice_of("copies"), dataclasses.replace(s, tuned_ND=drawn), (a, a), held_out, 200, 0)
    d = same.difference
    assert told(same) == "cannot tell" and d and d.low < 0 < d.high and d.p == 1
    all_of_them = measures.copied(
        choice_of("copies"), s, (a, dataclasses.replace(b, cosine_N=np.ones(n))), held_out, 200, 0
    )
    assert (
        told(all_of_them) == "worse" and all_of_them.tuned and all_of_them.tuned.high == 1 > all_of_them.tuned.low > 0.9
    )
    own_limit = [copying.copies(x, train, real, None) for x in (s.original_ND, s.tuned_ND, s.real_ND)]
    assert measures.copied(choice_of("copies:shipped"), s, own_limit[:2], own_limit[2], 100, 0).real is None


# ---- preference


def test_win_rate_goes_by_its_sign_test() -> None:
    original, n = np.zeros(120), 120
    tuned = np.concatenate([np.full(75, 0.1), np.full(35, -5.0), np.zeros(10)])  # more wins, and a lower mean
    figure = measures.each(choice_of("pickscore"), "higher", original, tuned, None, 500, 0)
    row = measures.won(choice_of("pickscore"), figure)
    assert row.key == "pickscore.wins" and row.label == "Win rate by PickScore"
    assert told(row) == "better" and told(figure) == "worse"
    assert (
        row.tuned == stats.share(75, 110) and row.difference and row.difference.value == pytest.approx(75 / 110 - 0.5)
    )
    assert "10 of 120 are ties" in row.note and row.evidence
    assert measures.p_of(row) == stats.sign_test(75, 35) != row.difference.p
    adjusted = corrected([figure, row], "pickscore", measures.p_of)
    assert adjusted[1].holm == pytest.approx(stats.sign_test(75, 35))
    for wins in range(60, 80):  # both say the same at every number
        even = dataclasses.replace(figure, wins=wins, losses=n - wins)
        sure = told(measures.won(choice_of("pickscore"), even)) == "better"
        assert sure == (stats.sign_test(wins, n - wins) < 0.05 and wins > n / 2)


# ---- from folders


def save(path: Path, seed: int, by: float = 0.0, other: int = 0) -> None:
    """A picture of large fields, changed by a share of another one."""
    fields = [np.random.default_rng(s).uniform(0, 255, (4, 4, 3)) for s in (seed, other)]
    values = np.kron((1 - by) * fields[0] + by * fields[1], np.ones((8, 8, 1)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Test pictures, two seeds of each by both models, and a training folder of which the tuned model copies five pictures."""
    lines: dict[str, list[dict[str, str]]] = {"a": [], "b": []}
    for i in range(N):
        save(tmp_path / f"real/{i:02d}.png", i)
        (tmp_path / f"real/{i:02d}.txt").write_text(f"picture number {i}")
        save(tmp_path / f"set/train/t{i}.png", 500 + i)
        save(tmp_path / f"set/validation/v{i}.png", 900 + i)
        if i == N - 1:  # the nearest that a test picture comes to one of these
            save(tmp_path / f"real/{i:02d}.png", 500 + i, 0.02, 1)
        for seed in range(2):
            name = f"{i:02d}-{seed}.png"
            save(tmp_path / "a" / name, i, 0.6, 100 * seed + i + 50)
            save(
                tmp_path / "b" / name, 500 + i if i < 5 and not seed else i, 0.0 if i < 5 and not seed else 0.2, 300 + i
            )
            for folder in lines:
                lines[folder].append({"file_name": name, "reference": f"{i:02d}"})
    for folder, found in lines.items():
        (tmp_path / folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    return tmp_path


def judged(folders: Path, metrics: str, **more: object) -> protocol.Result:
    named = [folders / name for name in ("real", "a", "b")]
    return protocol.judge(*named, metrics=metrics, draws=200, at=folders / "home", **more)  # type: ignore[arg-type]


ALL = "prdc:shipped,vendi:shipped,diversity:shipped,drift:shipped,copies:shipped,dino:shipped"


def test_all_rows_from_folders_to_the_report(folders: Path) -> None:
    found = judged(folders, ALL, train=folders / "set")
    by = {f.key: f for f in found.figures}
    assert (
        list(by) == [f"prdc.{p}:shipped" for p in ("precision", "recall", "density", "coverage")] + ALL.split(",")[1:]
    )
    assert by["prdc.recall:shipped"].note == "not evidence: 20 pictures, needs 1,000"
    copies, dino_all = by["copies:shipped"], by["dino:shipped"]
    assert copies.tuned and copies.tuned.value == pytest.approx(5 / 40) and copies.base and copies.base.value == 0
    assert dino_all.real and dino_all.base and dino_all.real.value < 1  # a real picture is no likeness of itself
    assert any("look at the pairs" in line for line in found.limits) and any(
        "captions that the training" in x for x in found.limits
    )
    pairs = found.nearest["copies:shipped"]
    assert len(pairs) == 20 and [n.flagged for n in pairs[:6]] == [True] * 5 + [False]
    assert sorted((n.drawn.name, n.train.name) for n in pairs[:5]) == [
        (f"{i:02d}-0.png", f"t{i}.png") for i in range(5)
    ]
    assert pairs[0].cosine == pytest.approx(1) and pairs == sorted(pairs, key=lambda n: -n.cosine)
    html = protocol.write(found, folders / "out").read_text(encoding="utf-8")
    section = html[html.index("Nearest training pictures") :]
    section = section[: section.index("</section>")]
    assert section.count("data:image/png") == 40 and section.count("suspicious") == section.count("<b>flagged</b>") == 5
    assert "no side is better" in html and "Framed (5): nearer than any real test picture is" in html
    record = json.loads((folders / "out/scores.json").read_text(encoding="utf-8"))
    assert record["nearest"]["copies:shipped"][0]["flagged"] and record["train"] == str(folders / "set")
    assert next(f for f in record["figures"] if f["key"] == "vendi:shipped")["better"] is None
    text = (folders / "out/report.md").read_text(encoding="utf-8")
    assert "## Nearest training pictures, by shipped" in text and text.count("**flagged**") == 5
    assert re.search(r"\| Recall: real pictures that could be drawn, by shipped \| higher \|", text)
    assert re.search(r"\| Vendi score.*, by shipped \| neither \|", text)


def test_a_report_without_copies_has_no_place_for_them(folders: Path) -> None:
    html = protocol.write(found := judged(folders, "diversity:shipped,drift:shipped"), folders / "out").read_text()
    assert "Nearest training pictures" not in html and "nearest" not in json.loads(
        (folders / "out/scores.json").read_text()
    )
    assert {told(f) for f in found.figures} <= {"higher", "lower", "not evidence"}


def test_the_first_part_of_the_first_metric_decides(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        choosing.Choice, "rule", property(lambda self: dataclasses.replace(METRICS[self.metric], needs=5))
    )
    found = judged(folders, "prdc:shipped,dino:shipped")
    assert [f.holm is None for f in found.figures] == [True, False, False, False, False]


def test_by_networks_lpips_between_seeds_and_a_judge_of_preference(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = folders / "home"
    monkeypatch.setattr("sdtune.metrics.places.expected_sha256", lambda spec, file: None)
    tiny.clip(home, "pickscore")
    tiny.image_reward(home, monkeypatch)
    torch.manual_seed(0)
    tiny.torch_saved(dict(trunks.alexnet().state_dict()), home / "lpips-alex/alexnet-owt-7be5be79.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 192, 384, 256, 256))}
    tiny.torch_saved(heads, home / "lpips-alex/alex.pth")
    found = judged(folders, "diversity,pickscore,imagereward")
    by = {f.key: f for f in found.figures}
    assert list(by) == ["diversity", "pickscore", "pickscore.wins", "imagereward", "imagereward.wins"]
    from sdtune.metrics import encoders

    measure = encoders.load_pairs("lpips-alex", home)
    with Image.open(folders / "a/03-0.png") as x, Image.open(folders / "a/03-1.png") as y:
        (own,) = measure.distances([measure.prepare(x, y)])
    assert own > 0 and by["diversity"].base and by["diversity"].base.n == N
    alone = judged(folders, "diversity")
    assert alone.figures[0].base == by["diversity"].base and told(alone.figures[0]) in (
        "lower",
        "cannot tell",
        "higher",
    )
    wins, figure = by["pickscore.wins"], by["pickscore"]
    a, b = found.values["pickscore"]
    assert (wins.wins, wins.losses) == (int((b > a).sum()), int((b < a).sum())) == (figure.wins, figure.losses)
    assert wins.note.startswith("not evidence: 20 prompts, needs 100")
    a, b = found.values["imagereward"]
    assert (by["imagereward.wins"].wins, by["imagereward.wins"].losses) == (int((b > a).sum()), int((b < a).sum()))
    reward, (item, *_) = image_reward.load(at=home), found.pairs.items
    drawn = [reward.prepare(load_image(path), item.caption) for path in item.tuned]
    assert b[0] == pytest.approx(reward.scores(drawn).mean(), abs=1e-4), (
        "the mean of a caption's pictures, each with its caption"
    )
    table = (protocol.write(found, folders / "out").parent / "report.md").read_text()
    assert re.search(rf"Win rate by PickScore: .*higher in {wins.wins} of {N}, p [<=] [01]\.\d+ \(sign test\)", table)


def test_sscd_flags_above_its_published_limit(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.sscd(folders / "home", monkeypatch)
    for i in range(3, N):
        (folders / f"real/{i:02d}.png").unlink()
        (folders / f"set/train/t{i}.png").unlink()
    found = judged(folders, "copies", train=folders / "set")
    (figure,) = found.figures
    assert "cosine above 0.5" in figure.note and figure.real is not None
    assert found.nearest["copies"][0].cosine == pytest.approx(1) and len(found.nearest["copies"]) == 6
    assert all(n.flagged == (n.cosine > 0.5) for n in found.nearest["copies"])


def test_what_these_pictures_cannot_give_is_refused(folders: Path) -> None:
    for i in range(5, N):
        (folders / f"real/{i:02d}.png").unlink()
    for i in range(N):
        (folders / f"b/{i:02d}-1.png").unlink()
    rows = (folders / "b/metadata.jsonl").read_text().splitlines()
    (folders / "b/metadata.jsonl").write_text("\n".join(row for row in rows if '-1.png"' not in row))
    found = judged(folders, "prdc:shipped,diversity:shipped,drift:shipped,kid:shipped")
    why = dict(found.refused)
    assert [f.key for f in found.figures] == ["kid:shipped"]
    assert "5 pictures: with 5 neighbours at least 6" in why["prdc:shipped"]
    assert "no two captions were drawn twice by both" in why["diversity:shipped"]
    assert "no two captions have as many pictures of both" in why["drift:shipped"]


def test_copies_need_training_pictures_and_nothing_else_does(folders: Path) -> None:
    with pytest.raises(ConfigError, match=r"copies: of which pictures\?.*--train FOLDER"):
        judged(folders, "copies:shipped")
    with pytest.raises(ConfigError, match=r"--train: .*: nothing looks at it but copies"):
        judged(folders, "kid:shipped", train=folders / "set")
    with pytest.raises(DataError, match="gone: no such folder"):
        judged(folders, "copies:shipped", train=folders / "gone")
    with pytest.raises(EvaluationError, match=r"nothing is left.*\n  copies: sscd: its weights are not here"):
        judged(folders, "copies", train=folders / "set")


def test_training_pictures_with_and_without_captions(folders: Path) -> None:
    assert [p.name for p in pairing.training(folders / "set")] == sorted(f"t{i}.png" for i in range(N))
    rows = [json.dumps({"file_name": f"t{i}.png"}) for i in range(N)]
    (folders / "set/train/metadata.jsonl").write_text("\n".join(rows))
    assert len(pairing.training(folders / "set")) == N
    save(folders / "set2/x.png", 0)
    save(folders / "set2/test/y.png", 0)
    assert [p.name for p in pairing.training(folders / "set2")] == ["x.png"]
    (folders / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no pictures there"):
        pairing.training(folders / "empty")
