"""A process that looks something up for the server, which imports no torch: `python -m sdtune.serve.clerk`, a JSON line each way."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections import Counter
from typing import TYPE_CHECKING, Any

from sdtune import config as configs
from sdtune import pictures
from sdtune.errors import SdtuneError

if TYPE_CHECKING:
    from sdtune.config import RunConfig

MOMENTS = {
    "adamw": 2.0, "adamw8bit": 0.5, "adafactor": 0.1, "lion": 1.0, "prodigy": 4.0, "adamw-schedulefree": 2.0,
    "prodigy-schedulefree": 4.0, "muon": 1.0,
}  # fmt: skip
"""Numbers of 4 bytes that an optimiser keeps for each weight, about."""
MB = 2**20


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not end up in the answer
    asked = json.loads(sys.stdin.readline())
    try:
        config = configs.from_dict(tomllib.loads(asked["config"]))
        answer = check(config) if asked["what"] == "check" else estimate(config)
    except SdtuneError as error:
        answer = {"error": str(error)}
    out.write(json.dumps(answer) + "\n")
    out.flush()


def check(config: RunConfig) -> dict[str, Any]:
    """`sdtune data check --quick --json`, with the sizes of the pictures."""
    from sdtune.data import readers
    from sdtune.data.check.report import as_json, examine
    from sdtune.data.dataset import root_of, split_folders

    reading = pictures.reading(config)
    survey = pictures.survey(config, reading, quick=True)
    report = examine(
        survey, reading.fit, words=pictures.trigger_words(config), batch=config.train.batch_size, quick=True
    )
    sizes = Counter(e.size for e in (*survey.train, *survey.validation))
    root = root_of(config.data)
    layout = config.data.layout
    if layout == "auto" and root.is_dir():
        found = readers.reader_of(readers.folder_of(split_folders(root, config.data)[0]), "auto")
        layout = found.name if found else layout  # type: ignore[assignment]
    return {**as_json(report), "layout": layout, "sizes": [(*size, count) for size, count in sizes.most_common(20)]}


def estimate(config: RunConfig) -> dict[str, Any]:
    """What is known of a training before it runs. The model is read on the CPU, in the precision that it will have."""
    from sdtune import devices
    from sdtune.inspection import parts_of

    reading = pictures.reading(config)
    survey = pictures.survey(config, reading, quick=True)
    told: dict[str, Any] = {"train": len(survey.train), "validation": len(survey.validation), "notes": list[str]()}
    told["resolution"] = max(reading.fit.resolutions, default=config.data.resolution or 512)
    device, dtype = devices.choose(config.train)
    try:
        model = config.model.load(device="cpu", dtype=dtype)
        trainable = sum(p.numel() for p in config.method.attach(model, seed=0).values())
    except SdtuneError as error:
        return {**told, "notes": [str(error).splitlines()[0]]}
    moments = MOMENTS.get(config.optimizer.type)
    each = None if moments is None else 4 * (1 + moments + bool(config.train.ema))
    side, width = (
        told["resolution"] // model.downscale,
        getattr(model.denoiser.config, "cross_attention_dim", None) or 4096,
    )
    cached = (side * side * model.latent_channels * 2 + 77 * width) * (4 if config.data.cache_dtype == "fp32" else 2)
    kept = min(config.train.keep, 1 + config.train.steps // config.train.save_every)
    told |= {
        "trainable": trainable,
        "total": sum(p.numel() for p in model.denoiser.parameters()),
        "weights_mb": sum(part.stored_mb for part in parts_of(model)),
        "state_mb": None if each is None else trainable * (each + 4) / MB,
        "disk_mb": None
        if each is None
        else (trainable * (each * kept + 8) + cached * (told["train"] + told["validation"])) / MB,
        "device": str(device),
    }
    return told


if __name__ == "__main__":
    main()
