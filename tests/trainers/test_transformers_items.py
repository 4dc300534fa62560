"""Whether a loss is divided by the number of items that the trainer hands it, which is watched at the first visit."""

import pytest
import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.transformers.items import WatchedItems, is_compiled
from tests.trainers.transformers_runs import MARKS, Case, MyTrainer, make_arguments, make_dataset

pytestmark = MARKS


@pytest.mark.parametrize(
    "use",
    [
        lambda items: torch.tensor(6.0) / items,
        lambda items: torch.tensor(6.0).div_(items),
        lambda items: torch.div(torch.tensor(6.0), other=items),
        lambda items: torch.tensor(6.0) / items.to(torch.float32),
        lambda items: torch.tensor(6.0) / items.item(),
        lambda items: torch.tensor(6.0) * items.reciprocal(),
        lambda items: torch.tensor(6.0) / torch.stack([items])[0],
    ],
)
def test_what_is_computed_with_them_is_a_plain_tensor_and_is_noted(use):
    items = WatchedItems.of(torch.tensor(3))
    assert not items.is_used
    result = use(items)
    assert type(result) is torch.Tensor
    assert result == 2.0
    assert items.is_used


def test_a_look_at_them_is_no_use():
    items = WatchedItems.of(torch.tensor(3))
    assert torch.is_tensor(items)
    assert (items.device, items.dtype, items.shape) == (torch.device("cpu"), torch.int64, ())
    assert not items.is_used


def test_nor_is_another_tensor_s_use():
    items = WatchedItems.of(torch.tensor(3))
    assert nn.functional.cross_entropy(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long)) > 0
    assert not items.is_used


def test_a_compiled_model_is_known_wherever_it_is():
    model = nn.Sequential(nn.Linear(2, 2))
    assert not is_compiled(model)
    assert is_compiled(torch.compile(model))
    assert is_compiled(nn.Sequential(torch.compile(model)))
    model[0].compile()
    assert is_compiled(model)


class Told(nn.Module):
    """Notes what it is told of the items, around a layer that may be compiled."""

    def __init__(self, does_compile):
        super().__init__()
        self.layer = nn.Linear(6, 2)
        self.kinds = []
        if does_compile:
            self.layer.compile(backend="eager")

    def forward(self, inputs, labels, num_items_in_batch=None, **kwargs):
        self.kinds.append(type(num_items_in_batch))
        return {"loss": nn.functional.cross_entropy(self.layer(inputs), labels)}


@pytest.mark.parametrize(("does_compile", "first"), [(False, WatchedItems), (True, torch.Tensor)])
def test_they_are_watched_once_a_training_and_a_compiled_model_gets_none_of_another_kind(does_compile, first, tmp_path):
    model = Told(does_compile)
    arguments = make_arguments(Case(accumulation=2), tmp_path, num_train_epochs=1)
    dataset, schedule = make_dataset("classifier"), BatchAttentionSchedule(max_visits=1)
    trainer = MyTrainer(model=model, args=arguments, train_dataset=dataset, schedule=schedule)
    for _ in range(2):
        trainer.train()
        assert model.kinds == [first] + 6 * [torch.Tensor]
        model.kinds.clear()
