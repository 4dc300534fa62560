"""What is transformers' own, with attention to batches."""

import json
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.errors import BatchAttentionWarning, OptionError, ProtocolError
from tests.trainers.cases import BATCHES, EPOCHS, MARKS, Case
from tests.trainers.plain_loop import make_schedule
from tests.trainers.ranks import on_ranks

pytestmark = MARKS


def train(transformers, case, folder, options=None, **methods):
    """The run, and the trainer, which has some methods of its own."""
    return transformers.train(case, folder, with_methods(transformers, **methods), options=options)


def with_methods(transformers, **methods):
    return type("Mine", (transformers.MyTrainer,), methods)


def smoothed(model, batch, items):
    smooth = import_module("transformers.trainer_pt_utils").LabelSmoother(0.1)
    outputs = model(input_ids=batch["input_ids"], num_items_in_batch=items)
    return smooth(outputs, batch["labels"], shift_labels=True, num_items_in_batch=items)


def weighted(model, batch):
    logits = model(batch["inputs"])["logits"]
    return nn.functional.cross_entropy(logits, batch["labels"], weight=torch.tensor([1.0, 3.0]))


def squared(model, batch, items=None):
    return model(**batch, num_items_in_batch=items)["loss"] ** 2


def halved(model, batch, items=None):
    return model(**batch)["loss"] / 2


def compared(outputs, labels, num_items_in_batch=None):
    """The loss of GPT-2, as a ``compute_loss_func``."""
    logits, targets = outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return nn.functional.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch


def compared_by_hand(model, batch, items):
    return compared(model(input_ids=batch["input_ids"], num_items_in_batch=items), batch["labels"], items)


def computing(loss_of, *, passes_items=True):
    """A trainer's methods, with a ``compute_loss`` of the user's."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        items = (num_items_in_batch,) if passes_items else ()
        return loss_of(model, inputs, *items)

    return {"compute_loss": compute_loss}


GPT2 = Case(2, model="gpt2")
LOSSES = {
    # a case, the trainer's methods and options, the same loss by hand, and how it is divided by hand
    "smoothed": (Case(2, model="gpt2", trainer={"label_smoothing_factor": 0.1}), {}, {}, smoothed, "items"),
    "own": (Case(3), computing(weighted, passes_items=False), {}, weighted, len),
    "function": (Case(3, model="gpt2"), {}, {"compute_loss_func": compared}, compared_by_hand, "items"),
    "says so wrongly": (GPT2, {**computing(halved), "loss_is_scaled_for_ga": True}, {}, halved, "items"),
    # The trainer adds up means all the same: were their sum decided on, an epoch's partial window would look low.
    "divides": (GPT2, computing(squared), {}, squared, "items"),
    "does not divide": (GPT2, computing(squared, passes_items=False), {}, squared, lambda window: 1),
    "a model's mean": (Case(3, model="counted"), {}, {}, None, lambda window: 1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_that_is_minimized_is_decided_on(transformers, name, tmp_path):
    case, methods, options, loss_of, divisor = LOSSES[name]
    run, _ = train(transformers, case, tmp_path, options=options, **methods)
    division = {"items_of": transformers.tokens_in} if divisor == "items" else {"divisor": divisor}
    assert run == transformers.by_hand(case, tmp_path, loss_of, **division)
    assert run.repeats > 2


def test_a_step_that_scales_its_loss_in_place_has_it_decided_on_as_it_was(transformers, tmp_path):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        loss.mul_(0.5).backward()
        return loss.detach()

    run, _ = train(transformers, Case(), tmp_path, training_step=training_step)
    assert run == transformers.by_hand(Case(), tmp_path, divisor=lambda window: 2)
    assert run.repeats > 2


def test_what_is_logged_is_of_first_visits_with_repeats_and_threshold(transformers, tmp_path):
    schedule, recorder = make_schedule()
    run, trainer = transformers.train(
        Case(), tmp_path, schedule=(schedule, recorder), logging_strategy="steps", logging_steps=1
    )
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    visits = {visit[:2]: visit[2] for visit in run.visits}  # the last is the count
    assert [entry["loss"] for entry in logs] == run.first_losses
    assert [entry["batch_attention/repeats"] for entry in logs] == [count - 1 for count in visits.values()]
    assert "batch_attention/threshold" not in logs[0]
    # An epoch's last line has the threshold that the epoch has set.
    in_force = [threshold for _, threshold in run.epochs[1:]] + [run.threshold]
    assert [entry["batch_attention/threshold"] for entry in logs[BATCHES - 1 :: BATCHES]] == in_force
    # A second training counts its own.
    recorder.summaries.clear()
    trainer.train()
    logged = [entry["batch_attention/repeats"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(logged) == sum(summary.repeats for summary in recorder.summaries)


def test_an_evaluation_between_is_no_visit_and_logs_nothing_of_it(transformers, tmp_path):
    # Its loader draws from the generator that dropout is drawn from.
    case = Case(2, dropout=0.0)
    run, trainer = transformers.train(
        case, tmp_path, options={"eval_dataset": transformers.make_dataset(case)}, eval_strategy="steps", eval_steps=1
    )
    assert run == transformers.by_hand(case, tmp_path)
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == EPOCHS * 4
    assert not any("batch_attention/repeats" in entry for entry in evaluations)


def test_callbacks_around_an_update_are_called_at_each_and_others_once_a_window(transformers, tmp_path):
    names = ("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end")
    calls = dict.fromkeys(names, 0)

    def count(name):
        def callback(*_, **__):
            calls[name] += 1

        return callback

    counting = type("Counting", (transformers.TrainerCallback,), {name: count(name) for name in names})
    run, trainer = transformers.train(Case(3), tmp_path, callbacks=[counting()])
    windows = EPOCHS * 3
    assert run.repeats > 0
    assert list(calls.values()) == [windows, EPOCHS * 4, windows + run.repeats, windows + run.repeats, windows]
    assert trainer.state.global_step == windows
    assert transformers.is_left_as_it_was(trainer)


def test_a_smaller_batch_size_begins_the_epoch_again(transformers, tmp_path):
    steps = []

    def failing_once(batch):
        steps.append(batch)
        if len(steps) == BATCHES + 4:
            raise RuntimeError("CUDA out of memory.")
        return batch

    case = Case(options={"max_visits": 1})
    run, trainer = transformers.train(case, tmp_path, step=failing_once, auto_find_batch_size=True)
    batches = -(-52 // 7)
    assert trainer.state.global_step == EPOCHS * batches
    for epoch in (1, 2):
        assert run.positions(epoch) == [*range(batches)]


def test_a_new_model_has_its_schedule_begin_again(transformers, tmp_path):
    schedule, recorder = make_schedule()
    options = {"model": None, "model_init": lambda: transformers.make_model(Case()), "schedule": schedule}
    trainer = transformers.make_trainer(Case(), tmp_path, arguments={"num_train_epochs": 2}, **options)
    trainer.train()
    first = [tuple(visit) for visit in recorder.visits]
    recorder.visits.clear()
    trainer.train()
    assert [tuple(visit) for visit in recorder.visits] == first


def test_a_checkpoint_without_a_state_or_without_skipped_data_sets_no_threshold(transformers, tmp_path):
    transformers.train(Case(), tmp_path, max_steps=BATCHES + 3, saves=True)
    last = transformers.checkpoint(tmp_path, BATCHES + 3)
    assert json.loads((last / "batch_attention.json").read_text())["state"]["epoch"] == 1
    # Data that are not skipped are an epoch from its beginning.
    run, _ = transformers.train(Case(), tmp_path, resume=last, max_steps=2 * BATCHES + 3, ignore_data_skip=True)
    assert run.visits[0][:3] == (1, 0, 1)
    assert run.positions(1) == [*range(BATCHES)]
    (last / "batch_attention.json").unlink()
    with pytest.warns(BatchAttentionWarning, match=r"has no batch_attention.json"):
        run, trainer = transformers.train(Case(), tmp_path, resume=last, max_steps=3 * BATCHES)
    assert trainer.state.global_step == 3 * BATCHES
    # The part of an epoch that was left sets no threshold; the whole one after it does.
    assert len(run.epochs) == 1


def test_ranks_that_divide_by_their_own_tokens_decide_on_the_mean_over_all(transformers, tmp_path):
    options = {"k": 0.9, "max_visits": 4}
    arguments = {"average_tokens_across_devices": False}
    case = Case(model="gpt2", optimizer="sgd", dropout=0.0, options=options, trainer=arguments)
    first, second = on_ranks(transformers.on_a_rank, case, tmp_path, folder=tmp_path)
    assert first == second
    assert first.repeats > 0
    # Before the first update, of which the ranks make the plain mean, there is no difference.
    expected = transformers.in_one_process(case, tmp_path)
    assert first.visits[0][3] == pytest.approx(expected.visits[0][3], rel=1e-6)


def refusal(transformers, folder, trainer=None, **methods):
    """What train raises, with the weights as they were."""
    trainer = trainer or transformers.make_trainer(Case(), folder, with_methods(transformers, **methods))
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    with pytest.raises(ProtocolError) as error:
        trainer.train()
    assert all(map(torch.equal, trainer.model.parameters(), before))
    assert transformers.is_left_as_it_was(trainer)
    return str(error.value)


@pytest.mark.parametrize("kind", ["DataParallel", "FSDP"])
def test_updates_that_are_made_elsewhere_are_refused(transformers, kind, tmp_path):
    trainer = transformers.make_trainer(Case(), tmp_path)
    if kind == "DataParallel":
        trainer.args._n_gpu = 2
    else:  # with one process, it cannot be set up
        trainer.accelerator = SimpleNamespace(distributed_type=SimpleNamespace(name=kind))
    text = refusal(transformers, tmp_path, trainer)
    assert f"{kind} was not tried" in text
    assert "torchrun" in text
    assert "ranks=MeanOverRanks()" in text


@pytest.mark.parametrize("losses", [0, 2])
def test_a_step_without_one_loss_is_refused(transformers, losses, tmp_path):
    def training_step(self, model, inputs, num_items_in_batch=None):
        for _ in range(losses):
            self.compute_loss(model, inputs)
        return torch.zeros(())

    text = refusal(transformers, tmp_path, training_step=training_step)
    assert f"Mine.training_step calls compute_loss {losses} times" in text


def test_a_trainer_that_makes_its_batches_in_its_step_is_refused(transformers, tmp_path):
    generating = type("GeneratingTrainer", (transformers.Trainer,), {"generate_on_policy_outputs": None})
    generating.__module__ = "trl.trainer.generating_trainer"
    own = type("Own", (transformers.BatchAttentionMixin, generating), {})
    text = refusal(transformers, tmp_path, transformers.make_trainer(Case(), tmp_path, own))
    assert "GeneratingTrainer makes its batches inside the training step" in text
    assert "SFTTrainer" in text


def test_a_transformers_of_a_newer_kind_is_refused(transformers, tmp_path):
    own = type("Own", (transformers.BatchAttentionMixin,), {})
    with pytest.raises(ProtocolError, match="no class after BatchAttentionMixin has _save_optimizer_and_scheduler"):
        own(schedule=BatchAttentionSchedule())
    trainer = transformers.make_trainer(Case(), tmp_path)
    trainer.callback_handler.on_optimizer_step = lambda args, state, control: control
    with pytest.raises(ProtocolError, match="MyTrainer ended a step without on_optimizer_step"):
        trainer.train()
    assert trainer.state.global_step == 1
    assert transformers.is_left_as_it_was(trainer)


def test_the_mixin_after_the_trainer_is_refused_where_the_class_is_made(transformers):
    mixin, trainer = transformers.BatchAttentionMixin, transformers.Trainer
    with pytest.raises(ProtocolError, match=r"Write class Own\(BatchAttentionMixin, Trainer\)"):
        type("Own", (trainer, mixin), {})
    # Another mixin before it is taken.
    taken = type("Own", (type("Logging", (), {}), mixin, trainer), {})
    assert type("Further", (taken,), {})


def test_what_is_of_this_package_and_no_callback_is_refused_where_it_arrives(transformers, tmp_path):
    with pytest.raises(OptionError, match=r"callbacks has .*no callback of this trainer"):
        transformers.make_trainer(Case(), tmp_path, callbacks=[BatchAttentionSchedule])


def test_a_batch_whose_samples_cannot_be_counted_is_refused_with_how_to_count_them(transformers, tmp_path):
    def loss_of(model, inputs):
        rows = torch.tensor(inputs["rows"])
        return model(rows, torch.zeros(len(rows), dtype=torch.long))["loss"]

    loader = DataLoader([{"rows": [[0.0] * 6] * 8}] * BATCHES, batch_size=None)
    mine = with_methods(transformers, **computing(loss_of, passes_items=False))
    with pytest.raises(OptionError, match="samples=lambda batch"):
        transformers.train(Case(2), tmp_path, mine, loader=loader)
    options = {"samples": lambda batch: len(batch["rows"])}
    _, trainer = transformers.train(Case(2), tmp_path, mine, loader=loader, options=options)
    assert trainer.schedule.epoch == EPOCHS
