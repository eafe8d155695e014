"""The protocol: which pictures belong together, what is measured of them, and what is said about it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sdtune import protocol
from sdtune.errors import ConfigError, DataError, EvaluationError
from sdtune.judging.figures import corrected
from sdtune.judging.scores import Figure
from sdtune.metrics import kid
from sdtune.metrics.nets import trunks
from sdtune.pages import asset
from sdtune.protocol import measures, pairing
from sdtune.protocol.measures import told
from sdtune.stats import Interval
from tests import command
from tests.metrics import tiny_encoders as tiny

N = 24


def noise(seed: int, side: int = 32) -> NDArray[np.float64]:
    """A picture of large fields."""
    rng = np.random.default_rng(seed)
    return np.asarray(np.kron(rng.uniform(0, 255, (4, 4, 3)), np.ones((side // 4, side // 4, 1))), np.float64)


def save(values: NDArray[np.float64], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Real pictures with captions; `near` is the same with a little noise, `far` something else."""
    rows = []
    for i in range(N):
        save(noise(i), tmp_path / f"real/{i:02d}.png")
        save(noise(i) + np.random.default_rng(i).normal(0, 20, (32, 32, 3)), tmp_path / f"near/{i:02d}.jpg")
        save(noise(1000 + i), tmp_path / f"far/{i:02d}.png")
        rows.append({"file_name": f"{i:02d}.png", "text": f"picture number {i}"})
    (tmp_path / "real/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CLIP and an LPIPS of random weights, in place of the published ones."""
    home = tmp_path / "home"
    tiny.clip(home, "clip-l14")
    torch.manual_seed(0)
    tiny.torch_saved(dict(trunks.alexnet().state_dict()), home / "lpips-alex/alexnet-owt-7be5be79.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 192, 384, 256, 256))}
    tiny.torch_saved(heads, home / "lpips-alex/alex.pth")
    monkeypatch.setattr("sdtune.metrics.places.expected_sha256", lambda spec, file: None)
    return home


# ---- pairing


def test_by_name_whatever_the_suffix(folders: Path) -> None:
    (folders / "far/03.png").unlink()
    save(noise(0), folders / "near/extra.png")
    pairs = protocol.pair(folders / "real", folders / "far", folders / "near")
    assert len(pairs.items) == N - 1 and pairs.how == "by file name" and pairs.captions
    first = pairs.items[0]
    assert (first.name, first.caption) == ("00", "picture number 0")
    assert [p.name for p in (first.real, *first.original, *first.tuned)] == ["00.png", "00.png", "00.jpg"]
    assert any(re.search(r"near: 1 picture of 25 belong", note) for note in pairs.notes)
    assert any("1 real picture without a drawn one on both sides are left out: 03" in note for note in pairs.notes)


def test_by_the_column_of_the_metadata_with_several_seeds(folders: Path) -> None:
    rows = []
    for i in range(N):
        for seed in range(2):
            save(noise(i + seed), folders / f"seeds/x{i}-{seed}.png")
            rows.append({"file_name": f"x{i}-{seed}.png", "text": "", "reference": f"{i:02d}.png"})
    (folders / "seeds/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = protocol.pair(folders / "real", folders / "far", folders / "seeds")
    assert pairs.how == 'by file name and by the column "reference"'
    assert {len(item.tuned) for item in pairs.items} == {2} and {len(item.original) for item in pairs.items} == {1}


def test_by_the_prompt_that_sample_writes(folders: Path) -> None:
    for i in range(N):
        save(noise(i), folders / f"sampled/{i}-{i + 5}.png")
        (folders / f"sampled/{i}-{i + 5}.json").write_text(json.dumps({"prompt": f"picture number {i}", "seed": 5}))
    pairs = protocol.pair(folders / "real", folders / "far", folders / "sampled")
    assert pairs.how == "by file name and by caption"
    assert pairs.items[7].tuned[0].name == "7-12.png"


def test_a_caption_of_several_pictures_pairs_none(folders: Path) -> None:
    rows = [{"file_name": f"{i:02d}.png", "text": "twice" if i < 2 else f"picture number {i}"} for i in range(N)]
    (folders / "real/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for i in range(4):
        save(noise(i), folders / f"sampled/x{i}.png")
        (folders / f"sampled/x{i}.json").write_text(json.dumps({"prompt": rows[i]["text"]}))
    pairs = protocol.pair(folders / "real", folders / "far", folders / "sampled")
    assert [item.name for item in pairs.items] == ["02", "03"]


def test_what_cannot_be_paired_is_said(folders: Path) -> None:
    save(noise(0), folders / "other/x.png")
    with pytest.raises(EvaluationError, match=r'none of its pictures \(x\) belongs .*a column "reference"'):
        protocol.pair(folders / "real", folders / "far", folders / "other")
    save(noise(0), folders / "other/05.png")
    with pytest.raises(EvaluationError, match=r"1 picture of .* at least 2 are needed"):
        protocol.pair(folders / "real", folders / "far", folders / "other")
    with pytest.raises(DataError, match="gone: no such"):
        protocol.pair(folders / "real", folders / "gone", folders / "far")
    save(noise(0), folders / "real/05.jpg")
    (folders / "real/metadata.jsonl").unlink()
    with pytest.raises(DataError, match="differ in their suffix alone"):
        protocol.pair(folders / "real", folders / "far", folders / "near")


def test_bare_names() -> None:
    assert [pairing._bare(n) for n in ("a/b.c.png", "a", "")] == ["a/b.c", "a", ""]


# ---- figures


def test_a_planted_difference_is_seen_and_none_is_not(folders: Path, home: Path) -> None:
    metrics = "lpips,clip-i-own,dino-own:shipped,clip"
    found = protocol.judge(folders / "real", folders / "far", folders / "near", metrics=metrics, at=home)
    says = {f.key: told(f) for f in found.figures}
    assert list(says) == metrics.split(",")
    assert says["lpips"] == says["clip-i-own"] == says["dino-own:shipped"] == "better"
    assert found.headline.startswith(
        "By LPIPS, CLIP likeness by pairs and likeness by pairs (shipped) the tuned model is better"
    )
    back = protocol.judge(folders / "real", folders / "near", folders / "far", metrics="lpips", at=home)
    assert told(back.figures[0]) == "worse" and back.headline == "By LPIPS the tuned model is worse"
    assert back.figures[0].difference is not None and found.figures[0].difference is not None
    assert back.figures[0].difference.value == pytest.approx(-found.figures[0].difference.value)
    same = protocol.judge(folders / "real", folders / "far", folders / "far", metrics="lpips", at=home)
    assert (
        told(same.figures[0]) == "cannot tell"
        and same.headline == "These pictures cannot tell whether the tuning helped"
    )


def test_lpips_is_of_each_picture_and_its_own_real_one(folders: Path, home: Path) -> None:
    from sdtune.metrics import encoders

    found = protocol.judge(folders / "real", folders / "far", folders / "near", metrics="lpips", at=home)
    measure = encoders.load_pairs("lpips-alex", home)
    with Image.open(folders / "far/05.png") as drawn, Image.open(folders / "real/05.png") as real:
        assert found.values["lpips"][0][5] == pytest.approx(
            measure.distances([measure.prepare(drawn, real)])[0], rel=1e-5
        )
    assert found.figures[0].base is not None and found.figures[0].real is not None
    assert found.figures[0].base.value == pytest.approx(found.values["lpips"][0].mean())
    assert (
        found.figures[0].real.value > found.values["lpips"][1].mean()
    )  # other real pictures are farther than near ones


def test_kid_leaves_out_a_picture_with_its_own_real_one(folders: Path) -> None:
    found = protocol.judge(folders / "real", folders / "far", folders / "near", metrics="kid:shipped")
    (figure,) = found.figures
    assert told(figure) == "not evidence" and figure.note == "not evidence: 24 pictures, needs 50"
    assert found.headline == "24 test pictures are too few to tell whether the tuning helped"
    rng = np.random.default_rng(0)
    real, drawn = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    own = np.arange(6)
    sides = measures.Sides(real, drawn, own, drawn, own)
    across = [kid.cubic_kernel(drawn[i : i + 1], real[j : j + 1])[0, 0] for i in range(6) for j in range(6) if i != j]
    expected = kid.kid(drawn, real) + 2 * kid.cubic_kernel(drawn, real).mean() - 2 * np.mean(across)
    figure = measures.discrepancy(protocol.Choice("kid", "inception"), sides, kid.cubic_kernel, 1.0, 100, 0)
    assert figure.base is not None and figure.base.value == pytest.approx(expected)
    assert figure.difference is not None and (figure.difference.low, figure.difference.high) == (0, 0)


def test_frechet_is_refused_below_its_floor_and_worth_little_if_asked_for(folders: Path) -> None:
    both = protocol.judge(folders / "real", folders / "far", folders / "near", metrics="kid:shipped,fid:shipped")
    assert [key for key, _ in both.refused] == ["fid:shipped"] and "needs 2,048" in both.refused[0][1]
    with pytest.raises(EvaluationError, match=r"nothing is left to be measured\n  fid: 24 pictures"):
        protocol.judge(folders / "real", folders / "far", folders / "near", metrics="fid")
    shown = protocol.judge(folders / "real", folders / "far", folders / "near", metrics="fid:shipped", indicative=True)
    (figure,) = shown.figures
    assert told(figure) == "not evidence" and "rewards a model whose pictures are alike" in figure.note
    assert "covariances of rank 23 at most in 160 dimensions" in figure.note
    assert re.search(r"two halves of the real pictures are [\d.]+ apart, where the truth is 0", figure.note)
    d = figure.difference
    assert d is not None and d.low < d.value < d.high < 0


def test_frechet_draws_are_of_tuned_minus_original() -> None:
    rng = np.random.default_rng(0)
    real, own = rng.normal(size=(12, 5)), np.arange(12)
    sides = measures.Sides(real, real + rng.normal(3, 1, (12, 5)), own, real + rng.normal(0, 0.1, (12, 5)), own)
    found = measures._frechet_changes(sides, 20, 0)
    assert len(found) == 20 and found.max() < 0


def test_seeds_are_averaged_and_drawn_together(folders: Path, home: Path) -> None:
    rows = []
    for i in range(N):
        for seed in range(3):
            save(noise(i) * (0.5 + seed / 4), folders / f"seeds/{i}-{seed}.png")
            rows.append({"file_name": f"{i}-{seed}.png", "reference": f"{i:02d}"})
    (folders / "seeds/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = protocol.judge(folders / "real", folders / "far", folders / "seeds", metrics="lpips", at=home)
    assert found.figures[0].difference is not None and found.figures[0].difference.n == N
    assert not any("drawn once" in line for line in found.limits)


def test_what_is_not_here_is_left_out_and_said(folders: Path, tmp_path: Path) -> None:
    found = protocol.judge(
        folders / "real", folders / "far", folders / "near", metrics="lpips,kid:shipped,clip", at=tmp_path / "none"
    )
    assert [key for key, _ in found.missing] == ["lpips", "clip"]
    assert "sdtune metrics --get lpips-alex" in str(found.missing[0][1])


def test_without_captions_no_clip_score(folders: Path, home: Path) -> None:
    (folders / "real/metadata.jsonl").unlink()
    found = protocol.judge(folders / "real", folders / "far", folders / "near", metrics="clip,clip-i", at=home)
    assert [f.key for f in found.figures] == ["clip-i"]
    assert "not every picture of" in found.refused[0][1]


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ("lips", "lips: no such figure here; possible: kid, cmmd"),
        ("imagereward:clip-l14", "imagereward is taken with imagereward"),
        ("prdc.recall", "prdc.recall: no such figure here"),
        ("clip:shipped", "clip is taken with clip-l14"),
        (" , ", "names nothing"),
    ],
)
def test_choices_are_checked(metrics: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        protocol.choices(metrics)


def test_the_figure_asked_for_first_decides_and_the_others_are_corrected() -> None:
    def figure(key: str, value: float, evidence: bool = True) -> Figure:
        return Figure(
            key, key, "lower", difference=Interval(value, value - 0.2, value + 0.2, 100, 0.1), evidence=evidence
        )

    figures = [
        figure("lpips", -0.21),
        figure("kid", -0.21),
        figure("fid", -0.9, False),
        figure("clip", -0.21),
        figure("dino", -0.9),
    ]
    found = corrected(figures, "lpips", measures.p_of)
    assert [f.holm is None for f in found] == [True, False, True, False, False]
    assert [told(f) for f in found] == ["better", "cannot tell", "not evidence", "cannot tell", "better"]
    assert found[1].holm == pytest.approx(2 * figures[1].difference.p if figures[1].difference else 0)
    without = dataclasses.replace(
        figures[2], evidence=True, difference=Interval(-0.9, math.nan, math.nan, 2048, math.nan)
    )
    assert corrected([*figures[:2], without], "lpips", measures.p_of)[2].holm is None, "no interval, no p value"


# ---- what is written


def test_the_report_is_whole_escaped_and_names_no_home(folders: Path, home: Path, tmp_path: Path) -> None:
    rows = (
        (folders / "real/metadata.jsonl")
        .read_text()
        .replace('picture number 3"', 'a <script>alert(1)</script> & more"')
    )
    (folders / "real/metadata.jsonl").write_text(rows)
    found = protocol.judge(
        folders / "real", folders / "far", folders / "near", metrics="lpips,fid,kid:shipped,clip", at=home
    )
    page = protocol.write(found, tmp_path / "out")
    html = page.read_text(encoding="utf-8")
    assert html.count("<script>") == 1 and asset("zoom.js") in html and "a &lt;script&gt;alert(1)" in html
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html) and html.count("data:image/png") == 3 * N
    assert "By LPIPS the tuned model is better" in html and "Left out" in html and "2,048" in html
    assert str(home) not in html
    record = json.loads((tmp_path / "out/scores.json").read_text(encoding="utf-8"))
    assert record["figures"][0]["says"] == "better" and record["figures"][0]["original"]["n"] == N
    assert len(record["items"]) == N and record["items"][3]["caption"].startswith("a <script>")
    assert record["items"][0]["lpips"]["tuned"] == pytest.approx(found.values["lpips"][1][0])
    assert [e["encoder"] for e in record["encoders"]] == ["lpips-alex", "shipped", "clip-l14"]
    assert all(len(sha) == 64 for e in record["encoders"] for sha in e["sha256"].values())
    table = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert re.search(
        r"^\| LPIPS to the real picture \| lower \| [\d.]+ \([\d. to]+\) \|.*\| better \|", table, re.MULTILINE
    )
    protocol.write(found, tmp_path / "out")  # our own are written again
    (tmp_path / "out/report.md").write_text("mine")
    with pytest.raises(EvaluationError, match="exists and is no file of `sdtune protocol`"):
        protocol.write(found, tmp_path / "out")
    assert (tmp_path / "out/report.md").read_text() == "mine"


# ---- the commands


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("SDTUNE_CACHE", str(tmp_path / "cache"))

    return command.run


def test_protocol_command(folders: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    names = [folders / name for name in ("real", "far", "near")]
    code, out, err = run("protocol", *names, "--metrics", "kid:shipped,lpips", "--device", "cpu")
    assert code == 0, err
    assert "24 test pictures are too few to tell whether the tuning helped." in out
    assert f"report  {folders}/near-protocol/report.html" in out
    assert "warning: lpips is left out: lpips-alex: its weights are not here" in err
    assert (folders / "cache/features/shipped.sqlite").is_file()
    code, out, err = run(
        "protocol", *names, "--metrics", "kid:shipped", "--out", folders / "o", "--json", "--device", "cpu"
    )
    (record,) = map(json.loads, out.splitlines())
    assert (
        code == 0
        and record["figures"][0]["key"] == "kid:shipped"
        and record["report"] == str(folders / "o/report.html")
    )
    assert run("protocol", *names, "--metrics", "fid")[0] == 7
    assert run("protocol", *names, "--metrics", "nothing")[0] == 2
    assert run("protocol", *names, "--device", "abacus", "--metrics", "kid:shipped")[0] == 2
    (folders / "o/scores.json").write_text("{}")
    code, out, err = run("protocol", *names, "--out", folders / "o")
    assert code == 7 and "is no file of `sdtune protocol`" in err


def test_metrics_command(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run("metrics")
    assert code == 0
    assert re.search(
        r"^fid +The same, as most papers report it. +2,048! +pictures +needs inception$", out, re.MULTILINE
    )
    assert re.search(r"^kid .* with shipped$", out, re.MULTILINE)
    assert re.search(r"^imagereward .* needs imagereward$", out, re.MULTILINE)
    assert re.search(r"^clip-l14 +CLIP ViT-L/14 +1,710 MB +no ", out, re.MULTILINE)
    monkeypatch.setenv("SDTUNE_ENCODERS", str(tmp_path / "home"))
    tiny.clip(tmp_path / "home", "clip-l14")
    code, out, _ = run("metrics", "--json")
    record = json.loads(out)
    assert {m["name"] for m in record["metrics"] if m["ready"]} == {
        "kid",
        "clip",
        "clip-i",
        "clip-i-own",
        "diversity",
        "drift",
    }
    assert next(e for e in record["encoders"] if e["name"] == "clip-l14")["here"]
    code, out, _ = run("metrics", "--get", "clip-l14")
    assert code == 0 and f"clip-l14  here, in {tmp_path / 'home' / 'clip-l14'}" in out
    code, _, err = run("metrics", "--get", "clip")
    assert code == 7 and "clip: no such encoder; known: shipped" in err


def test_get_asks_the_hub_for_the_first_file_that_it_has(server: str, tmp_path: Path) -> None:
    """A Hub on this machine, whose repository has a pickle and no safetensors; nothing else of it comes here."""
    from tests.metrics.conftest import DATA, Server

    cache = {"HF_HOME": str(tmp_path / "hub"), "SDTUNE_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    env = {**os.environ, **cache, "HF_ENDPOINT": server, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "sdtune", "metrics", "--get", "dino-s16", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert sorted(record["files"]) == ["config.json", "pytorch_model.bin"] and done.stderr == ""
    assert Path(record["files"]["pytorch_model.bin"]).read_bytes() == DATA
    assert not any("README" in path for path in Server.asked)
    assert str(tmp_path / "hub/hub/models--facebook--dino-vits16") in record["files"]["config.json"]
