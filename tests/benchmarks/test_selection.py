"""The study of arms that choose samples, at a tiny size."""

import itertools
import json
import math
import statistics
import sys
import types

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.cifar.images import ImageSet, Split
from benchmarks.errors import DataError, PlanError, RecordsError, StorageError
from benchmarks.selection import report
from benchmarks.selection.__main__ import describe_run, main, parse, plan_runs
from benchmarks.selection.arms import ARMS, CONTROLS, PEERS, TWINS, FrequencySampler, applies
from benchmarks.selection.judging import Results, Verdict, accuracy, judge
from benchmarks.selection.kinds import __main__ as kinds
from benchmarks.selection.kinds import report as kinds_report
from benchmarks.selection.kinds.data import SETTINGS as KINDS
from benchmarks.selection.kinds.data import SORTS, SUPERCLASSES, Setting, collect_text
from benchmarks.selection.kinds.data import make_task as make_kind
from benchmarks.selection.kinds.forms import Form
from benchmarks.selection.kinds.rates import RATES, TUNING_SEEDS, choose_rate
from benchmarks.selection.kinds.training import train as train_kind
from benchmarks.selection.records import Folder, KindsPlan, Run
from benchmarks.selection.selective import Composers, OurReading
from benchmarks.selection.settings import SETTINGS, make_task
from benchmarks.selection.training import augment, make_network, train

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Runs of two epochs are long enough here.
    pytest.mark.filterwarnings("ignore:with epochs=2 .* no epoch:batch_sampler_attn.errors.BatchAttentionWarning"),
]

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCH_SIZE, UPDATES = 8, 14


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)

    def split(each):
        labels = np.repeat(np.arange(10), each)
        images = rng.integers(0, 120, (10 * each, 3, 32, 32)) + 12 * labels[:, None, None, None]
        return Split(images.astype(np.uint8), labels.astype(np.int64))

    return ImageSet("tiny", CLASSES, split(20), split(3))


@pytest.fixture
def folder(data, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.selection.__main__.load_images", lambda *arguments: data)
    monkeypatch.setattr("benchmarks.selection.__main__.BATCH_SIZE", BATCH_SIZE)
    return tmp_path / "records"


@pytest.fixture
def composer(monkeypatch):
    """A stand-in for Composer's module, which the benchmarks do not bring; it has the signatures of version 0.32.1."""

    def should_selective_backprop(current_duration, batch_idx, start=0.5, end=0.9, interrupt=2):
        return start <= current_duration < end and (interrupt == 0 or (batch_idx + 1) % interrupt != 0)

    def select_using_loss(input, target, model, loss_fun, keep=0.5, scale_factor=1):  # noqa: A002
        with torch.no_grad():
            order = torch.argsort(loss_fun(model(input), target, reduction="none"))
        n = len(input)
        chances = (np.arange(0.5, n, 1) / n) ** (1 / keep - 1)
        places = np.random.choice(n, int(keep * n), replace=False, p=chances / chances.sum())  # noqa: NPY002
        return input[order[places]], target[order[places]]

    module = types.ModuleType("composer.algorithms.selective_backprop")
    module.should_selective_backprop, module.select_using_loss = should_selective_backprop, select_using_loss
    for name in ("composer", "composer.algorithms"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def infobatch(monkeypatch):
    """A stand-in for InfoBatch's module, with the names and signatures of version 0.1.0."""

    class InfoBatch:
        def __init__(self, dataset, num_epochs, prune_ratio=0.5, delta=0.875):
            self.weights = torch.ones(len(dataset))
            self.scores, self.pruned, self.active, self.kept = 3 * self.weights, 0, None, 1 - prune_ratio

        def prune(self):
            is_fit = self.scores < self.scores.mean()
            fit, others = is_fit.nonzero()[:, 0].numpy(), (~is_fit).nonzero()[:, 0].tolist()
            stay = np.random.choice(fit, int(self.kept * len(fit)), replace=False)  # noqa: NPY002
            self.reset_weights()
            self.weights[stay] = 1 / self.kept
            self.pruned += len(fit) - len(stay)
            return np.random.permutation([*others, *stay]).tolist()  # noqa: NPY002

        def no_prune(self):
            return np.random.permutation(len(self.scores)).tolist()  # noqa: NPY002

        def reset_weights(self):
            self.weights[:] = 1

        def get_pruned_count(self):
            return self.pruned

        def set_active_indices(self, indices):
            self.active = indices

        def update(self, values):
            self.scores[self.active] = values.clone()
            return values.mul_(self.weights[self.active]).mean()

    module = types.ModuleType("infobatch")
    module.InfoBatch = InfoBatch
    monkeypatch.setitem(sys.modules, "infobatch", module)


@pytest.fixture
def no_composer(monkeypatch):
    for name in ("composer", "composer.algorithms", "composer.algorithms.selective_backprop"):
        monkeypatch.setitem(sys.modules, name, None)


def command(folder, *more):
    return main(["--out", str(folder), "--updates", str(UPDATES), "--images", "100", *more])


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_makes_exactly_the_updates_asked_for_and_the_same_ones_again(data, arm, composer, infobatch):
    task = make_task(data, "long_tail", 3, imbalance=5.0)
    both = [train(task, ARMS[arm](task.labels, BATCH_SIZE, 40, 3), 3, 40) for _ in range(2)]
    assert both[0]._replace(seconds=0) == both[1]._replace(seconds=0)
    assert both[0].updates == 40
    assert math.isfinite(both[0].train_loss)
    # Updates 20 to 35 select, or every other of them.
    selecting = {"selective_backprop": 16, "selective_backprop_composer": 8}.get(arm, 0)
    assert both[0].forward_samples == (40 + 2 * selecting) * BATCH_SIZE
    if selecting:
        assert both[0].left_out == selecting * BATCH_SIZE


def test_every_arm_of_a_seed_begins_with_the_same_batch_and_weights(data, composer):
    task = make_task(data, "balanced", 1, imbalance=1.0)
    first = {
        arm: ARMS[arm](task.labels, BATCH_SIZE, 40, 1).choose(0).indices.tolist()
        for arm in ARMS
        # InfoBatch draws an order of its own.
        if applies(arm, "balanced") and arm != "infobatch"
    }
    assert len(set(map(tuple, first.values()))) == 1
    weights = [make_network(10, seed)[0].weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("rule", [OurReading, Composers])
def test_selective_backprop_keeps_half_and_more_often_the_worse_fitted(rule, composer):
    losses = torch.from_numpy(np.random.default_rng(0).permutation(128)).float()
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    drawing, again = rule(5), rule(5)
    kept = [drawing.keep(losses) for _ in range(300)]
    assert all(torch.equal(places, again.keep(losses)) for places in kept)
    assert not torch.equal(kept[0], kept[1])
    assert {len(set(places.tolist())) for places in kept} == {64}
    # The chances rise in a line with the percentile, before any is taken; without replacement they flatten.
    often = np.bincount(losses[torch.cat(kept)].int().numpy(), minlength=128) / 300
    assert often[:13].mean() < 0.2
    assert 0.6 < often[-13:].mean() < 0.9
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_infobatch_leaves_out_well_fitted_samples_and_weighs_those_that_stay_until_the_last_eighth(infobatch):
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    updates = 80
    arm = ARMS["infobatch"](torch.zeros(100, dtype=torch.int64), 10, updates, 0)
    seen = []
    for update in range(updates):
        choice = arm.choose(update)
        seen.append((choice, arm.left_out))
        # Those below 50 are well fitted; what is told is not to be changed by InfoBatch's weights.
        losses = (choice.indices >= 50).float()
        arm.report(losses)
        assert losses.unique().tolist() in ([0.0], [1.0], [0.0, 1.0])
    first = [choice for choice, _ in seen[:10]]
    assert sorted(torch.cat([choice.indices for choice in first]).tolist()) == list(range(100))
    assert all(choice.weights.tolist() == [1.0] * 10 for choice in first)
    # A pruned pass has 75 samples.
    second = torch.cat([choice.indices for choice, _ in seen[10:17]])
    weights = torch.cat([choice.weights for choice, _ in seen[10:17]])
    assert ((second < 50) == (weights == 2.0)).all()
    assert arm.left_out % 25 == 0
    assert arm.left_out >= 150
    # None is left out in a pass that begins after 70 of the updates.
    assert seen[-1][1] == seen[72][1]
    assert seen[-1][0].weights.tolist() == [1.0] * 10
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_plain_training_at_selective_backprops_cost_makes_as_many_more_updates_as_its_looking_costs(folder):
    assert (
        command(folder, "--arms", "plain", "plain_longer", "selective_backprop", "--settings", "noisy", "--seeds", "0")
        == 0
    )
    runs = {run.arm: run for run in Folder(folder).read_runs()}
    assert runs["selective_backprop"].updates == runs["plain"].updates == UPDATES
    # Forward once and backward at twice that, of what is trained on; forward alone of what is looked at.
    cost = {arm: 2 * BATCH_SIZE * run.updates + run.forward_samples for arm, run in runs.items()}
    assert cost["plain"] < cost["selective_backprop"]
    assert abs(cost["plain_longer"] - cost["selective_backprop"]) <= 3 * BATCH_SIZE


def test_a_run_with_a_peer_says_its_version(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda package: f"of {package}")
    assert describe_run("selective_backprop_composer")["packages"]["mosaicml"] == "of mosaicml"
    assert "mosaicml" not in describe_run("selective_backprop")["packages"]


def test_a_peer_that_is_not_installed_is_refused_before_the_first_run(folder, capsys, no_composer):
    assert command(folder, "--arms", "plain", "selective_backprop_composer", "--settings", "balanced") == 2
    assert "pip install mosaicml" in capsys.readouterr().out.replace("\n", " ")
    assert not folder.exists()
    assert not set(parse(["--out", str(folder)]).arms) & set(PEERS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_has_the_images_that_it_says(data, setting):
    task, again, other = (make_task(data, setting, seed, imbalance=4.0) for seed in (0, 0, 1))
    assert torch.equal(task.images, again.images)
    assert torch.equal(task.labels, again.labels)
    assert not torch.equal(task.images, other.images)
    assert len(task.images) == sum(task.counts)
    if setting in ("long_tail", "hidden_kinds"):
        assert (max(task.counts), min(task.counts)) == (20, 5)
        assert task.counts != other.counts
    else:
        assert set(task.counts) == {20}
    assert task.labels_in_use == (2 if setting == "hidden_kinds" else 10)
    if setting == "hidden_kinds":
        vehicles = sum(task.counts[kind] for kind in (0, 1, 8, 9))
        assert int(task.labels.sum()) == vehicles
        assert torch.equal(task.test_labels, torch.isin(task.test_kinds, torch.tensor([0, 1, 8, 9])).long())
    elif setting != "noisy":
        assert torch.bincount(task.labels, minlength=10).tolist() == list(task.counts)
    else:
        clean = make_task(data, "balanced", 0, imbalance=4.0)
        assert torch.bincount(clean.labels).tolist() == [20] * 10
        assert torch.bincount(task.labels, minlength=10).tolist() != [20] * 10


def test_augmentation_shifts_and_flips_whole_images():
    images = torch.arange(2 * 3 * 32 * 32, dtype=torch.float32).reshape(2, 3, 32, 32) + 1
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    seen = set()
    for draw in range(60):
        made = augment(images, 5, draw)
        assert torch.equal(made, augment(images, 5, draw))
        for image, source in zip(made, padded, strict=True):
            windows = {
                (row, column, flipped): window.flip(-1) if flipped else window
                for row in range(9)
                for column in range(9)
                for window in [source[:, row : row + 32, column : column + 32]]
                for flipped in (False, True)
            }
            found = [place for place, window in windows.items() if torch.equal(image, window)]
            assert len(found) == 1
            seen.add(found[0])
    assert len({flipped for *_, flipped in seen}) == 2
    assert len({row for row, *_ in seen}) == len({column for _, column, _ in seen}) == 9


def test_frequency_sampling_draws_by_the_square_root_of_the_inverse_frequency():
    labels = torch.tensor([0] * 900 + [1] * 100)
    sampler = FrequencySampler(labels, seed=0)
    drawn = []
    for number in range(30):
        sampler.set_epoch(number)
        drawn += list(sampler)
    share = sum(index >= 900 for index in drawn) / len(drawn)
    assert share == pytest.approx(math.sqrt(100) / (math.sqrt(900) + math.sqrt(100)), abs=0.01)


def test_finished_runs_are_not_made_again_and_the_rest_is(folder, capsys):
    names = ("--settings", "balanced", "long_tail", "--arms", "plain", "left_out", "sqrt_frequency")
    assert command(folder, *names, "--seeds", "0") == 0
    first = (folder / "runs.jsonl").read_text()
    assert len(first.splitlines()) == 5
    assert command(folder, *names, "--seeds", "0", "1", "--share", "1/2") == 0
    assert command(folder, *names, "--seeds", "0", "1", "--share", "2/2") == 0
    assert (folder / "runs.jsonl").read_text().startswith(first)
    assert len(Folder(folder).read_runs()) == 10
    capsys.readouterr()


def test_runs_are_in_the_order_of_seeds_then_settings_and_each_is_made_once(folder):
    names = ("--seeds", "1", "0", "1", "--settings", "noisy", "balanced", "--arms", "plain", "both", "plain")
    runs = plan_runs(parse(["--out", str(folder), *names]))
    assert runs == [
        (setting, seed, arm) for seed in (1, 0) for setting in ("noisy", "balanced") for arm in names[-3:-1]
    ]
    command(folder, *names[4:], "--seeds", "0", "0")
    assert len(Folder(folder).read_runs()) == 4


def test_a_run_that_two_processes_made_is_kept_once(folder):
    command(folder, "--settings", "balanced", "--arms", "plain", "--seeds", "0")
    (run,) = Folder(folder).read_runs()
    Folder(folder).add(run.model_copy(update={"accuracy": 1.0}))
    assert Folder(folder).read_runs() == [run]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--updates", "0"), "there has to be"),
        (("--threads", "0"), "there has to be"),
        (("--seeds", "3", "-1"), "seeds are at least 0"),
        (("--imbalance", "0.5"), "at least 1"),
        (("--imbalance", "nan"), "at least 1"),
        (("--imbalance", "inf"), "at least 1"),
        (("--arms", "plain", "other"), "--arms has other; it takes plain"),
        (("--settings", "other"), "--settings has other; it takes balanced"),
        (("--arms", "sqrt_frequency", "--settings", "noisy"), "give --settings long_tail"),
        (("--share", "3/2"), "such as 1/2"),
        (("--updates", "15"), "updates"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(folder, capsys, arguments, said):
    assert command(folder, "--settings", "balanced", "--arms", "plain", "--seeds", "0") == 0
    capsys.readouterr()
    assert command(folder, *arguments) == 2
    assert said in capsys.readouterr().out


def test_unknown_settings_and_data_without_vehicles_are_refused(data):
    with pytest.raises(PlanError, match="setting is 'other'"):
        make_task(data, "other", 0, imbalance=1.0)
    with pytest.raises(PlanError, match="hidden_kinds"):
        make_task(data._replace(classes=list("abcdefghij")), "hidden_kinds", 0, imbalance=1.0)


def test_too_few_images_for_a_batch_or_for_a_kind_are_refused(data, folder, monkeypatch, capsys):
    with pytest.raises(PlanError, match="rarest kind without an image"):
        make_task(data, "long_tail", 0, imbalance=50.0)
    monkeypatch.setattr("benchmarks.selection.__main__.BATCH_SIZE", 150)
    assert command(folder, "--images", "150", "--imbalance", "2", "--settings", "long_tail", "--arms", "plain") == 2
    assert "less than a batch" in capsys.readouterr().out


@pytest.mark.parametrize("spoil", ["not json", "twice", "not text"])
def test_damaged_records_are_refused(folder, spoil):
    command(folder, "--settings", "balanced", "--arms", "plain", "--seeds", "0")
    path = folder / "runs.jsonl"
    if spoil == "not text":
        path.write_bytes(b"\xff\xfe")
    else:
        path.write_text(path.read_text() * 2 if spoil == "twice" else "{\n")
    with pytest.raises(RecordsError, match="cannot be read" if spoil == "not text" else r"line [12]"):
        Folder(folder).read_runs()


@pytest.mark.parametrize(
    ("before", "said"), [("\ufeff", "line 1 begins with a byte order mark"), ("\n", "line 1 is empty")]
)
def test_a_line_that_is_no_record_of_any_kind_is_named_as_what_it_is(folder, before, said):
    command(folder, "--settings", "balanced", "--arms", "plain", "--seeds", "0")
    path = folder / "runs.jsonl"
    path.write_text(before + path.read_text(), encoding="utf-8")
    with pytest.raises(RecordsError, match=said):
        Folder(folder).read_runs()


def test_a_folder_that_cannot_be_had_is_refused_in_one_line(folder, capsys):
    folder.write_text("not a folder")
    assert command(folder, "--settings", "balanced", "--arms", "plain") == 2
    assert "give another --out" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(StorageError):
        Folder(folder / "below").add(made_up({"plain": [1.0]})[0])
    folder.unlink()
    folder.mkdir()
    (folder / "plan.json").write_text('{"updates": "many"}')
    assert command(folder, "--settings", "balanced", "--arms", "plain") == 2
    # What stands in brackets is no markup.
    assert "input_value='many'" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "said"), [("runs.jsonl", "but no plan.json"), ("plan.json", "is no plan")])
def test_a_folder_of_another_program_is_refused_and_left_as_it_is(folder, capsys, name, said):
    folder.mkdir()
    (folder / name).write_text("{}\n" if name == "runs.jsonl" else "[]")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert command(folder, "--settings", "balanced", "--arms", "plain") == 2
    assert said in capsys.readouterr().out.replace("\n", " ")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


# The report ----------------------------------------------------------------------------------------------


def made_up(values, setting="long_tail"):
    """Runs with these accuracies, by arm and seed."""
    return [
        Run(
            setting=setting,
            arm=arm,
            seed=seed,
            accuracy=value,
            macro_f1=value - 1,
            recalls=[value + kind - 4.5 for kind in range(10)],
            counts=[100 - 9 * kind for kind in range(10)],
            train_loss=1.0,
            updates=100,
            forward_samples=6400,
            extra_updates=10,
            left_out=0,
            seconds=20.0 if arm == "plain" else 30.0,
            environment={
                "cpu": "made up",
                "cores": 1,
                "gpu": None,
                "python": "3",
                "packages": {},
                "date": "2026-01-01",
            },
        )
        for arm, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]


def noise(seed, n=8):
    return np.random.default_rng(seed).normal(0, 0.5, n)


@pytest.mark.parametrize(
    ("gain", "twins_gain", "n", "verdict"),
    [
        (2.0, 0.0, 8, Verdict.PAYS),
        (2.0, 2.0, 8, Verdict.CANNOT_BE_TOLD),
        (2.0, 0.0, 5, Verdict.NOT_ENOUGH_RUNS),
        (2.0, 0.0, 2, Verdict.NOT_ENOUGH_RUNS),
        (-2.0, 0.0, 8, Verdict.HARMS),
        (-2.0, 0.0, 4, Verdict.HARMS),
        (0.0, 0.0, 8, Verdict.CANNOT_BE_TOLD),
    ],
)
def test_a_verdict_needs_a_gain_over_plain_training_and_over_the_twin_and_enough_seeds(gain, twins_gain, n, verdict):
    plain = 50 + noise(0, n)
    runs = made_up(
        {"plain": plain, "left_out": plain + gain + noise(1, n), "left_out_random": plain + twins_gain + noise(2, n)}
    )
    (finding,) = [each for each in judge(Results(runs)) if each.arm == "left_out"]
    assert finding.verdict is verdict


def test_the_numbers_of_the_report_are_those_that_are_computed_here(tmp_path):
    plain = 50 + noise(0)
    values = {"plain": plain, "both": plain + 1 + noise(1), "both_random": plain + noise(2)}
    report_folder = tmp_path / "report"
    report_folder.mkdir()
    document = report.compose(made_up(values), report_folder)
    table, others = document.sections[0].blocks
    rows = {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}

    def shown(differences):
        mean, error = statistics.fmean(differences), stats.sem(differences)
        reach = stats.t.ppf(0.975, len(differences) - 1) * error
        return f"{mean:+.2f} ({mean - reach:+.2f} to {mean + reach:+.2f})"

    both = rows["both"]
    assert (
        both["less plain"] == both["macro-F1 less plain"] == both["worst less plain"] == shown(values["both"] - plain)
    )
    assert both["rarest third less plain"] == shown(values["both"] - plain)
    assert both["less its control"] == shown(values["both"] - values["both_random"])
    assert both["accuracy, %"] == f"{np.mean(values['both']):.2f} ± {np.std(values['both'], ddof=1):.2f}"
    assert (both["extra updates"], both["time, plain = 1"], both["n"]) == ("10.0 %", "1.50", "8")
    other = dict(zip(others.head[-5:], {row[0]: row for row in others.rows}["both"][-5:], strict=True))
    worst = [value - 4.5 for value in values["both"]]
    assert other["worst, %"] == f"{np.mean(worst):.2f} ± {np.std(worst, ddof=1):.2f}"
    assert other["less its control"] == both["less its control"]
    assert other["samples looked at"] == "6,400"
    # Two arms are compared with plain training, one of them with its twin.
    assert "Of the 3 intervals of accuracy here, about 0.2 miss by chance" in document.opening[1].text
    assert rows["plain"]["verdict"] == rows["plain"]["less plain"] == "-"
    assert (report_folder / report.FIGURE).stat().st_size > 1000


def test_an_arm_that_adds_to_a_sampler_has_to_gain_over_that():
    plain = 50 + noise(0)
    runs = made_up({"plain": plain, "sqrt_frequency": plain + 10 + noise(1)})
    runs += made_up({"sqrt_frequency+left_out": plain + 10 + noise(2)})
    verdicts = {each.arm: each.verdict for each in judge(Results(runs))}
    assert verdicts == {"sqrt_frequency": Verdict.PAYS, "sqrt_frequency+left_out": Verdict.CANNOT_BE_TOLD}


def test_the_report_tells_how_much_less_a_twin_chooses_and_which_version_a_peer_has(tmp_path):
    plain, twin, ours, peer = (
        made_up({arm: [50.0, 51.0]}) for arm in ("plain", "left_out_random", "left_out", "selective_backprop_composer")
    )
    twin = [run.model_copy(update={"left_out": 30}) for run in twin]
    ours = [run.model_copy(update={"left_out": count}) for run, count in zip(ours, (40, 80), strict=True)]
    peer = [run.model_copy(update={"environment": run.environment | {"packages": {"mosaicml": "7.8"}}}) for run in peer]
    said = [block.text for block in report.compose(plain + twin + ours + peer, tmp_path).opening[:3]]
    assert "calls Composer 7.8 itself" in said[0]
    assert "it has 50 % of the samples left out of `left_out` on long_tail." in said[2]
    assert "Composer 7.8" not in report.compose(plain + ours, tmp_path).opening[0].text
    # One seed has no interval that could miss.
    assert "Of the 0 intervals" in report.compose(plain[:1] + ours[:1], tmp_path).opening[1].text


def test_titles_say_how_many_images_there_were(tmp_path):
    runs = made_up({"plain": [50.0, 51.0]}) + made_up({"plain": [50.0]}, setting="balanced")
    titles = [section.title for section in report.compose(runs, tmp_path).sections]
    assert titles == ["Long tail: CIFAR-10, classes 5 to 1", "Balanced: 595 images of CIFAR-10"]


def test_the_rarest_third_is_of_the_three_kinds_with_the_fewest_images():
    (run,) = made_up({"plain": [50.0]})
    assert run.rarest_third == pytest.approx(50 + statistics.fmean([2.5, 3.5, 4.5]))


def test_the_command_writes_a_report_or_says_what_is_wrong(folder, tmp_path, capsys):
    command(folder, "--settings", "balanced", "--arms", "plain", "left_out", "--seeds", "0", "1", "2")
    assert report.main([str(folder), "--to", str(tmp_path / "report")]) == 0
    assert "left_out" in (tmp_path / "report" / "report.md").read_text()
    capsys.readouterr()
    assert report.main([str(tmp_path / "nothing"), "--to", str(tmp_path / "report")]) == 2
    assert "plan" in capsys.readouterr().err
    assert report.main([str(folder), str(folder), "--to", str(tmp_path / "report")]) == 2


def test_every_twin_is_an_arm_that_differs_in_nothing_but_the_choice():
    assert set(CONTROLS) | set(CONTROLS.values()) <= set(ARMS)
    assert json.dumps(sorted(TWINS)) == '["both", "infobatch", "left_out", "left_out_weighted", "pooled"]'
    assert accuracy(made_up({"plain": [3.0]})[0]) == 3.0


# Kinds of data -------------------------------------------------------------------------------------------

SIZES = Setting(most=9, imbalance=4.0, validation=2, test=3, batch_size=8, epochs=4, learning_rate=0.01)


@pytest.fixture(scope="module")
def sources(data, tmp_path_factory):
    """Tiny data of every kind; each file of text has one byte over and over, which no other has."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("text")
    for number, sort in enumerate(SORTS):
        for file in range(10):
            (folder / f"{file}{sort}").write_bytes(bytes([10 * number + file]) * 3000)
    labels = np.repeat(np.arange(100), 12)
    split = Split(rng.integers(0, 255, (1200, 3, 32, 32)).astype(np.uint8), labels)
    classes = sorted(" ".join(SUPERCLASSES).split())
    return {
        "cifar10": data,
        "cifar100": ImageSet("tiny", classes, split, split._replace(images=255 - split.images)),
        "text": collect_text([folder]),
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_data_has_a_long_tail_over_its_groups_and_other_data_to_validate_and_test_on(sources, name):
    sizes = SIZES._replace(imbalance=1.0) if name == "noisy" else SIZES
    task, again, other = (make_kind(sources, name, seed, sizes) for seed in (0, 0, 1))
    assert all(torch.equal(mine, its) for mine, its in zip(task.train, again.train, strict=True))
    assert not torch.equal(task.train.inputs, other.train.inputs)
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
    clean = [label_of[group] for group in task.train.groups.tolist()]
    if name == "noisy":
        assert 0 < sum(label != group for label, group in zip(task.train.targets.tolist(), clean, strict=True)) < 25
    else:
        assert task.train.targets.tolist() == clean
        # The tail is over the five groups inside each label.
        assert {tuple(sorted(counts[group] for group in label_of if label_of[group] == label)) for label in clean} == {
            (2, 3, 4, 6, 9)
        }


def test_classes_of_other_data_and_too_few_samples_or_files_are_refused(sources, tmp_path):
    with pytest.raises(PlanError, match="takes CIFAR-100's classes"):
        make_kind({"cifar100": sources["cifar10"]}, "hidden_fine", 0, SIZES)
    with pytest.raises(PlanError, match="has 12 samples, and 15 are needed"):
        make_kind(sources, "hidden_fine", 0, SIZES._replace(validation=6))
    with pytest.raises(DataError, match="0 files end in"):
        collect_text([tmp_path])


class FormByHand:
    """The batches of a form, by loops over samples; ``loss`` is a function of sample and epoch."""

    def __init__(self, samples, size, epochs, seed, loss, *, score="loss", trims=False, weight=1.0, saves=False):
        self.samples, self.seed, self.loss = samples, seed, loss
        self.score, self.trims, self.weight = score, trims, weight
        self.rng, self.last, self.history, self.scores, self.mean = np.random.default_rng([seed, 1]), {}, {}, {}, None
        self.batches, stream, numbers = [], [], itertools.count()
        for epoch in range(epochs):
            begun, prunes = len(self.batches), 0 < epoch < epochs - 1
            if saves:
                kept = self.keep(next(numbers), epoch, prunes)
                parts = -(-len(kept) // size)
                sizes = [len(kept) // parts + (part < len(kept) % parts) for part in range(parts)]
                for first, end in itertools.pairwise(itertools.accumulate(sizes, initial=0)):
                    self.train(kept[first:end], epoch)
            else:
                stream = [] if epoch == epochs - 1 else stream
                for _ in range(-(-samples // size)):
                    while len(stream) < size:
                        kept = self.keep(next(numbers), epoch, prunes)
                        mean = statistics.fmean(each for _, each in kept)
                        stream += [(sample, each / mean) for sample, each in kept]
                    self.train(stream[:size], epoch)
                    stream = stream[size:]
            self.mean = statistics.fmean(loss(sample, epoch) for batch in self.batches[begun:] for sample, _ in batch)

    def keep(self, number, epoch, prunes):
        order = np.random.default_rng([self.seed, number]).permutation(self.samples).tolist()
        if not prunes:
            return [(sample, 1.0) for sample in order]
        scores, limit = self.last, self.mean
        if self.score == "batch_mean":
            scores, limit = self.scores, statistics.fmean(self.scores.values())
        means = [statistics.fmean(self.history.get(sample, [0.0])) for sample in range(self.samples)]
        low, _, high = statistics.quantiles(means, n=4, method="inclusive")
        kept = []
        for sample, chance in zip(order, self.rng.random(self.samples), strict=True):
            is_fitted = scores.get(sample, math.inf) < limit
            is_suspect = self.trims and epoch >= 2 and means[sample] > high + 1.5 * (high - low)
            if not (is_suspect or (is_fitted and chance < 0.5)):
                kept.append((sample, self.weight if is_fitted else 1.0))
        return kept

    def train(self, batch, epoch):
        mean = statistics.fmean(self.loss(sample, epoch) for sample, _ in batch)
        for sample in {sample for sample, _ in batch}:
            self.last[sample] = self.loss(sample, epoch)
            self.history.setdefault(sample, []).append(self.last[sample])
            self.scores[sample] = (self.scores.get(sample, mean) + mean) / 2
        self.batches.append(batch)


@pytest.mark.parametrize(
    "options",
    [{}, {"trims": True}, {"weight": 2**0.5}, {"score": "batch_mean"}, {"saves": True, "weight": 2.0}],
    ids=str,
)
def test_an_experimental_form_leaves_out_what_a_loop_by_hand_leaves_out(options):
    def loss(sample, epoch):
        # Of single precision, as losses are.
        return (40.0 if sample % 17 == 3 else 1.0 + sample % 5) / 2**epoch

    form, made = Form(50, 8, 6, 3, **options), []
    for batch in form:
        weights = batch.weights if batch.weights is not None else torch.ones(len(batch.indices))
        made.append(list(zip(batch.indices.tolist(), weights.tolist(), strict=True)))
        assert batch.progress < 1
        form.report(torch.tensor([loss(sample, form.epoch) for sample in batch.indices.tolist()]).double())
    by_hand = FormByHand(50, 8, 6, 3, loss, **options).batches
    assert [[sample for sample, _ in batch] for batch in made] == [[sample for sample, _ in batch] for batch in by_hand]
    for batch, its in zip(made, by_hand, strict=True):
        assert [weight for _, weight in batch] == pytest.approx([weight for _, weight in its])
    assert sum(form.doses["pruned"]) > 0
    if options.get("trims"):
        assert set(np.flatnonzero(form.suspects())) == {3, 20, 37}


def of_kind(values, setting="table", rates=None):
    """Runs with these scores, by arm and seed, which validate best at an arm's rate of ``rates``, or 1."""
    return [
        run.model_copy(
            update={
                "score": run.accuracy + (rate - 1),
                "rate": rate,
                "validation": -abs(rate - (rates or {}).get(run.arm, 1.0)) + run.seed,
                "group_losses": [0.1 * kind for kind in range(10)],
                "left_out": 1600,
            }
        )
        for run in made_up(values, setting)
        for rate in RATES
    ]


def test_an_arm_is_compared_at_the_rate_that_validates_best():
    runs = of_kind({"plain": [50.0] * 3, "left_out": [51.0] * 3}, rates={"left_out": 2.0})
    assert choose_rate(runs, "table", "plain") == 1.0
    assert choose_rate(runs, "table", "left_out") == 2.0
    assert choose_rate([run for run in runs if run.seed != TUNING_SEEDS[1]], "table", "plain") is None
    (finding,) = kinds_report.find(runs)[1]
    assert finding.gain.values == (2.0, 2.0, 2.0)


def test_p_values_are_adjusted_by_holm():
    plain = 50 + noise(0)
    gains = {"left_out": 2 + noise(1), "trimmed": 0.3 + noise(2), "batch_mean": noise(3)}
    runs = of_kind({"plain": plain, **{arm: plain + gain for arm, gain in gains.items()}})
    raw = {arm: stats.ttest_1samp(gain, 0).pvalue for arm, gain in gains.items()}
    first, second, third = sorted(raw.values())
    expected = dict(zip(sorted(raw, key=raw.get), np.maximum.accumulate([3 * first, 2 * second, third]), strict=True))
    found = kinds_report.holm(kinds_report.find(runs)[1])
    assert {arm: p for (_, arm), p in found.items()} == pytest.approx({arm: min(1, p) for arm, p in expected.items()})


def test_the_report_on_kinds_has_the_gains_that_are_computed_here():
    plain = 50 + noise(0)
    gain, twins = 2 + noise(1), noise(2)
    runs = of_kind({"plain": plain, "left_out": plain + gain, "left_out_random": plain + twins})
    losses = {"plain": -plain / 10, "left_out": (-plain - gain) / 10, "left_out_random": -plain / 10}
    runs += of_kind(losses, setting="text")
    document = kinds_report.compose(runs)
    text, table = (section.blocks[0] for section in document.sections)
    row = dict(zip(table.head, next(row for row in table.rows if row[0] == "left_out"), strict=True))
    reach = stats.t.ppf(0.975, 7) * stats.sem(gain)
    assert row["gain over plain"] == f"{gain.mean():+.2f} ({gain.mean() - reach:+.2f} to {gain.mean() + reach:+.2f})"
    assert row["over control"].startswith(f"{(gain - twins).mean():+.2f} (")
    assert (row["n"], row["rate"], row["left out"], row["verdict"]) == ("8", "1", "20 %", "pays")
    row = dict(zip(text.head, text.rows[1], strict=True))
    assert (row["gain over plain"].split()[0], row["verdict"]) == (f"{-gain.mean() / 10:+.4f}", "harms")
    assert "Of 2 comparisons" in document.box.sentences[-1]
    glance = kinds_report.glance(runs)
    assert glance.rows[0][1:] == [f"{-gain.mean() / 10:+.4f} ✗", f"{gain.mean():+.2f} ✓"]
    # Seeds that were added are judged alone.
    added = [run.model_copy(update={"seed": run.seed + 8, "score": 2 * run.score}) for run in runs]
    _, planned, _, later = (section.blocks[0] for section in kinds_report.compose(runs + added).sections)
    assert planned == table
    assert later.rows[1][4].startswith(f"{2 * gain.mean():+.2f} (")
    glance = kinds_report.glance(runs + added)
    assert glance.rows[0][2] == f"{gain.mean():+.2f} ✓"
    assert f"{2 * gain.mean():+.2f} (" in glance.caption


def test_the_command_makes_each_run_once_and_those_that_depend_on_another_after_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(KINDS, "table", SIZES)
    folder = tmp_path / "records"
    command = ["--out", str(folder), "--settings", "table", "--data-dir", str(tmp_path), "--seeds"]
    arms = ["--arms", "plain", "plain_short", "left_out_random"]
    assert kinds.main([*command, "2", *arms]) == 2
    assert "run seeds (0, 1) first" in capsys.readouterr().out
    assert kinds.main([*command, "0", "1", "2", *arms]) == 0
    before = (folder / "runs.jsonl").read_text()
    assert kinds.main([*command, "0", "1", "2", *arms]) == 0
    assert (folder / "runs.jsonl").read_text() == before
    runs = {run.name: run for run in Folder(folder, KindsPlan).read_runs()}
    for (setting, seed, arm, rate), run in runs.items():
        if arm == "plain_short":
            assert run.updates == runs[setting, seed, "saving", rate].updates < runs["table", 0, "plain", 1.0].updates
        if arm == "left_out_random":
            # The last share of training cuts the fourth pass off.
            assert run.doses["pruned"][:3] == runs[setting, seed, "left_out", rate].doses["pruned"][:3]
    assert sum(arm == "plain" and seed == 2 for _, seed, arm, _ in runs) == 1
    assert kinds_report.main([str(folder), "--to", str(tmp_path)]) == 0
    assert "| plain_short |" in (tmp_path / kinds_report.REPORT).read_text()
    assert kinds_report.main([str(tmp_path / "nothing"), "--to", str(tmp_path)]) == 2


@pytest.mark.parametrize("name", ["hidden_fine", "text"])
def test_a_run_of_a_kind_is_the_same_again_and_leaves_the_generator_as_it_was(sources, name):
    task = make_kind(sources, name, 0, SIZES)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    forms = [Form(len(task.train.inputs), 8, 3, 0) for _ in range(2)]
    first, again = (train_kind(name, task, form, form, 0, 0.01) for form in forms)
    assert torch.equal(torch.get_rng_state(), before)
    assert first | {"seconds": 0} == again | {"seconds": 0}
    score = -statistics.fmean(first["group_losses"]) if name == "text" else first["accuracy"]
    assert first["score"] == pytest.approx(score, abs=1e-3)
