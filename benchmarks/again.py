"""Make the first epochs of a recorded run again, from its configuration, and compare them with the record.

    python -m benchmarks.again RECORDS/...-cifar10-resnet34 --data CIFAR10 --run attention-first-noise0-seed0

Everything but the data and where to compute is taken from the record. On the same kind of machine the epochs are equal
bit for bit; another processor's kernels round differently, and the table shows how far that takes them apart.
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
from benchmarks import cifar
from benchmarks.errors import BenchmarkError, PlanError, RecordsError
from benchmarks.models import REDUCED
from benchmarks.reading import Records, read_records
from benchmarks.schema import Configuration, RunName

# Fields that differ between two runs of the same computation.
_OF_THE_MACHINE = {"configuration", "seconds", "evaluation_seconds", "finished_at", "shared_device"}


def make_again(
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    run: str = "baseline-noise0-seed0",
    data: str = "cifar10",
    data_dir: Path = Path("data"),
    epochs: int = 3,
    record: Path | None = None,
) -> list[dict[str, Any]]:
    """Make epochs of a run again, and return what differs in each. The help is made of this text.

    Args:
        folder: Of the records.
        run: Its name, as in the records' folder work.
        data: As of benchmarks.cifar.
        data_dir: Downloaded data.
        epochs: How many of its first.
        record: Gets a JSON line an epoch, after those that it has.
    """
    recorded = read_records(folder)
    names = {str(name): name for name in recorded.runs}
    if run not in names:
        raise RecordsError(f"{folder} has no run {run}; it has {', '.join(names)}")
    most = len(recorded.epochs[names[run]])
    if not 1 <= epochs <= most:
        raise PlanError(f"--epochs is {epochs}; it must be 1 to {most}, as the record has of {run}")
    options = replace(options_of(recorded, names[run]), epochs=epochs, data=data, data_dir=data_dir)
    # A folder of images may have another name.
    old, new = (
        configuration.model_dump(exclude={"epochs": True, "data": {"name"}})
        for configuration in (recorded.configuration, cifar.configure(options))
    )
    if apart := [field for field in old if old[field] != new[field]]:
        raise RecordsError(
            f"{', '.join(apart)} differ from those of {folder}. Give the same --data, and install the versions that "
            "runs.jsonl names"
        )
    with tempfile.TemporaryDirectory() as out:
        made = read_records(cifar.run(replace(options, out=Path(out)), Console(stderr=True)))
    old_place, new_place = (records.runs[names[run]].surroundings[0].environment for records in (recorded, made))
    about = {
        "records": folder.name,
        "model": options.model,
        "data": recorded.configuration.model_dump()["data"]["name"],
    }
    about |= {"run": run, "recorded": old_place, "environment": new_place}
    lines = []
    for theirs, ours in zip(recorded.epochs[names[run]], made.epochs[names[run]], strict=False):
        old, new = (epoch.model_dump(mode="json", exclude=_OF_THE_MACHINE) for epoch in (theirs, ours))
        differs = {name: [old[name], new[name]] for name in old if old[name] != new[name]}
        lines.append({**about, "epoch": ours.epoch, "differs": differs})
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return lines


def options_of(records: Records, name: RunName) -> cifar.Options:
    """The options by which a run was made."""
    configuration, place = records.configuration, records.runs[name].surroundings[0]
    if name.arm == "longer" or not isinstance(configuration, Configuration):
        raise PlanError(f"{name} takes all of attention's epochs, or is not of benchmarks.cifar; give another --run")
    reduced = REDUCED.get(configuration.model)
    shared = {field.name for field in fields(cifar.Options)} & set(Configuration.model_fields) - {"data", "max_visits"}
    return cifar.Options(
        **{field: getattr(configuration, field) for field in shared},
        max_visits=configuration.max_visits or 0,
        images=configuration.data.train_images,
        test_images=configuration.data.test_images,
        reduced=reduced is not None and reduced.items() <= configuration.model_options.items(),
        arms=(name.arm,),
        epoch_loss=(name.epoch_loss or "first",),
        label_noise=(name.label_noise,),
        seeds=(name.seed,),
        device="cpu" if place.device == "cpu" else "cuda",
        threads=place.threads,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; its exit status is 1 if an epoch differs, or if there is an error, which is one line."""
    try:
        lines = tyro.cli(make_again, prog="python -m benchmarks.again", description=__doc__, args=arguments)
    except (BenchmarkError, BatchAttentionError) as error:
        sys.exit(f"error: {error}")
    table = Table("epoch", "differs", "recorded", "made again")
    for line in lines:
        for name, values in line["differs"].items() or [("nothing", ("", ""))]:
            table.add_row(str(line["epoch"]), name, *(f"{value}"[:40] for value in values))
    Console().print(table)
    sys.exit(any(line["differs"] for line in lines))


if __name__ == "__main__":
    main()
