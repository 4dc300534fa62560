"""Train with arms that choose samples, or batches, or none, at the same number of updates, and record each run.

    python -m benchmarks.selection                         # CIFAR-10: all settings and arms, 8 seeds
    python -m benchmarks.selection --settings long_tail --arms plain left_out left_out_random
    python -m benchmarks.selection --study kinds           # images and a table

``images``: balanced (10,000 images), long_tail (--imbalance 50), hidden_kinds (ten kinds under two labels, a long tail
over the kinds), noisy (10 % label noise). ``kinds``: hidden_fine (CIFAR-100 under its superclasses), noisy and table;
arms run with seeds 0 and 1 at three learning rates, and with others at the one with the best validation score. The same
command resumes. Then: python -m benchmarks.report FOLDER, which describes the arms too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from benchmarks.errors import PlanError
from benchmarks.images import ImageSet, full_path
from benchmarks.plans import PlanOptions, make_runs, parse, run_command
from benchmarks.schema import RunName, SelectionConfiguration
from benchmarks.selection.arms import ARMS, BY_FREQUENCY, SOURCES
from benchmarks.selection.data import IMAGE_SETTINGS, KINDS, ImageSizes
from benchmarks.selection.rates import RATES, TUNING_SEEDS, choose_rate
from benchmarks.selection.training import load_source
from benchmarks.storage import Storage
from benchmarks.training import Job

BATCH_SIZE = 64
SETTINGS = {"images": IMAGE_SETTINGS, "kinds": tuple(KINDS)}


@dataclass(frozen=True, kw_only=True)
class Options(PlanOptions):
    """The options of the command; the help is made of the comments."""

    study: Literal["images", "kinds"] = "images"  # Which one.
    data: str = "cifar10"  # cifar10, or a folder with train/<class>/ and test/<class>/.
    cifar100: str = "cifar100"  # For hidden_fine: cifar100, or a folder with its classes.
    settings: tuple[str, ...] = ()  # Of those above; all of the study by default.
    arms: tuple[str, ...] = ()  # All of the study by default.
    seeds: tuple[int, ...] = tuple(range(8))  # At least 0.
    updates: int = 1500  # Of every arm of images.
    imbalance: float = 50.0  # Of the long tails of images: most over least.
    images: int | None = None  # Train on fewer images, for a trial.

    def data_of(self, setting: str | None) -> str:
        """What a setting's data is drawn from, as ``load_source`` takes it."""
        if setting == "table":
            return ""
        return full_path(self.cifar100 if setting == "hidden_fine" else self.data)

    def configure(self) -> SelectionConfiguration:
        """What all runs have in common."""
        if self.study == "kinds":
            settings = {name: sizes._asdict() for name, sizes in KINDS.items()}
            return SelectionConfiguration(study="kinds", data=None, data_sha256=None, settings=settings)
        images, digest = load_source(self.data_of("balanced"), self.data_dir.resolve())
        assert isinstance(images, ImageSet)
        sizes = ImageSizes(self.updates, BATCH_SIZE, self.imbalance, self.images)._asdict()
        settings = dict.fromkeys(IMAGE_SETTINGS, sizes)
        return SelectionConfiguration(study="images", data=images.name, data_sha256=digest, settings=settings)

    def plan(self) -> list[RunName]:
        """The runs, without rates: whole seeds first, so that what is finished is paired."""
        return [
            RunName(arm, None, 0, seed, setting)
            for seed in self.seeds
            for setting in self.settings or SETTINGS[self.study]
            for arm in self.arms or ARMS[self.study]
            # The others have no labels that say what is rare.
            if arm not in BY_FREQUENCY or setting == "long_tail"
        ]


def needs(run: RunName) -> list[RunName]:
    """The run that another takes its pruning from."""
    return [run._replace(arm=SOURCES[run.arm])] if run.rate is not None and run.arm in SOURCES else []


def rounds(options: Options, storage: Storage) -> Iterator[list[RunName]]:
    """The runs, in two rounds where arms have a learning rate of their own, which follows from the first round."""
    runs = options.plan()
    if options.study == "images":
        yield runs
        return
    yield [run._replace(rate=rate) for run in runs if run.seed in TUNING_SEEDS for rate in RATES]
    epochs = {name: epoch for name, record in storage.collect().items() for epoch in record.epochs}
    validation = {name: epoch.chosen.validation for name, epoch in epochs.items() if epoch.chosen}
    runs = [run for run in runs if run.seed not in TUNING_SEEDS]
    runs = [run._replace(rate=choose_rate(validation, run.setting, run.arm)) for run in runs]
    if untuned := [run for run in runs if run.rate is None]:
        raise PlanError(f"{untuned[0].setting} {untuned[0].arm} has no rate yet; give --seeds {TUNING_SEEDS} too")
    yield runs


def run(options: Options, console: Console) -> Path:
    """Make the runs that are missing, and return the folder of their records."""
    known = {"settings": SETTINGS[options.study], "arms": ARMS[options.study]}
    options.check({"updates": 1, "seeds": 0}, known)
    data_dir, folder = options.data_dir.resolve(), (options.out or Path("runs") / options.study).resolve()
    for setting in {run.setting for run in options.plan()}:
        # Before any run, and once for all processes.
        load_source(options.data_of(setting), data_dir)
    storage = Storage(folder, options.configure())

    def make_job(run: RunName) -> Job:
        return options.make_job(folder, run, options.data_of(run.setting), plan="benchmarks.selection.training")

    make_runs(options, storage, rounds(options, storage), needs, make_job, console)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    run_command(parse(Options, "benchmarks.selection", __doc__, arguments), run)


if __name__ == "__main__":
    main()
