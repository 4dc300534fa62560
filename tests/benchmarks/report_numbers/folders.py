"""Records as they are read here: by run, without the code that makes the report."""

import itertools
import json
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.cifar_helpers import read_lines
from tests.benchmarks.report_records import READINGS


class Folder(NamedTuple):
    """Finished runs with their epochs, by (arm, reading, label noise, seed); a condition is (label noise, reading)."""

    configuration: dict
    runs: dict[tuple, dict]
    unfinished: int

    @property
    def name(self) -> str:
        return f"{self.configuration['model']} on {self.configuration['data']['name']}"

    @property
    def classes(self) -> list[str]:
        return self.configuration["data"]["classes"]

    def conditions(self) -> list[tuple[int, str]]:
        found = {(noise, READINGS.index(reading)) for arm, reading, noise, _ in self.runs if arm == "attention"}
        return [(noise, READINGS[place]) for noise, place in sorted(found)]

    def find(self, condition: tuple[int, str], *arms: str) -> list[list[dict]]:
        """The runs of these arms, of each seed that has them all."""
        noise, reading = condition
        seeds = sorted({seed for *_, seed in self.runs})
        names = [[(arm, None if arm == "baseline" else reading, noise, seed) for arm in arms] for seed in seeds]
        return [[self.runs[name] for name in of_seed] for of_seed in names if set(of_seed) <= set(self.runs)]

    def places(self, runs) -> list[dict]:
        return [place for run in runs for place in run["surroundings"]]

    def is_timed(self, condition: tuple[int, str]) -> bool:
        runs = list(itertools.chain(*self.find(condition, "baseline", "attention")))
        places = {(place["device"], place_text(place["environment"])) for place in self.places(runs)}
        return len(places) == 1 and not any(epoch["shared_device"] for run in runs for epoch in run["epochs"])


def read_folder(path: Path) -> Folder:
    runs = {name_of(run): {**run, "epochs": []} for run in read_lines(path / "runs.jsonl")}
    for epoch in read_lines(path / "epochs.jsonl"):
        runs[name_of(epoch)]["epochs"].append(epoch)
    finished = {name: run for name, run in runs.items() if run["is_finished"]}
    return Folder(json.loads((path / "configuration.json").read_text()), finished, len(runs) - len(finished))


def name_of(line: dict) -> tuple:
    return line["arm"], line["epoch_loss"], line["label_noise"], line["seed"]


def place_text(environment: dict) -> str:
    device = environment["gpu"] or f"{environment['cpu']}, {environment['cores']} cores"
    return f"{device}, Python {environment['python']}, torch {environment['packages']['torch']}"
