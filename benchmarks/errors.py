"""Errors of the benchmarks. The message says what to do, and is all that a user needs to see."""


class BenchmarkError(Exception):
    """Base of all errors that a benchmark raises on purpose."""


class DataError(BenchmarkError):
    """A data set is missing, damaged or unfit for training."""


class PlanError(BenchmarkError):
    """Options are out of range or contradict each other, or a model cannot be made."""


class RecordsError(BenchmarkError):
    """Records are missing, damaged, of another schema, or of another configuration."""


class StorageError(BenchmarkError):
    """A file cannot be written or read. What was saved before is intact."""


class RunIsBeingMade(BenchmarkError):  # noqa: N818
    """Another process holds the run's lock."""


class Stopped(Exception):  # noqa: N818
    """The command told its runs to stop; they resume from their last state."""
