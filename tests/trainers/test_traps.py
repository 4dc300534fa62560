"""Where repeats inside a trainer go wrong silently, unless one thinks of it."""

import copy
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.errors import BatchAttentionWarning, BatchChangedError, OptionError, ProtocolError, StateError
from batch_sampler_attn.recorders import visit_counts
from tests.trainers.cases import BATCHES, EPOCHS, MARKS, Case
from tests.trainers.plain_loop import failing, make_schedule

pytestmark = [*MARKS, pytest.mark.parametrize("trainer", ["lightning", "transformers"], indirect=True)]


@pytest.mark.parametrize("by", ["max_steps", "stop_at"])
def test_a_training_that_ends_in_mid_epoch_sets_no_threshold(trainer, by, tmp_path):
    case = Case(2)
    steps = 2 * case.windows + 2
    run, _ = trainer.train(case, tmp_path, **{by: steps})
    assert run == trainer.by_hand(case, tmp_path, max_windows=steps)
    assert len(run.epochs) == 2


def test_an_epoch_that_the_user_ends_is_over(trainer, tmp_path):
    run, _ = trainer.train(Case(), tmp_path, end_epoch_at=4)
    assert run.positions(0) == [0, 1, 2, 3]
    assert len(run.epochs) == EPOCHS


def test_max_steps_can_be_raised_in_another_run_and_options_cannot_change(trainer, tmp_path):
    case = Case(dropout=0.0)
    begun, _ = trainer.train(case, tmp_path, max_steps=BATCHES + 3, saves=BATCHES + 3)
    last = trainer.checkpoint(tmp_path, BATCHES + 3)
    resumed, _ = trainer.train(case, tmp_path, max_steps=3 * BATCHES, resume=last)
    whole = trainer.by_hand(case, tmp_path, is_resumable=True, max_windows=3 * BATCHES)
    assert begun.visits + resumed.visits == whole.visits
    assert resumed.weights == whole.weights
    with pytest.raises(StateError, match="k"):
        trainer.train(Case(options={"k": 1.5}), tmp_path, resume=last)


def test_an_error_in_mid_epoch_sets_no_threshold_and_leaves_the_trainer_as_it_was(trainer, tmp_path):
    schedule, recorder = make_schedule(max_visits=1)
    step = failing(BATCHES + 3, KeyError("of the user's"))
    with pytest.raises(KeyError, match="of the user's"):
        trainer.train(Case(), tmp_path, step=step, schedule=(schedule, recorder))
    assert schedule.epoch == 1
    # Trained again, from the start, it does not resume in mid-epoch.
    _, fitted = trainer.train(Case(epochs=1), tmp_path, schedule=(schedule, recorder))
    assert trainer.is_left_as_it_was(fitted)
    assert (schedule.epoch, schedule.last_summary.batches) == (2, BATCHES)


@pytest.mark.parametrize(("epochs", "options"), [(1, {}), (EPOCHS, {"max_steps": 4})])
def test_a_training_in_which_nothing_can_repeat_is_warned_of_at_its_start(trainer, epochs, options, tmp_path):
    words = r"no batch will be repeated: training ends after .* epochs?, .* warmup_epochs=1\. .*epoch_length=2"
    with pytest.warns(BatchAttentionWarning, match=words), pytest.raises(AssertionError):
        trainer.train(Case(2, epochs=epochs), tmp_path, step=failing(1, AssertionError), **options)


def test_short_epochs_of_the_schedule_repeat_within_one_of_the_trainer(trainer, tmp_path):
    case = Case(epochs=1, options={"epoch_length": 2})
    run, _ = trainer.train(case, tmp_path)
    assert run == trainer.by_hand(case, tmp_path, max_windows=BATCHES)
    assert run.repeats > 0


class Stream(IterableDataset):
    """Without a length."""

    def __init__(self, dataset):
        self.samples = [dataset[index] for index in range(48)]

    def __iter__(self):
        return iter(self.samples)


def test_a_stream_without_a_length_is_no_different(trainer, tmp_path):
    def loader():
        return DataLoader(Stream(trainer.make_dataset(Case())), 8, generator=torch.Generator())

    steps = 2 * 3 + 2
    run, _ = trainer.train(Case(2), tmp_path, loader=loader(), max_steps=steps)
    assert run == trainer.by_hand(Case(2), tmp_path, loader=loader(), max_windows=steps)
    assert any(visit[2] > 1 for visit in run.visits)


def test_a_batch_that_is_changed_in_place_is_not_trained_on_again(trainer, tmp_path):
    def halve(batch):
        (batch["inputs"] if isinstance(batch, dict) else batch[0]).mul_(0.5)
        return batch

    words = "changed tensors of its batch in place"
    with (
        pytest.warns(BatchAttentionWarning, match=words) as caught,
        pytest.raises(BatchChangedError, match=r"changed tensors in it in place \(.*of shape \(8, 6\)"),
    ):
        trainer.train(Case(), tmp_path, step=halve)
    assert sum(words in str(warning.message) for warning in caught) == 1


def test_what_is_taken_out_of_a_batch_is_there_at_its_repeat(trainer, tmp_path):
    def take(batch):
        taken = copy.copy(batch)
        batch.clear()
        return taken

    run, _ = trainer.train(Case(2), tmp_path, step=take)
    assert run == trainer.by_hand(Case(2), tmp_path)


# Of trainings with one window in each epoch: how often each is called for a window, and for a repeat.
HOOKS = {
    "lightning": {
        **dict.fromkeys(("on_before_zero_grad", "on_before_optimizer_step"), (1, 1)),
        "on_after_backward": (BATCHES, BATCHES),
    },
    "transformers": {
        **dict.fromkeys(("on_pre_optimizer_step", "on_optimizer_step"), (1, 1)),
        **dict.fromkeys(("on_step_begin", "on_step_end"), (1, 0)),
        "on_substep_end": (BATCHES - 1, 0),
    },
}


def test_hooks_around_an_update_are_called_at_each_and_others_once_a_window(trainer, tmp_path):
    hooks, calls = HOOKS[trainer.__name__.rpartition("_")[2]], Counter()

    def count(hook):
        return lambda *_, **__: calls.update([hook])

    counting = type("Counting", (trainer.Callback,), {hook: count(hook) for hook in hooks})()
    run, fitted = trainer.train(Case(BATCHES), tmp_path, callbacks=[counting])
    assert run.repeats > 0
    assert calls == {hook: EPOCHS * first + run.repeats * again for hook, (first, again) in hooks.items()}
    assert trainer.is_left_as_it_was(fitted)


def test_the_control_at_equal_compute_runs_in_the_trainer(trainer, tmp_path):
    schedule, recorder = make_schedule()
    run, _ = trainer.train(Case(epochs=2), tmp_path, schedule=(schedule, recorder))
    control = EqualComputeControl(visit_counts(recorder.visits), seed=1)
    trainer.train(Case(epochs=2), tmp_path, schedule=(control, recorder))
    assert control.last_summary.repeats == run.repeats > 0
    assert control.epoch == 2


def test_what_would_repeat_or_decide_otherwise_is_refused(trainer, monkeypatch, tmp_path):
    schedule, words = BatchAttentionSchedule(), r"schedule is 1.2; it must be like BatchAttentionSchedule\(k=1.2\)"
    with pytest.raises(OptionError, match=words):
        trainer.train(Case(), tmp_path, schedule=(1.2, None))
    loader = BatchAttentionSchedule().attend(DataLoader(trainer.make_dataset(Case()), 8))
    words = r"the loader is or holds AttendedLoader .*Give a plain DataLoader\(dataset, batch_size=..., shuffle=...\)"
    with pytest.raises(ProtocolError, match=words):
        trainer.train(Case(), tmp_path, schedule=(schedule, None), loader=loader)
    monkeypatch.setattr("batch_sampler_attn.ranks.process_group_size", lambda: 2)
    with pytest.raises(ProtocolError, match=r"ranks=MeanOverRanks\(\)"):
        trainer.train(Case(), tmp_path, schedule=(schedule, None))
    assert schedule.batches == 0
    BatchAttentionSampler(range(4), 2, schedule=schedule)
    with pytest.raises(ProtocolError, match="belongs to a BatchAttentionSampler"):
        trainer.train(Case(), tmp_path, schedule=(schedule, None))
