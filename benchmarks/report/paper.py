"""What the paper reports (Hu, Li, Wu, 2023), to stand beside what was measured here."""

from __future__ import annotations

from typing import NamedTuple

CITATION = (
    "Hu, Li, Wu, *Batch-attention: a method for reconciling overfitting and underfitting in deep learning*, Science & "
    "Technology Review 41(13), 2023, 100-108, doi 10.3981/j.issn.1000-7857.2023.13.010"
)
EPOCHS = 100
BATCH_SIZE = 32
LEARNING_RATE = 1e-4
TRAIN_IMAGES = 50_000
TEST_IMAGES = 10_000
GAIN_POINTS = (2.0, 3.0)
OVERHEAD_PERCENT = (15.0, 20.0)


class Trained(NamedTuple):
    """What a model was trained on, and how.

    Attributes:
        data: The data set.
        k: As in the schedule.
        pretrained: Whether with ImageNet weights.
        options: The model's at full size, other than those that follow from the images.
    """

    data: str
    k: float
    pretrained: bool
    options: dict[str, int]


EXPERIMENTS = {
    "resnet34": Trained("cifar10", 1.2, False, {}),
    "tnt": Trained("cifar10", 1.2, False, {"patch_size": 4, "first_stride": 1}),
    "efficientnet_b7": Trained("cifar100", 1.5, True, {}),
}

# Least test loss and highest macro-F1 over the epochs, by model and arm.
TABLE_1 = {
    "resnet34": {"baseline": (0.925596, 0.737586), "attention": (0.856234, 0.753712)},
    "tnt": {"baseline": (1.062034, 0.675982), "attention": (1.073162, 0.709335)},
}
# Wrong predictions of TNT on CIFAR-10 by predicted class at its best epoch, cats taken for dogs and dogs for cats.
TABLE_2 = {
    "baseline": ((230, 249, 420, 521, 367, 449, 293, 285, 165, 263), 190, 164),
    "attention": ((261, 153, 356, 503, 288, 389, 251, 254, 198, 255), 169, 173),
}
