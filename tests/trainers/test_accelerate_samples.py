"""Attention to samples around accelerate: as in a loop without it, also after a resume and on ranks.

python -m tests.trainers.test_accelerate_samples FOLDER
"""

import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.trainers.accelerate import register_for_checkpointing
from tests.samples.runs import LooksAhead
from tests.trainers.accelerate_runs import EPOCHS, MARKS, SAMPLES, make_accelerator, make_dataset, make_network
from tests.trainers.forks import RANKS, on_ranks
from tests.trainers.in_processes import load, make
from tests.trainers.sample_notes import Noted, finish

pytestmark = MARKS

SIZE = 4
MANY = {"k": 1.0, "seed": 3, "epochs": EPOCHS, "updates": 12}
# In mid-epoch, and after an epoch's last batch.
SAVES = (16, 24)


def make_parts(rank, workers=0):
    ranks = {} if rank is None else {"rank": rank, "world_size": RANKS, "ranks": MeanOverRanks(timeout_seconds=60)}
    attention = Noted(SAMPLES, SIZE, **MANY, **ranks)
    # With a generator of its own, a loader takes none of the random numbers of dropout.
    generator = torch.Generator().manual_seed(4)
    loader = DataLoader(make_dataset(), batch_sampler=attention, num_workers=workers, generator=generator)
    network = make_network()
    return attention, loader, network, torch.optim.Adam(network.parameters(), lr=0.01)


def by_accelerate(folder, rank=None, *, size=2, workers=0, prepares=False, resume=None):
    """Train to the end, from a checkpoint or with two."""
    accelerator = make_accelerator(gradient_accumulation_steps=size)
    attention, loader, network, optimizer = make_parts(rank, workers)
    model, optimizer = accelerator.prepare(network, optimizer)
    attended = attention.attend(accelerator.prepare(loader) if prepares else loader)
    register_for_checkpointing(accelerator, attention)
    torch.manual_seed(6)
    if resume:
        accelerator.load_state(str(folder / f"state-{resume}"))
    updates = resume or 0
    for _ in range(attention.epoch, EPOCHS):
        for inputs, targets in attended:
            with accelerator.accumulate(model):
                losses = nn.functional.cross_entropy(model(inputs), targets, reduction="none")
                accelerator.backward(attention.weighted_mean(losses))
                optimizer.step()
                optimizer.zero_grad()
            updates += 1
            if updates in SAVES and not resume:
                accelerator.save_state(str(folder / f"state-{updates}"))
    return finish(attention, [], network)


def by_hand(rank=None, *, size=2, workers=0, ahead=0):
    attention, loader, network, optimizer = make_parts(rank, workers)
    model = network if rank is None else DistributedDataParallel(network)
    attended = attention.attend(LooksAhead(loader, ahead) if ahead else loader)
    torch.manual_seed(6)
    for _ in range(EPOCHS):
        for index, (inputs, targets) in enumerate(attended):
            is_last = (index + 1) % size == 0
            with model.no_sync() if rank is not None and not is_last else nullcontext():
                losses = nn.functional.cross_entropy(model(inputs), targets, reduction="none")
                (attention.weighted_mean(losses) / size).backward()
            if is_last:
                optimizer.step()
                optimizer.zero_grad()
    return finish(attention, [], network)


def check_tail(whole, resumed, behind):
    assert resumed.batches == whole.batches[behind:]
    assert torch.equal(resumed.weights, whole.weights)
    assert resumed.last == whole.last


# A prepared loader reads one batch ahead.
@pytest.mark.parametrize(("size", "workers", "prepares"), [(1, 0, False), (4, 2, False), (1, 0, True), (3, 2, True)])
def test_it_trains_as_the_loop_without_accelerate_and_resumes(size, workers, prepares, tmp_path):
    run = by_accelerate(tmp_path, size=size, workers=workers, prepares=prepares)
    assert run == by_hand(size=size, workers=workers, ahead=int(prepares))
    for save in SAVES:
        resumed = by_accelerate(tmp_path, size=size, workers=workers, prepares=prepares, resume=save)
        if save % size == 0:
            check_tail(run, resumed, save)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make("test_accelerate_samples", tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("rank", range(RANKS))
def test_ranks_train_as_loops_without_accelerate_and_resume(folder, rank):
    whole, resumed, plain, refusal = load(folder, f"samples-rank{rank}")
    assert whole == plain
    check_tail(whole, resumed, SAVES[0])
    assert "a BatchSamplerShard around this Noted" in refusal
    assert "give it rank= and world_size=, and no loader to accelerate's prepare()" in refusal


def on_a_rank(rank, folder):
    runs = by_accelerate(folder, rank), by_accelerate(folder, rank, resume=SAVES[0]), by_hand(rank)
    attention, loader, *_ = make_parts(rank)
    with pytest.raises(ProtocolError) as error:
        attention.attend(make_accelerator().prepare(loader))
    return *runs, str(error.value)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    root = Path(sys.argv[1])
    on_ranks(on_a_rank, root, results=root / "samples")
