"""Progress on the terminal: a bar for each run under way, and one for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks.cifar.running import Report, Step
from benchmarks.schema import RunName


@contextmanager
def show_progress(runs: int, epochs: int, console: Console) -> Iterator[Report]:
    """Bars for as long as runs are made; what it gives is to be told of every step.

    Args:
        runs: How many are to be made.
        epochs: Of each.
        console: To show it on.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        # Counted in epochs, so that the time left is known early; that of ``longer`` is a little more.
        overall = progress.add_task(f"{runs} runs, epochs", total=runs * epochs, said="")
        tasks: dict[RunName, TaskID] = {}
        done: dict[RunName, int] = {}

        def report(step: Step) -> None:
            progress.advance(overall, min(step.epoch, epochs) - done.get(step.run, 0))
            done[step.run] = min(step.epoch, epochs)
            if step.run not in tasks:
                tasks[step.run] = progress.add_task(str(step.run), total=epochs, said="")
            accuracy = "" if step.accuracy is None else f"{step.accuracy:.1%} accuracy, {step.repeats} repeats"
            progress.update(tasks[step.run], completed=step.epoch, total=max(step.epoch, epochs), said=accuracy)
            if step.is_finished:
                progress.remove_task(tasks.pop(step.run))
                if not console.is_terminal:
                    console.print(f"{step.run}: {step.epoch} epochs, {accuracy}", highlight=False)

        yield report
