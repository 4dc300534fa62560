"""The studies of arms that choose samples, at a tiny size."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.errors import PlanError
from benchmarks.images import ImageSet, Split
from benchmarks.reading import read_records
from benchmarks.schema import RunName
from benchmarks.selection import __main__ as command
from benchmarks.selection import training
from benchmarks.selection.arms import ARMS, LONGER, SOURCES, Passes, make_arm
from benchmarks.selection.data import CLASSES_OF_LABELS, KINDS, ImageSizes, Sizes, make_task
from benchmarks.selection.networks import augment
from benchmarks.selection.rates import RATES, TUNING_SEEDS, choose_rate
from tests.benchmarks.cifar_helpers import records_without_times

SUPERCLASSES = CLASSES_OF_LABELS["hidden_fine"]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIZES = Sizes(most=9, imbalance=4.0, validation=2, test=3, batch_size=8, epochs=4, learning_rate=0.01)
ALL_IMAGES = ImageSizes(updates=30, batch_size=8, imbalance=4.0, images=None)
# From the code that made the records: the batches that each arm chose, how many, how many repeats, how many pruned.
CHOICES = json.loads(Path(__file__).with_name("selection_choices.json").read_text())


@pytest.fixture(scope="module")
def sources():
    """Tiny data of every kind."""
    rng = np.random.default_rng(0)

    def split(classes, each):
        labels = np.repeat(np.arange(classes), each)
        images = rng.integers(0, 120, (len(labels), 3, 32, 32)) + 12 * (labels % 10)[:, None, None, None]
        return Split(images.astype(np.uint8), labels)

    return {
        "cifar10": ImageSet("tiny", CLASSES, split(10, 20), split(10, 3)),
        "cifar100": ImageSet("tiny", sorted(" ".join(SUPERCLASSES).split()), split(100, 12), split(100, 3)),
        "": None,
    }


@pytest.fixture
def study(sources, tmp_path, monkeypatch):
    """The command at a tiny size; returns the exit status."""
    monkeypatch.setattr(training, "load_source", lambda data, folder: (sources[data], f"digest of {data}"))
    monkeypatch.setattr(command, "load_source", training.load_source)
    monkeypatch.setattr(command, "BATCH_SIZE", 8)
    monkeypatch.setattr(command, "KINDS", dict.fromkeys(KINDS, SIZES))
    training._load_task.cache_clear()

    def run(*arguments):
        sizes = () if "kinds" in arguments else ("--updates", "30", "--images", "100", "--imbalance", "4")
        try:
            return command.main(["--out", str(tmp_path / "records"), *sizes, *arguments])
        except SystemExit as error:
            return error.code

    yield run
    training._load_task.cache_clear()


def losses_of(samples, update):
    """Exact numbers, some of which stay high."""
    return ((samples * 7919 + update * 104729) % 1009 + 1) / 64 + 40 * (samples % 17 == 3)


def run_arm(study, arm, doses=None, updates=104):
    """What an arm chooses among 100 samples, how often it repeats, and its doses."""
    options = {"sampler": Passes(100, 3)} if study == "kinds" else {}
    if doses:
        options["select"] = doses
    batches, seen = make_arm(arm, torch.arange(100) % 10 % 7, 8, updates, 3, **options), []
    batch = next(batches)
    while True:
        indices, update = batch.indices, len(seen)
        weights = None if batch.weights is None else [round(weight, 3) for weight in batch.weights.tolist()]
        # The digests of this study's records have the share of the updates before each.
        progress = [round(update / updates, 6)] if study == "kinds" else []
        seen.append([indices.tolist(), batch.draw, weights, *progress])
        try:
            batch = batches.send(losses_of(indices, update))
        except StopIteration as end:
            return seen, *end.value


@pytest.mark.parametrize(("study", "arm"), [(study, arm) for study in ARMS for arm in ARMS[study]])
def test_an_arm_chooses_what_it_chose_when_the_records_were_made(study, arm):
    doses = run_arm(study, SOURCES[arm])[2] if study == "kinds" and arm in SOURCES else None
    seen, repeats, doses = run_arm(study, arm, doses)
    digest = hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:12]
    assert [digest, len(seen), repeats, sum(doses["pruned"])] == CHOICES[f"{study} {arm}"]


@pytest.mark.parametrize(
    ("source", "name", "sizes", "counts"),
    [
        ("cifar10", "balanced", ALL_IMAGES, [20] * 10),
        ("cifar10", "long_tail", ALL_IMAGES, [int(20 * 4 ** (-rank / 9)) for rank in range(10)]),
        ("cifar10", "hidden_kinds", ALL_IMAGES, [int(20 * 4 ** (-rank / 9)) for rank in range(10)]),
        ("cifar10", "noisy", ALL_IMAGES, [20] * 10),
        pytest.param("cifar100", "hidden_fine", SIZES, [9, 6, 4, 3, 2] * 20, marks=pytest.mark.slow),
        ("cifar10", "noisy", SIZES._replace(imbalance=1.0), [9] * 10),
        ("", "table", SIZES, [9, 6, 4, 3, 2] * 4),
    ],
)
def test_a_setting_has_the_groups_and_labels_that_it_says_and_other_data_to_test_on(
    sources, source, name, sizes, counts
):
    task, again, other = (make_task(sources[source], name, seed, sizes) for seed in (0, 0, 1))
    assert all(torch.equal(mine, its) for mine, its in zip(task.train, again.train, strict=True))
    assert not torch.equal(task.train.inputs, other.train.inputs)
    assert torch.bincount(task.train.groups).tolist() == task.counts
    assert sorted(task.counts) == sorted(counts)
    assert (task.counts != other.counts) is (len(set(counts)) > 1)
    parts = [part for part in (task.train, task.test, task.validation) if part]
    for part, each in zip(parts[1:], (3, 2), strict=False):
        assert torch.bincount(part.groups).tolist() == [each] * len(counts)
    rows = [tuple(row[:99].tolist()) for part in parts for row in part.inputs.flatten(1)]
    assert len(set(rows)) == len(rows)
    label_of = dict(zip(task.test.groups.tolist(), task.test.targets.tolist(), strict=True))
    assert len(set(label_of.values())) == task.outputs
    wrong = [label_of[int(group)] != label for group, label in zip(*task.train[:0:-1], strict=True)]
    assert 0 < sum(wrong) < 40 if name == "noisy" else not any(wrong)
    if name == "hidden_kinds":
        assert [group for group, label in label_of.items() if label] == [0, 1, 8, 9]
    if len(counts) in (20, 100):
        # The tail is over the five groups inside each label.
        for label in range(task.outputs):
            assert sorted(task.counts[group] for group in label_of if label_of[group] == label) == [2, 3, 4, 6, 9]


@pytest.mark.parametrize(
    ("data", "setting", "sizes", "said"),
    [
        ("cifar10", "hidden_fine", SIZES, "takes the classes of CIFAR-100"),
        ("cifar100", "hidden_kinds", ALL_IMAGES, "takes the classes of CIFAR-10,"),
        ("cifar100", "hidden_fine", SIZES._replace(validation=6), "has 12 samples, not 15"),
        ("cifar10", "long_tail", ALL_IMAGES._replace(imbalance=50.0), "give another --imbalance"),
    ],
)
def test_wrong_classes_and_too_few_samples_are_refused(sources, data, setting, sizes, said):
    with pytest.raises(PlanError, match=said):
        make_task(sources[data], setting, 0, sizes)


def test_augmentation_shifts_and_flips_whole_images():
    images = torch.arange(2 * 3 * 32 * 32, dtype=torch.float32).reshape(2, 3, 32, 32) + 1
    padded, seen = torch.nn.functional.pad(images, (4, 4, 4, 4)), set()
    for draw in range(40):
        for image, source in zip(augment(images, 5, draw), padded, strict=True):
            # The pixel in the middle says where the window is, unless it was flipped from there.
            row, column = divmod(int((source[0] == image[0, 16, 16]).flatten().nonzero()), 40)
            is_flipped = bool(image[0, 16, 16] > image[0, 16, 17])
            row, column = row - 16, column - (15 if is_flipped else 16)
            window = source[:, row : row + 32, column : column + 32]
            assert torch.equal(image, window.flip(-1) if is_flipped else window)
            seen.add((row, column, is_flipped))
    assert [len({place[axis] for place in seen}) for axis in range(3)] == [9, 9, 2]


def test_an_arm_is_compared_at_the_rate_that_validates_best():
    scores = {
        RunName("plain", None, 0, seed, "table", rate): seed + score
        for seed in TUNING_SEEDS
        for rate, score in zip(RATES, (3.0, 5.0, 4.0), strict=True)
    }
    assert choose_rate(scores, "table", "plain") == 1.0
    # One better seed does not outweigh the mean.
    scores[RunName("plain", None, 0, 0, "table", 0.5)] += 3.5
    assert choose_rate(scores, "table", "plain") == 1.0
    scores.popitem()
    assert choose_rate(scores, "table", "plain") is None


@pytest.mark.slow
def test_each_run_of_images_is_made_once_and_is_the_same_again(study, tmp_path):
    names = ("--settings", "long_tail", "balanced", "--arms", "sqrt_frequency", "plain_longer", "--seeds")
    assert study(*names, "1", "1") is None
    first, once = read_records(tmp_path / "records").epochs, records_without_times(tmp_path / "records")
    # Labels say what is rare in one of the settings alone.
    updates = {"sqrt_frequency": 30, "plain_longer": round(30 * LONGER["plain_longer"])}
    assert {name.arm: epoch.updates for name, (epoch,) in first.items()} == updates
    assert all(90 <= sum(epoch.chosen.counts) <= 100 for (epoch,) in first.values())
    assert study(*names, "1", "2") is None
    both = read_records(tmp_path / "records").epochs
    assert (len(first), len(both)) == (3, 6)
    assert {name: both[name] for name in first} == first
    (tmp_path / "records").rename(tmp_path / "before")
    assert study(*names, "1") is None
    assert records_without_times(tmp_path / "records") == once


def test_kinds_are_tuned_first_and_a_random_twin_is_made_after_its_source(study, tmp_path):
    options = ("--study", "kinds", "--settings", "table", "--arms", "plain", "left_out_random")
    assert "has no rate yet; give --seeds (0, 1) too" in study(*options, "--seeds", "2")
    state = torch.get_rng_state()
    assert study(*options, "--seeds", "0", "1", "2") is None
    assert torch.equal(torch.get_rng_state(), state)
    records = read_records(tmp_path / "records")
    assert sum(name.arm == "plain" and name.seed == 2 for name in records.runs) == 1
    for name, run in records.runs.items():
        (epoch,) = records.epochs[name]
        assert epoch.chosen.learning_rate == name.rate * SIZES.learning_rate
        assert epoch.chosen.score == pytest.approx(100 * epoch.accuracy)
        if name.arm == "left_out_random":
            # The last share of training cuts the fourth pass off.
            assert run.doses["pruned"][:3] == records.runs[name._replace(arm="left_out")].doses["pruned"][:3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--seeds", "3", "-1"), "--seeds is (3, -1); it must be at least 0"),
        (("--at-once", "0"), "--at-once is 0; it must be at least 1"),
        (("--study", "kinds", "--settings", "balanced"), "--settings has balanced; it takes hidden_fine"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_folder_is_made(study, tmp_path, arguments, said):
    assert said in study(*arguments)
    assert not (tmp_path / "records").exists()
