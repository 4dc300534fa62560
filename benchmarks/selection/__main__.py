"""Train with arms that choose samples, or batches, or none, at the same number of updates, and record each run.

    python -m benchmarks.selection --out FOLDER                         # CIFAR-10: all settings and arms, 8 seeds
    python -m benchmarks.selection --out FOLDER --settings long_tail --arms plain left_out left_out_random
    python -m benchmarks.selection --out FOLDER --study kinds           # images, text and a table

Study ``images``, on CIFAR-10: balanced (10,000 images), long_tail (--imbalance 50), hidden_kinds (ten kinds under two
labels, a long tail over the kinds), noisy (balanced, 10 % label noise); the test set is all of CIFAR-10's. One value of
each option is run, and none was chosen by these results: K is the paper's, the pruning probability InfoBatch's, the
last, plain share of training SampleAttention's default of 15 % (InfoBatch's is 12.5 %). left_out_weighted is our
reading of InfoBatch, selective_backprop ours of Selective Backprop; plain_longer is plain training with as many more
updates as its extra forward passes cost. infobatch and selective_backprop_composer call the authors' own packages, with
their defaults; they are made only where --arms names them.

Study ``kinds``: hidden_fine (CIFAR-100 under its 20 superclasses, a long tail over the fine kinds of each), text (a
language model on bytes of twelve sorts of installed files, a long tail over the sorts), noisy (CIFAR-10, 10 % label
noise), table (made by scikit-learn, a long tail over five groups of each label). Validation data is other data, without
label noise. Every arm runs with seeds 0 and 1 at half, one and twice the base learning rate, and with the other seeds
at the one with the better mean validation score. All make as many updates, but for saving and plain_short. A random
twin prunes as many samples a pass as the run of its seed and rate that it is the twin of. All was fixed before the
first test score was computed: sizes and base rates by plain training with another seed, the rule of trimmed, out of
eight, by how many of the samples that it named in left_out training on noisy had a wrong label.

Every seed draws other data, other rare groups and other initial weights, the same for all arms. Finished runs are not
made again: the same command resumes. Then: python -m benchmarks.report FOLDER
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from batch_sampler_attn.errors import BatchAttentionError
from benchmarks.errors import BenchmarkError, PlanError
from benchmarks.images import CIFAR, ImageSet
from benchmarks.running import run_all
from benchmarks.schema import RunName, SelectionConfiguration
from benchmarks.selection.arms import ARMS, BY_FREQUENCY, SOURCES
from benchmarks.selection.data import IMAGE_SETTINGS, KINDS, ImageSizes
from benchmarks.selection.peers import PEERS, load
from benchmarks.selection.rates import RATES, TUNING_SEEDS, choose_rate
from benchmarks.selection.training import load_source
from benchmarks.storage import Storage
from benchmarks.training import Job

BATCH_SIZE = 64
SETTINGS = {"images": IMAGE_SETTINGS, "kinds": tuple(KINDS)}
# These run with all seeds before the other arms, for a study cut short to have them.
FIRST_ARMS = {*ARMS["images"], *ARMS["kinds"][:5]}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; the help is made of the comments."""

    out: Path  # Folder of the records, new or to resume.
    study: Literal["images", "kinds"] = "images"  # Which one.
    data: str = "cifar10"  # cifar10, or a folder with train/<class>/ and test/<class>/.
    cifar100: str = "cifar100"  # For hidden_fine: cifar100, or a folder with its classes.
    data_dir: Path = Path("data")  # Downloaded data.
    settings: tuple[str, ...] = ()  # Of those above; all of the study by default.
    arms: tuple[str, ...] = ()  # All by default, but for infobatch and selective_backprop_composer.
    seeds: tuple[int, ...] = tuple(range(8))  # At least 0.
    updates: int = 1500  # Of every arm of images.
    imbalance: float = 50.0  # Of the long tails of images: most over least.
    images: int | None = None  # Train on fewer images, for a trial.
    threads: int = 1  # CPU threads of a run.
    at_once: int = 1  # Runs at once.
    executor: str | None = None  # processes, submitit, dask:ADDRESS or MODULE:CALLABLE (see benchmarks/running.py).
    executor_options: tuple[str, ...] = ()  # KEY=VALUE for it, such as slurm_partition=gpu.

    def check(self) -> None:
        """Check what needs no data.

        Raises:
            PlanError: If a name is unknown, a number is out of its range, or a peer is not installed.
        """
        names = {"--settings": (self.settings, SETTINGS), "--arms": (self.arms, ARMS)}
        for option, (given, known) in names.items():
            if unknown := [name for name in given if name not in known[self.study]]:
                raise PlanError(f"{option} has {', '.join(unknown)}; it takes {', '.join(known[self.study])}")
        numbers = {"updates": 1, "threads": 1, "at_once": 1, "imbalance": 1, "images": BATCH_SIZE, "seeds": 0}
        for option, least in numbers.items():
            value = getattr(self, option)
            for number in value if isinstance(value, tuple) else [value]:
                if number is not None and not least <= number < math.inf:
                    name = option.replace("_", "-")
                    raise PlanError(f"--{name} has {number}; it takes numbers of at least {least}")
        for arm in PEERS.keys() & set(self.arms):
            load(arm)

    def data_of(self, setting: str | None) -> str:
        """What a setting's data is drawn from, as ``load_source`` takes it."""
        if setting in ("text", "table"):
            return "text" if setting == "text" else ""
        data = self.cifar100 if setting == "hidden_fine" else self.data
        return data if data in CIFAR else str(Path(data).resolve())

    def configure(self) -> SelectionConfiguration:
        """What all runs have in common."""
        if self.study == "kinds":
            settings = {name: sizes._asdict() for name, sizes in KINDS.items()}
            return SelectionConfiguration(study="kinds", data=None, data_sha256=None, settings=settings)
        images, digest = load_source(self.data_of("balanced"), self.data_dir.resolve())
        assert isinstance(images, ImageSet)
        sizes = ImageSizes(self.updates, BATCH_SIZE, self.imbalance, self.images)
        return SelectionConfiguration(
            study="images",
            data=images.name,
            data_sha256=digest,
            settings=dict.fromkeys(IMAGE_SETTINGS, sizes._asdict()),
        )

    def plan(self) -> list[RunName]:
        """The runs, without rates: whole seeds first, so that what is finished is paired."""
        arms = self.arms or [arm for arm in ARMS[self.study] if arm not in PEERS]
        tiers = [arm for arm in arms if arm in FIRST_ARMS], [arm for arm in arms if arm not in FIRST_ARMS]
        return [
            RunName(arm, None, 0, seed, setting)
            for tier in tiers
            for seed in dict.fromkeys(self.seeds)
            for setting in dict.fromkeys(self.settings or SETTINGS[self.study])
            for arm in dict.fromkeys(tier)
            # The others have no labels that say what is rare.
            if arm not in BY_FREQUENCY or setting == "long_tail"
        ]


def needs(run: RunName) -> list[RunName]:
    """The run that another takes its pruning, or its number of updates, from."""
    return [run._replace(arm=SOURCES[run.arm])] if run.rate is not None and run.arm in SOURCES else []


def rounds(options: Options, storage: Storage) -> Iterator[list[RunName]]:
    """The runs, in two rounds where arms have a learning rate of their own, which the first round tells.

    Raises:
        PlanError: If the first round is not complete.
    """
    runs = options.plan()
    if options.study == "images":
        yield runs
        return
    yield [run._replace(rate=rate) for run in runs if run.seed in TUNING_SEEDS for rate in RATES]
    records = storage.collect()
    chosen = {name: record.epochs[-1].chosen for name, record in records.items() if record.epochs}
    validation = {name: each.validation for name, each in chosen.items() if each}
    own = {run: choose_rate(validation, run.setting, run.arm) for run in runs}
    later = [run._replace(rate=own[run]) for run in runs if run.seed not in TUNING_SEEDS]
    if untuned := [run for run in later if run.rate is None]:
        raise PlanError(f"{untuned[0].setting} {untuned[0].arm} has no rate yet; give --seeds {TUNING_SEEDS} too")
    yield later


def run(options: Options, console: Console) -> Path:
    """Make the runs that are missing, and return the folder of their records.

    Raises:
        BenchmarkError: If they cannot be made. Those that are finished are recorded.
    """
    options.check()
    data_dir, folder = options.data_dir.resolve(), options.out.resolve()
    for setting in {run.setting for run in options.plan()}:
        # Before any run, and once for all processes.
        load_source(options.data_of(setting), data_dir)
    storage = Storage(folder, options.configure())
    with storage.opened():
        storage.check_place("cpu", options.threads)
        try:
            for runs in rounds(options, storage):
                finished = storage.finished()
                asked = dict.fromkeys(each for run in runs for each in (*needs(run), run))
                jobs = [
                    Job(
                        folder=folder,
                        run=run,
                        data=options.data_of(run.setting),
                        data_dir=data_dir,
                        threads=options.threads,
                        at_once=options.at_once,
                        plan="benchmarks.selection.training",
                    )
                    for run in asked
                    if run not in finished
                ]
                console.print(f"{len(jobs)} runs to make", highlight=False)
                run_all(
                    jobs,
                    needs=needs,
                    executor=options.executor,
                    at_once=options.at_once,
                    console=console,
                    executor_options=options.executor_options,
                )
        finally:
            storage.write_records()
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error that is meant for the user is one line, and the exit status 1."""
    console = Console()
    options = tyro.cli(Options, prog="python -m benchmarks.selection", description=__doc__, args=arguments)
    try:
        folder = run(options, console)
    except (BenchmarkError, BatchAttentionError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes")
    text = f"records: {folder}; for tables and figures: python -m benchmarks.report {folder}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
