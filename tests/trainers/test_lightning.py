"""Lightning with the callback, beside the plain loop around ``decide``: the same visits, losses and weights."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from batch_sampler_attn.trainers.lightning import BatchAttention
from tests.trainers.lightning_runs import (
    EPOCHS,
    MARKS,
    Case,
    by_hand,
    by_lightning,
    loss_of,
    make_loader,
    make_lr_scheduler,
    make_network,
    make_optimizer,
    make_trainer,
    module_class,
)
from tests.trainers.plain_loop import finish, make_schedule, plain_loop

pytestmark = MARKS

PRECISIONS = ("32-true", "bf16-mixed", "scaler")
CLIPS = (None, 0.5)
MATRIX = [
    Case(accumulation=accumulation, precision=precision, clip=clip)
    for accumulation, precision, clip in itertools.product((1, 2, 3), PRECISIONS, CLIPS)
]
# Each value with each other at least once.
QUICK = [0, 3, 5, 7, 8, 10, 13, 14, 17]


def check(case):
    run, trainer, _ = by_lightning(case)
    expected = by_hand(case)
    assert run == expected
    assert run.repeats > 2
    assert trainer.global_step == EPOCHS * -(-7 // case.accumulation)


@pytest.mark.parametrize("case", [MATRIX[index] for index in QUICK], ids=str)
def test_a_run_is_that_of_the_plain_loop(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("case", MATRIX, ids=str)
def test_every_run_is_that_of_the_plain_loop(case, optimizer, package):
    check(Case(package, case.accumulation, case.precision, case.clip, optimizer))


@pytest.mark.parametrize(
    "case",
    [
        Case("pytorch_lightning", 2, "bf16-mixed", 0.5),
        Case(optimizer="sgd", batch_norm=True),
        Case(accumulation=2, options={"epoch_loss": "last", "k": 0.8, "budget": 0.7}),
        Case(accumulation=3, options={"epoch_loss": "all", "max_visits": 2}),
    ],
    ids=str,
)
def test_so_is_a_run_of_another_kind(case):
    check(case)


def test_a_schedule_that_never_repeats_leaves_training_as_it_is():
    run, _, _ = by_lightning(Case(options={"max_visits": 1}))
    module = module_class("lightning.pytorch")()
    torch.manual_seed(6)
    make_trainer().fit(module, make_loader())
    assert torch.equal(
        torch.cat([value.double().flatten() for value in module.network.state_dict().values()]), run.weights
    )


def test_a_stream_without_a_length_is_no_different():
    class Stream(IterableDataset):
        def __iter__(self):
            inputs, targets = make_loader().dataset.tensors
            return iter(list(zip(inputs, targets, strict=True)))

    schedule, recorder = make_schedule()
    module = module_class("lightning.pytorch")()
    torch.manual_seed(6)
    trainer = make_trainer(accumulate_grad_batches=2, callbacks=[BatchAttention(schedule=schedule)])
    trainer.fit(module, DataLoader(Stream(), 8))
    network = make_network()
    optimizer = make_optimizer(network)
    torch.manual_seed(6)
    expected = plain_loop(
        network,
        lambda batch: loss_of(network, batch),
        optimizer,
        make_lr_scheduler(optimizer),
        DataLoader(Stream(), 8),
        epochs=EPOCHS,
        accumulation=2,
    )
    assert finish(schedule, recorder, module.network, module.rates) == expected
    assert expected.repeats > 2


def test_what_lightning_logs_is_of_first_visits():
    schedule, recorder = make_schedule()
    by_epoch = []

    class Module(module_class("lightning.pytorch")):
        def on_train_epoch_end(self):
            by_epoch.append(float(self.trainer.callback_metrics["loss"]))

    module = Module()
    trainer = make_trainer(callbacks=[BatchAttention(schedule=schedule)])
    torch.manual_seed(6)
    trainer.fit(module, make_loader())
    for epoch, logged in enumerate(by_epoch):
        losses = [visit.loss for visit in recorder.visits if visit.epoch == epoch and visit.visit == 1]
        mean = (8 * sum(losses[:-1]) + 4 * losses[-1]) / 52
        assert logged == pytest.approx(mean, rel=1e-6)
    last = recorder.summaries[-1]
    assert last.repeats > 0
    assert trainer.callback_metrics["batch_attention/repeats"] == last.repeats
    assert trainer.callback_metrics["batch_attention/threshold"] == pytest.approx(last.threshold)


def test_nothing_is_logged_where_that_is_not_wanted():
    callback = BatchAttention(log=False)
    trainer = make_trainer(max_epochs=2, callbacks=[callback])
    trainer.fit(module_class("lightning.pytorch")(), make_loader())
    assert set(trainer.callback_metrics) == {"loss"}
    assert callback.schedule.epoch == 2


def test_the_trainer_is_left_as_it_was():
    _, trainer, module = by_lightning(Case())
    assert not {"training_step", "optimizer_step"} & set(vars(trainer.strategy))
    assert "log" not in vars(module)
    own = object()
    vars(trainer.strategy)["training_step"] = own
    trainer.fit_loop.max_epochs = 5
    with pytest.raises(TypeError, match="not callable"):
        trainer.fit(module, make_loader())
    assert vars(trainer.strategy)["training_step"] is own
