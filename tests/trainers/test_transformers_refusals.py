"""What cannot be repeated exactly in a Trainer is refused before the first update, with what to do instead."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch.utils.data import DataLoader
from transformers import Trainer

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, SampleAttention
from batch_sampler_attn.accumulation import accumulate
from batch_sampler_attn.errors import OptionError, ProtocolError, StateError
from batch_sampler_attn.trainers.transformers import BatchAttentionMixin
from tests.trainers.transformers_runs import (
    MARKS,
    Case,
    MyTrainer,
    by_trainer,
    make_arguments,
    make_dataset,
    make_model,
)

pytestmark = MARKS


def make_trainer(folder, trainer_class=MyTrainer, model="classifier", schedule=None, accumulation=1, **options):
    case = Case(model, accumulation)
    return trainer_class(
        model=make_model(model),
        args=make_arguments(case, folder),
        train_dataset=make_dataset(model),
        schedule=schedule or BatchAttentionSchedule(),
        **options,
    )


def refusal(trainer):
    """What train raises, with the weights as they were."""
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    with pytest.raises(ProtocolError) as error:
        trainer.train()
    assert all(map(torch.equal, trainer.model.parameters(), before))
    assert not {"get_train_dataloader", "training_step", "compute_loss"} & set(vars(trainer))
    return str(error.value)


def with_loader(make_loader):
    class OfALoader(MyTrainer):
        def get_train_dataloader(self):
            return make_loader(super().get_train_dataloader())

    return OfALoader


def test_several_gpus_in_one_process_are_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.args._n_gpu = 2
    text = refusal(trainer)
    assert "torchrun" in text
    assert "ranks=MeanOverRanks()" in text


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM])
def test_updates_that_are_made_elsewhere_are_refused(kind, tmp_path):
    trainer = make_trainer(tmp_path)
    # Without being installed, or with one process, none of them can be set up.
    trainer.accelerator = SimpleNamespace(distributed_type=kind)
    text = refusal(trainer)
    assert f"{kind.name} was not tried" in text
    assert "torchrun" in text


def test_ranks_without_the_option_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("batch_sampler_attn.ranks.process_group_size", lambda: 2)
    assert "ranks=MeanOverRanks()" in refusal(make_trainer(tmp_path))


def test_a_loader_of_ours_is_refused(tmp_path):
    for make in (BatchAttentionSchedule().attend, lambda loader: accumulate(loader, 2)):
        text = refusal(make_trainer(tmp_path, with_loader(make)))
        assert "BatchAttentionMixin repeats batches by itself" in text


def test_a_sampler_of_ours_is_refused(tmp_path):
    dataset = make_dataset("classifier")

    class Prepared(MyTrainer):
        sampler = None

        def get_train_dataloader(self):
            return self.accelerator.prepare(DataLoader(dataset, batch_sampler=self.sampler))

    Prepared.sampler = BatchAttentionSampler(range(len(dataset)), 8, schedule=BatchAttentionSchedule())
    text = refusal(make_trainer(tmp_path, Prepared))
    assert "BatchAttentionSampler" in text
    assert "DataLoader(dataset, batch_size=..., shuffle=...)" in text
    Prepared.sampler = SampleAttention(len(dataset), 8, epochs=4)
    assert "SampleAttention" in refusal(make_trainer(tmp_path, Prepared))


def test_a_step_without_one_loss_is_refused(tmp_path):
    class Twice(MyTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs)["loss"]

        def training_step(self, model, inputs, num_items_in_batch=None):
            for _ in range(2):
                loss = self.compute_loss(model, inputs)
                loss.backward()
            return loss.detach()

    class Never(MyTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = model(**inputs)["loss"]
            loss.backward()
            return loss.detach()

    assert "Twice.training_step calls compute_loss 2 times" in refusal(make_trainer(tmp_path, Twice))
    assert "calls compute_loss 0 times" in refusal(make_trainer(tmp_path, Never))


@pytest.mark.parametrize("method", ["_prepare_inputs", "generate_on_policy_outputs"])
def test_a_trainer_that_makes_its_batches_in_its_step_is_refused(method, tmp_path):
    generating = type("GeneratingTrainer", (Trainer,), {method: lambda self, inputs: inputs})
    generating.__module__ = "trl.trainer.generating_trainer"
    trainer = make_trainer(tmp_path, type("Own", (BatchAttentionMixin, generating), {}))
    text = refusal(trainer)
    assert "GeneratingTrainer makes its batches inside the training step" in text
    assert "SFTTrainer" in text


# A transformers of a newer kind


def test_a_class_without_the_methods_that_write_checkpoints_is_refused():
    class Newer:
        def train(self):
            """Unlike today's, it saves its state by another name."""

    class Own(BatchAttentionMixin, Newer):
        pass

    with pytest.raises(ProtocolError, match="no class after BatchAttentionMixin has _save_optimizer_and_scheduler"):
        Own(schedule=BatchAttentionSchedule())


def test_a_loop_that_does_not_say_that_it_made_an_update_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.callback_handler.on_optimizer_step = lambda args, state, control: control
    with pytest.raises(ProtocolError, match="MyTrainer ended a step without on_optimizer_step"):
        trainer.train()
    assert trainer.state.global_step == 1
    assert not {"get_train_dataloader", "training_step", "compute_loss"} & set(vars(trainer))


# What is given in the wrong place


def test_the_mixin_after_the_trainer_is_refused_where_the_class_is_made():
    with pytest.raises(ProtocolError, match=r"Write class Own\(BatchAttentionMixin, Trainer\)"):

        class Own(Trainer, BatchAttentionMixin):
            pass


def test_another_mixin_before_it_is_taken():
    class Logging:
        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs)

    class Own(Logging, BatchAttentionMixin, Trainer):
        pass

    class Further(Own):
        pass


@pytest.mark.parametrize("schedule", [BatchAttentionSchedule, 1.2])
def test_what_is_no_schedule_is_refused_where_it_arrives(schedule, tmp_path):
    with pytest.raises(OptionError, match=r"schedule is .* BatchAttentionSchedule\(k=1.2\)"):
        make_trainer(tmp_path, schedule=schedule)


@pytest.mark.parametrize("callback", [BatchAttentionSchedule, BatchAttentionSchedule()], ids=["class", "schedule"])
def test_what_is_of_this_package_and_no_callback_is_refused_where_it_arrives(callback, tmp_path):
    with pytest.raises(OptionError, match=r"callbacks has .*no callback of this trainer"):
        make_trainer(tmp_path, callbacks=[callback])


# Schedules and states


def test_the_schedule_of_a_sampler_is_refused(tmp_path):
    schedule = BatchAttentionSchedule()
    BatchAttentionSampler(range(4), 2, schedule=schedule)
    with pytest.raises(ProtocolError, match="belongs to a BatchAttentionSampler"):
        make_trainer(tmp_path, schedule=schedule)


def test_a_state_of_other_options_is_refused(tmp_path):
    by_trainer(Case(), tmp_path, num_train_epochs=2, save_strategy="epoch")
    with pytest.raises(StateError, match="k"):
        by_trainer(Case(options={"k": 1.5}), tmp_path, resume=True)


def test_a_batch_whose_samples_cannot_be_counted_is_refused_with_how_to_count_them(tmp_path):
    class Lists(MyTrainer):
        def get_train_dataloader(self):
            batches = [{"rows": batch["inputs"].tolist()} for batch in super().get_train_dataloader()]
            return DataLoader(batches, batch_size=None)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            rows = torch.tensor(inputs["rows"])
            return model(rows, torch.zeros(len(rows), dtype=torch.long))["loss"]

    with pytest.raises(OptionError, match="samples=lambda batch"):
        make_trainer(tmp_path, Lists, accumulation=2).train()
    trainer = make_trainer(tmp_path, Lists, accumulation=2, samples=lambda batch: len(batch["rows"]))
    trainer.train()
    assert trainer.schedule.epoch == 4


WITHOUT = """
import sys
import batch_sampler_attn
assert not {"transformers", "accelerate"} & set(sys.modules)
sys.modules["transformers"] = None
try:
    import batch_sampler_attn.trainers.transformers
except ModuleNotFoundError as error:
    print(error)
"""


def test_without_transformers_the_message_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "batch_sampler_attn.trainers.transformers needs transformers, which is not installed: "
        "pip install 'batch-sampler-attn[transformers]'\n"
    )
