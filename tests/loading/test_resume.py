"""Saved at any moment and resumed in new objects, a run continues as if it had never stopped, bit for bit."""

import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler, SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision, SeededDataset
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
    for done in range(1, len(whole) + 1, 3 if how == 2 else 1):
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
    for workers in itertools.cycle([1, 0, 0, 0]):
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


# Torch's generators -----------------------------------------------------------------------------------------

MOMENTS = ("between epochs", "before the visit", "after the decision")
SAMPLERS = {
    "random": lambda generator: RandomSampler(range(20), generator=generator),
    "with replacement": lambda generator: RandomSampler(
        range(20), replacement=True, num_samples=31, generator=generator
    ),
    "sequential": lambda generator: SequentialSampler(range(20)),
    "distributed": lambda generator: DistributedSampler(range(20), num_replicas=1, rank=0, seed=4),
}


class Run:
    """Training with dropout: it draws from torch's global generator, as DataLoaders do, and samplers without their own.

    ``generators`` is "own" if the sampler makes one, "explicit" if the user does, "shared" if the loader has it too.
    ``augments`` puts something around a dataset whose draws are compared. ``seed`` only matters to what is not loaded.
    """

    def __init__(
        self,
        repeats,
        *,
        generators="own",
        kind="random",
        loader_class=DataLoader,
        augments=None,
        seed=0,
        **loader_options,
    ):
        torch.manual_seed(seed)
        generator = None if generators == "own" else seeded(seed)
        if generators == "shared":
            loader_options["generator"] = generator
        self.augments, self.history = augments, []
        self.schedule = BatchAttentionSchedule(0.9, max_visits=4)
        self.sampler = BatchAttentionSampler(SAMPLERS[kind](generator), 4, schedule=self.schedule, repeats=repeats)
        dataset = [(index, 0) for index in range(20)] if augments is None else augments(Numbered())
        self.loader = loader_class(dataset, batch_sampler=self.sampler, **loader_options)

    def train(self, save=lambda run, moment: None):
        """To the end; ``save`` is called at every moment at which a state may be taken."""
        save(self, "between epochs")
        while self.schedule.epoch < 3:
            self.sampler.set_epoch(self.schedule.epoch)
            for indices, draws in self.schedule.attend(self.loader):
                save(self, "before the visit")
                visit = self.schedule.epoch, self.schedule.visits, indices.tolist()
                dropout = torch.rand(()).item()
                loss = random.Random(str(visit)).lognormvariate(0, 0.5) + 0.1 * dropout
                decision, threshold = self.schedule.decide(loss), self.schedule.threshold
                self.history.append((*visit, loss, threshold, decision, *(draws.tolist() if self.augments else ())))
                save(self, "after the decision")
            save(self, "between epochs")
        return self

    def checkpoint(self):
        """All that a user would save; the sampler's state as JSON text."""
        saved = {"sampler": json.dumps(self.sampler.state_dict(), allow_nan=False), "random": torch.get_rng_state()}
        if self.history and hasattr(self.loader, "state_dict"):
            saved["loader"] = pickle.dumps(self.loader.state_dict())
        return saved

    def load(self, saved):
        """Resume from a checkpoint in these new objects."""
        self.sampler.set_epoch(json.loads(saved["sampler"])["schedule"]["state"]["epoch"])
        if "loader" in saved:
            self.loader.load_state_dict(pickle.loads(saved["loader"]))
        self.sampler.load_state_dict(json.loads(saved["sampler"]))
        torch.set_rng_state(saved["random"])
        return self


def final_generators(run):
    return run.sampler.state_dict()["generator"], torch.get_rng_state().tolist()


def check_resumes(options, moments=MOMENTS, *, every=1):
    checkpoints = []

    def save(run, moment):
        if moment in moments:
            checkpoints.append((len(run.history), run.checkpoint()))

    whole = Run(**options).train(save)
    generators = final_generators(whole)
    assert len(whole.history) > 3 * len(whole.sampler) + 4
    for done, checkpoint in checkpoints[::every]:
        again = Run(**options, seed=1).load(checkpoint).train()
        assert again.history == whole.history[done:]
        assert final_generators(again) == generators


GENERATORS = ("own", "explicit", "shared")
LOADERS = (DataLoader, StatefulDataLoader)
EVERY_RUN = [*itertools.product(("immediate", "deferred"), GENERATORS, SAMPLERS, LOADERS)]


@pytest.mark.parametrize(
    ("repeats", "generators", "kind", "loader_class"),
    [
        ("immediate", "own", "random", DataLoader),
        ("deferred", "explicit", "random", StatefulDataLoader),
        ("immediate", "shared", "with replacement", StatefulDataLoader),
        ("deferred", "shared", "distributed", DataLoader),
        *(pytest.param(*run, marks=pytest.mark.slow) for run in EVERY_RUN),
    ],
)
def test_without_workers_every_moment_of_a_run_can_be_resumed(repeats, generators, kind, loader_class):
    check_resumes({"repeats": repeats, "generators": generators, "kind": kind, "loader_class": loader_class})


@REPEATS
def test_augmentation_drawn_in_this_process_is_resumed_too(repeats):
    # Saved before a visit, what the batch was augmented with has been drawn already.
    check_resumes({"repeats": repeats, "augments": lambda dataset: dataset}, ("between epochs", "after the decision"))


WITH_WORKERS = {"num_workers": 2, "prefetch_factor": 1, "generators": "shared", "timeout": 60}


@pytest.mark.parametrize(
    ("options", "moments", "every"),
    [
        ({"repeats": "immediate", "augments": SeededDataset}, MOMENTS, 25),
        ({"repeats": "deferred", "generators": "explicit", "persistent_workers": True}, MOMENTS, 25),
        ({"repeats": "deferred", "augments": SeededDataset, "loader_class": StatefulDataLoader}, MOMENTS, 25),
        # Persistent workers keep the seed that they were started with.
        ({"repeats": "immediate", "persistent_workers": True}, MOMENTS[:1], 1),
        # Where an epoch has ended, a StatefulDataLoader makes one iterator too many.
        ({"repeats": "deferred", "loader_class": StatefulDataLoader}, MOMENTS[:1], 1),
        *(
            pytest.param({"repeats": repeats, "loader_class": loader_class, **more}, MOMENTS, 2, marks=pytest.mark.slow)
            for repeats, loader_class, more in itertools.product(
                ("immediate", "deferred"),
                LOADERS,
                ({}, {"generators": "explicit"}, {"persistent_workers": True}, {"augments": SeededDataset}),
            )
        ),
    ],
    ids=str,
)
def test_with_workers_a_run_can_be_resumed(options, moments, every):
    check_resumes({**WITH_WORKERS, **options}, moments, every=every)


@REPEATS
def test_a_run_that_is_stopped_after_every_visit_is_the_same_run(repeats):
    options = {"repeats": repeats, "generators": "shared"}
    whole = Run(**options).train()
    generators, run, history = final_generators(whole), Run(**options), []

    def stop(run, moment):
        if moment == "after the decision":
            raise KeyboardInterrupt

    while len(history) < len(whole.history):
        with pytest.raises(KeyboardInterrupt):
            run.train(stop)
        history += run.history
        checkpoint = run.checkpoint()
        run = Run(**options, seed=len(history)).load(checkpoint)
    assert history == whole.history
    assert run.train().history == []
    assert final_generators(run) == generators


KILLED_RUN = {"repeats": "immediate", "generators": "shared", "num_workers": 1}


def run_until_killed(path):
    """Save between two visits of a batch in the second epoch, and die of SIGKILL, in a process of its own."""

    def save_and_die(run, moment):
        if moment == "after the decision" and run.schedule.epoch == 1 and run.schedule.visits:
            torch.save({**run.checkpoint(), "done": len(run.history)}, path)
            os.kill(os.getpid(), signal.SIGKILL)

    Run(**KILLED_RUN).train(save_and_die)


def test_a_run_that_is_killed_between_two_visits_of_one_batch_is_resumed_in_another_process(tmp_path):
    path = str(tmp_path / "checkpoint.pt")
    script = f"from tests.loading.test_resume import run_until_killed; run_until_killed({path!r})"
    assert subprocess.run([sys.executable, "-c", script], timeout=100, check=False).returncode == -signal.SIGKILL
    checkpoint = torch.load(path, weights_only=False)
    whole = Run(**KILLED_RUN).train().history
    assert whole[checkpoint["done"] - 1][5] is Decision.REPEAT
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
    checkpoints = []
    Run("immediate", kind="distributed").train(lambda run, moment: checkpoints.append(run.checkpoint()))
    again = Run("immediate", kind="distributed").load(checkpoints[-4])
    again.sampler.set_epoch(0)
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
