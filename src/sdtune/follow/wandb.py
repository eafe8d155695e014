"""Weights & Biases: an offline run in a folder, or, with a server, a run there."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from sdtune import config as configs
from sdtune.follow.records import Note, Picture, Scalars
from sdtune.follow.target import PROJECT, Outcome, Target, identity, missing
from sdtune.runs import Run


class Wandb(Target):
    """Writes `wandb/offline-run-...` to `out`, unset: to the run's folder; `wandb sync` uploads it, when and if you say so.

    `server` is the address of an account's server (https://api.wandb.ai); the key is that of `wandb login`.
    """

    def __init__(self, run: Run, out: Path | None = None, server: str | None = None) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb's own, sent to others, even offline
        try:
            import wandb
        except ImportError:
            raise missing("wandb") from None
        folder, own = out or run.path, identity(run)
        folder.mkdir(parents=True, exist_ok=True)
        if server is None:
            for old in (folder / "wandb").glob(f"offline-run-*-{own}"):
                shutil.rmtree(old, ignore_errors=True)  # its service may still be closing it
        config = run.config()
        self._wandb = wandb
        self._notes: list[str] = []
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, save_code=False,
            x_disable_stats=True, x_disable_meta=True, **({"base_url": server} if server else {}),
        )  # fmt: skip
        self._run = wandb.init(
            project=PROJECT, name=config.name, id=own, dir=str(folder), config=configs.to_dict(config),
            mode="online" if server else "offline", settings=settings,
        )  # fmt: skip
        offline = Path(self._run.dir).parent
        self.where = str(self._run.url) if server else str(offline)
        self.view = f"wandb sync {shlex.quote(str(offline))}  (uploads it)" if server is None else self.where

    def scalars(self, record: Scalars) -> None:
        self._run.log({**record.values, "_timestamp": record.time}, step=record.step)

    def picture(self, record: Picture) -> None:
        image = self._wandb.Image(str(record.path), caption=record.caption)
        self._run.log({record.name: image, "_timestamp": record.time}, step=record.step)

    def note(self, record: Note) -> None:
        self._notes.append(f"step {record.step}: {record.text}")
        self._run.summary["warnings"] = "\n".join(self._notes)

    def flush(self) -> None:
        """W&B sends by itself."""

    def close(self, outcome: Outcome) -> None:
        self._run.summary["outcome"] = outcome
        self._run.finish(exit_code=1 if outcome == "failed" else 0)
