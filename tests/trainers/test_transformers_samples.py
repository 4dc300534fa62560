"""Attention to samples in transformers' Trainer: as in a loop by hand, also after a kill and on ranks, or refused."""

import json

import pytest
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler
from transformers import Trainer

from batch_sampler_attn.errors import LossError, ProtocolError, StateError
from batch_sampler_attn.trainers.transformers import BatchAttentionMixin, SampleAttentionMixin, sequence_losses
from tests.trainers.forks import RANKS
from tests.trainers.in_processes import load, make
from tests.trainers.sample_processes import KILLS, WORKERS
from tests.trainers.sample_runs import MyTrainer, by_hand, by_trainer, make_attention, mean_loss, without_dropout
from tests.trainers.transformers_runs import MARKS, Case, Points, make_arguments, make_dataset, make_model

pytestmark = MARKS


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(accumulation=3, clip=0.5, options={"k": 1.0, "updates": 10}),
        Case("bert", 2, "bf16", options={"weighted": False, "prune_probability": 0.7, "final_full_share": 0}),
        Case("gpt2", 3, "scaler", options={"prune_probability": 0, "k": 0.9, "max_visits": 3}),
        Case("gpt2", 1, arguments={"max_steps": 17}),
        WORKERS,
    ],
    ids=["plain", "accumulation", "bf16", "scaler", "max_steps", "workers"],
)
def test_it_trains_as_the_loop_by_hand(case, tmp_path):
    run, trainer = by_trainer(case, tmp_path)
    assert run == by_hand(case, tmp_path, updates=case.arguments.get("max_steps"))
    assert trainer.state.global_step == len(run.rates)


def test_an_evaluation_in_mid_epoch_changes_nothing(tmp_path):
    case = Case("gpt2", options={"k": 1.0})
    model, same = (without_dropout(make_model("gpt2")) for _ in range(2))
    evaluations = {"eval_strategy": "steps", "eval_steps": 2, "logging_strategy": "steps", "logging_steps": 1}
    data = {"eval_dataset": make_dataset("gpt2"), "compute_loss_func": sequence_losses}
    run, trainer = by_trainer(case, tmp_path, model=model, options=data, **evaluations)
    assert run == by_hand(case, tmp_path, model=same)
    losses = [entry["loss"] for entry in run.logs if "loss" in entry]
    assert losses == pytest.approx([batch[4] for batch in run.batches], rel=1e-5)
    assert sum("eval_loss" in entry for entry in run.logs) == len(losses) // 2
    # Of the epoch so far; the first has nothing to compare with, and the last is on all data.
    for name in ("pruned", "extra_updates"):
        counts = [entry[f"sample_attention/{name}"] for entry in run.logs if "loss" in entry]
        assert [max(counts[begin : begin + 7]) > 0 for begin in (0, 14, 21)] == [False, True, False]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mean_loss(trainer.model), rel=1e-5)


# In processes of their own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make("sample_processes", tmp_path_factory.mktemp("runs"))


def check_tail(whole, resumed, batches):
    assert len(resumed.batches) == batches
    assert resumed.batches == whole.batches[-batches:]
    assert resumed.rates == whole.rates[-len(resumed.rates) :]
    assert torch.equal(resumed.weights, whole.weights)
    assert resumed.last == whole.last


@pytest.mark.parametrize(("kill", "batches"), [("mid-epoch", 17), ("last-step", 14), ("workers", 8)])
def test_a_run_that_was_killed_and_resumed_has_the_same_tail(folder, kill, batches, tmp_path):
    check_tail(by_hand(KILLS[kill][0], tmp_path), load(folder, kill), batches)


@pytest.mark.parametrize("rank", range(RANKS))
def test_ranks_train_as_loops_by_hand_do_and_resume_from_their_own_states(folder, rank):
    whole, resumed, plain, evaluations = load(folder, f"samples-rank{rank}")
    assert whole == plain
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-5)
    check_tail(whole, resumed, 17)
    state = json.loads((folder / "ranks" / "checkpoint-6" / f"sample_attention_{rank}.json").read_text())
    assert state["options"]["rank"] == rank


# Refused


class Weighted(Trainer):
    def get_train_dataloader(self):
        sampler = WeightedRandomSampler([1.0] * len(self.train_dataset), len(self.train_dataset))
        return DataLoader(self.train_dataset, 8, sampler=sampler)


class OtherOrder(SampleAttentionMixin, Weighted):
    pass


class OtherLoader(MyTrainer):
    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, 8)


class Skips(MyTrainer):
    def training_step(self, model, inputs, *arguments):
        if self.state.global_step == 2:
            return torch.tensor(0.0)
        return super().training_step(model, inputs, *arguments)


class Repeats(MyTrainer):
    def training_step(self, model, inputs, *arguments):
        super().training_step(model, dict(inputs), *arguments)
        return super().training_step(model, inputs, *arguments)


class ReadsAhead(MyTrainer):
    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return [next(epoch_iterator) for _ in range(num_batches)], None


class NeverReports(MyTrainer):
    def compute_loss(self, model, inputs, *_, **__):
        return model(**inputs)["loss"]


class WeighsEvaluations(MyTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **_):
        outputs = model(inputs["inputs"])
        loss = self.attention.weighted_mean(sequence_losses(outputs, inputs["labels"]))
        return (loss, outputs) if return_outputs else loss


class OutOfMemory(MyTrainer):
    def training_step(self, *arguments):
        raise RuntimeError("CUDA out of memory.")


class Parallel(MyTrainer):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.args._n_gpu = 2


IN_STEPS = {"eval_strategy": "steps", "eval_steps": 3}


@pytest.mark.parametrize(
    ("trainer_class", "options", "error", "words"),
    [
        (MyTrainer, {"per_device_train_batch_size": 4}, ProtocolError, r"batch_size=8 \(it is 4\)"),
        (OutOfMemory, {"auto_find_batch_size": True}, ProtocolError, r"batch_size=8 \(it is 7\)"),
        (MyTrainer, {"train_sampling_strategy": "sequential"}, ProtocolError, "there is a SequentialSampler"),
        (MyTrainer, {"label_smoothing_factor": 0.1}, ProtocolError, r"label_smoothing_factor=0 \(it is 0.1\)"),
        (OtherOrder, {}, ProtocolError, "there is a WeightedRandomSampler"),
        (OtherLoader, {}, ProtocolError, "no current batch"),
        (Parallel, {}, ProtocolError, "DataParallel"),
        (MyTrainer, {"train_dataset": Points(53)}, ProtocolError, "the dataset has 53 samples"),
        (MyTrainer, {"compute_loss_func": None}, LossError, r"shape \(\).*reduction=\"none\""),
        (MyTrainer, {"compute_loss_func": lambda *_, **__: torch.ones(7)}, LossError, "got 7 losses for a batch of 8"),
        (Skips, {}, ProtocolError, r"before report\(\) or weighted_mean\(\) had the last losses"),
        (Repeats, {}, ProtocolError, "no current batch"),
        (ReadsAhead, {"gradient_accumulation_steps": 2}, ProtocolError, r"before report\(\)"),
        (NeverReports, {}, ProtocolError, r"before report\(\) or weighted_mean\(\) had the last losses"),
        (WeighsEvaluations, IN_STEPS, ProtocolError, "no current batch"),
    ],
)
def test_what_would_lose_or_mix_up_losses_is_refused(trainer_class, options, error, words, tmp_path):
    data = {"train_dataset": Points(), "compute_loss_func": sequence_losses, "eval_dataset": Points()}
    given = {name: options.get(name, value) for name, value in data.items()}
    arguments = {name: value for name, value in options.items() if name not in data}
    attention = make_attention()
    trainer = trainer_class(
        make_model("classifier"), make_arguments(Case(), tmp_path, **arguments), attention=attention, **given
    )
    torch.manual_seed(6)
    with pytest.raises(error, match=words):
        trainer.train()
    # What was attributed before that has its own losses.
    expected = by_hand(Case(), tmp_path).batches
    assert attention.batches == expected[: len(attention.batches)] or trainer_class is Repeats


def test_both_mixins_and_a_checkpoint_without_a_state_are_refused(tmp_path):
    class Both(BatchAttentionMixin, SampleAttentionMixin, Trainer):
        pass

    with pytest.raises(ProtocolError, match="leave one mixin out"):
        Both(make_model("classifier"), make_arguments(Case(), tmp_path), attention=make_attention())
    case = Case(arguments={"save_strategy": "steps", "save_steps": 3, "max_steps": 3})
    by_trainer(case, tmp_path)
    (tmp_path / "checkpoint-3" / "sample_attention_0.json").unlink()
    with pytest.raises(StateError, match=r"has no sample_attention_0\.json"):
        by_trainer(case, tmp_path, resume=True)


def test_losses_are_means_over_tokens():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    labels[1, :3], labels[2] = -100, -100
    for shift in (True, False):
        pairs = zip(logits[:, :-1], labels[:, 1:], strict=True) if shift else zip(logits, labels, strict=True)
        expected = [torch.nn.functional.cross_entropy(*pair, ignore_index=-100).nan_to_num() for pair in pairs]
        assert torch.allclose(sequence_losses({"logits": logits}, labels, shift=shift), torch.stack(expected))
    assert sequence_losses(logits, labels)[2] == 0
