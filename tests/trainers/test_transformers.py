"""A Trainer with the mixin, beside the plain loop around ``decide``: the same visits, losses and weights."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LabelSmoother

from batch_sampler_attn.schedule import passes_of
from tests.trainers.plain_loop import make_schedule
from tests.trainers.transformers_runs import (
    BATCHES,
    EPOCHS,
    MARKS,
    Case,
    MyTrainer,
    by_hand,
    by_items,
    by_trainer,
    make_arguments,
    make_dataset,
    make_model,
)

pytestmark = MARKS

MODELS = ("classifier", "gpt2")
PRECISIONS = ("fp32", "bf16", "scaler")
CLIPS = (0.0, 0.5)
MATRIX = [
    Case(model, accumulation, precision, clip)
    for model, accumulation, precision, clip in itertools.product(MODELS, (1, 2, 3), PRECISIONS, CLIPS)
]
# Each value with each other at least once; of GPT-2, which takes longer, one for each accumulation.
QUICK = [0, 3, 5, 7, 8, 10, 13, 14, 17, 18 + 3, 18 + 10, 18 + 12]


def check(case, folder):
    run, trainer = by_trainer(case, folder)
    expected = (by_items if case.model == "gpt2" else by_hand)(case, folder)
    assert run == expected
    assert run.repeats > 2
    assert trainer.state.global_step == EPOCHS * -(-BATCHES // case.accumulation)


@pytest.mark.parametrize("case", [MATRIX[index] for index in QUICK], ids=str)
def test_a_run_is_that_of_the_plain_loop(case, tmp_path):
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
@pytest.mark.parametrize("case", MATRIX, ids=str)
def test_every_run_is_that_of_the_plain_loop(case, optimizer, tmp_path):
    arguments = {"optim": optimizer, **({"learning_rate": 0.1} if optimizer == "sgd" else {})}
    check(Case(case.model, case.accumulation, case.precision, case.clip, arguments=arguments), tmp_path)


@pytest.mark.parametrize(
    "case",
    [
        Case(accumulation=2, options={"epoch_loss": "last", "k": 0.8, "budget": 0.7}),
        Case(accumulation=3, options={"epoch_loss": "all", "max_visits": 2}),
        Case(arguments={"lr_scheduler_type": "cosine", "warmup_steps": 5}),
    ],
    ids=str,
)
def test_so_is_a_run_of_another_kind(case, tmp_path):
    check(case, tmp_path)


def test_a_schedule_that_never_repeats_leaves_training_as_it_is(tmp_path):
    run, _ = by_trainer(Case(options={"max_visits": 1}), tmp_path)
    model = make_model("classifier")
    trainer = Trainer(model=model, args=make_arguments(Case(), tmp_path), train_dataset=make_dataset("classifier"))
    torch.manual_seed(6)
    trainer.train()
    assert torch.equal(torch.cat([value.double().flatten() for value in model.state_dict().values()]), run.weights)


def test_a_stream_without_a_length_is_no_different(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            dataset = make_dataset("classifier")
            return iter([dataset[index] for index in range(48)])

    case = Case(accumulation=2, arguments={"max_steps": EPOCHS * 3})
    run, trainer = by_trainer(case, tmp_path, of_a_stream(Stream()))
    batches = list(Stream())
    loader = [
        {name: torch.stack([sample[name] for sample in batches[begin : begin + 8]]) for name in ("inputs", "labels")}
        for begin in range(0, 48, 8)
    ]

    class Drawing:
        """Draws a number as an epoch begins, as a DataLoader does."""

        def __iter__(self):
            torch.empty((), dtype=torch.int64).random_()
            return iter(loader)

    expected = by_hand(case, tmp_path, loader=Drawing())
    # Whether the stream is over where the trainer stops, it does not know.
    assert run.visits == expected.visits
    assert torch.equal(run.weights, expected.weights)
    assert run.epochs == expected.epochs[:-1]
    assert trainer.state.global_step == EPOCHS * 3


def of_a_stream(dataset):
    class OfAStream(MyTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "train_dataset": dataset})

    return OfAStream


# Losses


@pytest.mark.parametrize("accumulation", [1, 2])
def test_label_smoothing_is_in_the_loss(accumulation, tmp_path):
    case = Case(accumulation=accumulation, arguments={"label_smoothing_factor": 0.1})
    smooth = LabelSmoother(0.1)

    def loss_of(model, batch):
        return smooth(model(batch["inputs"]), batch["labels"])

    run, _ = by_trainer(case, tmp_path)
    assert run == by_hand(case, tmp_path, loss_of)
    assert run.repeats > 2


def test_label_smoothing_over_tokens_is_in_the_loss(tmp_path):
    case = Case("gpt2", 2, arguments={"label_smoothing_factor": 0.1})
    smooth = LabelSmoother(0.1)

    def loss_of(model, batch, items):
        outputs = model(input_ids=batch["input_ids"], num_items_in_batch=items)
        return smooth(outputs, batch["labels"], shift_labels=True, num_items_in_batch=items)

    run, _ = by_trainer(case, tmp_path)
    assert run == by_items(case, tmp_path, loss_of)
    assert run.repeats > 2


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_compute_loss_of_the_user_s_is_what_is_decided_on(accumulation, tmp_path):
    class Weighted(MyTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(inputs["inputs"])
            loss = weighted(outputs["logits"], inputs.pop("labels"))
            return (loss, outputs) if return_outputs else loss

    case = Case(accumulation=accumulation)
    run, _ = by_trainer(case, tmp_path, Weighted)
    assert run == by_hand(
        case, tmp_path, lambda model, batch: weighted(model(batch["inputs"])["logits"], batch["labels"])
    )
    assert run.repeats > 2


def weighted(logits, labels):
    return nn.functional.cross_entropy(logits, labels, weight=torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize("is_scaled", [True, False])
def test_a_compute_loss_that_is_told_of_tokens_says_whether_it_divides_by_them(is_scaled, tmp_path):
    class Squared(MyTrainer):
        loss_is_scaled_for_ga = is_scaled

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return squared(model, inputs, num_items_in_batch if is_scaled else None)

    case = Case("gpt2", 2)
    run, _ = by_trainer(case, tmp_path, Squared)
    by_it = by_items if is_scaled else by_hand
    assert run == by_it(case, tmp_path, squared)
    assert run.repeats > 2


def squared(model, batch, items=None):
    return model(**batch, num_items_in_batch=items)["loss"] ** 2


def test_a_loss_function_of_the_user_s_is_what_is_decided_on(tmp_path):
    def compute_loss(outputs, labels, num_items_in_batch=None):
        logits, targets = outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return nn.functional.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch

    case = Case("gpt2", 2)
    run, _ = by_trainer(case, tmp_path, options={"compute_loss_func": compute_loss})
    expected = by_items(
        case,
        tmp_path,
        lambda model, batch, items: compute_loss(
            model(input_ids=batch["input_ids"], num_items_in_batch=items), batch["labels"], items
        ),
    )
    assert run == expected
    assert run.repeats > 2


@pytest.mark.parametrize("accumulation", [2, 3])
def test_a_model_that_takes_means_whatever_it_is_told_has_means_decided_on(accumulation, tmp_path):
    # The trainer adds them up all the same: were their sum decided on, an epoch's partial window would look low.
    case = Case("bert", accumulation, options={"k": 0.9})
    run, _ = by_trainer(case, tmp_path)
    assert run == by_hand(case, tmp_path, divisor=lambda window: 1)
    assert run.repeats > 2
    assert all(visit[3] < 1.0 for visit in run.visits)


def test_so_has_a_loss_function_that_takes_means(tmp_path):
    def compute_loss(outputs, labels, num_items_in_batch=None):
        return nn.functional.cross_entropy(outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    case = Case("gpt2", 3)
    run, _ = by_trainer(case, tmp_path, options={"compute_loss_func": compute_loss})
    expected = by_hand(
        case,
        tmp_path,
        lambda model, batch: compute_loss(model(input_ids=batch["input_ids"]), batch["labels"]),
        divisor=lambda window: 1,
    )
    assert run == expected
    assert run.repeats > 2


def test_a_training_step_of_the_user_s_is_made_at_each_visit(tmp_path):
    class Counting(MyTrainer):
        steps = 0

        def training_step(self, model, inputs, num_items_in_batch=None):
            self.steps += 1
            inputs["inputs"] = 2 * inputs["inputs"]
            return super().training_step(model, inputs, num_items_in_batch)

    run, trainer = by_trainer(Case(accumulation=2), tmp_path, Counting)
    assert run == by_hand(
        Case(accumulation=2), tmp_path, lambda model, batch: model(2 * batch["inputs"], batch["labels"])["loss"]
    )
    assert trainer.steps > EPOCHS * BATCHES


def test_a_step_that_scales_its_loss_in_place_has_it_decided_on_as_it_was(tmp_path):
    class Scaling(MyTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
            loss.mul_(0.5).backward()
            return loss.detach()

    run, _ = by_trainer(Case(), tmp_path, Scaling)
    assert run == by_hand(Case(), tmp_path, divisor=lambda window: 2)
    assert run.repeats > 2


def test_what_a_class_says_of_its_loss_is_not_looked_into(tmp_path):
    class Halved(MyTrainer):
        loss_is_scaled_for_ga = True

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return halved(model, inputs)

    case = Case("gpt2", 2)
    run, _ = by_trainer(case, tmp_path, Halved)
    assert run == by_items(case, tmp_path, halved)
    assert run.repeats > 2


def halved(model, batch, items=None):
    return model(**batch)["loss"] / 2


@pytest.mark.parametrize("is_divided", [True, False])
def test_a_compute_loss_that_does_not_say_what_it_divides_by_is_asked(is_divided, tmp_path):
    class Own(MyTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return squared(model, inputs, num_items_in_batch if is_divided else None)

    case = Case("gpt2", 2)
    run, _ = by_trainer(case, tmp_path, Own)
    if is_divided:
        assert run == by_items(case, tmp_path, squared)
    else:
        assert run == by_hand(case, tmp_path, squared, divisor=lambda window: 1)
    assert run.repeats > 2


def test_an_answer_holds_for_one_training_alone(tmp_path):
    class Told(nn.Module):
        """Notes whether the number of items is there to be asked about."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 2)
            self.asked = []

        def forward(self, inputs, labels, num_items_in_batch=None, **kwargs):
            self.asked.append(num_items_in_batch.requires_grad)
            return {"loss": nn.functional.cross_entropy(self.layer(inputs), labels)}

    model = Told()
    arguments = make_arguments(Case(accumulation=2), tmp_path, num_train_epochs=2)
    schedule = make_schedule(max_visits=1)[0]
    trainer = MyTrainer(model=model, args=arguments, train_dataset=make_dataset("classifier"), schedule=schedule)
    for _ in range(2):
        trainer.train()
        assert model.asked == [True] + 13 * [False]
        model.asked.clear()


# What is counted, and told


def test_a_second_training_counts_its_own_repeats(tmp_path):
    run, trainer = by_trainer(Case(), tmp_path)
    assert run.repeats > 0
    recorder = passes_of(trainer.schedule).recorders[0]
    recorder.summaries.clear()
    trainer.args.logging_strategy, trainer.args.logging_steps = "steps", 1
    trainer.train()
    logged = [entry["batch_attention/repeats"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(logged) == sum(summary.repeats for summary in recorder.summaries)


def test_what_is_logged_is_of_first_visits_with_repeats_and_threshold(tmp_path):
    run, trainer = by_trainer(Case(), tmp_path, logging_strategy="steps", logging_steps=1)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    firsts = [visit for visit in run.visits if visit[2] == 1]
    assert [entry["loss"] for entry in logs] == [visit[3] for visit in firsts]
    assert [entry["batch_attention/repeats"] for entry in logs] == [count - 1 for count in visit_counts_of(run.visits)]
    assert "batch_attention/threshold" not in logs[0]
    # An epoch's last line has the threshold that the epoch has set.
    in_force = [threshold for _, threshold in run.epochs[1:]] + [run.threshold]
    assert [entry["batch_attention/threshold"] for entry in logs[BATCHES - 1 :: BATCHES]] == in_force


def visit_counts_of(visits):
    counts = {}
    for epoch, window, visit, *_ in visits:
        counts[epoch, window] = visit
    return list(counts.values())


def test_an_evaluation_between_is_no_visit_and_logs_nothing_of_it(tmp_path):
    class Evaluated(MyTrainer):
        def evaluate(self, *args, **kwargs):
            # Its loader draws from the generator that dropout is drawn from.
            with torch.random.fork_rng():
                return super().evaluate(*args, **kwargs)

    run, trainer = by_trainer(
        Case(accumulation=2),
        tmp_path,
        Evaluated,
        options={"eval_dataset": make_dataset("classifier")},
        eval_strategy="steps",
        eval_steps=1,
    )
    assert run == by_hand(Case(accumulation=2), tmp_path)
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == EPOCHS * 4
    assert not any("batch_attention/repeats" in entry for entry in evaluations)


def test_callbacks_around_an_update_are_called_at_each_and_others_once_a_window(tmp_path):
    class Counting(TrainerCallback):
        def __init__(self):
            self.calls = {}

        def count(self, name):
            self.calls[name] = self.calls.get(name, 0) + 1

        def on_step_begin(self, *_, **__):
            self.count("begin")

        def on_substep_end(self, *_, **__):
            self.count("substep")

        def on_pre_optimizer_step(self, *_, **__):
            self.count("before")

        def on_optimizer_step(self, *_, **__):
            self.count("after")

        def on_step_end(self, *_, **__):
            self.count("end")

    counting = Counting()
    run, trainer = by_trainer(Case(accumulation=3), tmp_path, options={"callbacks": [counting]})
    windows = EPOCHS * 3
    assert run.repeats > 0
    assert counting.calls == {
        "begin": windows,
        "substep": EPOCHS * 4,
        "before": windows + run.repeats,
        "after": windows + run.repeats,
        "end": windows,
    }
    assert trainer.state.global_step == windows


def test_the_trainer_is_left_as_it_was(tmp_path):
    _, trainer = by_trainer(Case(), tmp_path)
    assert not {"get_train_dataloader", "training_step", "compute_loss"} & set(vars(trainer))
    assert "_Repeating" not in trainer.callback_handler.callback_list
