"""Make the first epochs of a recorded run again, from its configuration, and hold them against the record.

    python -m benchmarks.cifar.again RECORDS/...-cifar10-resnet34 --data CIFAR10 --epochs 3 --record FILE

Everything but the data and where to compute is taken from the record. On the same kind of machine the epochs are equal
bit for bit; elsewhere a processor's own kernels round otherwise, and how far apart that leaves them is shown.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from batch_sampler_attn.errors import BatchAttentionError
from benchmarks.cifar.__main__ import run
from benchmarks.cifar.images import load_images
from benchmarks.cifar.models import REDUCED, find_recipe
from benchmarks.cifar.options import Options
from benchmarks.errors import BenchmarkError, PlanError, RecordsError
from benchmarks.reading import read_records
from benchmarks.schema import Arm, Configuration, Epoch, EpochLoss, RunName, Surroundings

# What two runs of the same computation differ in.
_OF_THE_MACHINE = {"configuration", "seconds", "evaluation_seconds", "finished_at", "shared_device"}


def make_again(
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    data: str = "cifar10",
    data_dir: Path = Path("data"),
    arm: Arm = "baseline",
    epoch_loss: EpochLoss = "first",
    label_noise: int = 0,
    seed: int = 0,
    epochs: int = 3,
    record: Path | None = None,
) -> list[dict[str, Any]]:
    """Make epochs of a run again.

    Args:
        folder: Of the records.
        data: As of benchmarks.cifar.
        data_dir: Downloaded and decoded data.
        arm: Of the run.
        epoch_loss: Of the run, unless it is a baseline.
        label_noise: Of the run.
        seed: Of the run.
        epochs: How many of its first.
        record: Gets a JSON line an epoch, after those that it has.

    Returns:
        A line an epoch: which, and what differs.

    Raises:
        BenchmarkError: If there is no such run, or it cannot be made.
    """
    recorded = read_records(folder)
    name = RunName(arm, None if arm == "baseline" else epoch_loss, label_noise, seed)
    if name not in recorded.runs:
        raise RecordsError(f"{folder} has no run {name}; it has {', '.join(map(str, recorded.runs))}")
    recorded_epochs = len(recorded.epochs[name])
    if not 1 <= epochs <= recorded_epochs:
        raise PlanError(f"--epochs is {epochs}; the record has {recorded_epochs} of {name}, so it must be 1 to as many")
    options = options_of(recorded.configuration, name, recorded.runs[name].surroundings[0], epochs)
    options = replace(options, data=data, data_dir=data_dir)
    _check_same(folder, recorded.configuration, options)
    with tempfile.TemporaryDirectory() as out:
        made = read_records(run(replace(options, out=Path(out)), Console(stderr=True)))
    environments = {
        "recorded": recorded.runs[name].surroundings[0].environment,
        "environment": made.runs[name].surroundings[0].environment,
    }
    about = {"records": folder.name, "model": options.model, "data": recorded.configuration.data.name}
    lines = [
        {**about, "run": str(name), "epoch": new.epoch, "differs": compare(old, new), **environments}
        for old, new in zip(recorded.epochs[name], made.epochs[name], strict=False)
    ]
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return lines


def options_of(configuration: Configuration, name: RunName, place: Surroundings, epochs: int) -> Options:
    """The options by which a run was made, for its first epochs.

    Raises:
        PlanError: If the run's length follows from another run's.
    """
    if name.arm == "longer":
        raise PlanError("longer ends where attention does, which takes all of attention's epochs; give another --arm")
    images = configuration.data
    taken = {field.name for field in fields(Options)} & set(Configuration.model_fields) - {"data", "epochs"}
    return Options(
        **{field: getattr(configuration, field) for field in taken if field != "max_visits"},
        max_visits=configuration.max_visits or 0,
        images=images.train_images,
        test_images=images.test_images,
        reduced=_is_reduced(configuration),
        arms=(name.arm,),
        epoch_loss=(name.epoch_loss or "first",),
        label_noise=(name.label_noise,),
        seeds=(name.seed,),
        epochs=epochs,
        device="cpu" if place.device == "cpu" else "cuda",
        threads=place.threads,
    )


def _is_reduced(configuration: Configuration) -> bool:
    if configuration.model not in REDUCED:
        return False
    side = configuration.data.height, configuration.data.width
    whole = find_recipe(configuration.model, *side, pretrained=configuration.pretrained)
    return whole.options != configuration.model_options


def _check_same(folder: Path, recorded: Configuration, options: Options) -> None:
    """Refuse data, or a model, that are not those of the record.

    Raises:
        RecordsError: If so.
    """
    ours, _ = options.configure(options.sample(load_images(options.data, options.data_dir)))
    old, new = (configuration.model_dump(exclude={"epochs"}) for configuration in (recorded, ours))
    if apart := [name for name in old if old[name] != new[name]]:
        raise RecordsError(
            f"what {folder} was made of cannot be had as it was: {', '.join(apart)} differ. Give the same --data, and "
            "take the versions that runs.jsonl names"
        )


def compare(recorded: Epoch, made: Epoch) -> dict[str, list[Any]]:
    """What differs in an epoch: each field with the value recorded and the value made again."""
    old, new = (epoch.model_dump(mode="json", exclude=_OF_THE_MACHINE) for epoch in (recorded, made))
    return {name: [old[name], new[name]] for name in old if old[name] != new[name]}


def show(lines: list[dict[str, Any]], console: Console) -> None:
    """Print what differs, by epoch."""
    table = Table("epoch", "differs", "recorded", "made again")
    for line in lines:
        for name, values in line["differs"].items() or [("nothing", ("", ""))]:
            table.add_row(str(line["epoch"]), name, *(f"{value}"[:40] for value in values))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; its exit status is 1 if an epoch differs, or if there is an error, which is one line."""
    try:
        lines = tyro.cli(make_again, prog="python -m benchmarks.cifar.again", description=__doc__, args=arguments)
    except (BenchmarkError, BatchAttentionError) as error:
        sys.exit(f"error: {error}")
    show(lines, Console())
    sys.exit(any(line["differs"] for line in lines))


if __name__ == "__main__":
    main()
