"""Saved at any moment and resumed in fresh objects, a run goes on as if it had never stopped, bit for bit."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, Sampler, SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision, checkpoint
from batch_sampler_attn.errors import ProtocolError, StateError
from tests.loading.helpers import (
    BATCHES,
    FORKING_IS_FINE,
    KILLED_RUN,
    TORCHDATA_IS_FINE,
    LooksAhead,
    Numbered,
    Run,
    make,
    no_deadlock,  # noqa: F401  (a fixture of every test here)
    seeded,
)

pytestmark = [*FORKING_IS_FINE, TORCHDATA_IS_FINE, pytest.mark.usefixtures("one_thread")]

LOADERS = pytest.mark.parametrize("loader_class", [DataLoader, StatefulDataLoader])
REPEATS = pytest.mark.parametrize("repeats", ["immediate", "deferred"])
MOMENTS = ("between epochs", "before the visit", "after the decision")


def uninterrupted(options, moments):
    """The run in one go, and a checkpoint, with the visits done by then, of every moment."""
    checkpoints = []

    def save(run, moment):
        if moment in moments:
            checkpoints.append((moment, len(run.history), run.checkpoint()))

    return Run(**options).train(save), checkpoints


def final_generators(run):
    return run.sampler.state_dict()["generator"], torch.get_rng_state().tolist()


def check_every_resume(options, moments=MOMENTS, *, every=1):
    whole, checkpoints = uninterrupted(options, moments)
    generators = final_generators(whole)
    decisions = [visit[3] for visit in whole.history]
    assert decisions.count("repeat") >= 4
    for moment, done, saved in checkpoints[::every]:
        resumed = Run(**options, seed=1).load(saved).train()
        assert resumed.history == whole.history[done:], (moment, done)
        assert final_generators(resumed) == generators, (moment, done)


@LOADERS
@REPEATS
@pytest.mark.parametrize("generators", ["own", "explicit", "shared"])
def test_without_workers_every_moment_of_a_run_can_be_resumed(generators, repeats, loader_class):
    check_every_resume({"repeats": repeats, "generators": generators, "loader_class": loader_class})


@REPEATS
def test_augmentation_drawn_in_this_process_is_resumed_too(repeats):
    # Saved before a visit, what the batch was augmented with has been drawn already.
    moments = ("between epochs", "after the decision")
    check_every_resume({"repeats": repeats, "is_augmented": True}, moments)


@REPEATS
@pytest.mark.parametrize("kind", ["with replacement", "sequential", "distributed"])
def test_other_samplers_are_resumed_too(kind, repeats):
    check_every_resume({"repeats": repeats, "kind": kind})


WITH_WORKERS = {"samples": 12, "num_workers": 2, "prefetch_factor": 1, "generators": "shared"}


@LOADERS
@REPEATS
def test_with_workers_every_moment_of_a_run_can_be_resumed(repeats, loader_class):
    check_every_resume({"repeats": repeats, "loader_class": loader_class, **WITH_WORKERS})


@pytest.mark.parametrize(
    ("repeats", "loader_class", "options"),
    [
        ("immediate", DataLoader, {"generators": "explicit"}),
        ("deferred", DataLoader, {"generators": "explicit"}),
        ("immediate", StatefulDataLoader, {"persistent_workers": True}),
        ("deferred", StatefulDataLoader, {"persistent_workers": True}),
        ("deferred", DataLoader, {"persistent_workers": True}),
        ("deferred", DataLoader, {"prefetch_factor": 3}),
        ("deferred", StatefulDataLoader, {"prefetch_factor": 3}),
    ],
)
def test_with_other_options_for_workers_a_run_can_be_resumed(repeats, loader_class, options):
    check_every_resume({"repeats": repeats, "loader_class": loader_class, **WITH_WORKERS, **options}, every=8)


@LOADERS
@REPEATS
def test_workers_that_persist_keep_their_seed_where_a_run_goes_on_between_epochs(repeats, loader_class):
    options = {"repeats": repeats, "loader_class": loader_class, "persistent_workers": True, **WITH_WORKERS}
    check_every_resume(options, ["between epochs"])


@pytest.mark.parametrize(("workers_before", "workers_after"), [(0, 2), (2, 0)])
def test_with_immediate_repeats_a_run_can_go_on_with_another_number_of_workers(workers_before, workers_after):
    options = {"repeats": "immediate", "generators": "shared"}
    whole, checkpoints = uninterrupted({**options, "num_workers": workers_before}, MOMENTS)
    for _, done, saved in checkpoints[::6]:
        resumed = Run(**options, num_workers=workers_after, seed=1).load(saved).train()
        assert resumed.history == whole.history[done:]
        assert final_generators(resumed) == final_generators(whole)


def test_nothing_of_torch_s_global_generator_needs_saving_once_the_first_epoch_has_begun():
    options = {"repeats": "immediate", "dropout": 0.0}
    whole, checkpoints = uninterrupted(options, ["after the decision"])
    for _, done, saved in checkpoints:
        del saved["random"]
        assert Run(**options, seed=1).load(saved).train().history == whole.history[done:]


@pytest.mark.parametrize("workers", [0, 2])
@REPEATS
def test_a_stateful_loader_s_own_state_is_not_needed(repeats, workers):
    options = {"repeats": repeats, "loader_class": StatefulDataLoader, "num_workers": workers}
    whole, checkpoints = uninterrupted(options, MOMENTS)
    for _, done, saved in checkpoints[:: 12 if workers else 1]:
        saved.pop("loader", None)
        assert Run(**options, seed=1).load(saved).train().history == whole.history[done:]


@pytest.mark.parametrize(("repeats", "first_workers"), [("immediate", 0), ("immediate", 2), ("deferred", 0)])
def test_a_run_that_is_stopped_after_every_visit_is_the_same_run(repeats, first_workers):
    # With workers at first, batches are in flight that the lives without workers hand out one by one.
    options = {"repeats": repeats, "generators": "shared"}
    whole, _ = uninterrupted({**options, "num_workers": first_workers}, [])
    run, saved, history = Run(**options, num_workers=first_workers), None, []

    def stop(run, moment):
        if moment == "after the decision":
            raise KeyboardInterrupt

    while len(history) < len(whole.history):
        with pytest.raises(KeyboardInterrupt):
            (run if saved is None else run.load(saved)).train(stop)
        history += run.history
        saved = run.checkpoint()
        run = Run(**options, seed=len(history))
    assert history == whole.history
    assert run.load(saved).train().history == []
    assert final_generators(run) == final_generators(whole)


def test_batches_on_their_way_keep_their_order_where_a_resumed_run_is_saved_with_one_of_them_out():
    options = {"repeats": "immediate", "generators": "shared"}
    whole, checkpoints = uninterrupted({**options, "num_workers": 2}, ["after the decision"])

    def stop(run, moment):
        if moment == "before the visit":
            raise KeyboardInterrupt

    for _, done, saved in checkpoints[::6]:
        stopped = Run(**options, seed=1).load(saved)
        with pytest.raises(KeyboardInterrupt):
            stopped.train(stop)
        saved = stopped.checkpoint()
        resumed = Run(**options, seed=2).load(saved).train()
        assert resumed.history == whole.history[done:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_through_a_wrapper_that_reads_ahead_can_be_resumed(workers):
    # Without dropout: when a wrapper has its loader draw a seed from torch's global generator is not known.
    def make_run(**options):
        run = Run("deferred", generators="explicit", dropout=0.0, samples=16, num_workers=workers, **options)
        run.loader = LooksAhead(run.loader)
        return run

    checkpoints = []
    whole = make_run().train(lambda run, moment: checkpoints.append((len(run.history), run.checkpoint())))
    for done, saved in checkpoints[:: 8 if workers else 1]:
        assert make_run(seed=1).load(saved).train().history == whole.history[done:]


@REPEATS
def test_a_state_can_be_taken_after_leaving_the_loop(repeats):
    whole, _ = uninterrupted({"repeats": repeats}, [])
    for stop_after in range(1, len(whole.history), 3):
        run = Run(repeats)

        def stop(run, moment, stop_after=stop_after):
            if moment == "after the decision" and len(run.history) == stop_after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run.train(stop)
        saved = run.checkpoint()
        resumed = Run(repeats, seed=1).load(saved).train()
        assert resumed.history == whole.history[stop_after:]


@pytest.mark.parametrize("workers", [0, 2])
@REPEATS
def test_an_earlier_state_can_be_loaded_into_the_very_objects_that_went_on(repeats, workers):
    run = Run(repeats, generators="shared", num_workers=workers, persistent_workers=workers > 0)
    checkpoints = []
    run.train(lambda run, moment: checkpoints.append((len(run.history), run.checkpoint())))
    history = run.history
    for done, saved in checkpoints[:: 20 if workers else 5]:
        run.history = []
        assert run.load(saved).train().history == history[done:]


def test_a_run_that_is_killed_between_two_visits_of_one_batch_goes_on_in_a_new_process(tmp_path):
    def start(command):
        module = [sys.executable, "-m", "tests.loading.helpers", command, str(tmp_path / "checkpoint.pt")]
        return subprocess.run(module, timeout=100, check=False).returncode

    assert start("until-killed") == -signal.SIGKILL
    assert start("from-checkpoint") == 0
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    whole = Run(**KILLED_RUN).train()
    assert whole.history[saved["done"] - 1][3] == "repeat"
    assert json.loads((tmp_path / "checkpoint.json").read_text()) == whole.history[saved["done"] :]


# States that cannot be loaded --------------------------------------------------------------------------


def state_in_mid_epoch(repeats="immediate", **options):
    """The state of a run that stopped between two visits of one batch, with batches in flight."""
    schedule, sampler, loader, _ = make(repeats, num_workers=1, **options)
    for _ in schedule.attend(loader):
        schedule.decide(1.0)
    decisions = []
    for at, _ in enumerate(schedule.attend(loader)):
        decisions.append(schedule.decide(2.0 if at == 4 else 1.0))
        if at == 4:
            break
    assert decisions[-1] is Decision.REPEAT
    state = sampler.state_dict()
    assert len(state["flight"]) == 2
    assert len(state["pending"]) == 1
    return json.loads(json.dumps(state))


def check_refused_whole(sampler, state, *words):
    """The load fails with a reason, and leaves everything as it was."""
    users_generator = sampler.sampler.generator
    before = sampler.state_dict(), torch.get_rng_state().tolist(), users_generator.get_state().tolist()
    with pytest.raises(StateError, match="(?s)" + ".*".join(words)):
        sampler.load_state_dict(state)
    assert (sampler.state_dict(), torch.get_rng_state().tolist(), users_generator.get_state().tolist()) == before


def fresh(repeats="immediate", **options):
    schedule, sampler, loader, _ = make(repeats, **options)
    # Something to lose: an epoch done, another begun.
    for _ in schedule.attend(loader):
        schedule.decide(1.0)
    for _ in schedule.attend(loader):
        schedule.decide(1.0)
        break
    return sampler


def test_the_state_is_plain_json_and_survives_it():
    state = state_in_mid_epoch()
    _, sampler, _, _ = make("immediate")
    sampler.load_state_dict(state)
    assert json.loads(json.dumps(sampler.state_dict(), allow_nan=False)) == state


DAMAGES = [
    ("version", 1, ["version 1", "reads version 3"]),
    ("version", None, ["version None"]),
    ("options", {}, ["changed or damaged"]),
    ("schedule", None, ["changed or damaged"]),
    ("position", 6, ["changed or damaged"]),
    ("position", True, ["changed or damaged"]),
    ("is_exhausted", True, ["changed or damaged"]),
    ("last_base_batch", [0, 0], ["changed or damaged"]),
    ("flight", [], ["changed or damaged"]),
    ("pending", [[2, 1, [1, 2]], [4, 1, [3, 4]]], ["changed or damaged"]),
    ("generator", "00ff", ["changed or damaged"]),
    ("fingerprint", 0, ["changed or damaged"]),
]


@pytest.mark.parametrize(("name", "value", "words"), DAMAGES, ids=lambda part: str(part)[:30])
def test_a_damaged_state_is_refused_whole(name, value, words):
    check_refused_whole(fresh(), {**state_in_mid_epoch(), name: value}, *words)


@pytest.mark.parametrize(
    "name", ["begun", "epoch_generator", "flight", "generator", "options", "pending", "position", "schedule", "shard"]
)
def test_a_state_that_lacks_a_field_or_has_one_too_many_is_refused_whole(name):
    state = state_in_mid_epoch()
    del state[name]
    check_refused_whole(fresh(), state, "the sampler's state is of something else, or was changed")
    check_refused_whole(fresh(), {**state_in_mid_epoch(), "more": 1}, "the sampler's state is of something else")


def sealed(state):
    """As one that was saved so."""
    return checkpoint.seal({name: value for name, value in state.items() if name not in ("version", "fingerprint")})


@pytest.mark.parametrize("state", [None, [], "state", 3, {}, {"saved_by_loader": True}], ids=str)
def test_what_is_no_state_is_refused_whole(state):
    check_refused_whole(fresh(), state, "the sampler's state")


def test_the_generator_of_another_order_is_refused_whole():
    state = state_in_mid_epoch()
    other = sealed({**state, "epoch_generator": state["generator"]})
    check_refused_whole(fresh(), other, "data set or the sampler differs")


def test_a_state_of_other_options_is_refused_whole():
    state = state_in_mid_epoch()
    check_refused_whole(fresh("deferred"), state, "repeats .saved 'immediate', here 'deferred'", "start without")
    check_refused_whole(fresh(k=1.3), state, "k .saved 1.5, here 1.3")
    sampler = BatchAttentionSampler(
        RandomSampler(range(24), generator=seeded()), 3, True, schedule=BatchAttentionSchedule(1.5, epoch_loss="last")
    )
    check_refused_whole(sampler, state, "batch_size .saved 2, here 3", "drop_last .saved False, here True")


def test_a_state_over_other_data_is_refused_whole():
    check_refused_whole(fresh(dataset=Numbered(23)), state_in_mid_epoch(), "data set or the sampler", "differs")
    check_refused_whole(fresh(dataset=Numbered(4)), state_in_mid_epoch(), "has indices None")


def test_a_generator_s_state_is_refused_by_a_sampler_that_has_none():
    for sampler in (SequentialSampler(range(24)), RandomSamplerOfTheUser(range(24))):
        schedule = BatchAttentionSchedule(1.5, epoch_loss="last")
        ours = BatchAttentionSampler(sampler, 2, schedule=schedule)
        before = ours.state_dict()
        with pytest.raises(StateError, match="has no generator here; construct the sampler as it was"):
            ours.load_state_dict(state_in_mid_epoch())
        assert ours.state_dict() == before


class RandomSamplerOfTheUser(RandomSampler):
    pass


def test_a_sampler_that_shuffles_by_the_global_generator_is_found_out():
    def make_sampler():
        schedule = BatchAttentionSchedule()
        return BatchAttentionSampler(RandomSamplerOfTheUser(range(200)), 20, schedule=schedule)

    sampler = make_sampler()
    loader = DataLoader(Numbered(200), batch_sampler=sampler)
    next(iter(sampler.schedule.attend(loader)))
    state = sampler.state_dict()
    with pytest.raises(StateError, match=r"shuffles without a generator of its own: give it generator="):
        make_sampler().load_state_dict(state)


def test_a_distributed_sampler_of_another_epoch_is_found_out_as_the_loop_begins():
    run = Run("immediate", kind="distributed")
    checkpoints = []
    run.train(lambda run, moment: checkpoints.append(run.checkpoint()))
    resumed = Run("immediate", kind="distributed").load(checkpoints[-4])
    resumed.base.set_epoch(0)
    with pytest.raises(StateError, match=r"call its set_epoch\(\) as before"):
        next(iter(resumed.schedule.attend(resumed.loader)))


# Half of what is needed --------------------------------------------------------------------------------


@pytest.mark.parametrize("visits", [1, 2, 4], ids="stopped after {} visits".format)
def test_the_schedule_s_state_alone_is_not_enough_in_mid_epoch(visits):
    schedule, _, loader, _ = make("immediate")
    for _ in schedule.attend(loader):
        schedule.decide(1.0)
    for at, _ in enumerate(schedule.attend(loader), start=1):
        schedule.decide(2.0)
        if at == visits:
            break
    state = schedule.state_dict()
    schedule, _, loader, _ = make("immediate")
    schedule.load_state_dict(state)
    with pytest.raises(ProtocolError, match=r"load sampler.state_dict\(\), which holds both"):
        next(iter(schedule.attend(loader)))


def test_the_schedule_s_state_alone_will_do_between_epochs():
    schedule, _, loader, _ = make("immediate")
    for _ in schedule.attend(loader):
        schedule.decide(1.0)
    state = schedule.state_dict()
    schedule, _, loader, _ = make("immediate")
    schedule.load_state_dict(state)
    assert sum(1 for _ in schedule.attend(loader) if schedule.decide(1.0)) == BATCHES


@pytest.mark.parametrize("workers", [0, 2])
@REPEATS
def test_a_stateful_loader_s_state_alone_is_refused(repeats, workers):
    schedule, _, loader, _ = make(repeats, loader_class=StatefulDataLoader, num_workers=workers)
    for at, _ in enumerate(schedule.attend(loader)):
        schedule.decide(1.0)
        if at == 3:
            break
    state = loader.state_dict()
    schedule, _, loader, _ = make(repeats, loader_class=StatefulDataLoader, num_workers=workers)
    loader.load_state_dict(state)
    with pytest.raises(
        StateError, match=r"Save the sampler's state_dict\(\) beside loader.state_dict\(\), and load both"
    ):
        next(iter(schedule.attend(loader)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_s_state_asked_for_before_the_first_epoch_is_found_out(workers):
    schedule, _, loader, _ = make("immediate", loader_class=StatefulDataLoader, num_workers=workers)
    loader.state_dict()
    with pytest.raises(ProtocolError, match=r"a StatefulDataLoader that is asked for its state before the epoch"):
        next(iter(schedule.attend(loader)))


def test_a_stateful_loader_that_takes_a_snapshot_only_now_and_then_is_refused():
    schedule, _, loader, _ = make("immediate", loader_class=StatefulDataLoader, snapshot_every_n_steps=2)
    with pytest.raises(ProtocolError, match=r"snapshot_every_n_steps=2.*leave it at 1"):
        next(iter(schedule.attend(loader)))


def test_an_iterator_from_before_a_load_is_stale():
    schedule, sampler, loader, _ = make("immediate")
    iterator = iter(schedule.attend(loader))
    next(iterator)
    schedule.decide(1.0)
    sampler.load_state_dict(sampler.state_dict())
    with pytest.raises(ProtocolError, match="a state was loaded since"):
        next(iterator)
    assert sum(1 for _ in schedule.attend(loader) if schedule.decide(1.0)) == BATCHES - 1
    assert schedule.last_summary.batches == BATCHES


def test_indices_that_json_cannot_hold_are_refused_as_they_are_saved():
    class Pairs(Sampler):
        def __len__(self):
            return 2

        def __iter__(self):
            yield [(0, 1)]
            yield [(1, 0)]

    schedule = BatchAttentionSchedule()
    sampler = BatchAttentionSampler(Pairs(), schedule=schedule)
    loader = DataLoader({(0, 1): 1, (1, 0): 2}, batch_sampler=sampler)
    next(iter(schedule.attend(loader)))
    with pytest.raises(StateError, match="only whole numbers and strings can be saved"):
        sampler.state_dict()


@REPEATS
def test_string_indices_are_visited_and_saved(repeats):
    schedule = BatchAttentionSchedule()
    sampler = BatchAttentionSampler(["a", "b", "c"], 2, schedule=schedule, repeats=repeats)
    loader = DataLoader({"a": 1, "b": 2, "c": 3}, batch_sampler=sampler)
    next(iter(schedule.attend(loader)))
    sampler.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    seen = []
    for batch in schedule.attend(loader):
        seen.append(batch.tolist())
        schedule.decide(1.0)
    assert seen == [[1, 2], [3]]
