"""TensorBoard: files of its own format, which it reads from a folder."""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from sdtune.follow.records import Note, Picture, Scalars
from sdtune.follow.target import Outcome, Target, missing
from sdtune.runs import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Target):
    """Writes to `out`, unset: `tensorboard` in the run's folder."""

    def __init__(self, run: Run, out: Path | None = None) -> None:
        folder = out or run.path / "tensorboard"
        writer_class = _writer_class()
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = writer_class(str(folder))
        self._writer.add_text("config", f"```\n{run.config_file.read_text(encoding='utf-8')}\n```", walltime=0)
        self._writer.add_text("name", run.config().name, walltime=0)
        self.where, self.view = str(folder), f"tensorboard --logdir {shlex.quote(str(folder))}"

    def scalars(self, record: Scalars) -> None:
        for name, value in record.values.items():
            self._writer.add_scalar(name, value, record.step, walltime=record.time)

    def picture(self, record: Picture) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(record.path, formats=["PNG"]) as image:
            pixels_HWC = np.asarray(image.convert("RGB"))
        self._writer.add_image(record.name, pixels_HWC, record.step, walltime=record.time, dataformats="HWC")

    def note(self, record: Note) -> None:
        self._writer.add_text("warnings", record.text, record.step, walltime=record.time)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, outcome: Outcome) -> None:
        self._writer.close()


def _writer_class() -> type[SummaryWriter]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise missing("tensorboard") from None
    return SummaryWriter
