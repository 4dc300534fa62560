"""Where repeats inside a Trainer go wrong in silence, unless one thinks of it."""

import pytest
import torch
from transformers import TrainerCallback

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.errors import BatchAttentionWarning, BatchChangedError
from tests.trainers.plain_loop import make_schedule
from tests.trainers.transformers_runs import (
    BATCHES,
    EPOCHS,
    MARKS,
    Case,
    MyTrainer,
    by_hand,
    by_trainer,
    make_arguments,
    make_dataset,
    make_model,
)

pytestmark = MARKS

CONSTANT = {"lr_scheduler_type": "constant"}


# Training that is too short


@pytest.mark.parametrize(
    "arguments", [{"num_train_epochs": 1}, {"num_train_epochs": 0.5}, {"max_steps": 3}, {"max_steps": 4}], ids=str
)
def test_training_that_ends_with_its_first_epoch_warns_at_its_start(arguments, tmp_path):
    case = Case(accumulation=2, arguments=arguments)
    with pytest.warns(BatchAttentionWarning, match=r"no batch will be repeated: .*epoch_length="):
        run, _ = by_trainer(case, tmp_path)
    assert run.repeats == 0


@pytest.mark.parametrize("arguments", [{"num_train_epochs": 1.5}, {"max_steps": 5}], ids=str)
def test_training_that_goes_beyond_it_does_not(arguments, tmp_path):
    by_trainer(Case(accumulation=2, arguments=arguments), tmp_path)


def test_shorter_epochs_of_the_schedule_repeat_within_one_epoch(tmp_path):
    run, _ = by_trainer(Case(arguments={"num_train_epochs": 1}, options={"epoch_length": 2}), tmp_path)
    assert len({visit[1] for visit in run.visits}) == 2
    assert run.repeats > 0


# Epochs that are cut short


@pytest.mark.parametrize("accumulation", [1, 2])
def test_max_steps_in_mid_epoch_set_no_threshold(accumulation, tmp_path):
    steps = 2 * -(-BATCHES // accumulation) + 2
    case = Case(accumulation=accumulation, arguments={**CONSTANT, "max_steps": steps})
    run, trainer = by_trainer(case, tmp_path)
    assert run == by_hand(case, tmp_path, max_windows=steps)
    assert len(run.epochs) == 2
    assert trainer.state.global_step == steps


def test_a_part_of_an_epoch_sets_no_threshold(tmp_path):
    case = Case(arguments={**CONSTANT, "num_train_epochs": 2.5})
    run, _ = by_trainer(case, tmp_path)
    assert run == by_hand(case, tmp_path, max_windows=2 * BATCHES + 4)


class StopAt(TrainerCallback):
    def __init__(self, step, what):
        self.step = step
        self.what = what

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            setattr(control, self.what, True)


def test_early_stopping_in_mid_epoch_sets_no_threshold(tmp_path):
    case = Case(arguments=CONSTANT)
    callbacks = [StopAt(BATCHES + 3, "should_training_stop")]
    run, _ = by_trainer(case, tmp_path, options={"callbacks": callbacks})
    assert run == by_hand(case, tmp_path, max_windows=BATCHES + 3)


def test_an_epoch_that_the_user_ends_is_over(tmp_path):
    callbacks = [StopAt(4, "should_epoch_stop")]
    run, _ = by_trainer(Case(), tmp_path, options={"callbacks": callbacks})
    assert [visit[1] for visit in run.visits if visit[0] == 0] == [0, 1, 2, 3]
    assert {visit[1] for visit in run.visits if visit[0] == 1} == set(range(BATCHES))


def test_an_error_in_mid_epoch_sets_no_threshold_and_leaves_the_trainer_as_it_was(tmp_path):
    class Failing(MyTrainer):
        fails = True

        def training_step(self, *args, **kwargs):
            if self.fails and self.state.global_step == BATCHES + 3:
                raise KeyError("of the user's")
            return super().training_step(*args, **kwargs)

    schedule = BatchAttentionSchedule()
    trainer = Failing(
        model=make_model("classifier"),
        args=make_arguments(Case(), tmp_path, num_train_epochs=2),
        train_dataset=make_dataset("classifier"),
        schedule=schedule,
    )
    with pytest.raises(KeyError, match="of the user's"):
        trainer.train()
    assert schedule.epoch == 1
    assert not {"get_train_dataloader", "training_step", "compute_loss"} & set(vars(trainer))
    # Trained again, from the start, it does not go on in the middle.
    trainer.fails = False
    trainer.train()
    assert schedule.epoch == 3
    assert schedule.last_summary.batches == BATCHES


def test_a_smaller_batch_size_begins_the_epoch_anew(tmp_path):
    class Small(MyTrainer):
        has_failed = False

        def training_step(self, *args, **kwargs):
            if not self.has_failed and self.state.global_step == BATCHES + 3:
                self.has_failed = True
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(*args, **kwargs)

    run, trainer = by_trainer(Case(), tmp_path, Small, auto_find_batch_size=True)
    batches = -(-52 // 7)
    assert trainer.state.global_step == EPOCHS * batches
    for epoch in (1, 2):
        assert {visit[1] for visit in run.visits if visit[0] == epoch} == set(range(batches))


def test_a_new_model_has_its_schedule_begin_anew(tmp_path):
    schedule, recorder = make_schedule()
    trainer = MyTrainer(
        model_init=lambda: make_model("classifier"),
        args=make_arguments(Case(), tmp_path, num_train_epochs=2),
        train_dataset=make_dataset("classifier"),
        schedule=schedule,
    )
    trainer.train()
    first = [tuple(visit) for visit in recorder.visits]
    recorder.visits.clear()
    trainer.train()
    assert [tuple(visit) for visit in recorder.visits] == first


# Checkpoints


def test_a_checkpoint_amid_repeats_goes_on_with_the_visit_that_was_due(tmp_path):
    class Undropped(MyTrainer):
        def __init__(self, model, **kwargs):
            model.layers[2].p = 0.0
            super().__init__(model, **kwargs)

    class SaveAndStop(TrainerCallback):
        """As on a signal, in the middle of a step."""

        trainer = None

        def on_pre_optimizer_step(self, args, state, control, **_):
            if self.trainer.schedule.visits == 1:
                self.trainer._save_checkpoint(self.trainer.model, trial=None)
                control.should_training_stop = True

    class Stopped(Undropped):
        def __init__(self, model, **kwargs):
            super().__init__(model, **kwargs)
            saving = SaveAndStop()
            saving.trainer = self
            self.add_callback(saving)

    whole, _ = by_trainer(Case(), tmp_path / "whole", Undropped)
    stopped, _ = by_trainer(Case(), tmp_path / "stopped", Stopped)
    resumed, _ = by_trainer(Case(), tmp_path / "stopped", Undropped, resume=True)
    tail = len(resumed.visits)
    assert resumed.visits[0][2] == 2
    assert resumed.visits == whole.visits[-tail:]
    assert torch.equal(resumed.weights, whole.weights)
    assert stopped.visits[: len(whole.visits) - tail] == whole.visits[:-tail]


# Batches that are changed


def test_a_batch_that_is_changed_in_place_is_not_trained_on_again(tmp_path):
    class Changing(MyTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            inputs["inputs"].mul_(0.5)
            return super().training_step(model, inputs, *args, **kwargs)

    with (
        pytest.warns(BatchAttentionWarning, match="changed tensors of its batch in place"),
        pytest.raises(BatchChangedError, match="changed tensors of it in place"),
    ):
        by_trainer(Case(), tmp_path, Changing)


def test_what_is_taken_out_of_a_batch_is_there_at_its_repeat(tmp_path):
    class Taking(MyTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            batch = {name: inputs.pop(name) for name in ("inputs", "labels")}
            return super().training_step(model, batch, *args, **kwargs)

    run, _ = by_trainer(Case(accumulation=2), tmp_path, Taking)
    assert run == by_hand(Case(accumulation=2), tmp_path)
