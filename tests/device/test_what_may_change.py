"""The table of docs/what-may-change.md, row by row."""

import copy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import Augmentation, DeviceLoop, ResidentData, StagedData
from batch_sampler_attn.recorders import MemoryRecorder
from tests.device.helpers import CLASSES, add_noise, make_data, refused, same, without_reads

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # forked workers, Python 3.12
]

TABLE = Path(__file__).parents[2] / "docs" / "what-may-change.md"
SAMPLES, BATCH_SIZE = 44, 8
WITHOUT = "no schedule"


def make_model(width, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Unflatten(1, (2, 1, 3)), nn.Conv2d(2, width, (1, 2)), nn.ReLU(), nn.Dropout(0.2), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(2 * width, CLASSES))


def make_loop(
    *,
    samples=SAMPLES,
    batch_size=BATCH_SIZE,
    labels=0,
    inputs=0,
    shuffle=True,
    has_generator=True,
    data_seed=5,
    staged=False,
    slots=4,
    workers=0,
    prefetch=None,
    width=4,
    model_seed=0,
    optimizer=torch.optim.Adam,
    optimizer_options=None,
    is_scaled=False,
    schedule_options=None,
    loss_fn=nn.functional.cross_entropy,
    **options,
):
    tensors = make_data(samples, inputs)[0], make_data(samples, labels)[1]
    generator = torch.Generator().manual_seed(data_seed)
    if staged:
        dataset, generator = TensorDataset(*tensors), generator if has_generator else None
        sampler = RandomSampler(dataset, generator=generator)
        ahead = {"num_workers": workers, "prefetch_factor": prefetch}
        loader = DataLoader(dataset, batch_size, sampler=sampler, generator=generator, **ahead)
        data = StagedData(loader, batch_size, "cpu", slots=slots)
    else:
        data = ResidentData(*tensors, batch_size, generator=generator, shuffle=shuffle)
    model = make_model(width, model_seed)
    made = optimizer(model.parameters(), **{"lr": 0.01, **(optimizer_options or {})})
    if schedule_options is not WITHOUT:
        options["schedule"] = BatchAttentionSchedule(**{"k": 1.0, "max_visits": 3, **(schedule_options or {})})
    if is_scaled:
        options.update(scaler=torch.amp.GradScaler("cpu"), graph=False)
    return DeviceLoop(model, made, loss_fn, data, **options)


class Row(NamedTuple):
    """How a loop is saved, what is changed, and what comes of it; ``alter`` changes the state itself."""

    saved: dict
    changed: dict
    between: str
    mid_epoch: str
    alter: object = None


def of_another_device(state):
    loop = {**state["randomness"]["loop"], "cuda": torch.zeros(16, dtype=torch.uint8)}
    return {**state, "randomness": {**state["randomness"], "loop": loop}}


STAGED = {"staged": True}
SGD = {"optimizer": torch.optim.SGD}
BFLOAT16 = {"autocast": torch.bfloat16}

ROWS = {
    "nothing": [Row({}, {}, "exact", "exact"), Row(STAGED, {}, "exact", "exact")],
    "`slots` of `StagedData`": [Row(STAGED, {"slots": slots}, "exact", "refused") for slots in (2, 3, 8)],
    "the loader's number of workers, or its `prefetch_factor`": [
        Row({**STAGED, "slots": slots}, {"workers": 1}, "exact", "exact") for slots in (2, 3, 4)
    ]
    + [Row({**STAGED, "workers": 1}, {"workers": 0}, "exact", "exact")]
    # As many workers that read further ahead, or less far, have drawn by other numbers too.
    + [
        Row({**STAGED, "slots": 2, "workers": 1, "prefetch": before}, {"prefetch": after}, "exact", "exact")
        for before, after in ((1, 4), (4, 1))
    ],
    "CPU for GPU, or the other way round": [Row({}, {}, "refused", "refused", of_another_device)],
    "the number of samples, with as many batches": [
        Row({}, {"samples": 43}, "taken", "refused"),
        Row(STAGED, {"samples": 45}, "taken", "refused"),
    ],
    "the batch size, with as many batches": [
        Row({"samples": 33, **kind}, {"batch_size": 7}, "taken", "refused") for kind in ({}, STAGED)
    ],
    "the number of batches": [
        Row(kind, changed, "refused", "refused")
        for kind in ({}, STAGED)
        for changed in ({"samples": 50}, {"batch_size": 16})
    ],
    "`shuffle`": [
        Row({}, {"shuffle": False}, "taken", "refused"),
        Row({"shuffle": False}, {"shuffle": True}, "taken", "refused"),
    ],
    "the targets": [Row(kind, {"labels": 1}, "taken", "refused") for kind in ({}, STAGED)],
    "the inputs, in shape and type as before": [Row(kind, {"inputs": 1}, "taken", "taken") for kind in ({}, STAGED)],
    "`ResidentData` for `StagedData`, or the other way round": [
        Row({}, STAGED, "taken", "refused"),
        Row(STAGED, {"staged": False}, "taken", "refused"),
    ],
    "a generator in the data, where there was none": [
        Row({**STAGED, "has_generator": False}, {"has_generator": True}, "refused", "refused"),
        Row({**STAGED, "has_generator": True}, {"has_generator": False}, "refused", "refused"),
    ],
    "the seed of the data's generator": [Row(kind, {"data_seed": 6}, "exact", "exact") for kind in ({}, STAGED)],
    "the seed of the loop": [Row({}, {"seed": 9}, "exact", "exact")],
    "the model's initial weights": [Row({}, {"model_seed": 9}, "exact", "exact")],
    "the model's parameters, in name or shape": [Row({}, {"width": 5}, "refused", "refused")],
    "how the model is laid out in memory": [Row({}, {"channels_last": True}, "taken", "taken")],
    "the kind of optimizer": [
        Row({}, SGD, "refused", "refused"),
        Row(SGD, {"optimizer": torch.optim.Adam}, "refused", "refused"),
        Row({"optimizer": torch.optim.RMSprop}, {"optimizer": torch.optim.Adam}, "refused", "refused"),
    ],
    "momentum, where there was none": [
        Row(SGD, {"optimizer_options": {"momentum": 0.9}}, "refused", "refused"),
        Row({**SGD, "optimizer_options": {"momentum": 0.9}}, {"optimizer_options": {}}, "refused", "refused"),
    ],
    "the optimizer's `lr` and other numbers": [
        Row({}, {"optimizer_options": {"lr": 0.5, "weight_decay": 0.1, "betas": (0.5, 0.6)}}, "exact", "exact"),
    ],
    "`lr` as a tensor, where it was a number": [
        Row({}, {"optimizer_options": {"lr": torch.tensor(0.5)}}, "taken", "taken"),
    ],
    "`foreach`, `fused` or `capturable` of the optimizer": [
        Row({}, {"optimizer_options": {option: True}}, "taken", "taken") for option in ("foreach", "fused")
    ],
    "a gradient scaler, where there was none": [
        Row(BFLOAT16, {"is_scaled": True}, "refused", "refused"),
        Row({**BFLOAT16, "is_scaled": True}, {"is_scaled": False}, "refused", "refused"),
    ],
    "the schedule's options": [Row({}, {"schedule_options": {"k": 1.1}}, "refused", "refused")],
    "no schedule, where there was one": [
        Row({}, {"schedule_options": WITHOUT}, "refused", "refused"),
        Row({"schedule_options": WITHOUT}, {"schedule_options": {}}, "refused", "refused"),
    ],
    "recorders of the schedule": [Row({}, {"schedule_options": {"recorders": [MemoryRecorder()]}}, "exact", "exact")],
    "`loss_fn`, `normalize`, `augmentation`, `autocast`": [
        Row({}, changed, "taken", "taken")
        for changed in (
            {"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)},
            {"normalize": (torch.zeros(6), torch.full((6,), 2.0))},
            {"augmentation": Augmentation(add_noise, draws=6)},
            BFLOAT16,
        )
    ],
    "`count_visits`": [
        Row({}, {"count_visits": True}, "exact", "exact"),
        Row({"count_visits": True}, {"count_visits": False}, "exact", "exact"),
    ],
}


def test_every_row_of_the_table_is_here_with_what_comes_of_it():
    lines = [line.strip("| ").split(" | ") for line in TABLE.read_text(encoding="utf-8").splitlines() if "|" in line]
    written = {what: (between, mid_epoch) for what, between, mid_epoch in lines[2:]}
    assert written == {what: (row.between, row.mid_epoch) for what, rows in ROWS.items() for row in rows}


def end_of(loop):
    """What comes of a loop in two epochs, less what depends on how far it looks ahead."""
    summaries = [without_reads(loop.run_epoch()) for _ in range(2)]
    return [*summaries, loop.updates, {name: value.contiguous() for name, value in loop.model.state_dict().items()}]


@pytest.mark.parametrize(
    ("what", "row"),
    [pytest.param(what, row, id=f"{what} {number}") for what, rows in ROWS.items() for number, row in enumerate(rows)],
)
@pytest.mark.parametrize("updates", [0, 3], ids=["between epochs", "in mid-epoch"])
def test_a_change_is_exact_taken_or_refused_as_the_table_says(what, row, updates):
    expected = row.mid_epoch if updates else row.between
    source = make_loop(**row.saved)
    source.run_epoch()
    source.run_updates(updates)
    saved = copy.deepcopy(source.state_dict())
    if row.alter is not None:
        saved = row.alter(saved)
    changed = make_loop(**{**row.saved, **row.changed})
    if expected == "refused":
        refused(changed, saved)
        return
    changed.load_state_dict(saved)
    end = end_of(changed)
    assert same(end, end_of(source)) is (expected == "exact") or expected == "taken"


def test_before_the_first_epoch_there_may_be_any_number_of_batches():
    loop = make_loop(samples=80)
    loop.load_state_dict(make_loop().state_dict())
    assert loop.run_epoch().batches == 10
