"""Where repeats inside a trainer go wrong silently, unless one thinks of it."""

import copy
from importlib import import_module

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.errors import BatchAttentionWarning, BatchChangedError, OptionError, ProtocolError, StateError
from batch_sampler_attn.recorders import visit_counts
from tests.trainers.cases import BATCHES, EPOCHS, MARKS, Case
from tests.trainers.plain_loop import make_schedule

pytestmark = MARKS


@pytest.fixture(params=["lightning", "transformers"])
def trainer(request):
    return import_module(f"tests.trainers.by_{request.param}")


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


def test_max_steps_can_be_raised_in_another_run(trainer, tmp_path):
    case = Case(dropout=0.0)
    begun, _ = trainer.train(case, tmp_path, max_steps=BATCHES + 3, saves=True)
    last = trainer.checkpoint(tmp_path, BATCHES + 3)
    resumed, _ = trainer.train(case, tmp_path, max_steps=3 * BATCHES, resume=last)
    whole = trainer.by_hand(case, tmp_path, is_resumable=True, max_windows=3 * BATCHES)
    assert begun.visits + resumed.visits == whole.visits
    assert resumed.weights == whole.weights


def test_an_error_in_mid_epoch_sets_no_threshold_and_leaves_the_trainer_as_it_was(trainer, tmp_path):
    batches = []

    def failing(batch):
        batches.append(batch)
        if len(batches) == BATCHES + 3:
            raise KeyError("of the user's")
        return batch

    schedule, recorder = make_schedule(max_visits=1)
    with pytest.raises(KeyError, match="of the user's"):
        trainer.train(Case(), tmp_path, step=failing, schedule=(schedule, recorder))
    assert schedule.epoch == 1
    # Trained again, from the start, it does not resume in mid-epoch.
    _, fitted = trainer.train(Case(epochs=1), tmp_path, schedule=(schedule, recorder))
    assert trainer.is_left_as_it_was(fitted)
    assert (schedule.epoch, schedule.last_summary.batches) == (2, BATCHES)


@pytest.mark.parametrize(("epochs", "options"), [(1, {}), (EPOCHS, {"max_steps": 4})])
def test_a_training_in_which_nothing_can_repeat_is_warned_of_at_its_start(trainer, epochs, options, tmp_path):
    def never(batch):
        raise AssertionError

    words = r"no batch will be repeated: training ends after .* epochs?, .* warmup_epochs=1\. .*epoch_length=2"
    with pytest.warns(BatchAttentionWarning, match=words), pytest.raises(AssertionError):
        trainer.train(Case(2, epochs=epochs), tmp_path, step=never, **options)


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

    with (
        pytest.warns(BatchAttentionWarning, match="changed tensors of its batch in place"),
        pytest.raises(BatchChangedError, match="changed tensors in it in place"),
    ):
        trainer.train(Case(), tmp_path, step=halve)


def test_what_is_taken_out_of_a_batch_is_there_at_its_repeat(trainer, tmp_path):
    def take(batch):
        taken = copy.copy(batch)
        batch.clear()
        return taken

    run, _ = trainer.train(Case(2), tmp_path, step=take)
    assert run == trainer.by_hand(Case(2), tmp_path)


def test_the_control_at_equal_compute_runs_in_the_trainer(trainer, tmp_path):
    schedule, recorder = make_schedule()
    run, _ = trainer.train(Case(), tmp_path, schedule=(schedule, recorder))
    control = EqualComputeControl(visit_counts(recorder.visits), seed=1)
    trainer.train(Case(), tmp_path, schedule=(control, recorder))
    assert control.last_summary.repeats == run.epochs[-1][0]
    assert control.epoch == EPOCHS


def test_a_loader_of_this_package_and_ranks_without_the_option_are_refused(trainer, monkeypatch, tmp_path):
    schedule = BatchAttentionSchedule()
    loader = BatchAttentionSchedule().attend(DataLoader(trainer.make_dataset(Case()), 8))
    words = r"the loader is or holds AttendedLoader .*Give a plain DataLoader\(dataset, batch_size=..., shuffle=...\)"
    with pytest.raises(ProtocolError, match=words):
        trainer.train(Case(), tmp_path, schedule=(schedule, None), loader=loader)
    monkeypatch.setattr("batch_sampler_attn.ranks.process_group_size", lambda: 2)
    with pytest.raises(ProtocolError, match=r"ranks=MeanOverRanks\(\)"):
        trainer.train(Case(), tmp_path, schedule=(schedule, None))
    assert schedule.batches == 0


def test_a_schedule_that_is_none_or_a_sampler_s_is_refused(trainer, tmp_path):
    schedule = BatchAttentionSchedule()
    BatchAttentionSampler(range(4), 2, schedule=schedule)
    with pytest.raises(ProtocolError, match="belongs to a BatchAttentionSampler"):
        trainer.train(Case(), tmp_path, schedule=(schedule, None))
    with pytest.raises(OptionError, match=r"schedule is 1.2; it must be like BatchAttentionSchedule\(k=1.2\)"):
        trainer.train(Case(), tmp_path, schedule=(1.2, None))


def test_a_state_of_other_options_is_refused(trainer, tmp_path):
    trainer.train(Case(2), tmp_path, max_steps=5, saves=True)
    with pytest.raises(StateError, match="k"):
        trainer.train(Case(2, options={"k": 1.5}), tmp_path, resume=trainer.checkpoint(tmp_path, 5))
