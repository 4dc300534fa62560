"""What is Lightning's own, with attention to batches and to samples."""

from importlib import import_module

import pytest
import torch
from torch.utils.data import DataLoader

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.errors import LossError, OptionError, ProtocolError, StateError
from tests.trainers import cases
from tests.trainers.cases import BATCHES, EPOCHS, MARKS, PLAIN, SAMPLES, Case, Points, make_loader, plain
from tests.trainers.plain_loop import refused
from tests.trainers.ranks import on_ranks
from tests.trainers.sample_loop import make_attention, make_sample_loader

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")]


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
    run, trainer = lightning.train(Case(), callbacks=[logging], methods={"training_step": training_step})
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
    assert "log" not in vars(trainer.lightning_module)


def test_a_checkpoint_without_the_callback_s_state_sets_no_threshold_in_mid_epoch(lightning, tmp_path):
    saving = lightning.saving(tmp_path, steps=3)
    trainer = lightning.make_trainer(max_steps=3, callbacks=[saving], enable_checkpointing=True)
    trainer.fit(lightning.Module(), cases.Resumable())
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

    run, trainer = lightning.train(Case(2), methods={"optimizer_step": optimizer_step})
    module = trainer.lightning_module
    assert module.steps == trainer.global_step == EPOCHS * 4
    assert run.repeats > 0
    assert len(module.rates) == EPOCHS * 4 + run.repeats
    assert len(set(module.rates)) == EPOCHS * 4

    # A closure that is called by hand and without gradients makes no difference.
    @torch.no_grad()
    def by_hand(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        optimizer.step()

    run, _ = lightning.train(Case(2), methods={"optimizer_step": by_hand})
    assert run == lightning.by_hand(Case(2))
    assert run.repeats > 0


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_and_an_update_that_the_user_leaves_out_are_no_visits(lightning):
    def training_step(self, batch, batch_idx):
        return None if batch_idx in (0, 1, 4) else plain(self).training_step(self, batch, batch_idx)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        if batch_idx in (3, 6):
            optimizer_closure()
        else:
            plain(self).optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure)

    run, _ = lightning.train(Case(2), methods={"training_step": training_step})
    assert {visit[1] for visit in run.visits} == {1, 2, 3}
    assert len(run.epochs) == EPOCHS
    run, _ = lightning.train(Case(), methods={"optimizer_step": optimizer_step})
    assert [visit[1] for visit in run.visits if visit[2] == 1] == [0, 1, 2, 4, 5] * EPOCHS
    assert len(run.epochs) == EPOCHS


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

    case = Case(optimizer="sgd", epochs=2, options={"k": 0.9, "max_visits": 2})
    run = lightning.on_a_rank(rank, case, module=Noting(case), size=4 - 2 * rank)
    return [visit[3] for visit in run.visits], [loss.item() for loss in losses]


def test_the_mean_over_ranks_is_that_over_their_samples(lightning, tmp_path):
    (decided, first), (decided_too, second) = on_ranks(decided_and_own_losses, lightning, folder=tmp_path)
    assert decided == decided_too
    assert len(decided) > 2 * BATCHES
    assert decided == pytest.approx([(4 * mine + 2 * other) / 6 for mine, other in zip(first, second, strict=True)])


def check_refused(lightning, words, loader=None, case=PLAIN, methods=None, ranks="auto", **options):
    module = lightning.module_class(methods=methods)(case)
    trainer = lightning.make_trainer(case, callbacks=[lightning.BatchAttention(ranks=ranks)], **options)
    with refused(words, module):
        trainer.fit(module, loader or make_loader())
    assert lightning.is_left_as_it_was(trainer)


class Perturbing(torch.optim.SGD):
    """Trains on its batch twice in each step, as SAM does."""

    def step(self, closure):
        closure()
        return super().step(closure)


@pytest.mark.parametrize(("optimizer", "accumulation"), [(torch.optim.LBFGS, 1), (Perturbing, 1), (Perturbing, 2)])
def test_an_optimizer_that_trains_several_times_is_refused(lightning, optimizer, accumulation):
    def configure_optimizers(self):
        return optimizer(self.parameters(), 0.1)

    words = f"{optimizer.__name__} trains several times for each batch.* Use an optimizer such as AdamW"
    check_refused(lightning, words, case=Case(accumulation), methods={"configure_optimizers": configure_optimizers})


def test_updates_that_are_made_elsewhere_are_refused(lightning):
    words = "Mine makes updates itself.* Use automatic optimization with strategy='ddp'"
    check_refused(lightning, words, methods={"automatic_optimization": False})
    strategy = import_module("lightning.pytorch.strategies").SingleDeviceStrategy
    accumulating = type("Accumulating", (strategy,), {"handles_gradient_accumulation": True})("cpu")
    check_refused(lightning, "Accumulating makes updates itself", strategy=accumulating, accelerator="auto")


def test_a_loader_of_this_package_is_refused_in_a_collection_and_in_a_later_epoch(lightning):
    attended = BatchAttentionSchedule().attend(make_loader())
    check_refused(lightning, "AttendedLoader", {"first": [make_loader(), attended]})
    loaders = iter([make_loader(), attended])
    data = import_module("lightning.pytorch").LightningDataModule()
    data.train_dataloader = lambda: next(loaders)
    callback = lightning.BatchAttention()
    trainer = lightning.make_trainer(callbacks=[callback], reload_dataloaders_every_n_epochs=1)
    with pytest.raises(ProtocolError, match="BatchAttention repeats them, as windows with accumulate_grad_batches=n"):
        trainer.fit(lightning.Module(), datamodule=data)
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
    check_refused(lightning, r"ranks=MeanOverRanks\(\)", ranks="refuse")


def test_options_that_are_not_allowed_and_a_class_among_the_callbacks_are_refused(lightning):
    words = "schedule= and also k, budget, ranks; give these options to the schedule"
    with pytest.raises(OptionError, match=words):
        lightning.BatchAttention(k=1.2, schedule=BatchAttentionSchedule(), budget=0.2, ranks=None)
    with pytest.raises(OptionError, match="ranks is 'mean'"):
        lightning.BatchAttention(ranks="mean")
    for package in ("lightning.pytorch", "pytorch_lightning"):
        with pytest.raises(OptionError, match=r"the class BatchAttention; give an instance: BatchAttention\(k=1.2\)"):
            lightning.make_trainer(package=package, callbacks=[lightning.BatchAttention])


# Attention to samples


def fit(lightning, attention, loader=None, ckpt_path=None, methods=None, callbacks=(), **options):
    module = type("Mine", (lightning.SampleModule,), methods or {})(attention)
    callbacks = [lightning.SampleAttentionCallback(attention), *callbacks]
    trainer = lightning.make_trainer(**{"max_epochs": 2, **options}, callbacks=callbacks)
    loader = attention.attend(make_sample_loader(attention, Case())) if loader is None else loader
    trainer.fit(module, loader, DataLoader(Points(), 16), ckpt_path=ckpt_path)
    return trainer


def twice(self, batch, batch_idx):
    plain(self).training_step(self, batch, batch_idx)
    return plain(self).training_step(self, batch, batch_idx)


def unreported(self, batch, batch_idx):
    return cases.cross_entropy(self.network, batch)


def not_the_last(self, batch, batch_idx):
    return (unreported if batch_idx == BATCHES - 1 else plain(self).training_step)(self, batch, batch_idx)


def iterating(self, dataloader_iter):
    return plain(self).training_step(self, next(dataloader_iter)[0], 0)


def evaluating(self, batch, batch_idx):
    self.training_step(batch, batch_idx)


def skipping_the_rest(self, batch, batch_idx):
    return -1 if batch_idx == 3 else None


NO_BATCH = "was used with no current batch of attention.attend"
NOT_ITS_OWN = "Give it attention.attend"
REFUSALS = {
    # a module's methods, options of the trainer, what the message says, and the losses that were reported
    "some batches": ({}, {"limit_train_batches": 3}, "updates=n in place of limit_train_batches=n", 0),
    "twice": ({"training_step": twice}, {}, NO_BATCH, 1),
    "not the last": ({"training_step": not_the_last}, {}, "at batch 0 of 7, and SampleAttention at 6 of 7", 6),
    "evaluation": ({"validation_step": evaluating}, {"num_sanity_val_steps": 0, "val_check_interval": 2}, NO_BATCH, 2),
    "rest skipped": ({"on_train_batch_start": skipping_the_rest}, {}, "at batch 0 of 7, and .* at 3 of 7", 3),
    "dataloader_iter": ({"training_step": iterating}, {}, NOT_ITS_OWN, 1),
}


@pytest.mark.filterwarnings("ignore:(You are using|Found) (the )?`dataloader_iter`")
@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_exact_is_refused(lightning, name):
    methods, options, words, reported = REFUSALS[name]
    attention = make_attention()
    with pytest.raises((ProtocolError, LossError), match=words):
        fit(lightning, attention, methods=methods, **options)
    assert (attention.epoch, attention.updates) == (0, reported)


def test_other_loaders_and_another_attention_are_refused(lightning):
    combined = import_module("lightning.pytorch.utilities").CombinedLoader
    attention = make_attention()
    own = attention.attend(make_sample_loader(attention, Case()))
    with pytest.raises(ProtocolError, match=NOT_ITS_OWN):
        fit(lightning, attention, DataLoader(Points(), 8), methods={"training_step": unreported})
    for batches, mode in ((13, "max_size_cycle"), (3, "min_size")):
        with pytest.raises(ProtocolError, match=f"at batch 0 of {batches}, and SampleAttention at 0 of 7"):
            fit(lightning, attention, combined({"own": own, "other": DataLoader(range(batches))}, mode))
    with pytest.raises(ProtocolError, match="holds AttendedSamples"):
        fit(lightning, attention, callbacks=[lightning.BatchAttention()])
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        fit(lightning, attention, callbacks=[lightning.SampleAttentionCallback(attention)])
    assert (attention.epoch, attention.updates) == (0, 0)


def test_an_epoch_cut_short_resumes_from_its_checkpoint_alone(lightning, tmp_path):
    attention = make_attention()
    callbacks = [lightning.saving(tmp_path, steps=10)]
    fit(lightning, attention, max_steps=10, callbacks=callbacks, enable_checkpointing=True)
    checkpoint = lightning.checkpoint(tmp_path, 10)
    with pytest.raises(ProtocolError, match="at batch 0 of 7, and SampleAttention at 3 of 7"):
        fit(lightning, attention)
    # Written without the callback, it says nothing of the attention.
    states = torch.load(checkpoint, weights_only=True)
    saved = states["callbacks"].pop("SampleAttentionCallback")
    torch.save(states, tmp_path / "without")
    with pytest.raises(ProtocolError, match="at batch 3 of 7, and SampleAttention at 0 of 7"):
        fit(lightning, make_attention(), ckpt_path=tmp_path / "without")
    states["callbacks"]["SampleAttentionCallback"] = {**saved, 1: saved[0]}
    torch.save(states, tmp_path / "two ranks")
    with pytest.raises(StateError, match="is from 2 ranks, not 1; use as many"):
        fit(lightning, make_attention(), ckpt_path=tmp_path / "two ranks")
    # Loaded for an evaluation, it changes nothing.
    other = make_attention(seed=9)
    trainer = lightning.make_trainer(callbacks=[lightning.SampleAttentionCallback(other)])
    trainer.validate(lightning.SampleModule(other), DataLoader(Points(), 16), ckpt_path=checkpoint, verbose=False)
    assert other.state_dict() == make_attention(seed=9).state_dict()
    resumed = make_attention()
    trainer = fit(lightning, resumed, ckpt_path=checkpoint)
    assert (trainer.global_step, resumed.epoch, len(resumed.batches)) == (2 * BATCHES, 2, 4)
    assert resumed.last_summary.pruned > 0
    for name in ("pruned", "extra_updates"):
        assert trainer.callback_metrics[f"sample_attention/{name}"] == getattr(resumed.last_summary, name)


def test_trials_train_as_they_do_without_attention(lightning, tmp_path, monkeypatch):
    attention = make_attention()
    fit(lightning, attention, fast_dev_run=2)
    assert (attention.epoch, attention.updates) == (0, 2)
    # Nor is one of attention to batches warned of, which repeats nothing.
    trainer = lightning.make_trainer(max_epochs=1, fast_dev_run=True, callbacks=[lightning.BatchAttention()])
    trainer.fit(lightning.Module(), make_loader())
    # The finder of a learning rate puts all back to where it was.
    monkeypatch.chdir(tmp_path)
    finder = import_module("lightning.pytorch.callbacks").LearningRateFinder(num_training_steps=10)
    attention, expected = make_attention(), make_attention()
    fit(lightning, attention, methods={"lr": 0.01}, callbacks=[finder])
    fit(lightning, expected)
    assert attention.batches[10][:2] == expected.batches[0][:2]
    assert (attention.epoch, attention.updates, len(attention.batches)) == (2, 0, 10 + 2 * BATCHES)
