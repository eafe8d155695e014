"""Each family trains through the same loop, goes on bit by bit, and hands on what diffusers loads."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sdtune import config as configs
from sdtune import tuned
from sdtune.config import SampleConfig
from sdtune.events import Event, Finished, Step, Warned
from sdtune.families import recognise
from sdtune.runs import Run
from sdtune.train import train
from tests.families.common import by_diffusers, drawn, load, pictures, pipeline

KINDS = ("sd1-inpainting", "sd2", "sdxl", "sdxl-v", "sd3")
VARIANTS = ("sd2-epsilon", "sd2-inpainting", "sdxl-inpainting")
"""One method is enough for a run of `make test`: what they add is in the families, not in the methods."""
METHODS = {"lora": ("method.rank=2", "method.alpha=4"), "full": ("method.type=full",)}
SETTINGS = (
    "train.steps=4", "train.batch_size=2", "train.validate_every=0", "train.sample_every=0", "train.precision=fp32",
    "train.threads=1", "train.device=cpu", "data.flip=true", "data.crop=random", "data.caption_dropout=0.3", "optimizer.lr=1e-1",
    "data.validation_share=0", "sample.steps=2", "sample.seeds=[0]", "sample.scheduler=euler",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "pictures", ["a red dog", "a photo of a cat", "a blue house"])


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, method) for kind in KINDS for method in METHODS),
        *((kind, "lora") for kind in VARIANTS),
        *(pytest.param(kind, "full", marks=pytest.mark.slow) for kind in VARIANTS),
    ],
)
def test_it_trains_resumes_and_travels(
    folder_of: Callable[[str], Path], data: Path, tmp_path: Path, kind: str, method: str
) -> None:
    folder = folder_of(kind)
    paths = (
        f"model.path={folder}",
        f"model.type={recognise(str(folder))}",
        f"data.path={data}",
        f"data.cache={tmp_path}",
    )
    config = configs.load(None, [*paths, *SETTINGS, *METHODS[method]])
    straight, broken = Run(tmp_path / "straight"), Run(tmp_path / "broken")
    events = list(train(config, straight))
    assert isinstance(events[-1], Finished) and len({e.loss for e in events if isinstance(e, Step)}) == 4
    assert all("did not move" not in e.message for e in events if isinstance(e, Warned))
    parts: Iterator[Event] = train(config, broken)
    next(e for e in parts if isinstance(e, Step) and e.step == 2)
    parts.close()  # type: ignore[attr-defined]
    list(train(config, broken))
    one, two = (load_file(next(run.final.rglob("*.safetensors"))) for run in (straight, broken))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)

    sampling = SampleConfig(prompts=("a dog",), seeds=(3,), steps=3, scheduler="euler", guidance=3.0, negative="a cat")
    model = load(folder)
    base = drawn(model, sampling)
    tuned.of_run(model, straight)
    ours = drawn(model, sampling)
    assert abs(ours - base).max() > 2
    if method == "lora":
        pipe = pipeline(folder, next(straight.final.glob("*.safetensors")))
    else:
        pipe = pipeline(folder)
        part = getattr(pipe, model.denoiser_name)
        part.load_state_dict(type(part).from_pretrained(straight.final / model.denoiser_name).state_dict())
    assert abs(by_diffusers(pipe, kind, model, sampling, "a cat") - ours).max() <= 1


def test_crops_reach_sdxl(folder_of: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    """The sizes told in training are those of pictures and cuts, not of the latents."""
    from sdtune.data.batch import batches
    from sdtune.data.cache import Cache
    from sdtune.data.dataset import scan

    model = load(folder_of("sdxl"))
    config = configs.load(None, [f"data.path={data}", f"data.cache={tmp_path}", "data.validation_share=0"]).data
    cache = Cache.open(scan(config, seed=0).train, model, config, resolution=32)
    list(cache.fill())
    cond = next(batches(cache, config, batch_size=3, seed=0, start=0)).cond
    assert cond.size_BK is not None and cond.pooled_BD is not None
    assert np.array_equal(cond.size_BK[0], [36, 40, 0, 2, 32, 32])
