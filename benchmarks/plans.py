"""What both plans' commands have in common: options, the runs that are missing, errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console

from batch_sampler_attn.errors import BatchAttentionError
from benchmarks.errors import BenchmarkError, PlanError
from benchmarks.running import Needs, run_all
from benchmarks.schema import RunName
from benchmarks.storage import Storage
from benchmarks.training import Job


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of every plan; the help is made of the comments."""

    data_dir: Path = Path("data")  # Downloaded data.
    out: Path | None = None  # Folder of the records, new or to resume; one in runs/ by default.
    threads: int = 1  # CPU threads of a run; sums depend on it.
    at_once: int = 1  # Runs at once.
    executor: str | None = None  # processes, submitit, dask:ADDRESS or MODULE:CALLABLE (see benchmarks/running.py).
    executor_options: tuple[str, ...] = ()  # KEY=VALUE for it, such as slurm_partition=gpu.

    def check(self, least: Mapping[str, float], known: Mapping[str, Collection[str]]) -> None:
        """Refuse numbers that are too small and names that are unknown, before there is data."""
        for name, lowest in {"threads": 1, "at_once": 1, **least}.items():
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else [value], default=lowest) < lowest:
                raise PlanError(f"--{name.replace('_', '-')} is {value}; it must be at least {lowest}")
        for name, names in known.items():
            if unknown := [each for each in getattr(self, name) if each not in names]:
                raise PlanError(f"--{name} has {', '.join(unknown)}; it takes {', '.join(names)}")

    def make_job(self, folder: Path, run: RunName, data: str, **fields: Any) -> Job:
        """A run of the plan, as any worker can make it."""
        data_dir, threads, at_once = self.data_dir.resolve(), self.threads, self.at_once
        return Job(folder=folder, run=run, data=data, data_dir=data_dir, threads=threads, at_once=at_once, **fields)


Options = TypeVar("Options", bound=PlanOptions)


def make_runs(
    options: PlanOptions,
    storage: Storage,
    rounds: Iterable[Sequence[RunName]],
    needs: Needs,
    make_job: Callable[[RunName], Job],
    console: Console,
) -> None:
    """Make the runs of each round that are missing, after those that they need, and write the records."""
    jobs: list[Job] = []
    with storage.opened():
        try:
            for runs in rounds:
                finished, planned = storage.finished(), with_needs(runs, needs)
                jobs = [make_job(run) for run in planned if run not in finished]
                console.print(f"{len(planned)} runs, {len(jobs)} to be made", highlight=False)
                for job in jobs[:1]:
                    storage.check_place(job.device, job.threads)
                starts = {job.starts_as for job in jobs}
                jobs = [replace(job, keeps_state=job.run in starts) for job in jobs]
                run_all(jobs, needs, options.executor, options.at_once, console, options.executor_options)
        finally:
            finished = storage.finished()
            for run in finished - {job.starts_as for job in jobs if job.run not in finished}:
                storage.forget_state(run)
            storage.write_records()


def with_needs(runs: Iterable[RunName], needs: Needs) -> list[RunName]:
    """Runs and those that they need, which come first; each once."""
    return list(dict.fromkeys(each for run in runs for each in (*needs(run), run)))


def parse(kind: type[Options], plan: str, description: str | None, arguments: Sequence[str] | None) -> Options:
    """The options on a command line, which ends the process with status 2 where they are wrong."""
    # A folder or a model may be called None.
    config = (tyro.conf.DisallowNone,)
    return tyro.cli(kind, prog=f"python -m {plan}", description=description, args=arguments, config=config)


def run_command(options: Options, run: Callable[[Options, Console], Path]) -> None:
    """Run a plan; an error that is meant for the user is one line, and the exit status 1."""
    console = Console()
    try:
        folder = run(options, console)
    except (BenchmarkError, BatchAttentionError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes")
    text = f"records: {folder}; for tables and figures: python -m benchmarks.report {folder}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
