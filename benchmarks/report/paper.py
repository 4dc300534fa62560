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


class Trained(NamedTuple):
    """What a model was trained on, and how.

    Attributes:
        data: The data set.
        k: As in the schedule.
        pretrained: Whether with ImageNet weights.
        options: The model's at full size, beside those that follow from the images.
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

GAIN_POINTS = (2.0, 3.0)
OVERHEAD_PERCENT = (15.0, 20.0)


class Table1Row(NamedTuple):
    """The best over the epochs, on the test set."""

    model: str
    arm: str
    min_test_loss: float
    max_f1: float


TABLE_1 = (
    Table1Row("resnet34", "baseline", 0.925596, 0.737586),
    Table1Row("resnet34", "attention", 0.856234, 0.753712),
    Table1Row("tnt", "baseline", 1.062034, 0.675982),
    Table1Row("tnt", "attention", 1.073162, 0.709335),
)


class Table2Row(NamedTuple):
    """Wrong predictions by predicted class, of TNT on CIFAR-10 at its best epoch, and two of them from the text."""

    arm: str
    wrong_predictions: tuple[int, ...]
    variance: float
    cat_taken_for_dog: int
    dog_taken_for_cat: int


TABLE_2 = (
    Table2Row("baseline", (230, 249, 420, 521, 367, 449, 293, 285, 165, 263), 11144.36, 190, 164),
    Table2Row("attention", (261, 153, 356, 503, 288, 389, 251, 254, 198, 255), 9163.96, 169, 173),
)
