"""The CIFAR command: its options, its runs, and what all arms of a seed have in common."""

import math
import shlex
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks import cifar
from benchmarks.cifar import Options, check, find_device, needs, plan
from benchmarks.evaluation import evaluate, measure_numerics
from benchmarks.images import load_images, redraw_labels
from benchmarks.models import MODELS, find_recipe, make_model
from benchmarks.plans import parse, with_needs
from benchmarks.reading import read_records
from benchmarks.schema import RunName
from tests.benchmarks.cifar_helpers import SMALL, records_without_times, run_benchmark


def paired(records, arm, name):
    """The epochs of the run of another arm that is paired with this one."""
    return records.epochs[name._replace(arm=arm, epoch_loss=None if arm == "baseline" else name.epoch_loss)]


def numbers(epoch):
    return epoch.train_loss, epoch.test_loss, epoch.accuracy, epoch.macro_f1, epoch.updates


@pytest.mark.parametrize("arm", ["baseline", "attention"])
def test_a_run_is_that_of_a_loop_written_by_hand(digits, records, arm):
    name = RunName(arm, None if arm == "baseline" else "last", 3, 1)
    by_hand = train_by_hand(digits, name)
    for epoch, (updates, mean_loss, evaluated) in zip(records.epochs[name], by_hand, strict=True):
        assert (epoch.updates, epoch.train_loss) == (updates, pytest.approx(mean_loss, rel=1e-6))
        assert {field: getattr(epoch, field) for field in evaluated[0]} == evaluated[0]
    assert evaluated[1] == records.runs[name].last.confusion


def train_by_hand(digits, name):
    images = load_images(str(digits), digits)
    labels = torch.from_numpy(redraw_labels(images.train.labels, 10, name.label_noise, name.seed))
    train, test = (torch.from_numpy(split.images) for split in (images.train, images.test))
    numerics = measure_numerics(train, "default", channels_last=False)
    model = make_model(find_recipe("small_resnet", 12, 12, pretrained=False), 10, name.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003, fused=True)
    generator, threshold = torch.Generator().manual_seed(name.seed), math.inf
    for _ in range(3):
        model.train()
        updates, last_losses = 0, []
        for batch in torch.randperm(140, generator=generator).split(32):
            loss = math.inf
            while loss == math.inf or loss > threshold:
                optimizer.zero_grad()
                batch_loss = cross_entropy(model(numerics.prepare(train[batch])), labels[batch])
                batch_loss.backward()
                optimizer.step()
                updates, loss = updates + 1, batch_loss.item()
            last_losses.append(loss)
        mean_loss = sum(last_losses) / len(last_losses)
        threshold = 0.7 * mean_loss if name.arm == "attention" else math.inf
        yield updates, mean_loss, evaluate(model, test, torch.from_numpy(images.test.labels), 10, numerics)


def test_all_arms_of_a_seed_have_the_same_first_epoch_and_labels(records):
    assert len(records.runs) == 2 * (1 + 2 * 3)
    for name, run in records.runs.items():
        assert run.is_finished
        assert numbers(records.epochs[name][0]) == numbers(paired(records, "baseline", name)[0])
        assert run.flipped_labels == records.runs[name._replace(arm="baseline", epoch_loss=None)].flipped_labels
        # 140 images: 4 groups of 32 with 3 each, and 1 of the last 12; a tenth of those drawn is not another label.
        assert 0 < run.flipped_labels <= 13


def test_random_has_exactly_attentions_visits(records):
    for name in (name for name in records.runs if name.arm == "random"):
        for epochs in zip(records.epochs[name], paired(records, "attention", name), strict=True):
            visits = [{count: each.batches for count, each in epoch.batches_by_visits.items()} for epoch in epochs]
            assert visits[0] == visits[1]
        assert numbers(epochs[0]) != numbers(epochs[1])
        assert epochs[0].repeats > 0


def test_longer_has_exactly_attentions_updates_and_starts_as_the_baseline(records):
    for name in (name for name in records.runs if name.arm == "longer"):
        epochs, baseline = records.epochs[name], paired(records, "baseline", name)
        assert sum(e.updates for e in epochs) == sum(e.updates for e in paired(records, "attention", name))
        assert len(epochs) > 3
        # It is not trained again up to there.
        assert [(numbers(e), e.seconds) for e in epochs[:3]] == [(numbers(e), e.seconds) for e in baseline]


def test_wrong_labels_are_counted_by_visits(records):
    for name, run in records.runs.items():
        for epoch in records.epochs[name] if name.arm in ("attention", "random") else []:
            by_visits = epoch.batches_by_visits
            assert sum(group.flipped for group in by_visits.values()) == run.flipped_labels
            assert all(group.with_flipped <= min(group.batches, group.flipped) for group in by_visits.values())
            assert sum(group.batches for group in by_visits.values()) == epoch.batches
            assert sum(count * group.batches for count, group in by_visits.items()) == epoch.updates


def test_an_epoch_of_more_batches_than_are_enqueued_at_once_waits_for_the_device_no_more_often(digits, tmp_path):
    options = [*SMALL, "--batch-size", "2", "--k", "5", "--arms", "attention", "--epochs", "1"]
    name = RunName("attention", "first", 0, 0)
    (epoch,) = read_records(run_benchmark(digits, tmp_path / "out", *options)).epochs[name]
    assert (epoch.batches, epoch.updates, epoch.host_reads) == (70, 70, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_runs_in_processes_on_a_gpu_are_the_same_as_alone(digits, tmp_path):
    options = [*SMALL, "--device", "cuda", "--epoch-loss", "first", "all"]
    alone = run_benchmark(digits, tmp_path / "alone", *options)
    together = run_benchmark(digits, tmp_path / "together", *options, "--at-once", "3")
    assert records_without_times(together) == records_without_times(alone)


def test_the_defaults_are_the_papers_and_every_option_is_understood():
    options = parse(Options, "benchmarks.cifar", None, [])
    assert options == Options()
    assert (options.model, options.data, options.epochs, options.batch_size) == ("resnet34", "cifar10", 100, 32)
    assert (options.learning_rate, options.k, options.label_noise, options.pretrained) == (1e-4, None, (0,), False)
    words = """--model tnt --reduced --pretrained --data DIR --data-dir CACHE --images 5000 --test-images 0
        --arms baseline attention --seeds 0 1 --epochs 7 --epoch-loss first last all --label-noise 1 3 6
        --precision bf16 --channels-last --no-deterministic --device cpu --at-once 2 --threads 3 --executor submitit
        --executor-options timeout_min=9 a=b --checkpoint-seconds 60 --k 1.3 --max-visits 50 --batch-size 16
        --learning-rate 1e-3 --out FOLDER"""
    given = parse(Options, "benchmarks.cifar", None, words.split())
    assert not [name for name, value in vars(given).items() if value == getattr(options, name)]


def test_every_command_that_is_documented_is_understood(capsys):
    readme = (Path(__file__).parents[2] / "benchmarks" / "README.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in f"{cifar.__doc__}{readme}".replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line, comments=True)[3:] for line in lines if line.startswith("python -m benchmarks.cifar")]
    assert len(commands) > 10
    for words in commands:
        check(parse(Options, "benchmarks.cifar", None, words))
    with pytest.raises(SystemExit, match="0"):
        cifar.main(["--help"])
    said = capsys.readouterr().out
    assert all(text in said for text in (*MODELS, "KEY=VALUE for it"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--arms", "baseline", "magic"], "magic; it takes baseline, attention, random, longer"),
        (["--epochs", "0"], "--epochs is 0; it must be at least 1"),
        (["--label-noise", "40"], "0 to 32"),
        (["--seeds", "0", "-1"], "at least 0"),
        (["--k", "-1"], "k is -1.0"),
        (["--device", "cuda:99"], "and . GPUs are here"),
        (["--device", "tpu"], "must be cpu, cuda"),
        (["--batch-size", "1000"], "batch_size is 1000, for 140 inputs and 140 targets"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(digits, tmp_path, options, said):
    with pytest.raises(SystemExit, match=f"^error: .*{said}.*$"):
        run_benchmark(digits, tmp_path / "out", *options)


def test_a_device_of_other_machines_is_not_looked_for_here():
    assert find_device(Options(device="cuda:99", executor="submitit")) == "cuda:99"


def test_runs_that_others_are_made_from_come_first_and_are_never_left_out():
    options = Options(arms=("longer", "random"), epoch_loss=("first", "all"), label_noise=(0, 3), seeds=(5, 5))
    runs = with_needs(plan(options), needs)
    for place, run in enumerate(runs):
        assert set(needs(run)) <= set(runs[:place])
    assert len(runs) == len(set(runs)) == 2 * (1 + 2 * 3)
