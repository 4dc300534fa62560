"""What is refused before anything is trained, with what to do."""

import copy

import pytest
import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import Augmentation, ResidentData, checks
from batch_sampler_attn.errors import OptionError
from tests.device.helpers import (
    add_noise,
    are_equal,
    loop_with,
    make_data,
    make_loop,
    make_model,
    make_optimizer,
    make_scaled,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_parts_that_do_not_fit_are_refused_with_what_to_do():
    inputs, targets = make_data(48)
    with pytest.raises(OptionError, match="48 inputs and 47 targets"):
        ResidentData(inputs, targets[:-1], 8, generator=torch.Generator())
    with pytest.raises(OptionError, match="batch_size is 49, but there are 48 samples"):
        ResidentData(inputs, targets, 49, generator=torch.Generator())
    with pytest.raises(OptionError, match="batch_size is 0"):
        ResidentData(inputs, targets, 0, generator=torch.Generator())
    with pytest.raises(OptionError, match=r"targets are 0 to 3.*3 outputs"):
        loop_with(data=ResidentData(inputs, torch.where(targets == 1, 3, targets), 8, generator=torch.Generator()))
    with pytest.raises(OptionError, match="move both to one device"):
        ResidentData(inputs, targets.to("meta"), 8, generator=torch.Generator())
    with pytest.raises(OptionError, match="the data is on meta and the model on cpu"):
        loop_with(data=ResidentData(inputs.to("meta"), targets.to("meta"), 8, generator=torch.Generator()))
    with pytest.raises(OptionError, match="LBFGS"):
        loop_with(optimizer=torch.optim.LBFGS(make_model().parameters()))
    with pytest.raises(OptionError, match="graph=True needs a CUDA device"):
        loop_with(graph=True)
    with pytest.raises(OptionError, match="one number a batch"):
        loop_with(loss_fn=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(OptionError, match="nothing to train"):
        loop_with(model=nn.ReLU())
    with pytest.raises(OptionError, match="nonfinite is 'raise'"):
        loop_with(schedule=BatchAttentionSchedule(nonfinite="raise"))
    with pytest.raises(OptionError, match="pass a BatchAttentionSchedule"):
        loop_with(schedule="schedule")
    with pytest.raises(OptionError, match="scales for nothing"):
        loop_with(scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(OptionError, match="at least 1 draw"):
        loop_with(augmentation=Augmentation(add_noise, draws=0))


def test_a_rate_that_a_step_would_read_on_the_host_is_refused_for_captured_updates():
    model, rate = make_model(), torch.tensor(0.1)
    for make in (torch.optim.SGD, lambda *args, **options: torch.optim.RMSprop(*args, foreach=False, **options)):
        optimizer = make(model.parameters(), lr=rate)
        for group in optimizer.param_groups:
            group.pop("capturable", None)
        with pytest.raises(OptionError, match=r"lr of \w+ is a tensor, .* make lr a number"):
            checks.check_optimizer(optimizer, model, None, graph=True)
        checks.check_optimizer(optimizer, model, None, graph=False)
    checks.check_optimizer(torch.optim.SGD(model.parameters(), lr=rate, fused=True), model, None, graph=True)
    checks.check_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, None, graph=True)


@pytest.mark.filterwarnings("ignore::UserWarning")  # from a process group, about devices that it guesses
def test_a_model_of_several_processes_is_not_captured():
    from torch import distributed

    checks.check_is_alone(make_model())
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.parallel.DistributedDataParallel(make_model()))
        with pytest.raises(OptionError, match=r"one process.*examples/ddp\.py.*graph=False"):
            checks.check_is_alone(model)
    finally:
        distributed.destroy_process_group()


def test_a_schedule_of_ones_own_making_is_refused():
    class Other(BatchAttentionSchedule):
        pass

    with pytest.raises(OptionError, match="EqualComputeControl"):
        make_loop(*make_data(50), schedule=Other())


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(OptionError, match="parameters that the model has not"):
        loop_with(optimizer=make_optimizer(nn.Linear(2, 2)))


def test_constructing_a_loop_changes_nothing_in_the_model():
    model = make_model()
    model.eval()
    before = copy.deepcopy(model)
    loop_with(model=model, optimizer=make_optimizer(model))
    assert are_equal(model, before)
    assert not any(module.training for module in model.modules())


def test_ignored_targets_may_stand_among_the_classes():
    inputs, targets = make_data(48)
    targets[::5] = -100
    loop = loop_with(data=ResidentData(inputs, targets, 8, generator=torch.Generator()))
    assert loop.run_epoch().batches == 6
    targets[1] = -1
    with pytest.raises(OptionError, match="targets are -1 to 2"):
        loop_with(data=ResidentData(inputs, targets, 8, generator=torch.Generator()))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_a_scaler_with_an_optimizer_that_is_not_fused_is_refused_at_construction(kind):
    with pytest.raises(OptionError, match="construct it with fused=True"):
        make_scaled(lambda parameters: kind(parameters, lr=0.1))
    # The host may be asked, if that is wanted; and a scaler that is switched off asks nothing.
    assert make_scaled(lambda parameters: kind(parameters, lr=0.1), graph=False).run_epoch().batches == 4
    off = torch.amp.GradScaler("cpu", enabled=False)
    assert make_scaled(lambda parameters: kind(parameters, lr=0.1), scaler=off).run_epoch().batches == 4


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_fused_optimizer_is_taken_with_a_scaler_if_all_its_groups_are_fused(kind):
    loop = make_scaled(lambda parameters: kind(parameters, lr=0.1, fused=True))
    assert loop.run_epoch().batches == 4

    def half_fused(parameters):
        weight, bias = parameters
        return kind([{"params": [weight]}, {"params": [bias], "fused": False}], lr=0.1, fused=True)

    with pytest.raises(OptionError, match="construct it with fused=True"):
        make_scaled(half_fused)
