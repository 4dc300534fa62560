"""Evaluation against scikit-learn and numpy, and the models that are evaluated."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.metrics import accuracy_score, f1_score, log_loss
from torch import nn

from benchmarks.cifar.evaluation import evaluate, measure_numerics
from benchmarks.cifar.models import count_parameters, find_recipe, make_model
from benchmarks.errors import ModelError
from benchmarks.schema import Data


def make_images(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


class Scripted(nn.Module):
    """Answers with given logits, in order."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.place = logits, 0

    def forward(self, images):
        begin, self.place = self.place, self.place + len(images)
        return self.logits[begin : self.place]


def test_loss_accuracy_f1_and_confusion_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    # More than one part, a short last one, and a class that is never predicted or true.
    logits, labels = torch.randn(2345, 6, generator=generator), torch.randint(0, 5, (2345,), generator=generator)
    logits[:, 5] = -50
    images = make_images(2345)
    numerics = measure_numerics(images, "default", channels_last=False)
    result = evaluate(Scripted(logits), images, labels, 6, numerics)
    predicted = logits.argmax(dim=1)
    probabilities = logits.double().softmax(dim=1).numpy()
    assert result.loss == pytest.approx(log_loss(labels, probabilities, labels=range(6)), rel=1e-6)
    assert result.accuracy == accuracy_score(labels, predicted)
    expected_f1 = f1_score(labels, predicted, labels=range(6), average="macro", zero_division=0)
    assert result.macro_f1 == pytest.approx(expected_f1, rel=1e-12)
    slow = np.zeros((6, 6), dtype=int)
    for true, guess in zip(labels.tolist(), predicted.tolist(), strict=True):
        slow[true, guess] += 1
    assert (result.confusion == slow).all()


def test_a_loss_that_is_not_finite_is_none():
    logits = torch.full((4, 2), float("nan"))
    images = make_images(4)
    numerics = measure_numerics(images, "default", channels_last=False)
    assert evaluate(Scripted(logits), images, torch.zeros(4, dtype=torch.int64), 2, numerics).loss is None


def test_images_are_normalized_by_the_channels_of_the_training_images():
    images = make_images(6000)
    images[:, 1] = 9
    numerics = measure_numerics(images, "default", channels_last=True)
    scaled = images.double().numpy() / 255
    assert numerics.mean.flatten().tolist() == pytest.approx(scaled.mean(axis=(0, 2, 3)).tolist(), rel=1e-6)
    deviation = scaled.std(axis=(0, 2, 3))
    # A channel that is the same everywhere is left as it is.
    assert numerics.deviation.flatten().tolist() == pytest.approx([deviation[0], 1.0, deviation[2]], rel=1e-6)
    prepared = numerics.prepare(images[:5])
    assert prepared.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("model", "parameters"),
    # ResNet34 as torchvision and timm have it with ten classes; TNT-S as in its paper, for 64 patches of 4x4 pixels.
    [("resnet34", 21_289_802), ("tnt", 23_358_016), ("small_resnet", 79_962)],
)
def test_the_papers_models_are_made_for_images_of_32_by_32(model, parameters):
    recipe = find_recipe(model, 32, 32, pretrained=False)
    assert count_parameters(recipe, describe(32, 32)) == pytest.approx(parameters, rel=0.02)


def describe(height, width, classes=10):
    names = [str(number) for number in range(classes)]
    return Data(name="x", train_images=1, test_images=1, classes=names, height=height, width=width, sha256="")


def test_weights_depend_on_the_seed_alone_and_no_generator_of_the_users_is_touched():
    recipe = find_recipe("small_resnet", 32, 32, pretrained=False)
    before = torch.get_rng_state()
    first, again, other = (make_model(recipe, 10, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [model[0].weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("model", "size", "pretrained", "said"),
    [
        ("resnet43", (32, 32), False, "did you mean .*resnet34"),
        ("qqqqqqqq", (32, 32), False, "timm.list_models"),
        ("tnt", (30, 30), False, "multiple of 4 pixels, and these are 30x30"),
        ("tnt", (32, 28), False, "square"),
        ("tnt", (32, 32), True, "leave --pretrained out"),
        ("small_resnet", (32, 32), True, "no weights"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused(model, size, pretrained, said):
    with pytest.raises(ModelError, match=said):
        find_recipe(model, *size, pretrained=pretrained)


def test_a_model_that_does_not_take_such_images_is_refused():
    recipe = find_recipe("vit_tiny_patch16_224", 32, 32, pretrained=False)
    with pytest.raises(ModelError, match=r"does not take images of 32x32"):
        count_parameters(recipe, describe(32, 32))


def test_pretrained_weights_are_those_of_the_hub(tmp_path, monkeypatch):
    """The hub's own cache, with weights of ours in it, and no connection."""
    source = timm.create_model("resnet10t", num_classes=1000)
    source.load_state_dict({name: torch.full_like(value, 0.25) for name, value in source.state_dict().items()})
    repository = tmp_path / "models--timm--resnet10t.c3_in1k"
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    save_file(source.state_dict(), repository / "snapshots" / commit / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = make_model(find_recipe("resnet10t", 32, 32, pretrained=True), 10, seed=0)
    weights = model.state_dict()
    assert weights["fc.weight"].shape == (10, 512)
    assert (weights["fc.weight"] != 0.25).all()
    backbone = [value for name, value in weights.items() if "fc." not in name and value.is_floating_point()]
    assert len(backbone) > 20
    assert all((value == 0.25).all() for value in backbone)


def test_weights_that_cannot_be_had_are_said(monkeypatch):
    # No such host: the hub's own code runs, and fails.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://localhost:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe = find_recipe("efficientnet_b7", 32, 32, pretrained=True)
    assert recipe.architecture == "tf_efficientnet_b7.aa_in1k"
    with pytest.raises(ModelError, match=r"ImageNet weights .* cannot be had.*from scratch"):
        make_model(recipe, 100, 0)
