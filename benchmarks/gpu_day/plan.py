"""What is to be run on the day that there is a GPU, most telling first; and the same at tiny size, for a dry run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

# The fastest that there is, then what PyTorch does unasked, then the two between.
SETTINGS: tuple[dict[str, Any], ...] = (
    {"tf32": True, "channels_last": True},
    {"tf32": False, "channels_last": False},
    {"tf32": True, "channels_last": False},
    {"tf32": False, "channels_last": True},
)


class Item(NamedTuple):
    """One measurement of the study of updates.

    Attributes:
        kind: ``update``, ``together`` or ``equality``, as the study names them.
        model: In timm.
        batches: In an epoch.
        setting: Of ``update``: precision and memory layout.
        rounds: Of ``update``: epochs that are measured.
        runs: Of ``together``: how many at once.
    """

    kind: str
    model: str
    batches: int
    setting: dict[str, Any] | None = None
    rounds: int = 0
    runs: int = 0

    @property
    def key(self) -> str:
        """What tells it from the others."""
        of_setting = (
            "" if self.setting is None else f" tf32={self.setting['tf32']} last={self.setting['channels_last']}"
        )
        return f"{self.kind} {self.model} {self.batches}{of_setting}{f' {self.runs} runs' if self.runs else ''}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A day's work.

    Attributes:
        device: To train on.
        tests: What pytest is given.
        model: Of the measurements, in timm.
        batches: In an epoch of a measurement.
        equal_batches: In an epoch of captured against eager updates.
        rounds: Epochs that are measured.
        runs: How many at once, most telling first.
        settings: Most telling first.
        records: Options of ``benchmarks.cifar``, but for ``--out`` and the data.
    """

    device: str
    tests: tuple[str, ...]
    model: str
    batches: int
    equal_batches: int
    rounds: int
    runs: tuple[int, ...]
    settings: tuple[dict[str, Any], ...]
    records: tuple[str, ...]

    def items(self) -> Iterator[Item]:
        """The measurements, in the order in which they are wanted."""
        for setting in self.settings:
            yield Item("update", self.model, self.batches, setting=setting, rounds=self.rounds)
        for runs in self.runs:
            yield Item("together", self.model, self.batches, runs=runs)
        yield Item("equality", self.model, self.equal_batches)


FULL = Plan(
    device="cuda",
    tests=("tests/device/test_gpu.py",),
    model="resnet34",
    batches=200,
    equal_batches=20,
    rounds=5,
    runs=(3, 1, 2, 6),
    settings=SETTINGS,
    # The paper's settings are the defaults. A state is a quarter of a gigabyte, so not after every epoch.
    records=("--device", "cuda", "--at-once", "3", "--checkpoint-seconds", "60"),
)
DRY = Plan(
    device="cpu",
    tests=("tests/device/test_gpu.py",),
    model="test_resnet",
    batches=2,
    equal_batches=2,
    rounds=1,
    runs=(2,),
    settings=({"tf32": None, "channels_last": False},),
    records=("--device", "cpu", "--model", "small_resnet", "--epochs", "2", "--seeds", "0"),
)
