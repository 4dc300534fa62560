"""What cannot be repeated exactly in Lightning is refused before the first update, with what to do instead."""

import subprocess
import sys

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader, RandomSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, SampleAttention
from batch_sampler_attn.accumulation import accumulate
from batch_sampler_attn.errors import OptionError, ProtocolError, StateError
from batch_sampler_attn.trainers.lightning import BatchAttention
from tests.trainers.lightning_runs import MARKS, make_loader, make_trainer, module_class

pytestmark = MARKS
Module = module_class("lightning.pytorch")


def refusal(module=None, loader=None, callback=None, **options):
    """What fit raises, with the weights as they were."""
    module = module or Module()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer = make_trainer(callbacks=[callback or BatchAttention()], **options)
    with pytest.raises(ProtocolError) as error:
        trainer.fit(module, make_loader() if loader is None else loader)
    assert all(map(torch.equal, module.parameters(), before))
    assert not {"training_step", "optimizer_step"} & set(vars(trainer.strategy))
    return str(error.value)


def test_manual_optimization_and_several_optimizers_are_refused():
    class Manual(Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 0.1)]

    text = refusal(Manual())
    assert "Manual makes updates itself" in text
    assert "Use automatic optimization" in text


def test_lbfgs_is_refused():
    class Refined(Module):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    assert "Use an optimizer such as AdamW" in refusal(Refined())


class Perturbing(torch.optim.SGD):
    """Trains on its batch twice in each step, as SAM does."""

    def step(self, closure):
        closure()
        return super().step(closure)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_optimizer_that_calls_its_closure_twice_is_found_out_before_the_first_update(accumulation):
    class Sharp(Module):
        def configure_optimizers(self):
            return Perturbing(self.parameters(), 0.1)

    assert "Perturbing trains several times for each batch" in refusal(Sharp(), accumulate_grad_batches=accumulation)


def test_a_strategy_that_accumulates_by_itself_is_refused():
    class Accumulating(SingleDeviceStrategy):
        @property
        def handles_gradient_accumulation(self):
            return True

    text = refusal(strategy=Accumulating("cpu"), accelerator="auto")
    assert "Accumulating makes updates itself" in text
    assert "strategy='ddp'" in text


def test_an_attended_loader_is_refused():
    schedule = BatchAttentionSchedule()
    text = refusal(loader=schedule.attend(make_loader()))
    assert "the loader is or holds AttendedLoader of batch_sampler_attn" in text
    assert "Give a plain DataLoader" in text
    # Within a collection, too.
    assert text == refusal(loader={"first": [make_loader(), schedule.attend(make_loader())]})


def test_windows_are_refused():
    assert "as windows with accumulate_grad_batches=n" in refusal(loader=accumulate(make_loader(), 2))


def test_a_sampler_of_ours_is_refused():
    dataset = make_loader().dataset
    sampler = BatchAttentionSampler(RandomSampler(dataset), 8, schedule=BatchAttentionSchedule())
    text = refusal(loader=DataLoader(dataset, batch_sampler=sampler))
    assert "BatchAttentionSampler" in text
    assert "DataLoader(dataset, batch_size=..., shuffle=...)" in text
    attention = SampleAttention(len(dataset), 8, prune_probability=0.5, epochs=4)
    assert "SampleAttention" in refusal(loader=DataLoader(dataset, batch_sampler=attention))
    assert "SampleAttention" in refusal(loader=DataLoader(dataset, batch_size=None, sampler=attention))


def test_ranks_without_the_option_are_refused(monkeypatch):
    monkeypatch.setattr("batch_sampler_attn.ranks.process_group_size", lambda: 2)
    text = refusal(callback=BatchAttention(schedule=BatchAttentionSchedule()))
    assert "ranks=MeanOverRanks()" in text
    assert text == refusal(callback=BatchAttention(ranks="refuse"))
    # Spelled out, or left to the callback, it is the user's word.
    for callback in (BatchAttention(), BatchAttention(ranks=None)):
        make_trainer(max_epochs=2, callbacks=[callback]).fit(Module(), make_loader())


def test_the_schedule_of_a_sampler_is_refused():
    schedule = BatchAttentionSchedule()
    BatchAttentionSampler(range(4), 2, schedule=schedule)
    with pytest.raises(ProtocolError, match="belongs to a BatchAttentionSampler"):
        BatchAttention(schedule=schedule)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 1.2, "schedule": BatchAttentionSchedule()}, "schedule= and also k; give these options to the schedule"),
        ({"schedule": BatchAttentionSchedule(), "budget": 0.2, "ranks": None}, "and also budget, ranks"),
        ({"schedule": BatchAttentionSchedule}, r"it must be like BatchAttentionSchedule\(k=1.2\)"),
        ({"k": BatchAttentionSchedule()}, "k is <BatchAttentionSchedule"),
        ({"k": 0}, "k is 0"),
        ({"schedule": 1.2}, "schedule is 1.2; it must be like BatchAttentionSchedule"),
        ({"ranks": "mean"}, "ranks is 'mean'"),
    ],
)
def test_options_that_are_not_allowed_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        BatchAttention(**options)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_a_class_among_the_callbacks_is_refused_as_the_trainer_is_made(package):
    with pytest.raises(OptionError, match=r"has the class BatchAttention; give an instance: BatchAttention\(k=1.2\)"):
        make_trainer(package, callbacks=[BatchAttention])


@pytest.mark.parametrize("kind", ["sampler", "attended"])
def test_a_loader_of_a_later_epoch_is_refused_as_the_first(kind):
    dataset = make_loader().dataset
    schedule = BatchAttentionSchedule()
    sampler = BatchAttentionSampler(RandomSampler(dataset), 8, schedule=BatchAttentionSchedule())
    later = DataLoader(dataset, batch_sampler=sampler) if kind == "sampler" else schedule.attend(make_loader())

    class Reloading(LightningDataModule):
        loads = 0

        def train_dataloader(self):
            self.loads += 1
            return make_loader() if self.loads == 1 else later

    callback = BatchAttention()
    trainer = make_trainer(callbacks=[callback], reload_dataloaders_every_n_epochs=1)
    with pytest.raises(ProtocolError, match="BatchAttention repeats them"):
        trainer.fit(Module(), datamodule=Reloading())
    assert trainer.global_step == len(make_loader())
    assert callback.schedule.epoch == 1


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling")
def test_a_sampler_of_ours_that_lightning_rebuilt_is_refused():
    dataset = make_loader().dataset
    sampler = BatchAttentionSampler(RandomSampler(dataset), 8, schedule=BatchAttentionSchedule())
    text = refusal(loader=DataLoader(dataset, batch_sampler=sampler), overfit_batches=3)
    assert "BatchAttentionSampler" in text


def test_a_state_of_other_options_is_refused(tmp_path):
    trainer = make_trainer(max_epochs=2, callbacks=[BatchAttention(k=1.2)])
    trainer.fit(Module(), make_loader())
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    trainer = make_trainer(callbacks=[BatchAttention(k=1.5)])
    with pytest.raises(StateError, match="k"):
        trainer.fit(Module(), make_loader(), ckpt_path=tmp_path / "state.ckpt")


WITHOUT = """
import sys
import batch_sampler_attn
assert not {"lightning", "pytorch_lightning", "torch"} & set(sys.modules)
sys.modules.update({"lightning": None, "pytorch_lightning": None})
try:
    import batch_sampler_attn.trainers.lightning
except ModuleNotFoundError as error:
    print(error)
"""


def test_without_lightning_the_message_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "batch_sampler_attn.trainers.lightning needs lightning, which is not installed: "
        "pip install 'batch-sampler-attn[lightning]'\n"
    )
