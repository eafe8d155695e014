"""TensorBoard as a reader of `events.jsonl`: the run's scalars and previews as TensorBoard's own files.

python -m sdtune.tb runs/NAME        the same as: sdtune tensorboard runs/NAME
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sdtune.errors import SdtuneError
from sdtune.events import Event, Finished, Sampled, Step, Validated
from sdtune.runs import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def write(run: Run, folder: Path) -> int:
    """Write what the run's log holds to `folder`, in place of what an earlier call wrote. Returns the number of records.

    Raises RunError if `run` is no run folder, SdtuneError if tensorboard is not installed.
    """
    config = run.config()
    writer_class = _writer_class()
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    writer = writer_class(str(folder))
    try:
        writer.add_text("config", "```\n" + run.config_file.read_text(encoding="utf-8") + "\n```", walltime=0)
        written = sum(_add(writer, run, event) for event in run.events())
        writer.add_text("name", config.name, walltime=0)
    finally:
        writer.close()
    return written


def _writer_class() -> type[SummaryWriter]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SdtuneError("tensorboard is not installed: pip install 'sdtune[tensorboard]'") from None
    return SummaryWriter


def _add(writer: SummaryWriter, run: Run, event: Event) -> int:
    """One event as TensorBoard records; returns how many."""
    match event:
        case Step(step=step, time=at):
            scalars = {"train/loss": event.loss, "train/grad_norm": event.grad_norm, "train/lr": event.lr}
            if event.seconds > 0:
                scalars["speed/steps_per_second"] = 1 / event.seconds
        case Validated(step=step, time=at):
            scalars = {"validation/loss": event.loss}
        case Finished(step=step, time=at):
            scalars = {"speed/seconds": event.seconds}
        case Sampled():
            return _add_preview(writer, run, event)
        case _:
            return 0
    for name, value in scalars.items():
        writer.add_scalar(name, value, step, walltime=at)
    return len(scalars)


def _add_preview(writer: SummaryWriter, run: Run, event: Sampled) -> int:
    import numpy as np
    from PIL import Image

    path = run.path / event.path
    if not path.is_file():  # removed by the user
        return 0
    with Image.open(path, formats=["PNG"]) as image:
        pixels_HWC = np.asarray(image.convert("RGB"))
    tag = f"preview/{event.prompt[:60]}/seed {event.seed}"
    writer.add_image(tag, pixels_HWC, event.step, walltime=event.time, dataformats="HWC")
    return 1


def main() -> None:
    """`python -m sdtune.tb RUN [FOLDER]`."""
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m sdtune.tb RUN [FOLDER]")
    run = Run(Path(sys.argv[1]))
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else run.path / "tensorboard"
    try:
        records = write(run, folder)
    except SdtuneError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    sys.stdout.write(f"{folder}: {records} records\n")


if __name__ == "__main__":
    main()
