"""What the benchmarks refuse, with what to do about it."""


class BenchmarkError(Exception):
    """Base of all errors that a benchmark raises on purpose; its message is all that a user needs to see."""


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
