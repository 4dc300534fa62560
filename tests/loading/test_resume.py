"""Saved at any moment and resumed in new objects, a run continues as if it had never stopped, bit for bit."""

import functools
import itertools
import json
import pickle
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, SeededDataset
from batch_sampler_attn.errors import ProtocolError, StateError
from tests.loading.drivers import DRIVERS, MORE_DRIVERS, SAMPLES, load, resumed, saved, train
from tests.loading.helpers import BATCHES, FORKING_IS_FINE, Numbered, make, run_epoch, seeded
from tests.samples.runs import LooksAhead

pytestmark = [*FORKING_IS_FINE, pytest.mark.usefixtures("one_thread")]

# The same run ------------------------------------------------------------------------------------------------

MOMENTS = ("batch", "report", "epoch")
SEEDED = SeededDataset(Numbered(SAMPLES))


def run(
    kind, checkpoint=None, *, moments=(), dataset=SEEDED, loader_class=DataLoader, ahead=0, shared=False, **options
):
    """A run with dropout, which draws from torch's global generator as DataLoaders do, and samplers without their own.

    Its visits, the numbers drawn, and its state at the end; and the checkpoints of the ``moments``, each with the
    number of visits before it. With ``shared``, loader and sampler have one generator.
    """
    torch.manual_seed(0 if checkpoint is None else 1)
    driver = MORE_DRIVERS[kind]()
    if shared:
        options["generator"] = driver.sampler.sampler.generator
    elif ahead or ("samples" in kind and (loader_class is StatefulDataLoader or "persistent_workers" in options)):
        # Only PyTorch's own loader, given to attend() itself, draws no number more on a resume.
        options["generator"] = torch.Generator()
    loader = load(driver, loader_class, dataset, **options)
    if checkpoint is not None:
        state, of_torch, of_loader = checkpoint
        if of_loader is not None:
            loader.load_state_dict(pickle.loads(of_loader))
        driver.sampler.load_state_dict(json.loads(state))
        assert saved(driver) == state
        torch.set_rng_state(of_torch)
    draws, checkpoints = [], []

    def save(moment):
        if moment in moments:
            of_loader = pickle.dumps(loader.state_dict()) if loader_class is StatefulDataLoader else None
            checkpoints.append((len(draws), (saved(driver), torch.get_rng_state(), of_loader)))
        if moment == "batch":
            draws.append(torch.rand(()).item())

    hooks = {f"on_{moment}": functools.partial(save, moment) for moment in MOMENTS}
    visits = train(driver, LooksAhead(loader, ahead) if ahead else loader, **hooks)
    return visits, draws, (saved(driver), torch.get_rng_state().tolist()), checkpoints


def check_resumes(kind, moments=MOMENTS, *, every=5, **options):
    visits, draws, end, checkpoints = run(kind, moments=moments, **options)
    assert "samples" in kind or len(visits) > len({place[:2] for place, _ in visits})
    items = [item for _, batch in visits for item in batch]
    assert len({*items}) == len(items)  # no two visits have the same draws
    if "windows" in kind:
        del checkpoints[-2:]  # the third window has ended, so that there is no loop to end the last pass
    for done, checkpoint in checkpoints[::every]:
        assert run(kind, checkpoint, **options)[:3] == (visits[done:], draws[done:], end)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *((kind, {"every": 3}) for kind in DRIVERS),
        *((kind, {}) for kind in MORE_DRIVERS if kind not in DRIVERS),
        *((kind, {"ahead": 2}) for kind in MORE_DRIVERS if "immediate" not in kind),
        *(pytest.param(kind, {"every": 1}, marks=pytest.mark.slow) for kind in MORE_DRIVERS),
        ("immediate", {"shared": True, "loader_class": StatefulDataLoader}),
        ("deferred, drawn one by one", {"shared": True}),
        *(pytest.param(kind, {"loader_class": StatefulDataLoader}, marks=pytest.mark.slow) for kind in MORE_DRIVERS),
    ],
)
def test_without_workers_the_state_at_any_moment_resumes_to_the_same_end(kind, options):
    check_resumes(kind, **options)


def test_augmentation_drawn_in_this_process_is_resumed_too():
    # Saved before a visit, what the batch was augmented with has been drawn already.
    options = {"dataset": Numbered(SAMPLES), "collate_fn": lambda items: [item[:2] for item in items], "every": 1}
    check_resumes("immediate", ("report", "epoch"), **options)


@pytest.mark.parametrize(
    ("kind", "options", "moments", "every"),
    [
        pytest.param("immediate", {"shared": True}, MOMENTS, 41, marks=pytest.mark.slow),
        ("deferred", {"shared": True, "persistent_workers": True}, MOMENTS, 41),
        ("deferred", {"loader_class": StatefulDataLoader}, MOMENTS, 41),
        ("samples", {}, MOMENTS, 41),
        # Persistent workers keep the seed that they were started with.
        ("immediate", {"persistent_workers": True}, ("epoch",), 1),
        # Where an epoch has ended, a StatefulDataLoader makes one iterator too many.
        pytest.param(
            "deferred", {"loader_class": StatefulDataLoader, "shared": True}, ("epoch",), 1, marks=pytest.mark.slow
        ),
        *(
            pytest.param(kind, {"loader_class": loader_class, **more}, MOMENTS, 2, marks=pytest.mark.slow)
            for kind, loader_class, more in itertools.product(
                DRIVERS, (DataLoader, StatefulDataLoader), ({}, {"persistent_workers": True})
            )
        ),
    ],
    ids=str,
)
def test_with_workers_a_run_can_be_resumed(kind, options, moments, every):
    check_resumes(kind, moments, every=every, num_workers=2, prefetch_factor=1, **options)


def test_a_run_is_resumed_in_another_process(tmp_path):
    path = str(tmp_path / "checkpoints.pt")
    script = f"""import torch; from tests.loading.test_resume import run
torch.save({{kind: run(kind, moments=["report"])[3][9] for kind in {[*DRIVERS]}}}, {path!r})"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], timeout=100, check=True)
    for kind, (done, checkpoint) in torch.load(path, weights_only=False).items():
        visits, draws, end, _ = run(kind)
        assert run(kind, checkpoint)[:3] == (visits[done:], draws[done:], end)


@pytest.mark.parametrize("kind", [pytest.param("immediate", marks=pytest.mark.slow), "samples, all alike"])
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
        (lambda base: started(base(23)), "dataset or the sampler differs"),
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
    driver = MORE_DRIVERS["deferred, distributed"]()
    train(driver, load(driver), stop=20)
    twin = resumed("deferred, distributed", saved(driver))
    twin.sampler.set_epoch(0)
    with pytest.raises(StateError, match=r"call its set_epoch\(\) as before"):
        next(iter(twin.schedule.attend(load(twin))))


def test_the_schedule_s_state_alone_is_enough_between_epochs_and_not_within_one():
    schedule, _, loader, _ = make("immediate")
    run_epoch(schedule, loader)
    between, within = schedule.state_dict(), []
    for _ in schedule.attend(loader):
        schedule.decide(2.0 if schedule.batch_index == 1 and schedule.visits == 0 else 1.0)
        within.append(schedule.state_dict())
    for state in within[:3]:
        schedule, _, loader, _ = make("immediate")
        schedule.load_state_dict(state)
        with pytest.raises(ProtocolError, match=r"load sampler.state_dict\(\), which holds both"):
            next(iter(schedule.attend(loader)))
    schedule.load_state_dict(between)
    assert len(run_epoch(schedule, loader)) == BATCHES


def test_an_epoch_that_was_loaded_and_abandoned_starts_again():
    schedule, sampler, loader, _ = make("immediate")
    sampler.load_state_dict(started(RandomSampler(range(24), generator=seeded())).state_dict())
    schedule.abandon_epoch()
    assert sampler.state_dict()["position"] == 0
    assert len(run_epoch(schedule, loader)) == BATCHES


def test_indices_that_json_cannot_hold_are_refused_as_they_are_saved():
    sampler = BatchAttentionSampler([[(0, 1)], [(1, 0)]])
    next(iter(sampler.schedule.attend(DataLoader({(0, 1): 1, (1, 0): 2}, batch_sampler=sampler))))
    with pytest.raises(StateError, match="only whole numbers and strings can be saved"):
        sampler.state_dict()
