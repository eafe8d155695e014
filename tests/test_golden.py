"""Golden losses: the exact loss of every step of small runs. A change that should not change numbers shows none.

`make golden` writes them anew; the diff of tests/golden/losses.json belongs to the change that caused it, with its reason.
Where torch or the processor differ from those that made the file, closeness is asked for instead of equality.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdtune import config as configs
from sdtune.environment import processor
from sdtune.events import Step, Validated
from sdtune.runs import Run
from sdtune.train import train
from tests import tiny

FILE = Path(__file__).parent / "golden" / "losses.json"
HERE = {
    "torch": torch.__version__.split("+")[0],
    "instructions": torch.backends.cpu.get_cpu_capability(),
    "processor": processor(),
}
RUNS = {
    "epsilon full": ("epsilon", ("method.type=full", "optimizer.lr=1e-3")),
    "epsilon lora": ("epsilon", ("method.rank=4", "method.targets=many", "method.dropout=0.2", "data.flip=true")),
    "v full ema accumulate": (
        "v_prediction",
        ("method.type=full", "train.ema=0.9", "train.accumulate=2", "optimizer.schedule=linear"),
    ),
    "v lora no snr": (
        "v_prediction",
        ("method.alpha=2", "objective.min_snr_gamma=1e9", "data.crop=random", "optimizer.warmup=3"),
    ),
    "epsilon lora bf16": ("epsilon", ("method.rank=4", "train.precision=bf16")),
}


def losses(folder: Path, prediction: str, overrides: tuple[str, ...]) -> dict[str, list[float]]:
    model = tiny.sd1_folder(folder / "model", prediction)  # type: ignore[arg-type]
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (32, 48, 3), np.uint8)).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"a photo of a dog {i}\na red dog")
    settings = (
        f"model.path={model}", f"data.path={folder / 'pictures'}", f"data.cache={folder / 'cache'}", "data.validation_share=0.34",
        "train.steps=6", "train.batch_size=2", "train.validate_every=3", "train.validation_timesteps=2", "train.sample_every=0",
        "train.precision=fp32", "train.device=cpu", "train.threads=1", "optimizer.lr=1e-2",
    )  # fmt: skip
    events = list(train(configs.load(None, [*settings, *overrides]), Run(folder / "run")))
    return {
        "train": [e.loss for e in events if isinstance(e, Step)],
        "validation": [e.loss for e in events if isinstance(e, Validated)],
    }


@pytest.mark.parametrize("name", list(RUNS))
def test_losses(name: str, tmp_path: Path, update_golden: bool) -> None:
    got = losses(tmp_path, *RUNS[name])
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    if update_golden:
        FILE.parent.mkdir(exist_ok=True)
        kept = golden.get("losses", {}) if golden.get("made with") == HERE else {}
        FILE.write_text(json.dumps({"made with": HERE, "losses": {**kept, name: got}}, indent=1, sort_keys=True) + "\n")
        return
    expected = golden["losses"][name]
    if golden["made with"] == HERE:
        assert got == expected
    else:
        tolerance = 3e-2 if "bf16" in name else 1e-3
        for kind in expected:
            assert got[kind] == pytest.approx(expected[kind], rel=tolerance)
