"""Records of runs that nobody made, with numbers drawn at random, to reach all that a report may say."""

import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.schema import Configuration

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
READINGS = ("first", "last", "all")
# Runs of this seed are more accurate than the others, and ran on another machine, which they shared.
APART = 9


class Setting(NamedTuple):
    model: str = "small_resnet"
    data: str = "cifar10"
    classes: tuple[str, ...] = CIFAR10
    images: tuple[int, int] = (640, 20_000)
    batches: int = 20
    batch_size: int = 30
    epochs: int = 8
    learning_rate: float = 0.0003
    k: float = 1.25
    pretrained: bool = False
    weights: str | None = None
    options: tuple[tuple[str, int], ...] = ()
    precision: str = "tf32"
    max_visits: int | None = 5
    arms: tuple[str, ...] = ("baseline", "attention", "random", "longer")
    readings: tuple[str, ...] = READINGS
    noises: tuple[int, ...] = (0, 3)
    seeds: tuple[int, ...] = (0, 1, 2)
    unfinished: tuple[tuple, ...] = ()
    device: str = "cpu"
    differs: str = ""
    shared: tuple[str, ...] = ("attention",)
    top: float = 0.45
    rise: float = 0.5
    gain: float = 0.024
    jitter: float = 0.002
    repeats: float = 0.18
    repeats_from: int = 2
    repeated_once: int | None = None
    more_each_seed: int = 0
    more_each_noise: int = 0
    apart_compares_with_none: bool = False
    ends_one_sided: bool = False


ALONE = {"device": "cuda", "shared": ()}
AS_IN_PAPER = Setting(
    "resnet34",
    images=(50_000, 10_000),
    batch_size=32,
    epochs=100,
    learning_rate=1e-4,
    k=1.2,
    max_visits=None,
    readings=("last",),
    noises=(0,),
    jitter=0.01,
    repeats_from=5,
    ends_one_sided=True,
    **ALONE,
)
CONTROLS_ALONE = Setting("controls alone", arms=("baseline", "random", "longer"), readings=("first",), **ALONE)


def several_settings() -> list[Setting]:
    many = {"data": "cifar100", "classes": tuple(f"c{place}" for place in range(100)), "k": 1.5, "precision": "fp16"}
    of_cifar100 = Setting("efficientnet_b7", **many, epochs=35, max_visits=None, readings=("all", "first"))
    dogs = ("dog", "owl", "cat", *map(str, range(9)))
    noisy = Setting("tnt", batches=500, epochs=12, max_visits=3, pretrained=True, precision="bf16", noises=(3, 6))
    options = (("depth", 4), ("img_size", 32), ("patch_size", 8), ("first_stride", 1))
    noisy = noisy._replace(options=options, weights="some-weights 1.0")
    return [
        AS_IN_PAPER,
        of_cifar100._replace(shared=("baseline",), noises=(0,), seeds=(3, 4, 5, 6)),
        Setting("tiny", "kennel", dogs, epochs=2, seeds=(7,), readings=("first",), noises=(0,), repeats=0),
        noisy._replace(unfinished=(("longer", "first", 3, 1), ("longer", "first", 3, 2))),
        CONTROLS_ALONE,
        Setting("no baseline", arms=("attention", "random"), noises=(0,), **ALONE),
        Setting("two devices", differs="device", noises=(0,), readings=("last",), **ALONE),
        Setting("two versions", differs="torch", noises=(0,), readings=("last",), **ALONE),
    ]


def gain_settings() -> list[Setting]:
    """Their intervals lie on either side of what the verdicts are made by."""
    common = Setting(data="two", classes=("x", "y"), epochs=4, readings=("first",), noises=(0,), jitter=0.006)
    common = common._replace(repeats_from=1, seeds=(0, 1, 2, 3, APART), unfinished=(("attention", "first", 0, APART),))
    gains_and_repeats = ((-0.02, 0), (-0.008, 0.027), (0.003, 0.037), (0.01, 0.1), (0.016, 0.16), (0.03, 0.2))
    settings = [
        common._replace(model=f"gain {gain}", gain=gain, repeats=repeats, batches=600 if repeats < 0.05 else 60)
        for gain, repeats in gains_and_repeats
    ]
    settings = [setting._replace(top=0.4 + 0.05 * place) for place, setting in enumerate(settings)]
    return [*settings, common._replace(model="fast", rise=1.5, repeats=0.08)]


def limit_settings() -> list[Setting]:
    """Without chance, on one side or the other of a limit: 400 batches, sampling errors of 0.5 points."""
    common = Setting(data=ODD, classes=ODD_CLASSES, batches=100, epochs=4, readings=("first",), noises=(0, 3))
    common = common._replace(jitter=0, repeats_from=4, repeated_once=20)
    odd = common._replace(repeats_from=3, repeated_once=90, more_each_seed=-15, seeds=(*range(6), APART), noises=(0,))
    unpaired = common._replace(unfinished=tuple(("baseline", None, 4, seed) for seed in common.seeds), gain=0.04)
    paper_options = (("patch_size", 4), ("first_stride", 1), ("img_size", 32))
    return [
        common._replace(model="0.75 %, more with noise", repeated_once=3, more_each_noise=10, gain=0.05),
        common._replace(model="1 %", repeated_once=4, gain=0.05, options=(("depth", 2),)),
        common._replace(model="0.75 to 1.75 %", repeated_once=3, more_each_seed=2),
        common._replace(model="14.5 %", repeated_once=58, gain=0.018),
        common._replace(model="15.5 %", repeated_once=62, gain=0.014),
        common._replace(model="19.5 %, 0.75 % with noise", repeated_once=78, more_each_noise=-25, gain=0.0045),
        common._replace(model="20.5 %", repeated_once=82, gain=-0.02),
        common._replace(model="13.25 to 16.75 %", repeated_once=53, more_each_seed=7, gain=0.0055),
        common._replace(model="12.75 to 17.25 %", repeated_once=51, more_each_seed=9, gain=-0.006),
        odd._replace(model="one that does not count", images=(640, 300), apart_compares_with_none=True),
        common._replace(model="large test set", images=(640, 2_000_000), gain=0.0025),
        unpaired._replace(model="no baseline with some noise", noises=(0, 2, 4, 6)),
        common._replace(model="4.5 % early", repeated_once=9, repeats_from=3, gain=0.001),
        common._replace(
            model="5.5 % early", repeated_once=11, repeats_from=3, images=(640, 800), gain=0.012, seeds=(0, 1, 2, APART)
        ),
        common._replace(model="tnt", options=paper_options, weights="<w>|", pretrained=True, seeds=(4, 5)),
    ]


# What Markdown and HTML would make something else of.
ODD = "a|b <u> *c* [d](e) `f` & \\-g &lt; h_i"
ODD_CLASSES = ("cat|dog", "<b>", "*cat*", "dog")
BIRDS = Setting(data="birds", images=(640, 1000), shared=(), top=0.7, gain=-0.015, jitter=0.01, seeds=(0, 1, 2, APART))
# The folders of each report, and the reading that it is asked to judge by.
CASES = {
    "shared device": ([Setting(noises=(0, 3, 6))], "first"),
    "device alone": ([BIRDS._replace(unfinished=(("attention", "all", 0, APART), ("baseline", None, 3, 2)))], "all"),
    "several folders": (several_settings(), "last"),
    "many gains": (gain_settings(), "first"),
    "limits": (limit_settings(), "first"),
    "as in the paper": ([AS_IN_PAPER], "last"),
    "no attention": ([CONTROLS_ALONE], "first"),
}


def write_case(case: str, folder: Path) -> list[Path]:
    return [write_records(folder / setting.model, setting) for setting in CASES[case][0]]


def write_records(folder: Path, setting: Setting) -> Path:
    configuration = make_configuration(setting)
    runs, epochs = [], []
    for noise, seed in itertools.product(setting.noises, setting.seeds):
        for (arm, reading), lines in make_seed(setting, noise, seed).items():
            identity = {"configuration": configuration.digest(), "arm": arm, "epoch_loss": reading}
            identity |= {"label_noise": noise, "seed": seed}
            is_finished = (arm, reading, noise, seed) not in setting.unfinished
            runs.append(identity | make_run(setting, noise, seed, lines) | {"is_finished": is_finished})
            epochs += [identity | {k: v for k, v in line.items() if k != "confusion"} for line in lines]
    folder.mkdir(parents=True)
    (folder / "configuration.json").write_text(configuration.model_dump_json())
    for name, lines in (("runs", runs), ("epochs", epochs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def make_configuration(setting: Setting) -> Configuration:
    same = ("model", "pretrained", "weights", "epochs", "k", "batch_size", "learning_rate", "max_visits", "precision")
    fields = {name: getattr(setting, name) for name in same}
    data = {"name": setting.data, "classes": setting.classes, "height": 32, "width": 24, "sha256": "0" * 64}
    data |= {"train_images": setting.images[0], "test_images": setting.images[1]}
    fields |= {
        "architecture": f"{setting.model}_a",
        "model_options": dict(setting.options),
        "parameters": 1234567,
        "data": data,
    }
    fields |= {"channels_last": bool(setting.shared), "deterministic": not setting.shared}
    return Configuration.model_validate_json(json.dumps(fields))


def make_seed(setting: Setting, noise: int, seed: int) -> dict[tuple[str, str | None], list[dict]]:
    """All arms of a seed, by arm and reading."""
    rng = np.random.default_rng([seed, noise, setting.epochs])
    if seed == APART:
        setting = setting._replace(top=setting.top + 0.2, shared=setting.arms)
    is_odd = seed == APART and setting.apart_compares_with_none
    if is_odd:  # it has nearly converged at once, and attention has no finite loss
        setting = setting._replace(rise=5)

    if setting.repeated_once is not None:
        more = setting.seeds.index(seed) * setting.more_each_seed + noise * setting.more_each_noise
        setting = setting._replace(repeated_once=setting.repeated_once + more)

    def make(arm: str, visits: list[np.ndarray], start: int = 1) -> list[dict]:
        return [make_epoch(setting, rng, noise, number, arm, each) for number, each in enumerate(visits, start)]

    baseline = make("baseline", [np.ones(setting.batches, dtype=int)] * setting.epochs)
    baseline[min(2, setting.epochs - 1)]["test_loss"] = None
    arms = {("baseline", None): baseline}
    for reading in setting.readings:
        visits = [make_visits(setting, rng, number) for number in range(1, setting.epochs + 1)]
        for arm in ("attention", "random"):
            arms[arm, reading] = make(arm, [rng.permutation(each) for each in visits])
        without_loss = arms["attention", reading] if is_odd else [arms["attention", reading][1]]
        for line in without_loss:
            line["train_loss"] = None
        extra = sum(int(of_epoch.sum()) - setting.batches for of_epoch in visits)
        sizes = [setting.batches] * (extra // setting.batches) + [extra % setting.batches]
        ones = [np.ones(size, dtype=int) for size in sizes if size]
        arms["longer", reading] = baseline + make("longer", ones, setting.epochs + 1)
    return {name: lines for name, lines in arms.items() if name[0] in setting.arms}


def make_visits(setting: Setting, rng: np.random.Generator, number: int) -> np.ndarray:
    if setting.repeated_once is not None:
        is_repeated = (np.arange(setting.batches) < setting.repeated_once) & (number == setting.repeats_from)
        return np.where(is_repeated, 2, 1)
    is_in_turn = rng.permutation(setting.batches) < setting.repeats * setting.batches
    is_repeated = is_in_turn & (number >= setting.repeats_from)
    visits = np.where(is_repeated, 1 + rng.geometric(0.6, setting.batches), 1)
    return np.minimum(visits, setting.max_visits or 1000)


def make_epoch(setting: Setting, rng: np.random.Generator, noise: int, number: int, arm: str, visits) -> dict:
    confusion = make_confusion(setting, rng, noise, number, arm)
    found = confusion.sum(axis=0) + confusion.sum(axis=1)
    updates, is_attention = int(visits.sum()), arm == "attention"
    return {
        "epoch": number,
        "batches": len(visits),
        "updates": updates,
        "repeats": updates - len(visits),
        "threshold": setting.k * 2 * 0.8 ** (number - 1) if is_attention and number > 1 else None,
        "train_loss": 2 * 0.8**number * rng.uniform(0.9, 1.1),
        "test_loss": 1.8 + 0.05 * abs(number - 5) + rng.uniform(0, 0.05),
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "macro_f1": float(np.mean(2 * np.diag(confusion) / np.maximum(found, 1))),
        "seconds": updates * rng.uniform(0.098, 0.102) * (0.85 if is_attention else 1),
        "evaluation_seconds": 0.5,
        "finished_at": "2026-01-02T03:04:05+00:00",
        "shared_device": arm in setting.shared,
        "precision": setting.precision,
        "capped_batches": int((visits == setting.max_visits).sum()) if is_attention else 0,
        "nonfinite_losses": 0,
        "most_visits": int(visits.max()),
        "host_reads": 2,
        "batches_by_visits": make_histogram(rng, noise, visits) if arm in ("attention", "random") else None,
        "confusion": confusion.tolist(),
    }


def make_confusion(setting: Setting, rng: np.random.Generator, noise: int, number: int, arm: str) -> np.ndarray:
    classes, images = len(setting.classes), setting.images[1]
    share = setting.top * (1 - math.exp(-number * setting.rise)) + rng.uniform(-setting.jitter, setting.jitter)
    share += {"attention": setting.gain * (1 - noise / 6), "random": 0.01}.get(arm, 0) - noise / 100
    of_class = images // classes + (np.arange(classes) < images % classes)
    right = rng.multivariate_hypergeometric(of_class, round(images * share))
    mistaken_for = 1.0 - np.eye(classes)
    if setting.ends_one_sided and arm == "attention" and number == setting.epochs:
        mistaken_for[1:] = np.eye(classes)[0]
    wrong = rng.multinomial(of_class - right, mistaken_for / mistaken_for.sum(axis=1, keepdims=True))
    return np.diag(right) + wrong


def make_histogram(rng: np.random.Generator, noise: int, visits) -> dict[int, dict[str, int]]:
    flipped = rng.binomial(32, noise / 40 * np.minimum(visits, 3) / 3)
    of_visits = {int(count): flipped[visits == count] for count in np.unique(visits)}
    return {
        count: {"batches": len(wrong), "with_flipped": int((wrong > 0).sum()), "flipped": int(wrong.sum())}
        for count, wrong in of_visits.items()
    }


def make_run(setting: Setting, noise: int, seed: int, lines: list[dict]) -> dict:
    best = max(lines, key=lambda line: line["accuracy"])
    is_other = seed % 2
    device = f"cuda:{is_other if setting.differs == 'device' else 0}" if setting.device == "cuda" else "cpu"
    environment = {"cpu": "Another CPU" if seed == APART else "A CPU", "cores": 3, "system": "Linux"}
    environment |= {"gpu": "A GPU" if setting.device == "cuda" else None, "python": "3.11.7"}
    environment["packages"] = {"torch": f"2.1{is_other if setting.differs == 'torch' else 5}.0", "numpy": "2.4.6"}
    place = {"device": device, "threads": 1, "at_once": 1}
    return {
        "flipped_labels": noise * 18,
        "surroundings": [
            place
            | {"from_epoch": day, "environment": environment | {"date": f"2026-01-{day + seed:02}T03:04:05+00:00"}}
            for day in (1, 2)
        ],
        "best": {name: best[name] for name in ("epoch", "confusion")},
        "last": {name: lines[-1][name] for name in ("epoch", "confusion")},
    }
