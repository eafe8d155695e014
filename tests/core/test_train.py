"""The loop, on tiny models of the true classes: it resumes bit by bit, keeps its promises on disk, and says what goes wrong."""

import json
import math
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from sdtune import checkpoint, prepare, tuned, validation
from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.data.batch import _order, validation_batches
from sdtune.data.cache import Cache
from sdtune.data.dataset import scan
from sdtune.ema import Ema
from sdtune.errors import RunError, TrainingError
from sdtune.events import Event, Failed, Finished, Noted, Sampled, Saved, Started, Step, Validated, Warned
from sdtune.families import sd1_model
from sdtune.methods import adapters, low_rank
from sdtune.runs import Run
from sdtune.scaling import LossScale
from sdtune.train import train
from tests import tiny

SETTINGS = (
    "train.steps=8", "train.batch_size=3", "train.accumulate=2", "train.save_every=3", "train.validate_every=2",
    "train.sample_every=4", "train.validation_timesteps=2", "train.ema=0.9", "train.precision=fp32", "train.threads=1", "train.device=cpu",
    "data.flip=true", "optimizer.lr=1e-2", "optimizer.warmup=2", "sample.steps=2", "sample.seeds=[0]", "data.validation_share=0.3",
)  # fmt: skip
METHODS = {
    "full": ("method.type=full",),
    "lora": ("method.rank=2", "method.alpha=4", "method.targets=many", "method.dropout=0.3"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a folder of ten captioned pictures, a cache."""
    folder = tmp_path_factory.mktemp("world")
    tiny.sd1_folder(folder / "model")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 255, (40, 36, 3), np.uint8)).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"a photo of a {'red' if i % 2 else 'blue'} dog\na dog {i}")
    return folder


def config_of(world: Path, *overrides: str) -> RunConfig:
    paths = (f"model.path={world / 'model'}", f"data.path={world / 'pictures'}", f"data.cache={world / 'cache'}")
    return configs.load(None, [*paths, *SETTINGS, *overrides])


def run_all(config: RunConfig, run: Run) -> list[Event]:
    return list(train(config, run))


def stop_after(config: RunConfig, run: Run, step: int) -> None:
    """Take events until the one of `step`, then close the generator, as Ctrl-C does."""
    events: Iterator[Event] = train(config, run)
    next(e for e in events if isinstance(e, Step) and e.step == step)
    events.close()  # type: ignore[attr-defined]


def trace(run: Run) -> list[tuple[object, ...]]:
    """What happened, without the clock."""
    rows: list[tuple[object, ...]] = []
    for e in run.events():
        match e:
            case Step():
                rows.append(("step", e.step, e.loss, e.grad_norm, e.lr))
            case Validated():
                rows.append(("validated", e.step, e.per_picture))
            case Sampled():
                rows.append(("sampled", e.step, e.prompt, e.seed, (run.path / e.path).read_bytes()))
    return rows


def final_weights(run: Run) -> dict[str, Tensor]:
    (file,) = run.final.rglob("*.safetensors")
    return load_file(file)


def assert_same(run: Run, straight: Run) -> None:
    a, b = final_weights(run), final_weights(straight)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert trace(run) == trace(straight)


@pytest.fixture(scope="module", params=list(METHODS))
def straight(
    request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, Run, list[Event]]:
    """An uninterrupted run of each method."""
    config, run = config_of(world, *METHODS[request.param]), Run(tmp_path_factory.mktemp("straight") / request.param)
    return config, run, run_all(config, run)


def test_it_trains_saves_and_tells(straight: tuple[RunConfig, Run, list[Event]]) -> None:
    config, run, events = straight
    (started,) = (e for e in events if isinstance(e, Started))
    assert (started.pictures, started.validation_pictures, started.batch_size, started.steps) == (7, 3, 6, 8)
    assert [e.step for e in events if isinstance(e, Step)] == list(range(1, 9))
    assert len({e.loss for e in events if isinstance(e, Step)}) == 8
    assert [e.step for e in events if isinstance(e, Validated)] == [0, 2, 4, 6, 8]
    assert {e.step for e in events if isinstance(e, Sampled)} == {0, 4, 8}
    assert [e.step for e in events if isinstance(e, Saved)] == [3, 6, 8]
    assert isinstance(events[-1], Finished) and (run.path / events[-1].path).exists()
    assert not [e for e in events if isinstance(e, Warned)]
    assert run.config() == config
    assert json.loads(run.environment_file.read_text())["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("stops", [(3,), (4,), (1, 5), (2, 3, 7)])
def test_resume_is_bit_identical(
    straight: tuple[RunConfig, Run, list[Event]], tmp_path: Path, stops: Sequence[int]
) -> None:
    config, reference, _ = straight
    run = Run(tmp_path / "run")
    for step in stops:
        stop_after(config, run, step)
    run_all(config, run)
    assert_same(run, reference)


@pytest.mark.parametrize("straight", ["lora", pytest.param("full", marks=pytest.mark.slow)], indirect=True)
def test_sigkill_three_times_changes_nothing(straight: tuple[RunConfig, Run, list[Event]], tmp_path: Path) -> None:
    config, reference, _ = straight
    run, recipe = Run(tmp_path / "run"), tmp_path / "recipe.toml"
    recipe.write_text(configs.to_toml(config))
    program = (
        "import sys; from pathlib import Path; from sdtune import config; from sdtune.runs import Run; from sdtune.train import train\n"
        "for e in train(config.load(sys.argv[1]), Run(Path(sys.argv[2]))): print(type(e).__name__, getattr(e, 'step', ''), flush=True)"
    )
    for last_words in ("Step 2", "Validated 4", "Saved 6"):
        with subprocess.Popen(
            [sys.executable, "-c", program, recipe, run.path], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            while process.stdout.readline().strip() != last_words:
                assert process.poll() is None
            process.send_signal(signal.SIGKILL)
    run_all(config, run)
    assert_same(run, reference)


def test_a_finished_run_does_nothing_more(straight: tuple[RunConfig, Run, list[Event]]) -> None:
    config, run, events = straight
    before = run.events_file.read_bytes()
    again = run_all(config, run)
    assert again == [events[-1]] and run.events_file.read_bytes() == before


def loaded(config: RunConfig, run: Run, which: str) -> list[Tensor]:
    """What the run's result changes or replaces in a fresh model."""
    model = config.model.load()
    tuned.of_run(model, run, which)
    updates = [adapter.change() for _, adapter in adapters.adapters_of(model.parts)]
    return updates or list(model.denoiser.parameters())


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_final_result_is_the_moving_average_of_the_last_step(straight: tuple[RunConfig, Run, list[Event]]) -> None:
    config, run, _ = straight
    final = loaded(config, run, "final")
    assert same(final, loaded(config, run, "step-000008")), "which holds weights and their average"
    assert not same(final, loaded(config, run, "step-000006"))
    average = load_file(run.checkpoints / "step-000008" / "ema.safetensors")
    raw = load_file(run.checkpoints / "step-000008" / "weights.safetensors")
    assert not any(torch.equal(average[n], raw[n]) for n in raw)
    if config.method.type == "full":
        model = config.model.load()
        assert same(final, [average[f"unet.{n}"] for n, _ in model.denoiser.named_parameters()])


def test_a_run_that_is_not_finished_or_lacks_a_checkpoint_says_so(world: Path, tmp_path: Path) -> None:
    config, run = config_of(world, *METHODS["lora"], "train.validate_every=0"), Run(tmp_path / "run")
    stop_after(config, run, 3)
    for which, says in (
        ("final", "not finished"),
        ("step-000009", "no checkpoint 'step-000009'; there are: step-000003"),
        ("best", "no best checkpoint"),
    ):
        with pytest.raises(RunError, match=says):
            tuned.of_run(config.model.load(), run, which)


def test_a_checkpoint_of_other_targets_is_refused(world: Path, tmp_path: Path) -> None:
    config, run = config_of(world, *METHODS["lora"]), Run(tmp_path / "run")
    stop_after(config, run, 1)
    run.config_file.unlink()
    with pytest.raises(RunError, match="was saved by another method or target set"):
        run_all(config_of(world, "method.targets=attention"), run)


def test_a_changed_config_is_refused_with_the_differences(
    straight: tuple[RunConfig, Run, list[Event]], world: Path
) -> None:
    config, run, _ = straight
    method = ("method.type=full",) if config.method.type == "full" else METHODS["lora"]
    with pytest.raises(RunError, match=r"optimizer.lr: 0.01 -> 0.5") as error:
        run_all(config_of(world, *method, "optimizer.lr=0.5", "train.seed=9"), run)
    assert "train.seed: 0 -> 9" in str(error.value)
    assert run.config() == config, "the run's own config is not overwritten"


def test_a_harmless_change_is_said_and_taken(world: Path, tmp_path: Path) -> None:
    config, run = config_of(world, *METHODS["lora"]), Run(tmp_path / "run")
    stop_after(config, run, 3)
    events = run_all(config_of(world, *METHODS["lora"], "train.save_every=4"), run)
    assert any(isinstance(e, Warned) and "train.save_every: 3 -> 4" in e.message for e in events)
    assert isinstance(events[-1], Finished)


def test_the_newest_checkpoints_are_kept_and_the_best_weights_beside_them(world: Path, tmp_path: Path) -> None:
    """The best step is none at which a checkpoint is due."""
    options = ("train.save_every=4", "train.keep=1", "train.validate_every=1", "optimizer.lr=0.5")
    config, run = config_of(world, *METHODS["lora"], *options), Run(tmp_path / "r")
    stop_after(config, run, 5)  # what was best before is not forgotten
    run_all(config, run)
    events = list(run.events())
    losses = {e.step: e.loss for e in events if isinstance(e, Validated) and e.step}
    best = min(losses, key=losses.__getitem__)
    assert best not in (4, 8), "the test wants a best step between two checkpoints"
    assert {p.name for p in run.checkpoints.iterdir()} == {"step-000008", "best"}
    assert isinstance(events[-1], Finished) and events[-1].best_step == best
    kept = checkpoint.read(run.checkpoints / "best")
    assert kept.step == best
    (said,) = (e.message for e in events if isinstance(e, Noted) and "lowest validation loss" in e.message)
    assert said.startswith(f"step {best} has the lowest validation loss, {losses[best]:.4g} (")

    model = config.model.load()
    held_out = Cache.open(scan(config.data).validation, model, config.data, resolution=32, augment=False)
    list(held_out.fill())
    tuned.of_run(model, run, "best")
    again = validation.losses(model, config.objective.build(model), validation_batches(held_out)[0], timesteps=2)
    assert float(again.mean()) == pytest.approx(losses[best], rel=1e-5), "the weights are those that had this loss"


@pytest.mark.parametrize("method", list(METHODS))
def test_the_best_weights_can_be_the_result(world: Path, tmp_path: Path, method: str) -> None:
    options = ("train.validate_every=1", "optimizer.lr=0.5", "train.steps=5", "train.sample_every=0")
    last, best = (Run(tmp_path / r) for r in ("last", "best"))
    run_all(config_of(world, *METHODS[method], *options), last)
    run_all(config_of(world, *METHODS[method], *options, "train.result=best"), best)
    assert trace(last) == trace(best), "the training is the same"
    a, b = final_weights(last), final_weights(best)
    assert any(not torch.equal(a[k], b[k]) for k in a)
    kept = checkpoint.read(best.checkpoints / "best").tensors("weights.safetensors") or {}
    assert all(any(torch.equal(v, w) for w in b.values() if w.shape == v.shape) for v in kept.values())


def test_patience_ends_a_run_that_gets_no_better_and_a_resumed_one_at_the_same_step(
    world: Path, tmp_path: Path
) -> None:
    options = (
        "optimizer.lr=0.5",
        "train.patience=2",
        "train.validate_every=1",
        "train.steps=40",
        "train.sample_every=40",
    )
    config, run, again = config_of(world, *METHODS["lora"], *options), Run(tmp_path / "run"), Run(tmp_path / "again")
    events = run_all(config, run)
    finished = events[-1]
    assert isinstance(finished, Finished) and finished.early and finished.best_step is not None
    assert finished.step == finished.best_step + 2 < 40
    assert {e.step for e in events if isinstance(e, Sampled)} == {0, finished.step}
    assert (run.checkpoints / f"step-{finished.step:06d}").is_dir()
    assert run_all(config, run) == [finished], "a run that stopped early is a finished one"
    stop_after(config, again, finished.step - 1)
    assert run_all(config, again)[-1].step == finished.step  # type: ignore[union-attr]
    assert_same(again, run)


def test_validation_tells_timesteps_and_weights_apart(straight: tuple[RunConfig, Run, list[Event]]) -> None:
    _, _, events = straight
    validated = [e for e in events if isinstance(e, Validated)]
    for e in validated:
        assert len(e.per_timestep) == 2 and sum(e.per_timestep) / 2 == pytest.approx(e.loss, rel=1e-5)
        assert e.timesteps == (250, 750) and [len(band) for band in e.per_band] == [3, 3]
        for band, mean in zip(e.per_band, e.per_timestep, strict=True):
            assert sum(band) / 3 == pytest.approx(mean, rel=1e-5)
        assert e.raw is not None
    assert validated[0].raw == pytest.approx(validated[0].loss, rel=1e-6)
    assert abs(validated[-1].raw - validated[-1].loss) > 1e-5  # type: ignore[operator]


@pytest.mark.parametrize("harm", ["flip a byte", "truncate", "remove", "empty the manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(world: Path, tmp_path: Path, harm: str) -> None:
    config, run = config_of(world, *METHODS["lora"]), Run(tmp_path / "run")
    stop_after(config, run, 7)
    newest = sorted(run.checkpoints.iterdir())[-1]
    file = newest / ("manifest.json" if harm == "empty the manifest" else "weights.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    match harm:
        case "flip a byte":
            file.write_bytes(data)
        case "truncate":
            file.write_bytes(data[:-9])
        case "remove":
            file.unlink()
        case _:
            file.write_text("{}")
    events = run_all(config, run)
    (warned,) = (e for e in events if isinstance(e, Warned))
    assert newest.name in warned.message and "going on from step-000006" in warned.message
    assert next(e.step for e in events if isinstance(e, Started)) == 6


def test_two_processes_cannot_hold_one_folder(world: Path, tmp_path: Path) -> None:
    config, run = config_of(world, *METHODS["lora"]), Run(tmp_path / "run")
    first = train(config, run)
    next(first)
    with pytest.raises(RunError, match="in use by process"):
        run_all(config, run)
    first.close()  # type: ignore[attr-defined]
    run.lock_file.write_text(json.dumps({"pid": 999999999, "host": socket.gethostname(), "started": 1.0}))
    assert isinstance(run_all(config, run)[-1], Finished), "a dead process's lock is taken over"


def test_divergence_stops_before_the_weights_are_touched(world: Path, tmp_path: Path) -> None:
    config, run = config_of(world, "method.type=full", "optimizer.lr=1e30", "optimizer.warmup=0"), Run(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"step \d: loss (nan|inf)"):
        run_all(config, run)
    assert not run.final.exists()
    (failed,) = (e for e in run.events() if isinstance(e, Failed))
    assert "gradient norm" in failed.message
    for file in run.checkpoints.rglob("weights.safetensors"):
        assert all(bool(torch.isfinite(v).all()) for v in load_file(file).values())


def test_divergence_names_the_pictures_of_the_step(world: Path, tmp_path: Path) -> None:
    config = config_of(world, "method.type=full", "optimizer.lr=1e30", "optimizer.warmup=0", "data.validation_share=0")
    with pytest.raises(TrainingError) as error:
        run_all(config, Run(tmp_path / "run"))
    step, named = str(error.value).split("; its pictures: ")
    k = int(step.split()[1].rstrip(":")) - 1
    order = [i.item() for epoch in range(6) for i in _order(10, 0, epoch)][6 * k : 6 * k + 6]
    assert named.split(", ") == [f"{i}.png" for i in dict.fromkeys(order)]
    assert "loss nan, gradient norm nan at learning rate 9.6" in step


def test_pictures_changed_between_two_sittings_are_named(world: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(world / "pictures", pictures)
    shutil.copytree(pictures, tmp_path / "v" / "validation")
    for i in range(10):
        pictures.joinpath(f"{i}.png").rename(pictures / f"p{i}.png")
        pictures.joinpath(f"{i}.txt").rename(pictures / f"p{i}.txt")
        side = Image.open(pictures / f"p{i}.png").rotate(90)
        side.save(pictures / f"p{i}.png")
    config = config_of(
        world, *METHODS["lora"], f"data.path={pictures}", f"data.validation={tmp_path / 'v' / 'validation'}"
    )
    run = Run(tmp_path / "run")
    stop_after(config, run, 4)
    untouched = list(islice(train(config, run), 12))
    assert not [e for e in untouched if isinstance(e, Warned)]
    (pictures / "p0.png").unlink()
    (pictures / "p0.txt").unlink()
    (pictures / "p1.txt").write_text("a house")
    tiny.picture(9).save(pictures / "p2.png")
    tiny.picture(8).save(pictures / "new.png")
    (pictures / "new.txt").write_text("the sun")
    (warned,) = (e for e in run_all(config, run) if isinstance(e, Warned))
    assert warned.message.endswith(
        "1 picture added: new.png; 1 picture removed: p0.png; 2 pictures edited, or their captions: p1.png, p2.png"
    )
    assert warned in list(run.events()) and warned.step >= 4
    assert "new.png" in json.loads(run.data_file.read_text())["train"]


def test_what_was_said_at_the_start_stays_in_the_log(straight: tuple[RunConfig, Run, list[Event]]) -> None:
    _, run, events = straight
    noted = [e for e in events if isinstance(e, Noted)]
    assert noted and [e for e in run.events() if isinstance(e, Noted)] == noted


def test_validation_is_the_same_measurement_each_time(world: Path, tmp_path: Path) -> None:
    config = config_of(
        world, *METHODS["lora"], "optimizer.lr=1e-30", "train.steps=4", "sample.prompts=['a sun']", "sample.seeds=[5]"
    )
    events = run_all(config, Run(tmp_path / "run"))
    losses = [e.per_picture for e in events if isinstance(e, Validated)]
    assert len(losses) == 3 and len(losses[0]) == 3
    for later in losses[1:]:
        assert later == pytest.approx(losses[0], rel=1e-5)
    assert all(math.isfinite(v) for v in losses[0])
    assert {(e.prompt, e.seed) for e in events if isinstance(e, Sampled)} == {("a sun", 5)}
    (warned,) = (e.message for e in events if isinstance(e, Warned))
    assert "did it train?" in warned and "did not move" in warned


def test_a_dead_part_is_named(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank.LowRank, "factors", lambda self: (self.lora_A.detach(), self.lora_B * 1.0))
    events = run_all(
        config_of(world, "method.rank=2", "method.targets=attention", "train.steps=4"), Run(tmp_path / "run")
    )
    warned = [e.message for e in events if isinstance(e, Warned)]
    assert any("get no gradient" in m and "lora_A" in m for m in warned)


def test_a_part_that_is_dead_as_a_whole_is_named_as_one(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The denoiser reads the captions without a gradient: the text encoder's adapters hear nothing."""
    options = ("method.rank=2", "method.targets=attention", "method.text_encoders=true", "train.steps=4")
    config = config_of(world, *options, "train.ema=0", "train.validate_every=0", "train.sample_every=0")
    assert not [e for e in run_all(config, Run(tmp_path / "alive")) if isinstance(e, Warned)]
    read = sd1_model.Sd1Model.read_tokens
    monkeypatch.setattr(sd1_model.Sd1Model, "read_tokens", torch.no_grad()(read))
    warned = [e.message for e in run_all(config, Run(tmp_path / "dead")) if isinstance(e, Warned)]
    count = len([n for n in final_weights(Run(tmp_path / "dead")) if n.startswith("text_encoder.")])
    assert count and any(f"get no gradient (zero or not finite): all {count} of text_encoder" in m for m in warned)
    assert not any("unet" in m for m in warned)


@pytest.mark.parametrize("stop", [0, 2])
def test_a_moving_average_that_stands_still_is_named(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """In a run that goes on as well: there the average is not the weights before the first step."""
    config, run = config_of(world, *METHODS["lora"], "train.sample_every=0", "train.validate_every=0"), Run(tmp_path)
    if stop:
        stop_after(config, run, stop)
    monkeypatch.setattr(Ema, "update", lambda self, step: None)
    (warned,) = (e for e in run_all(config, run) if isinstance(e, Warned))
    count = len(final_weights(run)) - sum("alpha" in n for n in final_weights(run))
    assert warned.step == 3 and f"{count} of {count} trainable parts move, but their moving average" in warned.message
    assert warned.message.endswith(f"(train.ema) does not: all {count} of unet")


@pytest.mark.slow
def test_steps_that_were_given_up_are_no_sign_of_a_dead_part(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp16 the first steps find the loss scale; the check waits for three steps that were taken."""
    monkeypatch.setattr(prepare, "LossScale", lambda: LossScale(value=2.0**26))
    options = ("train.precision=fp16", "train.steps=12", "train.validate_every=0", "train.sample_every=0")
    config = config_of(world, *METHODS["lora"], *options)
    events = run_all(config, Run(tmp_path / "sound"))
    given_up = [e.step for e in events if isinstance(e, Warned) and "step given up" in e.message]
    assert given_up[:2] == [1, 2] and len(given_up) < 9, "the test wants some, and enough steps after them"
    assert not [e for e in events if isinstance(e, Warned) and "did it train" in e.message]
    monkeypatch.setattr(low_rank.LowRank, "factors", lambda self: (self.lora_A.detach(), self.lora_B * 1.0))
    events = run_all(config, Run(tmp_path / "dead"))
    (warned,) = (e for e in events if isinstance(e, Warned) and "did it train" in e.message)
    assert "lora_A" in warned.message
    assert len([e for e in events if isinstance(e, Step) and e.step <= warned.step]) == 3


def test_gradient_checkpointing_changes_memory_not_numbers(
    straight: tuple[RunConfig, Run, list[Event]], tmp_path: Path, world: Path
) -> None:
    config, _, events = straight
    if config.method.type == "lora":
        pytest.skip("dropout is drawn again in the recomputation; the full run has none")
    again = run_all(config_of(world, *METHODS["full"], "train.gradient_checkpointing=true"), Run(tmp_path / "run"))
    a, b = ([e.loss for e in es if isinstance(e, Step)] for es in (events, again))
    assert a == pytest.approx(b, rel=1e-5)


def test_bf16_learns_the_same_thing(straight: tuple[RunConfig, Run, list[Event]], tmp_path: Path, world: Path) -> None:
    config, _, events = straight
    again = run_all(config_of(world, *METHODS[config.method.type], "train.precision=bf16"), Run(tmp_path / "run"))
    a, b = ([e.loss for e in es if isinstance(e, Step)] for es in (events, again))
    assert a[:3] == pytest.approx(b[:3], rel=1e-2) and a == pytest.approx(b, rel=6e-2) and a != b


def test_no_room_on_disk_keeps_the_earlier_checkpoint(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = config_of(world, *METHODS["lora"]), Run(tmp_path / "run")
    stop_after(config, run, 4)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(RunError, match="MB are free; earlier checkpoints are intact"):
        run_all(config, run)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["best", "step-000003", "step-000004"]
