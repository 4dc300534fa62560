"""Make the first epochs of a recorded run again, from its configuration, and compare them with the record.

    python -m benchmarks.again RECORDS/...-cifar10-resnet34 --data CIFAR10 --run attention-first-noise0-seed0

On the same kind of machine the epochs are equal bit for bit; another processor's kernels round differently, and the
table shows how far that takes them apart.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from batch_sampler_attn.errors import BatchAttentionError
from benchmarks.cifar import full_path, needs
from benchmarks.errors import BenchmarkError, PlanError, RecordsError
from benchmarks.reading import read_records
from benchmarks.schema import Configuration
from benchmarks.storage import Storage
from benchmarks.training import Job, make_run

# Fields that differ between two runs of the same computation.
_OF_THE_MACHINE = {"configuration", "seconds", "evaluation_seconds", "finished_at", "shared_device"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; the help is made of the comments."""

    folder: tyro.conf.Positional[Path]  # Of the records.
    run: str = "baseline-noise0-seed0"  # Its name, as in the records' folder work.
    data: str = "cifar10"  # As of benchmarks.cifar.
    data_dir: Path = Path("data")  # Downloaded data.
    epochs: int = 3  # How many of its first.
    record: Path | None = None  # Gets a JSON line an epoch, after those that it has.


def make_again(options: Options) -> list[dict[str, Any]]:
    """Make epochs of a run again, and return what differs in each."""
    recorded = read_records(options.folder)
    names = {str(name): name for name in recorded.runs}
    if options.run not in names:
        raise RecordsError(f"{options.folder} has no run {options.run}; it has {', '.join(names)}")
    run, configuration = names[options.run], recorded.configuration
    if run.arm == "longer" or not isinstance(configuration, Configuration):
        raise PlanError(f"{run} takes all of attention's epochs, or is not of benchmarks.cifar; give another --run")
    if not 1 <= options.epochs <= len(recorded.epochs[run]):
        raise PlanError(f"--epochs is {options.epochs}; it must be 1 to {len(recorded.epochs[run])}, as recorded")
    place = recorded.runs[run].surroundings[0]
    with tempfile.TemporaryDirectory() as out:
        storage = Storage(Path(out), configuration.model_copy(update={"epochs": options.epochs}))
        with storage.opened():
            for each in (*needs(run), run):
                make_run(
                    Job(
                        folder=Path(out),
                        run=each,
                        data=full_path(options.data),
                        data_dir=options.data_dir.resolve(),
                        device="cpu" if place.device == "cpu" else "cuda",
                        threads=place.threads,
                    )
                )
        made = storage.collect()[run]
    about = {
        "records": options.folder.name,
        "model": configuration.model,
        "data": configuration.data.name,
        "run": options.run,
        "recorded": place.environment,
        "environment": made.run.surroundings[0].environment,
    }
    lines = []
    for theirs, ours in zip(recorded.epochs[run], made.epochs, strict=False):
        old, new = (epoch.model_dump(mode="json", exclude=_OF_THE_MACHINE) for epoch in (theirs, ours))
        differs = {name: [old[name], new[name]] for name in old if old[name] != new[name]}
        lines.append({**about, "epoch": ours.epoch, "differs": differs})
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; its exit status is 1 if an epoch differs, or if there is an error, which is one line."""
    options = tyro.cli(Options, prog="python -m benchmarks.again", description=__doc__, args=arguments)
    try:
        lines = make_again(options)
    except (BenchmarkError, BatchAttentionError) as error:
        sys.exit(f"error: {error}")
    if options.record is not None:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        with options.record.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    table = Table("epoch", "differs", "recorded", "made again")
    for line in lines:
        for name, values in line["differs"].items() or [("nothing", ("", ""))]:
            table.add_row(str(line["epoch"]), name, *(f"{value}"[:40] for value in values))
    Console().print(table)
    sys.exit(any(line["differs"] for line in lines))


if __name__ == "__main__":
    main()
