"""The studies of arms that choose samples, at a tiny size."""

import hashlib
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.errors import DataError, PlanError
from benchmarks.images import ImageSet, Split
from benchmarks.reading import read_records
from benchmarks.schema import RunName
from benchmarks.selection import __main__ as command
from benchmarks.selection import training
from benchmarks.selection.arms import ARMS, SOURCES, make_arm, random_order
from benchmarks.selection.data import (
    CLASSES_OF_LABELS,
    IMAGE_SETTINGS,
    KINDS,
    SORTS,
    ImageSizes,
    Sizes,
    collect_text,
    make_task,
)
from benchmarks.selection.networks import augment
from benchmarks.selection.rates import RATES, TUNING_SEEDS, choose_rate

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIZES = Sizes(most=9, imbalance=4.0, validation=2, test=3, batch_size=8, epochs=4, learning_rate=0.01)
IMAGE_SIZES = ImageSizes(updates=30, batch_size=8, imbalance=4.0, images=100)
# From the code that made the records: the batches that each arm chose, how many, how many repeats, how many pruned.
CHOICES = json.loads(Path(__file__).with_name("selection_choices.json").read_text())


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Tiny data of every kind; each file of text has one byte over and over, which no other has."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("text")
    for number, sort in enumerate(SORTS):
        for file in range(10):
            (folder / f"{file}{sort}").write_bytes(bytes([10 * number + file]) * 3000)

    def split(classes, each):
        labels = np.repeat(np.arange(classes), each)
        images = rng.integers(0, 120, (len(labels), 3, 32, 32)) + 12 * (labels % 10)[:, None, None, None]
        return Split(images.astype(np.uint8), labels)

    return {
        "cifar10": ImageSet("tiny", CLASSES, split(10, 20), split(10, 3)),
        "cifar100": ImageSet(
            "tiny", sorted(" ".join(CLASSES_OF_LABELS["hidden_fine"]).split()), split(100, 12), split(100, 3)
        ),
        "text": collect_text([folder]),
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
            command.main(["--out", str(tmp_path / "records"), *sizes, *arguments])
        except SystemExit as error:
            return error.code
        return None

    yield run
    training._load_task.cache_clear()


def losses_of(samples, update):
    """Exact numbers, some of which stay high."""
    return ((samples * 7919 + update * 104729) % 1009 + 1) / 64 + 40 * (samples % 17 == 3)


def run_arm(study, arm, doses=None, updates=104):
    """What an arm chooses among 100 samples, how often it repeats, and its doses."""
    options = {"sampler": random_order(100, 3), "doses": doses} if study == "kinds" else {}
    batches, seen = make_arm(arm, torch.arange(100) % 10 % 7, 8, updates, 3, **options), []
    batch = next(batches)
    while True:
        indices, update = batch.indices, len(seen)
        if batch.keep is not None:
            indices = indices[batch.keep(losses_of(indices, update))]
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


@pytest.mark.parametrize("name", IMAGE_SETTINGS)
def test_a_setting_has_the_images_that_it_says(sources, name):
    sizes = IMAGE_SIZES._replace(images=None)
    task, again, other = (make_task(sources["cifar10"], name, seed, sizes) for seed in (0, 0, 1))
    assert all(torch.equal(mine, its) for mine, its in zip(task.train, again.train, strict=True))
    assert not torch.equal(task.train.inputs, other.train.inputs)
    groups, labels = task.train.groups, task.train.targets
    assert torch.bincount(groups).tolist() == task.counts
    has_tail = name in ("long_tail", "hidden_kinds")
    assert sorted(task.counts) == [int(20 * 4 ** (-rank / 9)) if has_tail else 20 for rank in range(9, -1, -1)]
    assert (task.counts != other.counts) is has_tail
    clean = torch.isin(groups, torch.tensor([0, 1, 8, 9])).long() if name == "hidden_kinds" else groups
    wrong = int((labels != clean).sum())
    assert 5 < wrong < 40 if name == "noisy" else wrong == 0
    assert task.outputs == (2 if name == "hidden_kinds" else 10)
    assert len(make_task(sources["cifar10"], name, 0, IMAGE_SIZES).train.groups) in range(90, 101)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_data_has_a_long_tail_over_its_groups_and_other_data_to_validate_and_test_on(sources, name):
    source = sources[{"hidden_fine": "cifar100", "noisy": "cifar10", "text": "text", "table": ""}[name]]
    sizes = SIZES._replace(imbalance=1.0) if name == "noisy" else SIZES
    task, other = (make_task(source, name, seed, sizes) for seed in (0, 1))
    counts = torch.bincount(task.train.groups).tolist()
    assert counts == task.counts
    assert (max(counts), min(counts)) == ((9, 9) if name == "noisy" else (9, 2))
    assert (counts == other.counts) is (name == "noisy")
    for part, each in ((task.validation, 2), (task.test, 3)):
        assert torch.bincount(part.groups).tolist() == [each] * len(counts)
    if name == "text":
        bytes_of = [set(part.targets.flatten().tolist()) for part in (task.train, task.validation, task.test)]
        assert sum(map(len, bytes_of)) == len(set.union(*bytes_of))
        assert torch.equal(task.train.inputs[:, 1:], task.train.targets[:, :-1])
        return
    rows = [row.flatten()[:99].tolist() for part in task[:3] for row in part.inputs.flatten(1)]
    assert len(set(map(tuple, rows))) == len(rows)
    label_of = dict(zip(task.test.groups.tolist(), task.test.targets.tolist(), strict=True))
    given = zip(task.train.groups.tolist(), task.train.targets.tolist(), strict=True)
    wrong = sum(label_of[group] != label for group, label in given)
    assert 0 < wrong < 25 if name == "noisy" else wrong == 0
    if name != "noisy":
        # The tail is over the five groups inside each label.
        tails = [sorted(counts[group] for group in label_of if label_of[group] == label) for label in label_of.values()]
        assert tails == [[2, 3, 4, 6, 9]] * len(tails)


@pytest.mark.parametrize(
    ("data", "setting", "sizes", "said"),
    [
        ("cifar10", "hidden_fine", SIZES, "takes the classes of CIFAR-100"),
        ("cifar100", "hidden_kinds", IMAGE_SIZES, "takes the classes of CIFAR-10,"),
        ("cifar100", "hidden_fine", SIZES._replace(validation=6), "has 12 samples, not 15"),
        ("cifar10", "long_tail", IMAGE_SIZES._replace(imbalance=50.0, images=None), "give another --imbalance"),
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


def test_plain_training_at_selective_backprops_cost_makes_as_many_more_updates_as_its_forward_passes_cost(
    study, tmp_path
):
    arms = ("plain", "plain_longer", "selective_backprop")
    assert study("--arms", *arms, "--settings", "noisy", "--seeds", "0") is None
    epochs = {name.arm: epochs[0] for name, epochs in read_records(tmp_path / "records").epochs.items()}
    assert epochs["selective_backprop"].updates == epochs["plain"].updates == 30
    # Forward once and backward at twice that, of what is trained on; forward alone of what is not.
    cost = {arm: 2 * 8 * epoch.updates + epoch.chosen.forward_samples for arm, epoch in epochs.items()}
    assert cost["plain"] < cost["selective_backprop"]
    assert abs(cost["plain_longer"] - cost["selective_backprop"]) <= 3 * 8


def test_each_run_of_images_is_made_once_and_is_the_same_again(study, tmp_path):
    names = ("--settings", "long_tail", "balanced", "--arms", "sqrt_frequency", "left_out", "--seeds")
    assert study(*names, "1", "1") is None
    first = read_records(tmp_path / "records").epochs
    # Labels say what is rare in one of the settings alone.
    assert len(first) == 3
    assert study(*names, "1", "2") is None
    both = read_records(tmp_path / "records").epochs
    assert len(both) == 6
    assert {name: both[name] for name in first} == first
    (tmp_path / "records").rename(tmp_path / "before")
    assert study(*names, "2") is None
    changed = {"seconds": 0, "evaluation_seconds": 0, "finished_at": "", "shared_device": False}
    for name, (epoch,) in read_records(tmp_path / "records").epochs.items():
        assert epoch.model_copy(update=changed) == both[name][0].model_copy(update=changed)


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


def test_the_score_of_text_is_minus_the_mean_loss_over_sorts(study, tmp_path):
    assert study("--study", "kinds", "--settings", "text", "--arms", "plain", "--seeds", "0") is None
    for (epoch,) in read_records(tmp_path / "records").epochs.values():
        assert epoch.chosen.score == pytest.approx(-statistics.fmean(epoch.chosen.group_losses))
        assert epoch.chosen.data_sha256 == "digest of text"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--seeds", "3", "-1"), "--seeds takes numbers of at least 0"),
        (("--at-once", "0"), "--at-once takes numbers of at least 1"),
        (("--study", "kinds", "--settings", "balanced"), "--settings has balanced; it takes hidden_fine"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_folder_is_made(study, tmp_path, arguments, said):
    assert said in study(*arguments)
    assert not (tmp_path / "records").exists()


def test_older_records_are_not_added_to(study, tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "plan.json").write_text("{}")
    assert "only read; give another --out" in study("--arms", "plain", "--settings", "noisy")


def test_text_is_collected_once(tmp_path, sources, monkeypatch):
    monkeypatch.setattr(training, "collect_text", lambda: sources["text"])
    found = training.load_source("text", tmp_path)
    training.load_source.cache_clear()
    monkeypatch.setattr(training, "collect_text", lambda: pytest.fail("collected again"))
    assert training.load_source("text", tmp_path) == found
    assert found[0] == sources["text"]
    with pytest.raises(DataError, match="0 files end in"):
        collect_text([tmp_path / "empty"])
