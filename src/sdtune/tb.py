"""TensorBoard as a reader of `events.jsonl`: the run's scalars and previews as TensorBoard's own files.

python -m sdtune.tb runs/NAME        the same as: sdtune tensorboard runs/NAME
"""

from __future__ import annotations

import sys
from pathlib import Path

from sdtune.errors import SdtuneError
from sdtune.follow import Tool
from sdtune.follow.reader import follow
from sdtune.runs import Run


def write(run: Run, folder: Path) -> int:
    """Write what the run's log holds to `folder`, in place of what an earlier call wrote. Returns the number of records.

    Raises RunError if `run` is no run folder, SdtuneError if tensorboard is not installed.
    """
    return follow(run, Tool.TENSORBOARD, out=folder, wait=False).records


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
