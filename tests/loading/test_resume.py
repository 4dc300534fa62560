"""Saved at any moment and resumed in new objects, a run continues as if it had never stopped, bit for bit."""

import itertools
import json
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, Sampler, SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.errors import ProtocolError, StateError
from tests.loading.drivers import DRIVERS, MORE_DRIVERS, load, resumed, saved, train
from tests.loading.helpers import (
    BATCHES,
    FORKING_IS_FINE,
    REPEATS,
    TORCHDATA_IS_FINE,
    LooksAhead,
    Numbered,
    make,
    no_deadlock,
    run_epoch,
    seeded,
)
from tests.loading.training import KILLED_RUN, SAMPLERS, Run

pytestmark = [*FORKING_IS_FINE, TORCHDATA_IS_FINE, pytest.mark.usefixtures("one_thread")]
__all__ = ["no_deadlock"]


# Both adapters ----------------------------------------------------------------------------------------------


def through(how):
    return (
        (lambda driver: LooksAhead(load(driver), 2)) if how == "ahead" else lambda driver: load(driver, num_workers=how)
    )


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *itertools.product(MORE_DRIVERS, [0]),
        *((kind, "ahead") for kind in MORE_DRIVERS if "immediate" not in kind),
        *itertools.product(DRIVERS, [1]),
        *(pytest.param(kind, 2, marks=pytest.mark.slow) for kind in MORE_DRIVERS),
    ],
)
def test_the_state_after_any_visit_resumes_to_the_same_end(kind, how):
    torch.manual_seed(0)
    loader_of, states = through(how), []
    driver = MORE_DRIVERS[kind]()
    loader = loader_of(driver)
    whole = train(driver, loader, on_report=lambda: states.append(saved(driver)))
    end = saved(driver)
    for done in range(1, len(whole) + 1, 11 if how == 1 else 1):
        twin = resumed(kind, states[done - 1])
        assert saved(twin) == states[done - 1]
        assert train(twin, loader_of(twin)) == whole[done:]
        assert saved(twin) == end
    # In the objects that are at their end, too.
    driver.sampler.load_state_dict(json.loads(states[4]))
    assert train(driver, loader) == whole[5:]


@pytest.mark.parametrize("kind", ["immediate", "samples, all alike"])
def test_batches_in_flight_keep_their_order_however_often_a_run_is_left_with_one_more_of_them_current(kind):
    driver = MORE_DRIVERS[kind]()
    whole, seen, state = train(driver, load(driver)), [], saved(MORE_DRIVERS[kind]())
    for workers in itertools.cycle([2, 0, 0, 0]):
        driver = resumed(kind, state)
        batches = iter(driver.attend(load(driver, num_workers=workers)))
        for indices in itertools.islice(batches, 1):
            seen.append((driver.place, indices))
            driver.report(indices)
        next(batches, None)
        state = saved(driver)
        assert saved(resumed(kind, state)) == state
        if driver.epoch == 3:
            break
    assert seen == whole


@pytest.mark.parametrize("kind", DRIVERS)
def test_a_state_that_is_saved_after_its_loop_was_left_is_resumed(kind):
    driver = DRIVERS[kind]()
    whole = train(driver, load(driver))
    for done in range(1, len(whole), 3):
        driver = DRIVERS[kind]()
        train(driver, load(driver), stop=done)
        twin = resumed(kind, saved(driver))
        assert train(twin, load(twin)) == whole[done:]


# A model in training ----------------------------------------------------------------------------------------

MOMENTS = ("between epochs", "before the visit", "after the decision")


def checkpoints_of(options, moments=MOMENTS):
    """The run in one go, and a checkpoint, with the visits done by then, of every moment."""
    checkpoints = []

    def save(run, moment):
        if moment in moments:
            checkpoints.append((len(run.history), run.checkpoint()))

    return Run(**options).train(save), checkpoints


def final_generators(run):
    return run.sampler.state_dict()["generator"], torch.get_rng_state().tolist()


def check_resumes(options, moments=MOMENTS, *, every=1):
    whole, checkpoints = checkpoints_of(options, moments)
    generators = final_generators(whole)
    assert [visit[3] for visit in whole.history].count("repeat") >= 4
    for done, checkpoint in checkpoints[::every]:
        again = Run(**options, seed=1).load(checkpoint).train()
        assert again.history == whole.history[done:]
        assert final_generators(again) == generators


@pytest.mark.parametrize(
    "options",
    [
        {"repeats": "immediate"},
        {"repeats": "deferred", "generators": "explicit", "loader_class": StatefulDataLoader},
        {
            "repeats": "immediate",
            "generators": "shared",
            "loader_class": StatefulDataLoader,
            "kind": "with replacement",
        },
        {"repeats": "deferred", "generators": "shared", "kind": "distributed"},
    ],
    ids=str,
)
def test_without_workers_a_run_is_resumed(options):
    check_resumes(options, every=5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("loader_class", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("generators", ["own", "explicit", "shared"])
@REPEATS
def test_without_workers_every_moment_of_a_run_can_be_resumed(repeats, generators, loader_class, kind):
    check_resumes({"repeats": repeats, "generators": generators, "loader_class": loader_class, "kind": kind})


@REPEATS
def test_augmentation_drawn_in_this_process_is_resumed_too(repeats):
    # Saved before a visit, what the batch was augmented with has been drawn already.
    check_resumes({"repeats": repeats, "is_augmented": True}, ("between epochs", "after the decision"), every=5)


WITH_WORKERS = {"samples": 12, "num_workers": 2, "prefetch_factor": 1, "generators": "shared"}


@pytest.mark.parametrize(
    ("options", "moments"),
    [
        ({"repeats": "immediate"}, MOMENTS),
        ({"repeats": "deferred", "loader_class": StatefulDataLoader, "prefetch_factor": 3}, MOMENTS),
        ({"repeats": "deferred", "generators": "explicit", "persistent_workers": True}, MOMENTS),
        # Persistent workers keep the seed that they were started with.
        ({"repeats": "immediate", "persistent_workers": True}, MOMENTS[:1]),
        ({"repeats": "deferred", "persistent_workers": True, "loader_class": StatefulDataLoader}, MOMENTS[:1]),
    ],
    ids=str,
)
def test_with_workers_a_run_is_resumed(options, moments):
    check_resumes({**WITH_WORKERS, **options}, moments, every=1 if moments == MOMENTS[:1] else 11)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{}, {"prefetch_factor": 3}, {"generators": "explicit"}, {"persistent_workers": True}], ids=str
)
@pytest.mark.parametrize("loader_class", [DataLoader, StatefulDataLoader])
@REPEATS
def test_with_workers_every_moment_of_a_run_can_be_resumed(repeats, loader_class, more):
    check_resumes(
        {"repeats": repeats, "loader_class": loader_class, **WITH_WORKERS, **more}, every=1 if not more else 3
    )


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0)])
def test_with_immediate_repeats_a_run_may_resume_with_another_number_of_workers(before, after):
    options = {"repeats": "immediate", "generators": "shared"}
    whole, checkpoints = checkpoints_of({**options, "num_workers": before})
    for done, checkpoint in checkpoints[::17]:
        again = Run(**options, num_workers=after, seed=1).load(checkpoint).train()
        assert again.history == whole.history[done:]
        assert final_generators(again) == final_generators(whole)


def test_torch_s_global_generator_need_not_be_saved_once_the_first_epoch_has_begun():
    options = {"repeats": "immediate", "dropout": 0.0}
    whole, checkpoints = checkpoints_of(options, ["after the decision"])
    for done, checkpoint in checkpoints[::3]:
        del checkpoint["random"]
        assert Run(**options, seed=1).load(checkpoint).train().history == whole.history[done:]


@pytest.mark.parametrize("workers", [0, 1])
@REPEATS
def test_a_stateful_loader_s_own_state_is_not_needed(repeats, workers):
    options = {"repeats": repeats, "loader_class": StatefulDataLoader, "num_workers": workers}
    whole, checkpoints = checkpoints_of(options)
    for done, checkpoint in checkpoints[:: 23 if workers else 5]:
        checkpoint.pop("loader", None)
        assert Run(**options, seed=1).load(checkpoint).train().history == whole.history[done:]


@pytest.mark.parametrize(("repeats", "first_workers"), [("immediate", 1), ("deferred", 0)])
def test_a_run_that_is_stopped_after_every_visit_is_the_same_run(repeats, first_workers):
    # With workers at first, batches are in flight that the lives without workers hand out one by one.
    options = {"repeats": repeats, "generators": "shared"}
    whole, _ = checkpoints_of({**options, "num_workers": first_workers}, [])
    run, checkpoint, history = Run(**options, num_workers=first_workers), None, []

    def stop(run, moment):
        if moment == "after the decision":
            raise KeyboardInterrupt

    while len(history) < len(whole.history):
        with pytest.raises(KeyboardInterrupt):
            (run if checkpoint is None else run.load(checkpoint)).train(stop)
        history += run.history
        checkpoint = run.checkpoint()
        run = Run(**options, seed=len(history))
    assert history == whole.history
    assert run.load(checkpoint).train().history == []
    assert final_generators(run) == final_generators(whole)


def test_a_run_that_is_killed_between_two_visits_of_one_batch_is_resumed_in_another_process(tmp_path):
    command = [sys.executable, "-m", "tests.loading.training", str(tmp_path / "checkpoint.pt")]
    assert subprocess.run(command, timeout=100, check=False).returncode == -signal.SIGKILL
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    whole = Run(**KILLED_RUN).train().history
    assert whole[checkpoint["done"] - 1][3] == "repeat"
    assert Run(**KILLED_RUN, seed=1).load(checkpoint).train().history == whole[checkpoint["done"] :]


# States of something else ------------------------------------------------------------------------------------


class RandomSamplerOfTheUser(RandomSampler):
    """Shuffles by torch's global generator, or by its own."""


def started(base, *arguments, repeats="immediate", k=1.5):
    """A sampler with something to lose: an epoch in progress after another one."""
    schedule = BatchAttentionSchedule(k, epoch_loss="last")
    sampler = BatchAttentionSampler(base, *(arguments or (2,)), schedule=schedule, repeats=repeats)
    loader = DataLoader(Numbered(200), batch_sampler=sampler, num_workers=1)
    run_epoch(schedule, loader)
    for _ in schedule.attend(loader):
        schedule.decide(1.0)
        if schedule.batches == 2:
            return sampler
    raise AssertionError


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (
            lambda base: started(base(24), 3, True, repeats="deferred", k=1.3),
            r"batch_size \(saved 2, here 3\).*drop_last \(saved .*repeats \(saved 'immediate', here 'deferred'\)",
        ),
        (lambda base: started(base(24), k=1.3), r"k \(saved 1.5, here 1.3\).*start without"),
        (lambda base: started(base(23)), "data set or the sampler differs"),
        (lambda base: started(base(4)), "has indices None"),
        (lambda base: started(SequentialSampler(range(24))), "has no generator here; construct the sampler as it was"),
        (lambda base: started(RandomSamplerOfTheUser(range(24))), "has no generator here"),
    ],
)
def test_a_state_of_something_else_is_refused_and_nothing_of_it_is_loaded(sampler, words):
    def base(samples):
        return RandomSampler(range(samples), generator=seeded())

    state, other = started(base(24)).state_dict(), sampler(base)
    before = other.state_dict(), torch.get_rng_state().tolist()
    with pytest.raises(StateError, match=words):
        other.load_state_dict(state)
    assert (other.state_dict(), torch.get_rng_state().tolist()) == before


def test_a_sampler_that_shuffles_by_the_global_generator_cannot_be_resumed():
    state, other = (started(RandomSamplerOfTheUser(range(24))) for _ in range(2))
    before = other.state_dict(), torch.get_rng_state().tolist()
    with pytest.raises(StateError, match=r"shuffles without a generator of its own: give it generator="):
        other.load_state_dict(state.state_dict())
    assert (other.state_dict(), torch.get_rng_state().tolist()) == before


def test_a_distributed_sampler_of_another_epoch_is_refused_as_the_loop_begins():
    run = Run("immediate", kind="distributed")
    checkpoints = []
    run.train(lambda run, moment: checkpoints.append(run.checkpoint()))
    again = Run("immediate", kind="distributed").load(checkpoints[-4])
    again.base.set_epoch(0)
    with pytest.raises(StateError, match=r"call its set_epoch\(\) as before"):
        next(iter(again.schedule.attend(again.loader)))


@pytest.mark.parametrize("visits", [1, 2, 4, BATCHES])
def test_the_schedule_s_state_alone_is_enough_between_epochs_and_not_within_one(visits):
    schedule, _, loader, _ = make("immediate")
    run_epoch(schedule, loader)
    for at, _ in enumerate(schedule.attend(loader), start=1):
        schedule.decide(2.0 if at < visits < BATCHES else 1.0)
        if at == visits < BATCHES:
            break
    state = schedule.state_dict()
    schedule, _, loader, _ = make("immediate")
    schedule.load_state_dict(state)
    if visits == BATCHES:
        assert len(run_epoch(schedule, loader)) == BATCHES
        return
    with pytest.raises(ProtocolError, match=r"load sampler.state_dict\(\), which holds both"):
        next(iter(schedule.attend(loader)))


def test_an_epoch_that_was_loaded_and_abandoned_starts_again():
    schedule, sampler, loader, _ = make("immediate")
    sampler.load_state_dict(started(RandomSampler(range(24), generator=seeded())).state_dict())
    schedule.abandon_epoch()
    assert sampler.state_dict()["position"] == 0
    assert len(run_epoch(schedule, loader)) == BATCHES


class Pairs(Sampler):
    def __len__(self):
        return 2

    def __iter__(self):
        return iter([[(0, 1)], [(1, 0)]])


def test_indices_that_json_cannot_hold_are_refused_as_they_are_saved():
    sampler = BatchAttentionSampler(Pairs())
    next(iter(sampler.schedule.attend(DataLoader({(0, 1): 1, (1, 0): 2}, batch_sampler=sampler))))
    with pytest.raises(StateError, match="only whole numbers and strings can be saved"):
        sampler.state_dict()


@REPEATS
def test_string_indices_are_visited_and_saved(repeats):
    sampler = BatchAttentionSampler(["a", "b", "c"], 2, repeats=repeats)
    loader = DataLoader({"a": 1, "b": 2, "c": 3}, batch_sampler=sampler, collate_fn=torch.tensor)
    next(iter(sampler.schedule.attend(loader)))
    sampler.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    seen = []
    for batch in sampler.schedule.attend(loader):
        seen.append(batch.tolist())
        sampler.schedule.decide(1.0)
    assert seen == [[1, 2], [3]]
