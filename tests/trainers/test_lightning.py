"""What is Lightning's own, with attention to batches."""

import subprocess
import sys
from importlib import import_module

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.errors import OptionError, ProtocolError
from tests.trainers.cases import BATCHES, EPOCHS, MARKS, SAMPLES, Case, Points, Resumable, make_loader
from tests.trainers.plain_loop import make_schedule
from tests.trainers.ranks import RANKS, on_ranks

pytestmark = MARKS


def train(lightning, case=None, callbacks=(), **methods):
    """The run, the trainer and the module, which has some methods of its own."""
    case = case or Case()
    module = type("Mine", (lightning.Module,), methods)(case)
    return *lightning.train(case, module=module, callbacks=callbacks), module


def plain(module):
    """The class that ``train`` has added methods to."""
    return type(module).__base__


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_both_packages_train_as_the_plain_loop_also_where_a_scaler_skips_updates(lightning, package):
    case = Case(2, "scaler", scale=2.0**17, clip=0.5)
    run, trainer = lightning.train(case, package=package)
    assert run == lightning.by_hand(case)
    assert run.repeats > 2
    assert trainer.global_step == EPOCHS * case.windows


def test_what_lightning_logs_is_of_first_visits(lightning):
    class Logging(lightning.Callback):
        by_epoch, outputs = [], []

        def on_after_backward(self, trainer, pl_module):
            self.log("backwards", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")

        def on_train_batch_end(self, trainer, pl_module, outputs, *_):
            self.outputs.append(outputs["loss"].item())

        def on_train_epoch_end(self, trainer, *_):
            self.by_epoch.append(float(trainer.callback_metrics["loss"]))

    def training_step(self, batch, batch_idx):
        return {"loss": plain(self).training_step(self, batch, batch_idx), "size": len(batch[0])}

    logging = Logging()
    run, trainer, module = train(lightning, callbacks=[logging], training_step=training_step)
    assert run == lightning.by_hand(Case())
    assert logging.outputs == run.first_losses
    for epoch, logged in enumerate(logging.by_epoch):
        losses = run.first_losses[epoch * BATCHES :][:BATCHES]
        assert logged == pytest.approx((8 * sum(losses[:-1]) + 4 * losses[-1]) / SAMPLES, rel=1e-6)
    repeats, _ = run.epochs[-1]
    assert repeats > 0
    assert trainer.callback_metrics["backwards"] == BATCHES
    assert trainer.callback_metrics["batch_attention/repeats"] == repeats
    assert trainer.callback_metrics["batch_attention/threshold"] == pytest.approx(run.epochs[-1][1])
    assert lightning.is_left_as_it_was(trainer)
    assert "log" not in vars(module)


def test_a_checkpoint_without_the_callback_s_state_sets_no_threshold_in_mid_epoch(lightning, tmp_path):
    saving = lightning.saving(tmp_path, steps=3)
    trainer = lightning.make_trainer(max_steps=3, callbacks=[saving], enable_checkpointing=True)
    trainer.fit(lightning.Module(), Resumable())
    run, _ = lightning.train(Case(epochs=3), resume=lightning.checkpoint(tmp_path, 3))
    # What remained of the first epoch is not in the record.
    assert len(run.first_losses) == 2 * BATCHES
    assert run.epochs[0] == (0, None)
    assert len(run.epochs) == 2


@pytest.mark.filterwarnings("ignore:Your `test_dataloader`'s sampler has shuffling enabled")
def test_a_checkpoint_that_is_evaluated_is_not_trained_on_from(lightning, tmp_path):
    class Evaluated(lightning.Module):
        def test_step(self, batch, batch_idx):
            return torch.zeros(())

    callback = lightning.BatchAttention()
    trainer = lightning.make_trainer(max_epochs=2, callbacks=[callback])
    trainer.fit(Evaluated(), make_loader())
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    trainer.fit_loop.max_epochs = 3
    trainer.fit(Evaluated(), make_loader())
    trainer.test(Evaluated(), make_loader(), ckpt_path=tmp_path / "state.ckpt", verbose=False)
    assert callback.schedule.epoch == 3


def test_an_optimizer_step_of_the_user_s_is_made_once_a_window(lightning):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        self.steps = getattr(self, "steps", 0) + 1
        optimizer.param_groups[0]["lr"] = 0.001 * self.steps
        plain(self).optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure)

    run, trainer, module = train(lightning, Case(2), optimizer_step=optimizer_step)
    assert module.steps == trainer.global_step == EPOCHS * 4
    assert run.repeats > 0
    assert len(module.rates) == EPOCHS * 4 + run.repeats
    assert len(set(module.rates)) == EPOCHS * 4


def test_a_closure_that_is_called_by_hand_and_without_gradients_makes_no_difference(lightning):
    @torch.no_grad()
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        optimizer.step()

    run, *_ = train(lightning, Case(2), optimizer_step=optimizer_step)
    assert run == lightning.by_hand(Case(2))
    assert run.repeats > 0


def test_an_update_that_the_user_leaves_out_is_no_visit(lightning):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        if batch_idx in (3, 6):
            optimizer_closure()
        else:
            plain(self).optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure)

    run, *_ = train(lightning, optimizer_step=optimizer_step)
    assert [visit[1] for visit in run.visits if visit[2] == 1] == [0, 1, 2, 4, 5] * EPOCHS
    assert len(run.epochs) == EPOCHS


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_that_the_step_leaves_out_is_no_visit(lightning):
    def training_step(self, batch, batch_idx):
        return None if batch_idx in (0, 1, 4) else plain(self).training_step(self, batch, batch_idx)

    run, *_ = train(lightning, Case(2), training_step=training_step)
    assert {visit[1] for visit in run.visits} == {1, 2, 3}
    assert len(run.epochs) == EPOCHS


def test_hooks_around_an_update_are_called_at_each(lightning):
    calls = dict.fromkeys(("on_before_zero_grad", "on_after_backward", "on_before_optimizer_step"), 0)

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    counting = type("Counting", (lightning.Callback,), {name: count(name) for name in calls})()
    run, trainer = lightning.train(Case(7), callbacks=[counting])
    updates = EPOCHS + run.repeats
    assert run.repeats > 0
    assert list(calls.values()) == [updates, updates * BATCHES, updates]
    progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer
    assert progress.step.total.completed == progress.zero_grad.total.completed == EPOCHS


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
def test_weights_are_averaged_over_epochs_as_without_repeats(lightning):
    callbacks = import_module("lightning.pytorch.callbacks")
    averaging = callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2, annealing_epochs=1)
    run, _ = lightning.train(Case(batch_norm=True), callbacks=[averaging])
    assert len(run.epochs) == EPOCHS
    assert {visit[0] for visit in run.visits} == set(range(EPOCHS))
    assert run.repeats > 0
    assert int(averaging.n_averaged) == EPOCHS - 1


def decided_and_own_losses(rank, lightning):
    """What was decided on, and the losses of this rank, whose batches are of 4 samples or of 2."""
    losses = []

    class Noting(lightning.Module):
        def training_step(self, batch, batch_idx):
            losses.append(super().training_step(batch, batch_idx))
            return losses[-1]

    recorder = make_schedule()[1]
    callback = lightning.BatchAttention(k=0.9, max_visits=2, recorders=[recorder])
    options = {"devices": RANKS, "strategy": "ddp", "use_distributed_sampler": False}
    trainer = lightning.make_trainer(max_epochs=2, callbacks=[callback], **options)
    size = 4 - 2 * rank
    data = Points()
    part = TensorDataset(data.inputs[: 5 * size], data.targets[: 5 * size])
    trainer.fit(Noting(Case(optimizer="sgd")), DataLoader(part, size))
    return [visit.loss for visit in recorder.visits], [loss.item() for loss in losses]


def test_the_mean_over_ranks_is_that_over_their_samples(lightning, tmp_path):
    (decided, first), (decided_too, second) = on_ranks(decided_and_own_losses, lightning, folder=tmp_path)
    assert decided == decided_too
    assert len(decided) > 10
    assert decided == pytest.approx([(4 * mine + 2 * other) / 6 for mine, other in zip(first, second, strict=True)])


def refusal(lightning, loader=None, case=None, methods=None, ranks="auto", **options):
    """What fit raises, with the weights as they were."""
    module = type("Mine", (lightning.Module,), methods or {})(case)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer = lightning.make_trainer(case, callbacks=[lightning.BatchAttention(ranks=ranks)], **options)
    with pytest.raises(ProtocolError) as error:
        trainer.fit(module, loader or make_loader())
    assert all(map(torch.equal, module.parameters(), before))
    assert lightning.is_left_as_it_was(trainer)
    return str(error.value)


class Perturbing(torch.optim.SGD):
    """Trains on its batch twice in each step, as SAM does."""

    def step(self, closure):
        closure()
        return super().step(closure)


@pytest.mark.parametrize(("optimizer", "accumulation"), [(torch.optim.LBFGS, 1), (Perturbing, 1), (Perturbing, 2)])
def test_an_optimizer_that_trains_several_times_is_refused(lightning, optimizer, accumulation):
    def configure_optimizers(self):
        return optimizer(self.parameters(), 0.1)

    text = refusal(lightning, case=Case(accumulation), methods={"configure_optimizers": configure_optimizers})
    assert f"{optimizer.__name__} trains several times for each batch" in text
    assert "Use an optimizer such as AdamW" in text


def test_updates_that_are_made_elsewhere_are_refused(lightning):
    text = refusal(lightning, methods={"automatic_optimization": False})
    assert "Mine makes updates itself" in text
    assert "Use automatic optimization with strategy='ddp'" in text
    strategies = import_module("lightning.pytorch.strategies")

    class Accumulating(strategies.SingleDeviceStrategy):
        handles_gradient_accumulation = True

    assert "Accumulating makes updates itself" in refusal(lightning, strategy=Accumulating("cpu"), accelerator="auto")


def test_a_loader_of_this_package_is_refused_in_a_collection_and_in_a_later_epoch(lightning):
    attended = BatchAttentionSchedule().attend(make_loader())
    assert "AttendedLoader" in refusal(lightning, {"first": [make_loader(), attended]})

    class Reloading(import_module("lightning.pytorch").LightningDataModule):
        loads = 0

        def train_dataloader(self):
            self.loads += 1
            return make_loader() if self.loads == 1 else attended

    callback = lightning.BatchAttention()
    trainer = lightning.make_trainer(callbacks=[callback], reload_dataloaders_every_n_epochs=1)
    with pytest.raises(ProtocolError, match="BatchAttention repeats them, as windows with accumulate_grad_batches=n"):
        trainer.fit(lightning.Module(), datamodule=Reloading())
    assert trainer.global_step == BATCHES
    assert callback.schedule.epoch == 1


def test_ranks_are_the_user_s_word_where_the_callback_has_it(lightning, monkeypatch):
    monkeypatch.setattr("batch_sampler_attn.ranks.process_group_size", lambda: 2)
    for options in ({}, {"ranks": None, "log": False}):
        callback = lightning.BatchAttention(**options)
        trainer = lightning.make_trainer(max_epochs=2, callbacks=[callback])
        trainer.fit(lightning.Module(), make_loader())
        assert callback.schedule.epoch == 2
    assert set(trainer.callback_metrics) == {"loss"}
    assert "ranks=MeanOverRanks()" in refusal(lightning, ranks="refuse")


def test_options_that_are_not_allowed_and_a_class_among_the_callbacks_are_refused(lightning):
    words = "schedule= and also k, budget, ranks; give these options to the schedule"
    with pytest.raises(OptionError, match=words):
        lightning.BatchAttention(k=1.2, schedule=BatchAttentionSchedule(), budget=0.2, ranks=None)
    with pytest.raises(OptionError, match="ranks is 'mean'"):
        lightning.BatchAttention(ranks="mean")
    for package in ("lightning.pytorch", "pytorch_lightning"):
        with pytest.raises(OptionError, match=r"the class BatchAttention; give an instance: BatchAttention\(k=1.2\)"):
            lightning.make_trainer(package=package, callbacks=[lightning.BatchAttention])


def test_a_trial_is_not_warned_of(lightning):
    trainer = lightning.make_trainer(max_epochs=1, fast_dev_run=True, callbacks=[lightning.BatchAttention()])
    trainer.fit(lightning.Module(), make_loader())


WITHOUT = """
import sys
import batch_sampler_attn
names = {"lightning", "pytorch_lightning", "transformers", "accelerate", "keras", "torch"}
assert not names & set(sys.modules)
sys.modules.update(dict.fromkeys(names - {"torch"}))
for name in sys.argv[1:]:
    try:
        __import__(f"batch_sampler_attn.trainers.{name}")
    except ModuleNotFoundError as error:
        print(error)
"""


def test_without_a_trainer_the_message_says_what_to_install():
    names = ["lightning", "transformers", "keras"]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *names], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"batch_sampler_attn.trainers.{name} needs {name}, which is not installed: "
        f"pip install 'batch-sampler-attn[{name}]'"
        for name in names
    ]
