"""Train on four kinds of data with each form of leaving samples out, at half, one and twice the base learning rate.

    python -m benchmarks.selection.kinds --out FOLDER --cifar10 DATA --cifar100 DATA
    python -m benchmarks.selection.kinds --out FOLDER --settings text table    # the others in another process

Kinds: hidden_fine (CIFAR-100 under its 20 superclasses, a long tail over the five fine kinds inside each), text (a
byte-level language model on files of twelve sorts from the standard library and the installed packages, a long tail
over the sorts), noisy (CIFAR-10, 10 % of the labels drawn again at random), table (made by scikit-learn, a long tail
over the five groups inside each of four labels). Every seed draws other data and other rare groups; all arms of a seed
have the same. Test data has as many samples of each group, and validation data too, which is other data and has no
label noise.

Every arm runs with seeds 0 and 1 at each of the three learning rates. The one with the better mean score on validation
data is its own, and the other seeds run at that one alone. All arms make as many updates, but for ``saving`` and
``plain_short``. A random twin leaves out as many samples a pass as the run of the same seed and rate that it is the
twin of.

Sizes, base rates, arms and the rules of this comparison were fixed before the first test score was computed. Sizes and
base rates come from plain training with another seed, by time and validation scores; the rule of ``trimmed``, out of
eight, from how many of the samples that it named there had a wrong label, in ``left_out`` training on noisy.

A finished run is not made again: give the same command to resume. Then:
python -m benchmarks.selection.kinds.report FOLDER --to FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from benchmarks.cifar.images import load_images
from benchmarks.environment import describe_environment
from benchmarks.errors import BenchmarkError, PlanError
from benchmarks.selection.kinds.data import SETTINGS, Task, collect_text, make_task
from benchmarks.selection.kinds.forms import ARMS, SOURCES, make_batches
from benchmarks.selection.kinds.rates import RATES, TUNING_SEEDS, choose_rate
from benchmarks.selection.kinds.training import train
from benchmarks.selection.records import Folder, KindsPlan, Run

# These are run with all seeds before the others, so that a study cut short has them.
FIRST_ARMS = ("plain", "left_out", "left_out_weighted", "left_out_random", "trimmed")
_IMAGES = {"hidden_fine": "cifar100", "noisy": "cifar10"}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection.kinds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of records, new or to resume")
    for name in _IMAGES.values():
        add(f"--{name}", default=name, help=f"{name}, or a folder with train/<class>/ and test/<class>/")
    add("--data-dir", type=Path, default=Path("data"), help="downloaded and decoded data (default: %(default)s)")
    add("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="kinds of data")
    add("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    add("--seeds", nargs="+", type=int, default=list(range(8)), metavar="SEED", help="default: 0 to 7")
    return parser.parse_args(arguments)


class Study:
    """Makes the runs that are missing.

    Args:
        folder: Of the records.
        sources: The data.
        digests: Of the data of each setting.
        console: Told of every run.
    """

    def __init__(self, folder: Folder, sources: dict[str, Any], digests: dict[str, str], console: Console) -> None:
        self._folder, self._sources, self._digests, self._console = folder, sources, digests, console
        self._runs = {run.name: run for run in folder.read_runs()}
        self._tasks: dict[tuple[str, int], Task] = {}

    def run(self, settings: list[str], arms: list[str], seeds: list[int]) -> None:
        """Whole seeds first, so that whatever is finished is paired."""
        for tier in (FIRST_ARMS, [arm for arm in arms if arm not in FIRST_ARMS]):
            for seed in seeds:
                for setting in settings:
                    for arm in (arm for arm in tier if arm in arms):
                        own = (choose_rate(self._runs.values(), setting, arm),)
                        for rate in RATES if seed in TUNING_SEEDS else own:
                            if rate is None:
                                raise PlanError(f"{setting} {arm} has no rate yet; run seeds {TUNING_SEEDS} first")
                            self.make(setting, seed, arm, rate)

    def make(self, setting: str, seed: int, arm: str, rate: float) -> Run:
        """A run, made unless it is finished, after the one that it depends on."""
        if run := self._runs.get((setting, seed, arm, rate)):
            return run
        source = self.make(setting, seed, SOURCES[arm], rate) if arm in SOURCES else None
        sizes = SETTINGS[setting]
        if (setting, seed) not in self._tasks:
            self._tasks[setting, seed] = make_task(self._sources, setting, seed, sizes)
        task = self._tasks[setting, seed]
        arm_itself, batches = make_batches(arm, len(task.train.inputs), sizes, seed, source)
        outcome = train(setting, task, arm_itself, batches, seed, rate * sizes.learning_rate)
        run = Run(
            setting=setting,
            arm=arm,
            seed=seed,
            rate=rate,
            learning_rate=rate * sizes.learning_rate,
            data_sha256=self._digests.get(setting),
            counts=task.counts,
            extra_updates=0,
            environment=describe_environment("cpu"),
            **outcome,
        )
        self._folder.add(run)
        self._runs[run.name] = run
        # The test score is for the report.
        self._console.print(
            f"{setting} {arm} seed {seed} rate {rate:g}: {run.validation:.3f} on validation data, {run.seconds:.0f} s"
        )
        return run


def load_sources(options: argparse.Namespace, console: Console) -> tuple[dict[str, Any], dict[str, str]]:
    """The data that the settings need, and the digest of each."""
    sources: dict[str, Any] = {}
    digests = {}
    for setting in options.settings:
        if name := _IMAGES.get(setting):
            say = lambda text: console.print(text, highlight=False, markup=False)  # noqa: E731
            sources[name] = load_images(getattr(options, name), options.data_dir, say)
            digests[setting] = sources[name].describe().sha256
        if setting == "text":
            # Kept, since packages may be installed while the study runs. Latin-1 has a character for every byte.
            kept = options.data_dir / "text.json"
            if not kept.exists():
                options.data_dir.mkdir(parents=True, exist_ok=True)
                texts = {sort: [text.decode("latin-1") for text in found] for sort, found in collect_text().items()}
                kept.write_text(json.dumps(texts), encoding="utf-8")
            read = json.loads(kept.read_text(encoding="utf-8"))
            sources["text"] = {sort: [text.encode("latin-1") for text in found] for sort, found in read.items()}
            digests[setting] = hashlib.sha256(kept.read_bytes()).hexdigest()
    return sources, digests


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    console = Console()
    try:
        options = parse(arguments)
        torch.set_num_threads(1)
        sources, digests = load_sources(options, console)
        folder = Folder(options.out, KindsPlan)
        folder.open(KindsPlan(settings={name: sizes._asdict() for name, sizes in SETTINGS.items()}))
        Study(folder, sources, digests, console).run(options.settings, options.arms, options.seeds)
    except BenchmarkError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("stopped; the same command resumes")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
