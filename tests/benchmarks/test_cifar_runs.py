"""The whole benchmark on a few hundred digits: pairing, stopping and going on, and what is refused."""

import json
import multiprocessing
import os
import random
import re
import resource
import signal
import time
import weakref

import pytest
import torch

from batch_sampler_attn.device import DeviceLoop
from benchmarks.cifar import __main__ as command
from benchmarks.cifar import running, storage, training
from benchmarks.cifar.plan import Queue, needs, plan_runs
from benchmarks.cifar.stopping import Terminated, term_raises
from benchmarks.cifar.storage import Storage
from benchmarks.errors import PlanError, StorageError
from benchmarks.reading import read_configuration, read_records
from benchmarks.reading import read_lines as reading_lines
from benchmarks.schema import OfVisits, RunName
from tests.benchmarks.cifar_helpers import read_lines, records_without_times, run_benchmark, write_digits

pytestmark = pytest.mark.usefixtures("one_thread")

# What starts a process that has everything imported in no time.
FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["benchmarks.cifar.__main__"])
SMALL = ["--seeds", "0", "--epochs", "3"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("images") / "digits")


@pytest.fixture(scope="module", autouse=True)
def keep_pytorchs_settings():
    """The command sets these for its process."""
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def out(digits, tmp_path_factory):
    """All arms, two seeds, two readings, with and without noise."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    noise = ["--label-noise", "0", "3", "--epoch-loss", "first", "last", "--seeds", "0", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getloadavg", lambda: (1.0, 1.0, 1.0))
        return run_benchmark(digits, folder / "out", *noise)


@pytest.fixture(scope="module")
def records(out):
    return read_records(out)


def of(records, arm, condition_of):
    """The epochs of the run of another arm that is paired with this one."""
    reading = None if arm == "baseline" else condition_of.epoch_loss
    return records.epochs[condition_of._replace(arm=arm, epoch_loss=reading)]


def test_every_run_that_was_asked_for_is_there_and_finished(records):
    assert len(records.runs) == 2 * 2 * (1 + 2 * 3)
    assert all(run.is_finished for run in records.runs.values())


def test_the_first_epochs_of_all_arms_agree_bit_for_bit(records):
    for name in records.runs:
        first, baseline = records.epochs[name][0], of(records, "baseline", name)[0]
        for field in ("train_loss", "test_loss", "accuracy", "macro_f1", "updates"):
            assert getattr(first, field) == getattr(baseline, field)


def test_attention_repeats_and_random_has_exactly_its_visits(records):
    repeats = 0
    for name in records.runs:
        if name.arm != "random":
            continue
        for random_epoch, attention in zip(records.epochs[name], of(records, "attention", name), strict=True):
            assert random_epoch.updates == attention.updates
            visits = [
                {count: batches.batches for count, batches in epoch.batches_by_visits.items()}
                for epoch in (random_epoch, attention)
            ]
            assert visits[0] == visits[1]
            repeats += attention.repeats
    assert repeats > 0


def test_longer_has_exactly_attentions_updates_and_begins_as_the_baseline(records):
    for name in records.runs:
        if name.arm != "longer":
            continue
        epochs, baseline = records.epochs[name], of(records, "baseline", name)
        assert sum(e.updates for e in epochs) == sum(e.updates for e in of(records, "attention", name))
        for ours, theirs in zip(epochs, baseline, strict=False):
            assert (ours.train_loss, ours.test_loss, ours.accuracy) == (
                theirs.train_loss,
                theirs.test_loss,
                theirs.accuracy,
            )


def test_a_longer_run_without_the_baselines_state_is_the_same(digits, out, records, tmp_path):
    """The state is what saves the time; without it the same updates are made again."""
    alone = run_benchmark(digits, tmp_path / "out", *SMALL, "--arms", "baseline", "attention")
    run_benchmark(digits, alone, *SMALL, "--arms", "longer")
    name = RunName("longer", "first", 0, 0)
    epochs = read_records(alone).epochs[name]
    assert [epoch.test_loss for epoch in epochs] == [epoch.test_loss for epoch in records.epochs[name]]


def test_labels_are_redrawn_alike_in_all_arms_and_counted(records):
    for name, run in records.runs.items():
        paired = records.runs[name._replace(arm="baseline", epoch_loss=None)]
        assert run.flipped_labels == paired.flipped_labels
        # 140 images: 4 groups of 32 with 3 each, and 1 of the last 12; a tenth of those drawn is not another label.
        assert (run.flipped_labels == 0) if name.label_noise == 0 else (0 < run.flipped_labels <= 13)
        for epoch in records.epochs[name]:
            if epoch.batches_by_visits is not None:
                by_visits = epoch.batches_by_visits
                assert sum(group.flipped for group in by_visits.values()) == run.flipped_labels
                assert sum(group.batches for group in by_visits.values()) == epoch.batches
                assert sum(count * group.batches for count, group in by_visits.items()) == epoch.updates


def test_the_matrices_are_of_the_best_and_the_last_epoch(records):
    for name, run in records.runs.items():
        epochs = records.epochs[name]
        best = max(epochs, key=lambda epoch: epoch.accuracy)
        assert (run.best.epoch, run.last.epoch) == (best.epoch, len(epochs))
        for evaluated in (run.best, run.last):
            right = sum(evaluated.confusion[label][label] for label in range(10))
            assert right / 60 == epochs[evaluated.epoch - 1].accuracy


def test_a_finished_command_makes_nothing_again(digits, out):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("record.json")}
    noise = ["--label-noise", "0", "3", "--epoch-loss", "first", "last", "--seeds", "0", "1"]
    run_benchmark(digits, out, *noise)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("record.json")} == before
    assert not list(out.rglob("state.pt"))


def test_records_without_their_work_count_as_finished_and_stay(digits, out, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("configuration.json", "runs.jsonl", "epochs.jsonl"):
        (moved / name).write_bytes((out / name).read_bytes())
    run_benchmark(digits, moved, "--seeds", "0", "1", "2", "--arms", "baseline")
    for name, epochs in read_records(out).epochs.items():
        assert read_records(moved).epochs[name] == epochs
    assert len(read_records(moved).runs) == len(read_records(out).runs) + 1


def test_a_control_whose_attention_run_is_recorded_without_its_visits_is_refused(digits, out, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "configuration.json").write_bytes((out / "configuration.json").read_bytes())
    for name in ("runs.jsonl", "epochs.jsonl"):
        lines = (out / name).read_text().splitlines(keepends=True)
        (moved / name).write_text("".join(line for line in lines if '"random"' not in line))
    with pytest.raises(SystemExit, match=r"has the visits of attention-first-noise0-seed0.*another --out"):
        run_benchmark(digits, moved, *SMALL)
    assert len(read_records(moved).runs) == 20


def test_a_control_is_made_later_from_the_visits_that_were_recorded(digits, out, records, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("configuration.json", "visits.jsonl"):
        (moved / name).write_bytes((out / name).read_bytes())
    for name in ("runs.jsonl", "epochs.jsonl"):
        lines = (out / name).read_text().splitlines(keepends=True)
        (moved / name).write_text("".join(line for line in lines if '"random"' not in line))
    run_benchmark(digits, moved, *SMALL, "--arms", "random")
    name = RunName("random", "first", 0, 0)
    again = read_records(moved)
    assert [epoch.test_loss for epoch in again.epochs[name]] == [epoch.test_loss for epoch in records.epochs[name]]
    assert (moved / "visits.jsonl").read_bytes() == (out / "visits.jsonl").read_bytes()


def test_a_cpu_with_other_work_counts_as_shared(digits, tmp_path, monkeypatch):
    for load, is_shared in ((1.2, False), (2.6, True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        alone = run_benchmark(digits, tmp_path / f"at {load}", "--epochs", "1", "--seeds", "0", "--arms", "baseline")
        ((epoch,),) = read_records(alone).epochs.values()
        assert epoch.shared_device is is_shared


def _wait_for_records(folder, count):
    deadline = time.monotonic() + 120
    while len(list(folder.glob("work/*/record.json"))) < count and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize(("at_once", "number"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (1, signal.SIGHUP)])
def test_a_terminated_command_records_what_is_finished_and_goes_on(digits, tmp_path, at_once, number):
    folder = tmp_path / "out"
    options = ["--epochs", "4", "--seeds", *map(str, range(12)), "--arms", "baseline", "--at-once", str(at_once)]
    process = FORK_SERVER.Process(target=_run, args=(digits, folder, options))
    process.start()
    _wait_for_records(folder, 3)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 143
    there = read_records(folder)
    assert 0 < len(there.runs) < 12
    assert any(run.is_finished for run in there.runs.values())
    with Storage(folder, there.configuration).opened():  # no process is left that holds it
        pass
    run_benchmark(digits, folder, *options)
    assert len(read_records(folder).runs) == 12


def test_a_command_whose_processes_are_all_terminated_at_once_records_what_is_finished(digits, tmp_path):
    """As by a service manager, which signals the whole group."""
    folder = tmp_path / "out"
    options = ["--epochs", "4", "--seeds", *map(str, range(12)), "--arms", "baseline", "--at-once", "2"]
    process = FORK_SERVER.Process(target=_run_in_group, args=(digits, folder, options))
    process.start()
    _wait_for_records(folder, 3)
    os.killpg(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 143
    assert any(run.is_finished for run in read_records(folder).runs.values())


def _run_in_group(data, folder, options):
    os.setpgid(0, 0)
    _run(data, folder, options)


def test_what_term_did_before_it_does_again():
    def end():
        with term_raises():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        end()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_is_ignored_stays_so():
    """As HUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with term_raises():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_term_waits_until_the_records_are_written(digits, tmp_path, monkeypatch):
    out = run_once(digits, tmp_path / "out")
    stored = Storage(out, read_configuration(out))
    for name in ("runs.jsonl", "epochs.jsonl"):
        (out / name).unlink()
    put = storage._write_whole

    def put_and_be_terminated(*arguments):
        signal.raise_signal(signal.SIGTERM)
        put(*arguments)

    monkeypatch.setattr(storage, "_write_whole", put_and_be_terminated)
    with pytest.raises(Terminated), term_raises():
        stored.write_records()
    assert len(read_records(out).runs) == 1


def test_visits_are_of_every_attention_run_and_agree_with_its_epochs(out, records):
    lines = {line.run: line.visits for line in reading_lines(out / "visits.jsonl", OfVisits)}
    assert set(lines) == {name for name in records.runs if name.arm == "attention"}
    for name, visits in lines.items():
        assert [len(of_epoch) for of_epoch in visits] == [epoch.batches for epoch in records.epochs[name]]
        assert [sum(of_epoch) for of_epoch in visits] == [epoch.updates for epoch in records.epochs[name]]


def leave_only_records(out, moved, *, arms):
    """The files of the records, with runs of some arms, and without ``work``."""
    moved.mkdir()
    for name in ("configuration.json", "visits.jsonl"):
        (moved / name).write_bytes((out / name).read_bytes())
    for name in ("runs.jsonl", "epochs.jsonl"):
        lines = (out / name).read_text().splitlines(keepends=True)
        (moved / name).write_text("".join(line for line in lines if json.loads(line)["arm"] in arms))
    return moved


def test_visits_of_another_time_than_the_epochs_are_refused(digits, out, tmp_path):
    moved = leave_only_records(out, tmp_path / "moved", arms=("baseline", "attention"))
    lines = read_lines(moved / "visits.jsonl")
    for line in lines:
        line["visits"][2][0] += 1
    (moved / "visits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit, match=r"visits of attention-first-noise0-seed0 in visits.jsonl are not those"):
        run_benchmark(digits, moved, *SMALL, "--arms", "random")


def test_damaged_visits_are_refused_before_anything_is_trained(digits, out, tmp_path):
    moved = leave_only_records(out, tmp_path / "moved", arms=("baseline", "attention"))
    text = (moved / "visits.jsonl").read_text()
    for damaged, said in (
        (text[:-30], "does not fit"),
        (text.replace('"configuration":"', '"configuration":"0'), "line"),
    ):
        (moved / "visits.jsonl").write_text(damaged)
        with pytest.raises(SystemExit, match=f"visits.jsonl.*{said}"):
            run_benchmark(digits, moved, "--seeds", "7", "--arms", "baseline")
        assert not list(moved.glob("work/*/record.json"))


def test_runs_in_processes_and_runs_by_turns_are_the_same(digits, out, tmp_path):
    beside = run_benchmark(digits, tmp_path / "out", *SMALL, "--arms", "baseline", "random", "--at-once", "2")
    names = [RunName("baseline", None, 0, 0), RunName("attention", "first", 0, 0), RunName("random", "first", 0, 0)]
    ours, theirs = read_records(beside), read_records(out)
    assert set(ours.runs) == set(names)
    for name in names:
        assert ours.runs[name].best == theirs.runs[name].best
        for epoch, expected in zip(ours.epochs[name], theirs.epochs[name], strict=True):
            assert epoch.shared_device
            assert not expected.shared_device
            assert (epoch.test_loss, epoch.threshold) == (expected.test_loss, expected.threshold)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_runs_that_take_turns_on_a_gpu_are_the_same_as_alone(digits, tmp_path):
    options = [*SMALL, "--device", "cuda", "--epoch-loss", "first", "all"]
    alone = run_benchmark(digits, tmp_path / "alone", *options)
    together = run_benchmark(digits, tmp_path / "together", *options, "--at-once", "3")
    ours, theirs = records_without_times(together), records_without_times(alone)
    for line in [*ours["epochs"], *theirs["epochs"]]:
        del line["host_reads"]
    assert ours == theirs


def _run(data, folder, options):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    run_benchmark(data, folder, *options)


def _wait_for_a_write(folder, process):
    def newest():
        return max((path.stat().st_mtime_ns for path in folder.glob("work/*/*.*")), default=0)

    before = newest()
    while process.is_alive() and newest() == before:
        time.sleep(0.002)


def test_killed_ten_times_the_records_are_those_of_an_undisturbed_run(digits, tmp_path):
    # Enough epochs that a quick machine is not done before the tenth time.
    options = ["--seeds", "0", "--epochs", "20", "--label-noise", "3"]
    run_benchmark(digits, tmp_path / "whole", *options)
    rng = random.Random(0)
    for _ in range(10):
        process = FORK_SERVER.Process(target=_run, args=(digits, tmp_path / "killed", options))
        process.start()
        # Only then is it surely at work. An epoch takes about as long as the longest delay.
        _wait_for_a_write(tmp_path / "killed", process)
        time.sleep(rng.uniform(0, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    run_benchmark(digits, tmp_path / "killed", *options)
    assert records_without_times(tmp_path / "killed") == records_without_times(tmp_path / "whole")


def _run_with_small_files(data, folder, options, most_bytes, said):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        run_benchmark(data, folder, *options)
    except SystemExit as error:
        said.send(str(error))


def test_a_file_that_cannot_be_written_is_said_and_no_epoch_that_was_kept_is_lost(digits, tmp_path):
    """The kernel refuses to let a file grow, as on a full disk: a record still fits in, a state does not."""
    out = run_benchmark(digits, tmp_path / "out", *SMALL, "--arms", "baseline")
    finished = (out / "epochs.jsonl").read_bytes()
    receiver, said = multiprocessing.Pipe(duplex=False)
    options = [*SMALL, "--arms", "attention"]
    process = FORK_SERVER.Process(target=_run_with_small_files, args=(digits, out, options, 100_000, said))
    process.start()
    process.join()
    assert re.search(r"attention.*state.pt cannot be written: .* the same command again", receiver.recv())
    assert (out / "epochs.jsonl").read_bytes() == finished
    run_benchmark(digits, out, *options)
    assert [len(epochs) for epochs in read_records(out).epochs.values()] == [3, 3]
    assert not list(out.rglob(".*"))


def test_a_folder_of_another_configuration_is_refused_and_keeps_its_records(digits, out):
    before = (out / "epochs.jsonl").read_bytes()
    with pytest.raises(SystemExit, match=r"records of another configuration: k \(0.7 there, 1.2 now\)"):
        run_benchmark(digits, out, "--k", "1.2")
    assert (out / "epochs.jsonl").read_bytes() == before


def test_runs_that_could_not_agree_bit_for_bit_are_not_added(digits, out):
    with pytest.raises(SystemExit, match="with 1 CPU threads, and this command is for cpu with 2"):
        run_benchmark(digits, out, "--seeds", "7", "--threads", "2")


def test_a_state_or_record_of_another_configuration_is_refused(digits, out, tmp_path):
    other = run_benchmark(digits, tmp_path / "out", "--seeds", "0", "--arms", "baseline", "--epochs", "1")
    work = other / "work" / "baseline-noise0-seed1"
    work.mkdir()
    foreign = (out / "work" / "baseline-noise0-seed1" / "record.json").read_text()
    again = ["--seeds", "1", "--arms", "baseline", "--epochs", "1"]
    torch.save({"record": foreign, "loop": {}}, work / "state.pt")
    with pytest.raises(SystemExit, match=r"state.pt has a line of baseline-noise0-seed1 from configuration"):
        run_benchmark(digits, other, *again)
    (work / "state.pt").write_bytes(b"cut off")
    with pytest.raises(SystemExit, match=r"state.pt cannot be read: \w.* begins anew"):
        run_benchmark(digits, other, *again)
    (work / "state.pt").unlink()
    (work / "record.json").write_text(foreign)
    with pytest.raises(SystemExit, match=r"record.json has a line of baseline-noise0-seed1 from configuration"):
        run_benchmark(digits, other, *again)
    (work / "record.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"record.json, line 1 does not fit schema version 1"):
        run_benchmark(digits, other, *again)
    (work / "record.json").unlink()
    run_benchmark(digits, other, *again)
    assert len(read_records(other).runs) == 2


def run_once(digits, folder):
    return run_benchmark(digits, folder, *SMALL, "--arms", "baseline", "--epochs", "1")


def test_a_folder_that_only_a_refused_command_has_seen_takes_another_configuration(digits, tmp_path):
    storage = Storage(tmp_path / "out", read_configuration(run_once(digits, tmp_path / "one")))
    with storage.opened():
        pass
    run_benchmark(digits, tmp_path / "out", *SMALL, "--arms", "baseline", "--epochs", "2")
    assert read_configuration(tmp_path / "out").epochs == 2


def test_what_a_killed_command_left_half_written_is_cleared(digits, tmp_path):
    out = run_once(digits, tmp_path / "out")
    work = out / "work" / "baseline-noise0-seed0"
    (work / ".state.pt.123").write_bytes(b"half")
    (work / "state.pt").write_bytes(b"left after the run was recorded")
    (out / "runs.jsonl").unlink()
    run_once(digits, out)
    assert [path.name for path in work.iterdir()] == ["record.json"]
    assert len(read_records(out).runs) == 1


def test_two_commands_in_one_folder_keep_out_of_each_others_way(digits, out):
    storage = Storage(out, read_configuration(out))
    lock = storage.opened(wait_seconds=0.1)
    with storage.opened(), pytest.raises(StorageError, match="another command is at work"):
        lock.__enter__()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--arms", "baseline", "magic"], "magic"),
        (["--seeds", "1", "1"], "none twice"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--label-noise", "40"], "0 to 32"),
        (["--learning-rate", "-1"], "above 0"),
        (["--learning-rate", "inf"], "a number above 0"),
        (["--k", "-1"], "k is -1.0"),
        (["--k", "nan"], "k is nan"),
        (["--seeds", "-1"], "at least 0"),
        (["--batch-size", "139"], "leave one for the last"),
        (["--device", "cuda:9"], "none here"),
        (["--device", "tpu"], "must be cpu or cuda"),
        (["--batch-size", "1000"], "batch_size is 1000, but there are 140"),
        (["--model", "resnet43"], "did you mean"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(digits, tmp_path, options, said):
    with pytest.raises(SystemExit, match=said) as stopped:
        run_benchmark(digits, tmp_path / "out", *options)
    assert str(stopped.value).startswith("error: ")
    assert "\n" not in str(stopped.value)


def test_a_file_in_the_place_of_the_folder_is_refused(digits, tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(SystemExit, match="cannot be written"):
        run_benchmark(digits, tmp_path / "out", *SMALL)


def test_loops_that_are_done_are_let_go_of_before_others_are_made(digits, tmp_path, monkeypatch):
    alive = weakref.WeakSet()
    most = []

    class Watched(DeviceLoop):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            alive.add(self)
            most.append(len(alive))

    def make_here(setup, waiting, report):
        running.make_by_turns(setup, waiting, report, waiting.finish)

    monkeypatch.setattr(training, "DeviceLoop", Watched)
    monkeypatch.setattr(running, "_make_in_processes", make_here)
    seeds = ["--seeds", *map(str, range(7))]
    run_benchmark(digits, tmp_path / "out", *seeds, "--epochs", "2", "--arms", "baseline", "--at-once", "3")
    assert len(most) == 7
    assert max(most) == 3


def test_the_defaults_are_the_papers():
    options = command.parse([])
    assert (options.model, options.data, options.epochs, options.batch_size) == ("resnet34", "cifar10", 100, 32)
    assert (options.learning_rate, options.k, options.label_noise, options.pretrained) == (1e-4, None, [0], False)


def test_runs_that_others_are_made_from_come_first_and_are_never_left_out():
    runs = plan_runs(["longer", "random"], ["first", "all"], [0, 3], [5])
    for place, run in enumerate(runs):
        assert set(needs(run)) <= set(runs[:place])
    assert len(runs) == len(set(runs)) == 2 * (1 + 2 * 3)


def test_the_queue_hands_out_a_run_only_when_its_needs_are_met():
    runs = plan_runs(["random"], ["first"], [0], [0, 1])
    waiting = Queue(runs, finished=[])
    first, second = waiting.take(), waiting.take()
    assert (first.arm, second.arm) == ("attention", "attention")
    assert waiting.take() is None
    waiting.finish(second)
    assert waiting.take() == second._replace(arm="random")
    assert waiting.take() is None


@pytest.mark.parametrize("empty", [{"arms": []}, {"seeds": []}, {"epoch_losses": []}, {"label_noises": []}])
def test_a_plan_of_nothing_is_refused(empty):
    asked = {"arms": ["baseline"], "epoch_losses": ["first"], "label_noises": [0], "seeds": [0]} | empty
    with pytest.raises(PlanError, match="at least one"):
        plan_runs(**asked)
