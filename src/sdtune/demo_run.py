"""The demo: a recipe that comes with sdtune, trained and compared in one go."""

from __future__ import annotations

import os
import shutil
import sys
import webbrowser
from typing import TYPE_CHECKING

from sdtune import presets
from sdtune.errors import RunError

if TYPE_CHECKING:
    from sdtune.config import RunConfig
    from sdtune.runs import Run


def config(method: str) -> RunConfig:
    """The demo's config for "lora" or "full". Raises ConfigError for another method."""
    from sdtune import config as configs

    return configs.load(presets.recipe(f"demo-{method}"))


def intention(method: str) -> str:
    """What the demo does and how long it takes, from the header of its recipe."""
    about = presets.header(presets.recipe(f"demo-{method}"))
    return f"{about['purpose'].removeprefix('the demo: ')}\nTakes {about['time']}"


def clear(run: Run) -> None:
    """Delete an earlier demo. Raises RunError if the folder holds something else or is in use."""
    if not run.path.exists():
        return
    if not run.exists():
        raise RunError(f"{run.path}: is no run folder, so it is not deleted; give another --out")
    with run.lock():
        for path in run.path.iterdir():
            if path == run.lock_file:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def open_report(run: Run) -> None:
    """Show the report in a browser, where there is a desktop and somebody is looking."""
    desktop = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if desktop and sys.stdout.isatty() and run.report_file.is_file():
        webbrowser.open(run.report_file.resolve().as_uri())
