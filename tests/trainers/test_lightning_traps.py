"""Where repeats inside Lightning go wrong in silence, unless one thinks of it."""

import pytest
import torch
from lightning.pytorch import Callback, callbacks
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging

from batch_sampler_attn import EqualComputeControl
from batch_sampler_attn.errors import BatchAttentionWarning, BatchChangedError
from batch_sampler_attn.recorders import visit_counts
from batch_sampler_attn.trainers.lightning import BatchAttention
from tests.trainers.lightning_processes import Randomness, ResumableLoader
from tests.trainers.lightning_runs import (
    EPOCHS,
    MARKS,
    Case,
    by_hand,
    by_lightning,
    make_loader,
    make_lr_scheduler,
    make_trainer,
    module_class,
)
from tests.trainers.plain_loop import finish, make_schedule

pytestmark = MARKS
Module = module_class("lightning.pytorch")
BATCHES = 7


# Epochs that are cut short


@pytest.mark.parametrize("accumulation", [1, 2])
def test_max_steps_in_mid_epoch_set_no_threshold(accumulation):
    case = Case(accumulation=accumulation)
    windows = -(-BATCHES // accumulation)
    run, trainer, _ = by_lightning(case, max_steps=2 * windows + 2)
    expected = by_hand(case, max_windows=2 * windows + 2)
    assert run == expected
    assert len(run.epochs) == 2
    assert trainer.global_step == 2 * windows + 2


def test_early_stopping_in_mid_epoch_sets_no_threshold():
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = trainer.current_epoch == 1 and batch_idx == 2

    run, _, _ = by_lightning(Case(), callbacks=[Stop()])
    assert run == by_hand(Case(), max_windows=BATCHES + 3)


def test_an_error_in_mid_epoch_sets_no_threshold_and_leaves_the_trainer_as_it_was():
    class Failing(Module):
        def training_step(self, batch, batch_idx):
            if self.trainer.current_epoch == 1 and batch_idx == 3:
                raise KeyError("of the user's")
            return super().training_step(batch, batch_idx)

    callback = BatchAttention()
    trainer = make_trainer(callbacks=[callback])
    with pytest.raises(KeyError, match="of the user's"):
        trainer.fit(Failing(), make_loader())
    assert callback.schedule.epoch == 1
    assert not {"training_step", "optimizer_step"} & set(vars(trainer.strategy))
    # Fitted again, from the start, it does not go on in the middle.
    make_trainer(max_epochs=1, callbacks=[callback]).fit(Module(), make_loader())
    assert callback.schedule.epoch == 2
    assert callback.schedule.last_summary.batches == BATCHES


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("stopped_after", [BATCHES + 3, 2 * BATCHES])
def test_max_steps_can_be_raised_in_another_run(stopped_after, tmp_path):
    def train(max_steps, ckpt_path=None):
        schedule, recorder = make_schedule()
        module = Module()
        # Written at a step, as Lightning itself goes on exactly from these alone.
        checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=stopped_after, save_top_k=-1)
        callbacks = [BatchAttention(schedule=schedule), Randomness(), checkpoint]
        options = {"max_epochs": -1, "max_steps": max_steps, "enable_checkpointing": True}
        torch.manual_seed(6)
        make_trainer(callbacks=callbacks, **options).fit(module, ResumableLoader(), ckpt_path=ckpt_path)
        return finish(schedule, recorder, module.network, module.rates)

    begun = train(stopped_after)
    resumed = train(3 * BATCHES, tmp_path / f"step={stopped_after}.ckpt")
    (tmp_path / f"step={stopped_after}.ckpt").unlink()
    whole = train(3 * BATCHES)
    assert begun.visits + resumed.visits == whole.visits
    assert torch.equal(resumed.weights, whole.weights)
    assert resumed.threshold == whole.threshold


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_a_checkpoint_without_the_callback_s_state_sets_no_threshold_in_mid_epoch(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    make_trainer(max_steps=3, enable_checkpointing=True, callbacks=[checkpoint]).fit(Module(), ResumableLoader())
    schedule, recorder = make_schedule()
    trainer = make_trainer(max_epochs=3, callbacks=[BatchAttention(schedule=schedule)])
    trainer.fit(Module(), ResumableLoader(), ckpt_path=tmp_path / "step=3.ckpt")
    assert [summary.batches for summary in recorder.summaries] == [BATCHES] * 2
    assert recorder.summaries[0].threshold is None


def test_an_epoch_that_the_user_ends_is_over():
    class Ending(Module):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 4 else None

    run, _, _ = by_lightning(Case(accumulation=2), Ending())
    assert [visit[1] for visit in run.visits if visit[0] == 0] == [0, 1]
    assert len(run.epochs) == EPOCHS


@pytest.mark.filterwarnings("ignore:The 'test_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:Your `test_dataloader`'s sampler has shuffling enabled")
def test_a_checkpoint_that_is_evaluated_is_not_trained_on_from(tmp_path):
    class Evaluated(Module):
        def test_step(self, batch, batch_idx):
            return torch.zeros(())

    callback = BatchAttention()
    trainer = make_trainer(max_epochs=2, callbacks=[callback])
    trainer.fit(Module(), make_loader())
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    trainer.fit_loop.max_epochs = 3
    trainer.fit(Module(), make_loader())
    trainer.test(Evaluated(), make_loader(), ckpt_path=tmp_path / "state.ckpt", verbose=False)
    assert callback.schedule.epoch == 3


# Trainings that are too short


@pytest.mark.parametrize(
    "options",
    [{"max_epochs": 1}, {"max_epochs": -1, "max_steps": 7}, {"max_epochs": 3, "max_steps": 5}],
    ids=str,
)
def test_a_training_in_which_nothing_can_repeat_is_warned_of_at_its_start(options):
    class Never(Module):
        def training_step(self, batch, batch_idx):
            raise AssertionError

    words = r"no batch will be repeated: training ends after .* epochs?, .* warmup_epochs=1\. .*epoch_length=2"
    with pytest.warns(BatchAttentionWarning, match=words), pytest.raises(AssertionError):
        make_trainer(callbacks=[BatchAttention()], **options).fit(Never(), make_loader())


def test_epochs_of_the_schedule_s_own_repeat_within_one_of_the_trainer_s():
    case = Case(options={"epoch_length": 2})
    run, _, _ = by_lightning(case, max_epochs=1)
    assert run == by_hand(case, max_windows=BATCHES)
    assert run.repeats > 0


@pytest.mark.parametrize("options", [{"max_epochs": -1, "max_steps": 8}, {"max_epochs": 1, "fast_dev_run": True}])
def test_a_training_that_may_repeat_or_is_a_trial_is_not_warned_of(options):
    make_trainer(callbacks=[BatchAttention()], **options).fit(Module(), make_loader())


# Updates and hooks of the user's


def test_an_optimizer_step_of_the_user_s_is_made_once_a_window():
    class Warming(Module):
        steps = 0

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            self.steps += 1
            for group in optimizer.param_groups:
                group["lr"] = 0.001 * self.steps
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    run, trainer, module = by_lightning(Case(accumulation=2), Warming())
    assert module.steps == trainer.global_step == EPOCHS * 4
    assert run.repeats > 0
    assert len(module.rates) == EPOCHS * 4 + run.repeats
    assert len(set(module.rates)) == EPOCHS * 4


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_closure_that_is_called_by_hand_makes_no_difference(accumulation):
    class ByHand(Module):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer_closure()
            optimizer.step()

    run, _, _ = by_lightning(Case(accumulation=accumulation), ByHand())
    assert run == by_hand(Case(accumulation=accumulation))


def test_an_update_that_the_user_leaves_out_is_no_visit():
    class Sparing(Module):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            if batch_idx in (3, 6):
                optimizer_closure()
            else:
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    run, _, _ = by_lightning(Case(), Sparing())
    first = [visit[1] for visit in run.visits if visit[2] == 1]
    assert first == [0, 1, 2, 4, 5] * EPOCHS
    assert len(run.epochs) == EPOCHS


def test_an_optimizer_without_gradients_in_its_step_repeats_as_any():
    class Plain(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure):
            loss = closure()
            super().step()
            return loss

    class OfItsOwn(Module):
        def configure_optimizers(self):
            optimizer = Plain(self.parameters(), 0.1, momentum=0.9)
            return [optimizer], [{"scheduler": make_lr_scheduler(optimizer), "interval": "step"}]

    run, _, _ = by_lightning(Case(), OfItsOwn())
    assert run == by_hand(Case(optimizer="sgd"))
    assert run.repeats > 0


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_that_the_step_leaves_out_is_no_visit():
    class Choosy(Module):
        def training_step(self, batch, batch_idx):
            return None if batch_idx in (0, 1, 4) else super().training_step(batch, batch_idx)

    run, _, _ = by_lightning(Case(accumulation=2), Choosy())
    assert {visit[1] for visit in run.visits} == {1, 2, 3}
    assert len(run.epochs) == EPOCHS


def test_hooks_around_an_update_are_called_at_each():
    class Counting(Callback):
        def __init__(self):
            self.calls = dict.fromkeys(("zero_grad", "backward", "step", "batch"), 0)

        def on_before_zero_grad(self, *_):
            self.calls["zero_grad"] += 1

        def on_after_backward(self, *_):
            self.calls["backward"] += 1

        def on_before_optimizer_step(self, *_):
            self.calls["step"] += 1

        def on_train_batch_end(self, *_):
            self.calls["batch"] += 1

    counting = Counting()
    run, trainer, _ = by_lightning(Case(accumulation=7), callbacks=[counting])
    updates = EPOCHS + run.repeats
    assert run.repeats > 0
    assert counting.calls == {
        "zero_grad": updates,
        "backward": updates * BATCHES,
        "step": updates,
        "batch": EPOCHS * BATCHES,
    }
    progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer
    assert progress.step.total.completed == progress.zero_grad.total.completed == EPOCHS


def test_a_user_s_log_method_and_outputs_are_of_the_first_visit():
    outputs = []

    class Keeping(Callback):
        def on_train_batch_end(self, trainer, pl_module, output, batch, batch_idx):
            outputs.append(output["loss"].item())

    class OfADict(Module):
        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch, batch_idx), "size": len(batch[0])}

    run, _, _ = by_lightning(Case(), OfADict(), callbacks=[Keeping()])
    assert run == by_hand(Case())
    assert outputs == [visit[3] for visit in run.visits if visit[2] == 1]


def test_what_a_callback_logs_is_of_first_visits():
    class Logging(Callback):
        def on_after_backward(self, trainer, pl_module):
            self.log("backwards", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")

    run, trainer, _ = by_lightning(Case(), callbacks=[Logging()])
    assert run.epochs[-1][0] > 0
    assert trainer.callback_metrics["backwards"] == BATCHES


# Batches that are changed


def test_a_batch_that_is_changed_in_place_is_not_trained_on_again():
    class Changing(Module):
        def training_step(self, batch, batch_idx):
            batch[0].mul_(0.5)
            return super().training_step(batch, batch_idx)

    with (
        pytest.warns(UserWarning, match="changed tensors of its batch in place"),
        pytest.raises(BatchChangedError, match="changed tensors of it in place"),
    ):
        by_lightning(Case(), Changing())


def test_what_is_put_into_a_batch_is_there_for_hooks_and_not_at_its_repeat():
    sizes = []

    class Adding(Module):
        def training_step(self, batch, batch_idx):
            assert len(batch) == 2
            loss = super().training_step(batch, batch_idx)
            batch.append(loss.detach())
            return loss

        def on_train_batch_end(self, outputs, batch, batch_idx):
            sizes.append(len(batch))

    run, _, _ = by_lightning(Case(), Adding())
    assert run == by_hand(Case())
    assert set(sizes) == {3}


# Copies of the module


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
def test_weights_are_averaged_over_epochs_as_without_repeats(batch_norm):
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2, annealing_epochs=1)
    run, _, module = by_lightning(Case(batch_norm=batch_norm), callbacks=[averaging])
    assert len(run.epochs) == EPOCHS
    assert {visit[0] for visit in run.visits} == set(range(EPOCHS))
    assert run.repeats > 0
    assert int(averaging.n_averaged) == EPOCHS - 1
    assert "log" not in vars(module)


@pytest.mark.skipif(not hasattr(callbacks, "WeightAveraging"), reason="came with Lightning 2.6")
def test_a_moving_average_is_updated_once_a_window():
    class Counting(callbacks.WeightAveraging):
        steps = ()

        def should_update(self, step_idx=None, epoch_idx=None):
            if step_idx is not None:
                self.steps += (step_idx,)
            return step_idx is not None

    averaging = Counting()
    run, trainer, _ = by_lightning(Case(accumulation=2), callbacks=[averaging])
    assert run.repeats > 0
    assert averaging.steps == tuple(range(trainer.global_step))


def test_the_control_at_equal_compute_runs_in_the_trainer():
    schedule, recorder = make_schedule()
    trainer = make_trainer(callbacks=[BatchAttention(schedule=schedule)])
    torch.manual_seed(6)
    trainer.fit(Module(), make_loader())
    control = EqualComputeControl(visit_counts(recorder.visits), seed=1)
    make_trainer(callbacks=[BatchAttention(schedule=control)]).fit(Module(), make_loader())
    assert control.last_summary.repeats == recorder.summaries[-1].repeats
    assert control.epoch == EPOCHS
