"""Other tools as readers of `events.jsonl`: what a run logged, and, while it lives, what it goes on to log.

Nothing of theirs is imported unless it is asked for, and nothing leaves this machine unless a server is named.
"""

from enum import StrEnum


class Tool(StrEnum):
    """Where a run can be followed to."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"
    TRACKIO = "trackio"
