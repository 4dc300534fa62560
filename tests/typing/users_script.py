"""A user's script, with every public name in use: strict type checkers find nothing to say about it."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import batch_sampler_attn
from batch_sampler_attn import (
    BatchAttentionSampler,
    BatchAttentionSchedule,
    Decision,
    EpochLoss,
    EpochSummary,
    EqualComputeControl,
    SeededDataset,
)
from batch_sampler_attn.device import DeviceLoop
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import BatchAttentionError
from batch_sampler_attn.recorders import JsonLinesRecorder, MemoryRecorder, most_repeated, read_visits, visit_counts

which: EpochLoss = "first"
recorder = MemoryRecorder()
schedule = BatchAttentionSchedule(k=1.2, epoch_loss=which, recorders=[recorder])
data = TensorDataset(torch.zeros(10, 2))
sampler = BatchAttentionSampler(RandomSampler(data), 2, schedule=schedule)
loader: DataLoader[tuple[torch.Tensor, ...]] = DataLoader(data, batch_sampler=sampler)
attended = schedule.attend(loader)
for batch in attended:
    decision = attended.schedule.decide(batch[0].sum())
    done: bool = decision is Decision.ADVANCE
of_ranks = BatchAttentionSchedule(ranks=MeanOverRanks(timeout_seconds=60))
of_ranks.report(torch.tensor(1.0), samples=32)
is_done: bool = of_ranks.decide() is Decision.ADVANCE
alone = BatchAttentionSchedule(ranks=None)
sharded = BatchAttentionSampler(RandomSampler(data), 2, schedule=alone, rank=0, world_size=2)
for number in BatchAttentionSchedule().attend([1, 2, 3]):
    print(number + 1)
summary: EpochSummary = schedule.last_summary
print(summary.overhead + 1.0, summary.as_dict())
control = EqualComputeControl(visit_counts(recorder.visits))
state = schedule.state_dict()
schedule.load_state_dict(state)
print(most_repeated(recorder.visits)[0].indices, read_visits, JsonLinesRecorder, SeededDataset, BatchAttentionError)
print(DeviceLoop, control.threshold)
# What a type checker refuses: an ignored error that is none is an error of its own.
missing = batch_sampler_attn.nothing  # type: ignore[attr-defined]
BatchAttentionSchedule(epoch_loss="mean")  # type: ignore[arg-type]
wrong = BatchAttentionSchedule().batch_index + "1"  # type: ignore[operator]
