"""The whole update on a CUDA device that is not there: no word to the host, nothing that a capture refuses."""

import contextlib

import pytest
import torch
from torch import nn

from batch_sampler_attn.errors import OptionError
from tests.device.fake_cuda import golden
from tests.device.fake_cuda.cases import MODEL_CASES, OPTIMIZERS, make_network, operators_of, pairwise
from tests.device.fake_cuda.pretence import DEVICE, RefusedError, pretended
from tests.device.fake_cuda.refused import why_refused

pytestmark = pytest.mark.usefixtures("one_thread")


def in_words(case):
    chosen = {name: value for name, value in case.items() if value is not False and value != "none"}
    return ", ".join(name.replace("_", " ") if value is True else value for name, value in chosen.items())


@pytest.mark.parametrize("case", pairwise(), ids=in_words)
def test_every_operator_of_an_update_can_be_captured_and_is_known(case):
    assert golden.complain_of(operators_of(**case)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", MODEL_CASES)
def test_every_operator_of_an_update_of_the_papers_models_can_be_captured_and_is_known(name):
    assert golden.complain_of(operators_of(**MODEL_CASES[name])) is None


@pytest.mark.slow
def test_every_operator_that_is_listed_is_called():
    listed, listed_with = golden.read()
    if listed_with != golden.version():
        pytest.skip(f"the list is of torch {listed_with}, and this is {golden.version()}")
    called = set().union(*(operators_of(**case) for case in [*pairwise(), *MODEL_CASES.values()]))
    assert listed - called == set(), f"`{golden.RENEW}` takes them out"


def test_a_new_operator_is_reported_with_how_to_renew_the_list():
    assert golden.complain_of(golden.read()[0]) is None
    complaint = golden.complain_of({"aten.cosh.default", "aten.add.Tensor"})
    assert "aten.cosh.default." in complaint
    assert golden.RENEW in complaint


# Negative controls: what has to be found out ------------------------------------------------------------------------


class Changed(nn.Module):
    """A network whose outputs something is done to."""

    def __init__(self, change):
        super().__init__()
        self.network = make_network()
        self.change = change

    def forward(self, images):
        return self.change(self.network(images))


def with_constant_of_the_host(outputs):
    return outputs + torch.ones(5)


def with_number_of_the_host(outputs):
    return outputs * torch.tensor(2.0)


def with_zeros_by_mask(outputs):
    outputs = outputs.clone()
    outputs[outputs > 0] = 0.0
    return outputs


FAULTS = {
    "item": (lambda outputs: outputs * outputs.detach().sum().item(), "waits for a value"),
    "float": (lambda outputs: outputs * float(outputs.detach().sum()), "waits for a value"),
    "if": (lambda outputs: outputs if outputs.sum() > 0 else -outputs, "waits for a value"),
    "print": (lambda outputs: outputs * len(f"{outputs}"), "the host waits for its values"),
    "bool": (lambda outputs: outputs * bool((outputs > 0).all()), "waits for a value"),
    "argmax": (lambda outputs: outputs[:, : int(outputs.detach().argmax()) + 1], "waits for a value"),
    "one hot": (lambda outputs: outputs + nn.functional.one_hot(outputs.argmax(1)).sum(), "waits for a value"),
    "equal": (lambda outputs: outputs * torch.equal(outputs, outputs), "waits for a value"),
    "cpu": (lambda outputs: outputs.cpu().to(DEVICE), "on the host|exchange memory"),
    "tolist": (lambda outputs: outputs * outputs[0].detach().tolist()[0], "waits for a value|exchange memory"),
    "host constant": (with_constant_of_the_host, "on the host"),
    "host number": (with_number_of_the_host, "on the host"),
    "constant sent there": (lambda outputs: outputs + torch.tensor([1.0], device=DEVICE), "on the host|exchange"),
    "nonzero": (lambda outputs: outputs + outputs.nonzero().sum(), "shape depends"),
    "mask": (lambda outputs: outputs + outputs[outputs > 0].sum(), "shape depends"),
    "masked_select": (lambda outputs: outputs + outputs.masked_select(outputs > 0).sum(), "shape depends"),
    "unique": (lambda outputs: outputs + outputs.detach().unique().sum(), "shape depends"),
    "mask that is set": (with_zeros_by_mask, "shape depends"),
    "counts": (lambda outputs: outputs + outputs.argmax(1).bincount().sum(), "shape depends"),
    "singular values": (lambda outputs: outputs + torch.linalg.svdvals(outputs).sum(), "error code"),
    "eigenvalues": (lambda outputs: outputs + torch.linalg.eigvalsh(outputs.T @ outputs).sum(), "error code"),
    "choice": (lambda outputs: outputs + torch.multinomial(outputs.softmax(1), 1), "probabilities"),
    "inverse": (lambda outputs: outputs + torch.linalg.inv(outputs.T @ outputs).sum(), "error code"),
    "pinned": (lambda outputs: outputs + torch.zeros(1, pin_memory=True).to(DEVICE), "host|pinned"),
    "generator": (
        lambda outputs: outputs + torch.rand(5, generator=torch.Generator(DEVICE), device=DEVICE),
        "not told of",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_captured_is_found_out(fault):
    change, why = FAULTS[fault]
    with pytest.raises(RefusedError, match=why):
        operators_of(make_model=lambda: Changed(change))


def test_an_optimizer_steps_in_parts_unasked_as_it_does_on_a_gpu():
    assert "aten._foreach_mul_.Scalar" in operators_of(optimizer="sgd in parts")
    assert "aten._foreach_lerp_.Scalar" not in operators_of(optimizer="adam one by one")


RATED = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, momentum=0.9),
    "sgd one by one": lambda parameters: torch.optim.SGD(parameters, momentum=0.9, foreach=False),
    "sgd fused": lambda parameters: torch.optim.SGD(parameters, momentum=0.9, fused=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, capturable=True, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, capturable=True),
    "rmsprop one by one": lambda parameters: torch.optim.RMSprop(parameters, capturable=True, foreach=False),
    "nadam": lambda parameters: torch.optim.NAdam(parameters, capturable=True),
    "radam one by one": lambda parameters: torch.optim.RAdam(parameters, capturable=True, foreach=False),
    "adadelta": lambda parameters: torch.optim.Adadelta(parameters, capturable=True),
    "asgd": lambda parameters: torch.optim.ASGD(parameters, capturable=True),
}


@pytest.mark.parametrize("name", RATED)
def test_a_rate_that_is_a_tensor_is_one_that_can_be_captured_or_is_refused_as_the_loop_is_made(name, monkeypatch):
    def make(parameters):
        optimizer = RATED[name](parameters)
        for group in optimizer.param_groups:
            group["lr"] = torch.full((), 0.01, device=DEVICE)
        return optimizer

    monkeypatch.setitem(OPTIMIZERS, name, make)
    is_refused = name in ("sgd", "sgd one by one", "rmsprop one by one")
    with pytest.raises(OptionError, match="make lr a number") if is_refused else contextlib.nullcontext():
        operators_of(optimizer=name)


def test_a_constant_that_the_device_makes_is_no_fault():
    assert operators_of(make_model=lambda: Changed(lambda outputs: outputs + torch.ones(5, device=DEVICE)))


def test_what_cannot_be_captured_is_found_out_in_the_loss_and_in_the_augmentation():
    def loss_of_the_easy(outputs, targets):
        losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return losses[losses < 10].mean()

    with pytest.raises(RefusedError, match="shape depends"):
        operators_of(loss_fn=loss_of_the_easy)
    with pytest.raises(RefusedError, match="waits for a value"):
        operators_of(augmentation="afresh", augment=lambda images, uniforms: images * uniforms[0, 0].item())


def test_an_index_of_numbers_is_none_that_takes_its_shape_from_values():
    index = torch.ops.aten.index.Tensor
    with pretended():
        values = torch.zeros(4, device=DEVICE)
        assert why_refused(index, (values, [values.long()]), {}) is None
        assert "shape" in why_refused(index, (values, [None, values.bool()]), {})
