"""Lightning trainings that were killed and go on in another process, or run on two ranks."""

import pytest
import torch

from tests.trainers.in_processes import check_ranks, check_tail, load, make
from tests.trainers.lightning_processes import WINDOWS, ResumableLoader, in_one_process
from tests.trainers.lightning_runs import EPOCHS, MARKS, loss_of, make_lr_scheduler, make_network, make_optimizer
from tests.trainers.plain_loop import plain_loop

pytestmark = MARKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make("lightning_processes", tmp_path_factory.mktemp("runs"))


def test_the_whole_run_is_that_of_the_plain_loop(folder):
    class Anew(ResumableLoader):
        def __iter__(self):
            yield from super().__iter__()
            self.epoch += 1

    run, steps = load(folder, "whole")
    network = make_network()
    optimizer = make_optimizer(network)
    torch.manual_seed(6)
    expected = plain_loop(
        network,
        lambda batch: loss_of(network, batch),
        optimizer,
        make_lr_scheduler(optimizer),
        Anew(),
        epochs=EPOCHS,
        accumulation=2,
    )
    assert run == expected
    assert steps == EPOCHS * WINDOWS


# Where it goes on: in mid-epoch, at an epoch's begin, and at a window that was being repeated.
@pytest.mark.parametrize(
    ("kill", "where"), [("mid-epoch", (1, 2, 1)), ("last-step", (2, 0, 1)), ("repeats", (2, 2, 1))]
)
def test_a_run_that_was_killed_and_resumed_has_the_same_tail(folder, kill, where):
    (whole, steps), (resumed, resumed_steps) = load(folder, "whole"), load(folder, kill)
    check_tail(whole, resumed, where)
    assert resumed_steps == steps


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_train_as_one_process_does_on_their_joined_batches(folder, accumulation):
    check_ranks(folder, str(accumulation), in_one_process(accumulation), rtol=1e-9, atol=1e-12)


def test_the_mean_over_ranks_is_that_over_their_samples(folder):
    (decided, first), (decided_too, second) = (load(folder, f"sizes-rank{rank}") for rank in (0, 1))
    assert decided == decided_too
    assert len(decided) > 10
    assert decided == pytest.approx([(4 * mine + 2 * other) / 6 for mine, other in zip(first, second, strict=True)])
