"""The tables, computed a second time."""

import collections
import itertools

import numpy as np

from tests.benchmarks.report_numbers.findings import (
    CANNOT_BE_TOLD,
    CLAIMS,
    DOES_NOT_HOLD,
    HARDLY_ANY_REPEATS,
    HOLDS,
    NOT_ENOUGH_RUNS,
    findings,
)
from tests.benchmarks.report_numbers.folders import Folder, place_text
from tests.benchmarks.report_numbers.measures import (
    gains,
    measure,
    more_seconds,
    more_updates,
    of_pairs,
    total,
    variance,
    wrong_by_predicted_class,
)
from tests.benchmarks.report_numbers.texts import mean_and_deviation, mean_with_interval, number
from tests.benchmarks.report_records import READINGS

SYMBOLS = {HOLDS: "✓", DOES_NOT_HOLD: "✗", CANNOT_BE_TOLD: "?", HARDLY_ANY_REPEATS: "∅", NOT_ENOUGH_RUNS: "…"}
AT_A_GLANCE, FLIPPED = "Do the claims hold?", "Do repeats point to wrong labels?"
TABLE_2_BEST = "Table 2: wrong predictions by predicted class, at the best epoch"

PAPER_TABLE_1 = [
    ["paper: resnet34", "none", "baseline", "1", "0.925596", "73.7586", *["-"] * 4],
    ["paper: resnet34", "none", "attention", "1", "0.856234", "75.3712", *["-"] * 4],
    ["paper: tnt", "none", "baseline", "1", "1.062034", "67.5982", *["-"] * 4],
    ["paper: tnt", "none", "attention", "1", "1.073162", "70.9335", *["-"] * 4],
]
# Wrong predictions by predicted class, their variance, cat taken for dog, dog taken for cat.
PAPER_TABLE_2 = {
    "baseline": ([230, 249, 420, 521, 367, 449, 293, 285, 165, 263], "11144.36", "190", "164"),
    "attention": ([261, 153, 356, 503, 288, 389, 251, 254, 198, 255], "9163.96", "169", "173"),
}
# Data, K, ImageNet weights.
PAPER_MODELS = dict.fromkeys(("resnet34", "tnt"), ("cifar10", 1.2, False)) | {
    "efficientnet_b7": ("cifar100", 1.5, True)
}
PAPER_OPTIONS = {"resnet34": {}, "tnt": {"patch_size": 4, "first_stride": 1}, "efficientnet_b7": {}}


def reductions(folder: Folder) -> list[str]:
    c, data = folder.configuration, folder.configuration["data"]
    their_data, their_k, their_weights = PAPER_MODELS.get(c["model"], (None, c["k"], c["pretrained"]))
    options = PAPER_OPTIONS.get(c["model"], c["model_options"]) | {"img_size": c["model_options"].get("img_size")}
    their_options = {name: value for name, value in c["model_options"].items() if options.get(name) != value}
    capped = sum(total(run["epochs"], "capped_batches") for run in folder.runs.values())
    said = {
        f"{folder.name}, which the paper has not": their_data != data["name"],
        **{f"{name} {value}": True for name, value in their_options.items()},
        f"{data['train_images']:,} training images": data["train_images"] != 50_000,
        f"{data['test_images']:,} test images": data["test_images"] != 10_000,
        f"{c['epochs']} epochs": c["epochs"] != 100,
        f"batches of {c['batch_size']}": c["batch_size"] != 32,
        f"learning rate {c['learning_rate']:g}": c["learning_rate"] != 0.0001,
        f"K {c['k']:g}": c["k"] != their_k,
        f"with{'' if c['pretrained'] else 'out'} ImageNet weights": c["pretrained"] != their_weights,
        c["precision"]: c["precision"] in ("bf16", "fp16"),
        "on a CPU": any(place["device"] == "cpu" for place in folder.places(folder.runs.values())),
        f"{capped:,} batches left at max_visits, where the paper has no limit": capped > 0,
    }
    return [text for text, is_said in said.items() if is_said]


def mark(said: str) -> str:
    return f"{SYMBOLS[said]} **{said}**"


def at_a_glance(folders: list[Folder], asked: str) -> list[list]:
    first = [{each.claim: each for each in reversed(findings(folder, asked))} for folder in folders]
    rows = [
        [text, *(mark(found[claim].verdict()) if claim in found else "-" for found in first)]
        for claim, text in CLAIMS.items()
    ]
    return [["claim", *(folder.name for folder in folders)], *rows]


def claims(folder: Folder, asked: str) -> list[list]:
    rows = [[mark(each.verdict()), CLAIMS[each.claim], each.numbers(), each.caveat] for each in findings(folder, asked)]
    return [["verdict", "claim", "attention less the other arm", "remark"], *rows]


def how_reduced(folder: Folder) -> str:
    said = reductions(folder)
    return f"Reduced: {', '.join(said)}." if said else "At the paper's size and settings."


def trained(folders: list[Folder]) -> list[list]:
    rows = [["experiment", "training", "data", "runs", "hardware and versions"]]
    for folder in folders:
        c, data = folder.configuration, folder.configuration["data"]
        details = f"{c['architecture']}, {c['parameters']:,} parameters, "
        details += "ImageNet weights" if c["pretrained"] else "from scratch"
        details += f" ({c['weights']})" if c.get("weights") else ""
        details += f"; Adam {c['learning_rate']:g}, batch {c['batch_size']}, {c['epochs']} epochs, K {c['k']:g}, "
        details += f"max_visits {c['max_visits'] or 'none'}; precision {c['precision']}"
        details += ", channels last" * c["channels_last"] + ", deterministic algorithms" * c["deterministic"]
        size = f"{data['train_images']:,} + {data['test_images']:,} images of {data['height']}x{data['width']}"
        runs = f"{len(folder.runs)}" + f", {folder.unfinished} unfinished left out" * bool(folder.unfinished)
        environments = [place["environment"] for place in folder.places(folder.runs.values())]
        places = sorted({f"{place_text(each)}, {each['date'][:10]}" for each in environments})
        rows.append([folder.name, details, size, runs, "; ".join(places)])
    return rows


def by_condition(folders: list[Folder], head: str, rows_of) -> list[list]:
    rows = [
        [folder.name, noise_text(condition[0]), condition[1], *cells]
        for folder in folders
        for condition in folder.conditions()
        for cells in rows_of(folder, condition)
    ]
    return [["experiment", "labels redrawn", "epoch_loss", *head.split("|")], *rows]


def by_arm(folders: list[Folder], head: list[str], first_rows: list[list], cells_of) -> list[list]:
    """Baselines once for each level of noise."""
    rows = []
    for folder in folders:
        for noise in sorted({noise for _, _, noise, _ in folder.runs}):
            arms = [("first", "baseline"), *itertools.product(READINGS, ("attention", "random", "longer"))]
            for reading, arm in arms:
                runs = [run for (run,) in folder.find((noise, reading), arm)]
                name = arm if arm == "baseline" else f"{arm}, {reading}"
                if runs:
                    rows.append([folder.name, noise_text(noise), name, f"{len(runs)}", *cells_of(folder, runs)])
    return [["experiment", "labels redrawn", "arm", "n", *head], *first_rows, *rows]


def noise_text(noise: int) -> str:
    return f"{noise} of 32" if noise else "none"


def table_1(folders: list[Folder]) -> list[list]:
    def cells_of(folder, runs):
        for at, field in itertools.product(("best", "last"), ("test_loss", "macro_f1", "accuracy")):
            values = [measure(run, field, at) for run in runs]
            yield mean_and_deviation(values, ".3f" if field == "test_loss" else ".2f")

    head = "least test loss|highest macro-F1, %|highest accuracy, %|last test loss|last macro-F1, %|last accuracy, %"
    return by_arm(folders, head.split("|"), PAPER_TABLE_1, cells_of)


def differences(folders: list[Folder]) -> list[list]:
    def rows_of(folder, condition):
        for other in ("baseline", "random", "longer"):
            columns = itertools.product(("accuracy", "macro_f1"), ("last", "best"))
            values = [gains(folder, condition, other, field, at) for field, at in columns]
            if values[0]:
                yield [other, *map(mean_with_interval, values)]

    head = "attention less|accuracy, last epoch|accuracy, best epoch|macro-F1, last epoch|macro-F1, best epoch"
    return by_condition(folders, head, rows_of)


def costs(folders: list[Folder]) -> list[list]:
    def rows_of(folder, condition):
        runs = [run["epochs"] for (run,) in folder.find(condition, "attention")]
        epochs = list(itertools.chain(*runs))
        seconds, _ = of_pairs(folder, condition, more_seconds)
        of_time = mean_with_interval(seconds, "", ".1f") if folder.is_timed(condition) else "-"
        yield [
            mean_with_interval([more_updates(run) for run in runs], "", ".1f"),
            of_time if seconds else "no baseline",
            f"{max(epoch['most_visits'] for epoch in epochs)}",
            f"{total(epochs, 'capped_batches'):,} of {total(epochs, 'batches'):,}",
        ]

    head = "more updates, %|more seconds, %|most visits to a batch|batches at max_visits"
    return by_condition(folders, head, rows_of)


def costs_by_epoch(folders: list[Folder]) -> list[list]:
    longest = max(folder.configuration["epochs"] for folder in folders)
    shown = [n for n in range(1, longest + 1) if longest <= 30 or n in (1, longest) or n % 10 == 0]

    def rows_of(folder, condition):
        epochs = [epoch for (run,) in folder.find(condition, "attention") for epoch in run["epochs"]]
        shares = [[more_updates([epoch]) for epoch in epochs if epoch["epoch"] == n] for n in shown]
        yield [number(np.mean(of_epoch), ".1f") if of_epoch else "-" for of_epoch in shares]

    return by_condition(folders, "|".join(map(str, shown)), rows_of)


def table_2(folders: list[Folder], at: str) -> list[list]:
    fitting = [folder for folder in folders if len(folder.classes) <= 20]
    most = max((len(folder.classes) for folder in fitting), default=0)
    is_same = all(folder.classes == fitting[0].classes for folder in fitting)
    columns = fitting[0].classes if fitting and is_same else [f"class {place}" for place in range(1, most + 1)]
    papers = []
    if at == "best" and any(folder.configuration["data"]["name"] == "cifar10" for folder in folders):
        for arm, (wrong, *others) in PAPER_TABLE_2.items():
            papers.append(["paper: tnt", "none", arm, "1", *map(str, wrong), *["-"] * (most - 10), *others])

    def cells_of(folder, runs):
        counts = np.mean([wrong_by_predicted_class(run, at) for run in runs], axis=0)
        yield from [number(mean, ".1f") for mean in counts] + ["-"] * (most - len(counts))
        yield mean_and_deviation([variance(run, at) for run in runs], ".0f")
        for names in (("cat", "dog"), ("dog", "cat")):
            row, column = (folder.classes.index(name) if name in folder.classes else None for name in names)
            is_there = row is not None and column is not None
            yield number(np.mean([run[at]["confusion"][row][column] for run in runs]), ".1f") if is_there else "-"

    head = [*columns, "variance", "cat taken for dog", "dog taken for cat"]
    return by_arm(fitting, head, papers, cells_of)


def flipped(folders: list[Folder]) -> list[list]:
    def rows_of(folder, condition):
        found = collections.defaultdict(lambda: np.zeros(3, int))
        for (run,) in folder.find(condition, "attention") if condition[0] > 0 else ():
            for visits, n in itertools.chain(*(epoch["batches_by_visits"].items() for epoch in run["epochs"])):
                found[int(visits)] += [n["batches"], n["with_flipped"], n["flipped"]]
        repeated = sorted((visits for visits in found if visits > 1), reverse=True)
        hundredth = sum(batches for batches, *_ in found.values()) / 100
        before = [sum(found[visits][0] for visits in repeated[:place]) for place in range(len(repeated))]
        top = [visits for visits, batches in zip(repeated, before, strict=True) if batches < hundredth]
        groups = {"all": list(found), "visited once": [1], "repeated": repeated, "most repeated, 1% of all": top}
        for group, members in groups.items():
            batches, with_flipped, wrong = sum((found[visits] for visits in members), np.zeros(3, int))
            if batches:
                share = number(100 * with_flipped / batches, ".1f")
                yield [group, f"{batches:,}", share, number(wrong / batches, ".2f")]

    return by_condition(folders, "batches|how many|with a wrong label, %|wrong labels a batch", rows_of)


def compute_tables(folders: list[Folder], asked: str) -> dict[str, list[list[list]]]:
    tables = {
        AT_A_GLANCE: [at_a_glance(folders, asked)],
        **{f"Claims: {folder.name}": [claims(folder, asked)] for folder in folders},
        "Paired differences": [differences(folders)],
        "What was trained": [trained(folders)],
        "Table 1: the best over the epochs, and the last epoch": [table_1(folders)],
        "What it costs": [costs(folders), costs_by_epoch(folders)],
    }
    optional = {TABLE_2_BEST: [table_2(folders, at) for at in ("best", "last")], FLIPPED: [flipped(folders)]}
    return tables | {title: found for title, found in optional.items() if len(found[0]) > 1}
