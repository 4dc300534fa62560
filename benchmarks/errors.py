"""Errors of the benchmarks, each with what to do about it."""


class BenchmarkError(Exception):
    """Base of all errors that a benchmark raises on purpose; its message is all that a user needs to see."""


class DataError(BenchmarkError):
    """A data set is missing, damaged or unfit for training."""


class ModelError(BenchmarkError):
    """A model is unknown, does not take these images, or its weights are unavailable."""


class PlanError(BenchmarkError):
    """Options contradict each other or are out of range."""


class RecordsError(BenchmarkError):
    """Records are missing, damaged, of another schema, or of another configuration."""


class StorageError(BenchmarkError):
    """A file cannot be written or read. What was saved before is intact."""


class RunIsBeingMade(BenchmarkError):  # noqa: N818
    """Another process holds the run's lock."""


class Stopped(Exception):  # noqa: N818
    """The command told its runs to stop; they resume from their last state."""
