"""Records of runs that nobody made, to reach all that a report may say."""

import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.schema import Configuration, SelectionConfiguration

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# What Markdown, HTML and Matplotlib would make something else of.
ODD = "a|b <u>$x_$ *c* [d](e) `f` & \\-g &lt; _h_"


class Setting(NamedTuple):
    """Attention is ``gain`` ahead of the baseline at every epoch, and repeats so many batches once in every epoch from
    the second on; the accuracy of every arm falls by ``falls`` at the last epoch."""

    model: str = "small_resnet"
    data: str = "cifar10"
    classes: tuple[str, ...] = CIFAR10
    images: tuple[int, int] = (640, 20_000)
    batches: int = 100
    epochs: int = 4
    k: float = 1.25
    options: tuple[tuple[str, int], ...] = ()
    arms: tuple[str, ...] = ("baseline", "attention", "random", "longer")
    readings: tuple[str, ...] = ("first",)
    noises: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0, 1, 2)
    unfinished: tuple[tuple, ...] = ()
    is_shared: bool = True
    is_paper: bool = False
    top: float = 0.45
    rise: float = 0.5
    gain: float = 0.024
    jitter: float = 0.002
    repeated: int = 10
    more_each_seed: int = 0
    falls: float = 0.0
    slower: float = 1.0


# Without chance in the accuracies, on so many test images that sampling errors do not matter.
EXACT = Setting(jitter=0, images=(640, 4_000_000), classes=("x", "y"), data="two")


def write_records(folder: Path, setting: Setting) -> Path:
    configuration = make_configuration(setting)
    runs, epochs = [], []
    for noise, seed in itertools.product(setting.noises, setting.seeds):
        for (arm, reading), lines in make_seed(setting, noise, seed).items():
            identity = {"configuration": configuration.digest(), "arm": arm, "epoch_loss": reading}
            identity |= {"label_noise": noise, "seed": seed}
            is_finished = (arm, reading, noise, seed) not in setting.unfinished
            runs.append(identity | make_run(setting, lines) | {"is_finished": is_finished})
            epochs += [identity | {k: v for k, v in line.items() if k != "confusion"} for line in lines]
    return write_folder(folder, configuration, runs, epochs)


def write_folder(folder: Path, configuration, runs: list[dict], epochs: list[dict]) -> Path:
    folder.mkdir(parents=True)
    (folder / "configuration.json").write_text(configuration.model_dump_json())
    for name, lines in (("runs", runs), ("epochs", epochs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def make_configuration(setting: Setting) -> Configuration:
    data = {"name": setting.data, "classes": setting.classes, "height": 32, "width": 24, "sha256": "0" * 64}
    data |= {"train_images": setting.images[0], "test_images": setting.images[1]}
    fields = {"model": setting.model, "architecture": "net_a", "model_options": dict(setting.options), "data": data}
    fields |= {"pretrained": False, "parameters": 1234567, "epochs": setting.epochs, "k": setting.k, "batch_size": 32}
    fields |= {"learning_rate": 1e-4, "max_visits": None if setting.is_paper else 5, "precision": "tf32"}
    fields |= {"channels_last": False, "deterministic": True}
    return Configuration.model_validate_json(json.dumps(fields))


def make_seed(setting: Setting, noise: int, seed: int) -> dict[tuple[str, str | None], list[dict]]:
    """All arms of a seed, by arm and reading."""
    rng = np.random.default_rng([seed, noise, setting.epochs])
    repeated = setting.repeated + setting.more_each_seed * setting.seeds.index(seed)

    def make(arm: str, visits: list[np.ndarray], start: int = 1) -> list[dict]:
        return [make_epoch(setting, rng, noise, number, arm, each) for number, each in enumerate(visits, start)]

    arms = {("baseline", None): make("baseline", [np.ones(setting.batches, dtype=int)] * setting.epochs)}
    for reading in setting.readings:
        is_repeated = np.arange(setting.batches) < repeated
        visits = [np.where(is_repeated & (number > 1), 2, 1) for number in range(1, setting.epochs + 1)]
        for arm in ("attention", "random"):
            arms[arm, reading] = make(arm, visits)
        extra = sum(int(each.sum()) - setting.batches for each in visits)
        sizes = [setting.batches] * (extra // setting.batches) + [extra % setting.batches]
        ones = [np.ones(size, dtype=int) for size in sizes if size]
        arms["longer", reading] = arms["baseline", None] + make("longer", ones, setting.epochs + 1)
    return {name: lines for name, lines in arms.items() if name[0] in setting.arms}


def make_epoch(setting: Setting, rng, noise: int, number: int, arm: str, visits: np.ndarray) -> dict:
    share = setting.top * (1 - math.exp(-number * setting.rise)) + rng.uniform(-1, 1) * setting.jitter - noise / 100
    share += {"attention": setting.gain * (1 - noise / 6), "random": setting.gain / 2}.get(arm, 0)
    share -= setting.falls if number >= setting.epochs else 0
    confusion = make_confusion(setting, rng, share)
    found = confusion.sum(axis=0) + confusion.sum(axis=1)
    flipped = rng.binomial(32, noise / 40, len(visits))
    by_visits = {
        int(count): {"batches": int((visits == count).sum()), "flipped": int(flipped[visits == count].sum())}
        | {"with_flipped": int((flipped[visits == count] > 0).sum())}
        for count in np.unique(visits)
    }
    return {
        "epoch": number,
        "batches": len(visits),
        "updates": int(visits.sum()),
        "repeats": int(visits.sum()) - len(visits),
        "train_loss": 2 * 0.8**number,
        "test_loss": None if number == 3 else 1.8 + 0.05 * abs(number - 5) + rng.uniform(0, 0.05),
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "macro_f1": float(np.mean(2 * np.diag(confusion) / np.maximum(found, 1))),
        "seconds": float(visits.sum()) * (setting.slower if arm == "attention" else 1),
        "evaluation_seconds": 0.5,
        "finished_at": "2026-01-02T03:04:05+00:00",
        "shared_device": setting.is_shared,
        "most_visits": int(visits.max()),
        "batches_by_visits": by_visits if arm in ("attention", "random") else None,
        "confusion": confusion.tolist(),
    }


def make_confusion(setting: Setting, rng, share: float) -> np.ndarray:
    classes, images = len(setting.classes), setting.images[1]
    of_class = images // classes + (np.arange(classes) < images % classes)
    right = rng.multivariate_hypergeometric(of_class, round(images * share), method="marginals")
    mistaken_for = 1.0 - np.eye(classes)
    wrong = rng.multinomial(of_class - right, mistaken_for / mistaken_for.sum(axis=1, keepdims=True))
    return np.diag(right) + wrong


def place(device: str = "cpu") -> dict:
    environment = {"cpu": "A CPU", "cores": 3, "system": "Linux", "gpu": None, "python": "3.11.7"}
    environment |= {"packages": {"torch": "2.15.0", "numpy": "2.4.6"}, "date": "2026-01-01T03:04:05+00:00"}
    return {"from_epoch": 1, "device": device, "threads": 1, "at_once": 1, "environment": environment}


def make_run(setting: Setting, lines: list[dict]) -> dict:
    evaluated = {"best": max(lines, key=lambda line: line["accuracy"]), "last": lines[-1]}
    run = {name: {field: line[field] for field in ("epoch", "confusion")} for name, line in evaluated.items()}
    return run | {"surroundings": [place("cuda:0" if setting.is_paper else "cpu")]}


def write_selection(folder: Path, study: str, scores: dict[tuple, list[float]], validation: dict | None = None) -> Path:
    """Scores by setting and arm, and rate where there is one: one for each seed from 0; validation by the same keys."""
    sizes = {"text": {"learning_rate": 0.03}, "noisy": {}, "long_tail": {}}
    configuration = SelectionConfiguration(study=study, data="cifar10", data_sha256="0", settings=sizes)
    runs, epochs = [], []
    for (setting, arm, *rate), values in scores.items():
        for seed, score in enumerate(values):
            identity = {"configuration": configuration.digest(), "arm": arm, "seed": seed, "setting": setting}
            identity |= {"rate": rate[0]} if rate else {}
            runs.append(identity | {"is_finished": True, "surroundings": [place()]})
            chosen = {"forward_samples": 6400, "pruned": 1600, "counts": [30, 20, 10], "recalls": [50.0, 40.0, score]}
            if study == "kinds":
                chosen |= {"score": score, "validation": (validation or {}).get((setting, arm, *rate), 0.0)}
                chosen |= {"group_losses": [1.0, 2.0, 3.0]}
            numbers = {"epoch": 1, "batches": 100, "updates": 100, "repeats": 0, "train_loss": 1.0, "macro_f1": 0.5}
            numbers |= {"accuracy": score / 100 if study == "images" else 0.5, "seconds": 2.0}
            numbers |= {"evaluation_seconds": 0.0, "finished_at": "2026-01-01T03:04:05+00:00", "shared_device": True}
            epochs.append(identity | numbers | {"chosen": chosen})
    return write_folder(folder, configuration, runs, epochs)
