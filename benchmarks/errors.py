"""What the benchmarks refuse, with what to do about it."""

from benchmarks.text import visible


class BenchmarkError(Exception):
    """Base of all errors that a benchmark raises on purpose; its message is all that a user needs to see.

    The message may hold names of files and from records, so it is shown without control characters.
    """

    def __str__(self) -> str:
        return visible(super().__str__())


class DataError(BenchmarkError):
    """A data set is missing, damaged or of a kind that cannot be trained on."""


class ModelError(BenchmarkError):
    """A model is unknown, cannot be made for these images, or its weights cannot be had."""


class PlanError(BenchmarkError):
    """What was asked for makes no sense together."""


class RecordsError(BenchmarkError):
    """Records are missing, damaged, of another schema, or of two configurations that do not belong together."""


class StorageError(BenchmarkError):
    """A file cannot be written or read. What was safe before is safe still."""
