"""Figures in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdtune.serve.dispatch import Dispatcher


def text(dispatcher: Dispatcher, answers: Counter[int]) -> str:
    counts = dispatcher.counts
    ended = {f'state="{state}"': counts[state] for state in ("done", "failed", "cancelled")}
    parts = [
        _family("jobs_taken_total", "counter", "Jobs that were queued.", {"": counts["taken"]}),
        _family("jobs_ended_total", "counter", "Jobs that have ended.", ended),
        _family("pictures_total", "counter", "Pictures that were drawn.", {"": counts["pictures"]}),
        _family("queue_jobs", "gauge", "Jobs that wait.", {"": dispatcher.queue.count("queued")}),
        _family("running_jobs", "gauge", "Jobs that are being drawn.", {"": dispatcher.queue.count("running")}),
        *_workers(dispatcher.status()),
        _family(
            "answers_total",
            "counter",
            "Answers by HTTP status.",
            {f'status="{s}"': n for s, n in sorted(answers.items())},
        ),
    ]
    return "".join(parts)


def _workers(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A row for each worker."""
    about = {f'worker="{row["worker"]}",device="{row["device"] or ""}"': row for row in rows}

    def of(key: str) -> dict[str, int]:
        return {label: (row["memory"] or {}).get(key, 0) for label, row in about.items()}

    ready = {label: int(row["ready"]) for label, row in about.items()}
    yield _family("worker_ready", "gauge", "Whether it can draw.", ready)
    yield _family(
        "worker_jobs", "gauge", "Jobs that it draws.", {label: len(row["drawing"]) for label, row in about.items()}
    )
    restarts = {label: row["restarts"] for label, row in about.items()}
    yield _family("worker_restarts_total", "counter", "How often it ended by itself.", restarts)
    yield _family("weights_bytes", "gauge", "Weights in its memory, each counted once.", of("weights"))
    yield _family("memory_bytes", "gauge", "Memory of the worker, or on CUDA of its device.", of("used"))


def _family(name: str, kind: str, help_text: str, values: Mapping[str, int]) -> str:
    lines = [f"# HELP sdtune_{name} {help_text}", f"# TYPE sdtune_{name} {kind}"]
    lines += [
        f"sdtune_{name}{{{label}}} {value}" if label else f"sdtune_{name} {value}" for label, value in values.items()
    ]
    return "\n".join(lines) + "\n"
