"""Figures in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sdtune.serve.dispatch import Dispatcher


def text(dispatcher: Dispatcher, answers: Counter[int]) -> str:
    counts = dispatcher.counts
    memory: Mapping[str, int] = dispatcher.about.get("memory", {})
    ended = {f'state="{state}"': counts[state] for state in ("done", "failed", "cancelled")}
    parts = [
        _family("jobs_taken_total", "counter", "Jobs that were queued.", {"": counts["taken"]}),
        _family("jobs_ended_total", "counter", "Jobs that have ended.", ended),
        _family("pictures_total", "counter", "Pictures that were drawn.", {"": counts["pictures"]}),
        _family("queue_jobs", "gauge", "Jobs that wait.", {"": dispatcher.queue.count("queued")}),
        _family("running_jobs", "gauge", "Jobs that are being drawn.", {"": dispatcher.queue.count("running")}),
        _family("worker_ready", "gauge", "Whether a model is loaded.", {"": int(dispatcher.ready)}),
        _family("worker_restarts_total", "counter", "Workers that ended by themselves.", {"": counts["restarts"]}),
        _family("weights_bytes", "gauge", "Weights in memory, each counted once.", {"": memory.get("weights", 0)}),
        _family(
            "memory_bytes", "gauge", "Memory of the worker, or on CUDA of the device.", {"": memory.get("used", 0)}
        ),
        _family(
            "answers_total",
            "counter",
            "Answers by HTTP status.",
            {f'status="{s}"': n for s, n in sorted(answers.items())},
        ),
    ]
    return "".join(parts)


def _family(name: str, kind: str, help_text: str, values: Mapping[str, int]) -> str:
    lines = [f"# HELP sdtune_{name} {help_text}", f"# TYPE sdtune_{name} {kind}"]
    lines += [
        f"sdtune_{name}{{{label}}} {value}" if label else f"sdtune_{name} {value}" for label, value in values.items()
    ]
    return "\n".join(lines) + "\n"
