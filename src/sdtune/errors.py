"""What can go wrong for a user. Each error is one clear line: the file or key, the value, the remedy; and an exit code."""

from typing import ClassVar


class SdtuneError(Exception):
    """Base of all errors that a user can mend. `exit_code` is what the command line returns."""

    exit_code: ClassVar[int] = 1


class ConfigError(SdtuneError, ValueError):
    """The configuration is wrong; the message lists every fault, one a line: key, value, remedy."""

    exit_code = 2


class DataError(SdtuneError, ValueError):
    """Pictures or captions cannot be used; the message names the file."""

    exit_code = 3


class ModelError(SdtuneError, ValueError):
    """A model cannot be found, read or fitted to the run."""

    exit_code = 4


class TrainingError(SdtuneError, RuntimeError):
    """Training cannot go on (a loss that is no number, no memory). The last good checkpoint is intact."""

    exit_code = 5


class Diverged(TrainingError):
    """The loss or the gradient is no number. Several processes notice it at the same step, before a weight is changed."""


class RunError(SdtuneError, RuntimeError):
    """A run folder or checkpoint is locked, damaged, or belongs to another configuration."""

    exit_code = 6


class EvaluationError(SdtuneError, ValueError):
    """What was asked cannot be measured soundly (too few pictures, no reference)."""

    exit_code = 7
