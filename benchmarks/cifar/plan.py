"""Which runs there are, and which of them wait for others."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence

from benchmarks.cifar.label_noise import GROUP_SIZE
from benchmarks.errors import PlanError
from benchmarks.schema import ARMS, EpochLoss, RunName


def plan_runs(
    arms: Sequence[str], epoch_losses: Sequence[EpochLoss], label_noises: Sequence[int], seeds: Sequence[int]
) -> list[RunName]:
    """Every run that was asked for, with the runs that it needs, in an order that can be followed.

    Raises:
        PlanError: If nothing was asked for, something twice, or what there is not.
    """
    for what, values in (("arms", arms), ("epoch_loss", epoch_losses), ("label noise", label_noises), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise PlanError(f"{what} is {list(values)}; give at least one value, and none twice")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise PlanError(f"there is no arm {unknown[0]!r}; the arms are {', '.join(ARMS)}")
    if seeds and min(seeds) < 0:
        raise PlanError(f"a seed is {min(seeds)}; seeds are whole numbers of at least 0")
    if wrong := [noise for noise in label_noises if not 0 <= noise <= GROUP_SIZE]:
        raise PlanError(
            f"label noise is {wrong[0]}; it counts images of every {GROUP_SIZE}, so it is 0 to {GROUP_SIZE}"
        )
    asked: list[RunName] = []
    for label_noise, seed in itertools.product(label_noises, seeds):
        for arm in (arm for arm in ARMS if arm in arms):
            readings = [None] if arm == "baseline" else epoch_losses
            asked += [RunName(arm, reading, label_noise, seed) for reading in readings]
    runs: dict[RunName, None] = {}
    for run in asked:
        for needed in needs(run):
            runs[needed] = None
        runs[run] = None
    return list(runs)


def needs(run: RunName) -> list[RunName]:
    """The runs that this one is made from.

    ``random`` takes the visits of the attention run and ``longer`` its updates; ``longer`` goes on from the end of
    the baseline, whose first epochs would be its own.
    """
    if run.arm in ("baseline", "attention"):
        return []
    attention = run._replace(arm="attention")
    return [attention] if run.arm == "random" else [baseline_of(run), attention]


def baseline_of(run: RunName) -> RunName:
    """The baseline that this run is paired with."""
    return run._replace(arm="baseline", epoch_loss=None)


class Queue:
    """Hands out runs whose needs are met.

    Args:
        runs: In the order in which they are wanted.
        finished: Those that need not be made.
    """

    def __init__(self, runs: Iterable[RunName], finished: Collection[RunName]) -> None:
        self._finished = set(finished)
        self._running: set[RunName] = set()
        self._waiting = [run for run in runs if run not in self._finished]

    def take(self) -> RunName | None:
        """The next run that can begin; None if there is none now."""
        for run in self._waiting:
            if self._finished.issuperset(needs(run)):
                self._waiting.remove(run)
                self._running.add(run)
                return run
        return None

    def finish(self, run: RunName) -> None:
        """The run is there, for others that need it."""
        self._finished.add(run)
        self._running.discard(run)

    def wants(self, run: RunName) -> bool:
        """Whether a run that is not finished needs this one."""
        return any(run in needs(other) for other in (*self._waiting, *self._running))
