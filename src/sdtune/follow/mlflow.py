"""MLflow: a run in an SQLite file that several runs share, or on a tracking server."""

from __future__ import annotations

import logging
import os
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

from sdtune.follow.records import Note, Picture, Scalars
from sdtune.follow.target import PROJECT, Outcome, Target, flat, identity, missing
from sdtune.runs import Run

MOST = 1000
"""Metrics in one call, by MLflow's own limit; of parameters 100."""
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "running": "RUNNING"}


class Mlflow(Target):
    """Writes `mlflow.db` and `artifacts/` to `out`, unset: to `mlflow` beside the run's folder."""

    def __init__(self, run: Run, out: Path | None = None, server: str | None = None) -> None:
        folder = (out or run.path.parent / "mlflow").resolve()
        uri = server or f"sqlite:///{folder / 'mlflow.db'}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._client = _client(uri, folder if server is None else None)
            self._id = self._begin(run, None if server else (folder / "artifacts").as_uri())
        self._buffer: list[Any] = []
        self._notes = 0
        self._end: int | None = None
        self.where = server or str(folder)
        self.view = server or f"mlflow ui --backend-store-uri {shlex.quote(uri)}"

    def _begin(self, run: Run, artifacts: str | None) -> str:
        """A fresh run with the config, in place of an earlier one of the same run folder."""
        from mlflow.entities import Param

        config, own = run.config(), identity(run)
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT, artifacts)
        for old in self._client.search_runs([experiment], f"tags.sdtune = '{own}'"):
            self._client.delete_run(old.info.run_id)
        first = next(iter(run.events()), None)
        tags = {"sdtune": own, "mlflow.source.name": "sdtune", "folder": str(run.path)}
        start = None if first is None else int(1000 * first.time)
        number: str = self._client.create_run(experiment, start, tags, config.name).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in flat(config).items() if value is not None]
        for i in range(0, len(params), 100):
            self._client.log_batch(number, params=params[i : i + 100])
        for file in (run.config_file, run.environment_file):
            if file.is_file():
                self._client.log_artifact(number, str(file))
        return number

    def scalars(self, record: Scalars) -> None:
        from mlflow.entities import Metric

        self._buffer += [Metric(name, v, int(1000 * record.time), record.step) for name, v in record.values.items()]
        self._end = int(1000 * record.time)
        if len(self._buffer) > MOST - 10:
            self.flush()

    def picture(self, record: Picture) -> None:
        from PIL import Image

        key = re.sub(r"[^\w\-. /]", "_", record.name, flags=re.ASCII)
        with Image.open(record.path, formats=["PNG"]) as image:
            picture = image.convert("RGB")
        self._client.log_image(self._id, picture, key=key, step=record.step, timestamp=int(1000 * record.time))

    def note(self, record: Note) -> None:
        self._notes += 1
        self._client.set_tag(self._id, f"warning.{self._notes:03d}", f"step {record.step}: {record.text}"[:5000])

    def flush(self) -> None:
        if self._buffer:
            self._client.log_batch(self._id, metrics=self._buffer)
            self._buffer = []

    def close(self, outcome: Outcome) -> None:
        if outcome != "running":
            self._client.set_terminated(self._id, STATUS[outcome], self._end)


def _client(uri: str, folder: Path | None) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it looks its own server up, whatever the store
    try:
        if (
            folder is not None
        ):  # the store of files is no more; the small mlflow-skinny lacks what the store in SQLite needs
            import alembic  # noqa: F401
            import sqlalchemy  # noqa: F401
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise missing("mlflow") from None
    for name in ("mlflow", "alembic"):  # on its import it sets them to INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri)
