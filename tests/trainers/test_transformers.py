"""What is transformers' own, with attention to batches and to samples."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.errors import BatchAttentionWarning, LossError, OptionError, ProtocolError, StateError
from tests.trainers.cases import BATCHES, EPOCHS, MARKS, SAMPLES, Case, plain
from tests.trainers.plain_loop import failing, make_schedule, refused
from tests.trainers.ranks import on_ranks
from tests.trainers.sample_loop import make_attention

pytestmark = MARKS


def with_methods(transformers, **methods):
    """A user's trainer, which has some methods of its own."""
    return type("Mine", (transformers.MyTrainer,), methods)


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


def scaling_in_place(self, model, inputs, num_items_in_batch=None):
    """A training step that changes the loss which ``compute_loss`` returned."""
    model.train()
    loss = self.compute_loss(model, self._prepare_inputs(inputs))
    loss.mul_(0.5).backward()
    return loss.detach()


LOSSES = {
    # batches in a window and the model; the trainer's methods and options; the same loss by hand, and how it is divided
    "function": (3, "gpt2", {}, {"compute_loss_func": compared}, compared_by_hand, "items"),
    "says so wrongly": (2, "gpt2", {**computing(halved), "loss_is_scaled_for_ga": True}, {}, halved, "items"),
    # The trainer adds up means all the same: were their sum decided on, an epoch's partial window would look low.
    "divides": (2, "gpt2", computing(squared), {}, squared, "items"),
    "does not divide": (2, "gpt2", computing(squared, passes_items=False), {}, squared, lambda window: 1),
    "scaled": (1, "network", {"training_step": scaling_in_place}, {}, None, lambda window: 2),
    "a model's mean": (3, "counted", {}, {}, None, lambda window: 1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_that_is_minimized_is_decided_on(transformers, name, tmp_path):
    accumulation, model, methods, options, loss_of, divisor = LOSSES[name]
    case = Case(accumulation, model=model, epochs=3)
    run, _ = transformers.train(case, tmp_path, with_methods(transformers, **methods), options=options)
    division = {"items_of": transformers.tokens_in} if divisor == "items" else {"divisor": divisor}
    assert run == transformers.by_hand(case, tmp_path, loss_of, **division)
    assert run.repeats > 0


def test_what_is_logged_is_of_first_visits_and_evaluations_are_no_visits(transformers, tmp_path):
    case = Case(epochs=2, dropout=0.0)  # an evaluation's loader draws from the generator that dropout is drawn from.
    schedule, recorder = make_schedule()
    options = {"schedule": (schedule, recorder), "options": {"eval_dataset": transformers.make_dataset(case)}}
    logging = {"logging_strategy": "steps", "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    run, trainer = transformers.train(case, tmp_path, **options, **logging)
    assert run == transformers.by_hand(case, tmp_path)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    visits = {visit[:2]: visit[2] for visit in run.visits}  # the last is the count
    assert [entry["loss"] for entry in logs] == run.first_losses
    assert [entry["batch_attention/repeats"] for entry in logs] == [count - 1 for count in visits.values()]
    assert "batch_attention/threshold" not in logs[0]
    # An epoch's last line has the threshold that the epoch has set.
    in_force = [threshold for _, threshold in run.epochs[1:]] + [run.threshold]
    assert [entry["batch_attention/threshold"] for entry in logs[BATCHES - 1 :: BATCHES]] == in_force
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == BATCHES
    assert not any("batch_attention/repeats" in entry for entry in evaluations)
    # A second training counts its own.
    recorder.summaries.clear()
    trainer.train()
    logged = [entry["batch_attention/repeats"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(logged) == sum(summary.repeats for summary in recorder.summaries)


def test_a_smaller_batch_size_begins_the_epoch_again(transformers, tmp_path):
    case, step = Case(epochs=2, options={"max_visits": 1}), failing(BATCHES + 4, RuntimeError("CUDA out of memory."))
    run, trainer = transformers.train(case, tmp_path, step=step, auto_find_batch_size=True)
    batches = -(-52 // 7)
    assert trainer.state.global_step == 2 * batches
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
    transformers.train(Case(), tmp_path, max_steps=BATCHES + 3, saves=BATCHES + 3)
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
    options, arguments = {"k": 0.9, "max_visits": 4}, {"average_tokens_across_devices": False}
    case = Case(model="gpt2", optimizer="sgd", dropout=0.0, epochs=2, options=options, trainer=arguments)
    first, second = on_ranks(transformers.on_a_rank, case, tmp_path, folder=tmp_path)
    assert first == second
    assert first.repeats > 0
    # Before the first update, of which the ranks make the plain mean, there is no difference.
    expected = transformers.in_one_process(case, tmp_path)
    assert first.visits[0][3] == pytest.approx(expected.visits[0][3], rel=1e-6)


def check_refused(transformers, words, trainer):
    with refused(words, trainer.model):
        trainer.train()
    assert transformers.is_left_as_it_was(trainer)


@pytest.mark.parametrize("kind", ["DataParallel", "FSDP"])
def test_updates_that_are_made_elsewhere_are_refused(transformers, kind, tmp_path):
    trainer = transformers.make_trainer(Case(), tmp_path)
    if kind == "DataParallel":
        trainer.args._n_gpu = 2
    else:  # with one process, it cannot be set up
        trainer.accelerator = SimpleNamespace(distributed_type=SimpleNamespace(name=kind))
    check_refused(transformers, rf"{kind} was not tried .*torchrun.* ranks=MeanOverRanks\(\)", trainer)


@pytest.mark.parametrize("losses", [0, 2])
def test_a_step_without_one_loss_is_refused(transformers, losses, tmp_path):
    def training_step(self, model, inputs, num_items_in_batch=None):
        for _ in range(losses):
            self.compute_loss(model, inputs)
        return torch.zeros(())

    trainer = transformers.make_trainer(Case(), tmp_path, with_methods(transformers, training_step=training_step))
    check_refused(transformers, f"Mine.training_step calls compute_loss {losses} times", trainer)


def test_a_trainer_that_makes_its_batches_in_its_step_is_refused(transformers, tmp_path):
    generating = type("GeneratingTrainer", (transformers.Trainer,), {"generate_on_policy_outputs": None})
    generating.__module__ = "trl.trainer.generating_trainer"
    own = type("Own", (transformers.BatchAttentionMixin, generating), {})
    words = "GeneratingTrainer makes its batches inside the training step.* SFTTrainer"
    check_refused(transformers, words, transformers.make_trainer(Case(), tmp_path, own))


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
    assert type("Own", (type("Logging", (), {}), mixin, trainer), {})


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


# Attention to samples


def test_an_evaluation_in_mid_epoch_changes_nothing(transformers, tmp_path):
    case = Case(model="gpt2", dropout=0.0, options={"k": 1.0})
    evaluations = {"eval_strategy": "steps", "eval_steps": 2}
    data = {"eval_dataset": transformers.make_dataset(case)}
    run = transformers.train_samples(case, tmp_path, options=data, **evaluations)
    assert run == transformers.samples_by_hand(case, tmp_path)
    losses = [entry["loss"] for entry in run.logs if "loss" in entry]
    assert losses == pytest.approx([batch[4] for batch in run.batches], rel=1e-5)
    assert sum("eval_loss" in entry for entry in run.logs) == len(losses) // 2
    # Of the epoch so far; the first has nothing to compare with, and the last is on all data.
    for name in ("pruned", "extra_updates"):
        counts = [entry[f"sample_attention/{name}"] for entry in run.logs if "loss" in entry]
        assert [max(counts[begin : begin + BATCHES]) > 0 for begin in (0, 14, 21)] == [False, True, False]


def repeating_step(self, model, inputs, *arguments):
    plain(self).training_step(self, model, dict(inputs), *arguments)
    return plain(self).training_step(self, model, inputs, *arguments)


def read_ahead(self, epoch_iterator, num_batches, device):
    return [next(epoch_iterator) for _ in range(num_batches)], None


REFUSALS = {
    # the trainer's methods, arguments, and options; and what the error says
    "batch size": ({}, {"per_device_train_batch_size": 4}, {}, r"batch_size=8 \(it is 4\)"),
    "order": ({}, {"train_sampling_strategy": "sequential"}, {}, "there is a SequentialSampler"),
    "smoothing": ({}, {"label_smoothing_factor": 0.1}, {}, r"label_smoothing_factor=0 \(it is 0.1\)"),
    "reduced": ({}, {}, {"compute_loss_func": None}, r"shape \(\).*reduction=\"none\""),
    "other data": ({}, {}, {"train_dataset": [{"inputs": torch.zeros(6)}] * 53}, "the dataset has 53 samples"),
    "repeats": ({"training_step": repeating_step}, {}, {}, "no current batch"),
    "reads ahead": ({"get_batch_samples": read_ahead}, {"gradient_accumulation_steps": 2}, {}, "before report"),
}


def make_sample_trainer(transformers, folder, methods, arguments=None, options=None, base=None):
    trainer_class = type("Mine", (base or transformers.MySampleTrainer,), methods)
    options = {"compute_loss_func": transformers.sequence_losses, "attention": make_attention(), **(options or {})}
    return transformers.make_trainer(Case(), folder, trainer_class, arguments, **options)


@pytest.mark.parametrize("name", REFUSALS)
def test_what_would_lose_or_mix_up_losses_is_refused(transformers, name, tmp_path):
    methods, arguments, options, words = REFUSALS[name]
    trainer = make_sample_trainer(transformers, tmp_path, methods, arguments, options)
    with pytest.raises((ProtocolError, LossError), match=words):
        trainer.train()
    assert len(trainer.attention.batches) == (name == "repeats")


def test_an_order_of_the_user_s_and_several_gpus_are_refused(transformers, tmp_path):
    trainer = make_sample_trainer(transformers, tmp_path, {})
    sampler = WeightedRandomSampler([1.0] * SAMPLES, SAMPLES)
    loader = DataLoader(trainer.train_dataset, 8, sampler=sampler)
    weighted = type("Weighted", (transformers.Trainer,), {"get_train_dataloader": lambda self: loader})
    base = type("Base", (transformers.SampleAttentionMixin, weighted), {})
    with pytest.raises(ProtocolError, match="there is a WeightedRandomSampler"):
        make_sample_trainer(transformers, tmp_path, {}, base=base).train()
    trainer.args._n_gpu = 2
    with pytest.raises(ProtocolError, match="DataParallel"):
        trainer.train()


def test_both_mixins_and_a_checkpoint_without_a_state_are_refused(transformers, tmp_path):
    mixins = transformers.BatchAttentionMixin, transformers.SampleAttentionMixin
    both = type("Both", (*mixins, transformers.Trainer), {})
    with pytest.raises(ProtocolError, match="leave one mixin out"):
        both(transformers.make_model(Case()), transformers.make_arguments(Case(), tmp_path), attention=make_attention())
    transformers.train_samples(Case(), tmp_path, saves=True, max_steps=1)
    folder = transformers.checkpoint(tmp_path, 1)
    assert json.loads((folder / "sample_attention_0.json").read_text())["options"]["rank"] == 0
    (folder / "sample_attention_0.json").unlink()
    with pytest.raises(StateError, match=r"has no sample_attention_0\.json"):
        transformers.train_samples(Case(), tmp_path, resume=folder)


def test_losses_are_means_over_tokens(transformers):
    sequence_losses = transformers.sequence_losses
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    labels[1, :3], labels[2] = -100, -100
    for shift in (True, False):
        pairs = zip(logits[:, :-1], labels[:, 1:], strict=True) if shift else zip(logits, labels, strict=True)
        expected = [nn.functional.cross_entropy(*pair, ignore_index=-100).nan_to_num() for pair in pairs]
        assert torch.allclose(sequence_losses({"logits": logits}, labels, shift=shift), torch.stack(expected))
    assert sequence_losses(logits, labels)[2] == 0
