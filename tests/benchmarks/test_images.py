"""Image folders and CIFAR itself: what is read, what is converted, and what is refused."""

import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks.errors import DataError
from benchmarks.images import load_images
from tests.benchmarks.cifar_helpers import write_digits


def load(folder, *sizes):
    return load_images(str(folder), folder.parent / "cache", *sizes)


def test_a_folder_is_read_pixel_by_pixel_in_the_order_of_its_names(tmp_path):
    loaded = load(write_digits(tmp_path / "digits", size=32, mode="RGB"))
    assert loaded.name == "digits"
    assert loaded.classes == [f"digit {label}" for label in range(10)]
    for split, name in ((loaded.train, "train"), (loaded.test, "test")):
        files = sorted((tmp_path / "digits" / name).glob("*/*.png"))
        expected = np.stack([np.asarray(Image.open(path)) for path in files]).transpose(0, 3, 1, 2)
        assert (split.images == expected).all()
        # In another order in memory, convolutions round differently.
        assert split.images.flags.c_contiguous
        assert split.labels.tolist() == [loaded.classes.index(path.parent.name) for path in files]


def test_other_images_are_converted_to_rgb(tmp_path):
    folder = write_digits(tmp_path / "digits", classes=2, train_per_class=2, test_per_class=1, size=28)
    picture = Image.open(folder / "test" / "digit 1" / "002.png").convert("P")
    picture.save(folder / "test" / "digit 1" / "003.tiff")
    loaded = load(folder)
    assert loaded.train.images.shape == (4, 3, 28, 28)
    assert (loaded.test.images[2] == np.asarray(picture.convert("RGB")).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("name", ["CIFAR10", "cifar100"])
def test_a_folder_of_cifar_is_recorded_by_the_names_that_the_papers_figures_go_by(tmp_path, name):
    assert load(write_digits(tmp_path / name, 1, 1, classes=2)).describe().name == name.lower()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "Give cifar10, cifar100, or a folder with train/<class>/"),
        (lambda folder: shutil.rmtree(folder / "test" / "digit 2"), "same sub-folders, at least 2"),
        (lambda folder: (folder / "test" / "digit 1" / "001.png").unlink(), "digit 1"),
        (
            lambda folder: Image.new("L", (16, 28)).save(folder / "test" / "digit 1" / "odd.png"),
            "odd.png is 28x16 pixels, and the images before it are 28x28",
        ),
        (lambda folder: (folder / "train" / "digit 1" / "000.png").write_bytes(b"cut"), "000.png cannot be decoded"),
    ],
)
def test_a_folder_that_is_unfit_for_training_is_refused(tmp_path, spoil, said):
    folder = write_digits(tmp_path / "digits", classes=3, train_per_class=1, test_per_class=1)
    spoil(folder)
    with pytest.raises(DataError, match=said):
        load(folder)


def test_cifar_that_can_neither_be_read_nor_downloaded_is_refused(tmp_path):
    (tmp_path / "a file").write_text("in the way")
    with pytest.raises(DataError, match=r"neither be read nor downloaded"):
        load_images("cifar10", tmp_path / "a file" / "data")


class SmallCIFAR10:
    """Images and labels as torchvision's class has them."""

    def __init__(self, folder, train, download):
        generator, self.classes = np.random.default_rng(train), list("abcdefghij")
        self.data = generator.integers(0, 256, (100 if train else 10, 32, 32, 3), dtype=np.uint8)
        self.targets = generator.integers(0, 10, len(self.data)).tolist()

    def __len__(self):
        return len(self.data)


def test_cifar_is_read_through_torchvision(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", SmallCIFAR10)
    loaded, whole = load_images("cifar10", tmp_path, 60), SmallCIFAR10(tmp_path, train=True, download=True)
    chosen = np.sort(np.random.default_rng(0).permutation(100)[:60])
    assert (loaded.name, loaded.classes) == ("cifar10", list("abcdefghij"))
    assert (loaded.train.images == whole.data.transpose(0, 3, 1, 2)[chosen]).all()
    assert loaded.train.images.flags.c_contiguous
    assert loaded.train.labels.tolist() == np.array(whole.targets)[chosen].tolist()
    assert loaded.test.images.shape == (10, 3, 32, 32)


def test_a_sample_is_always_the_same_and_of_images_that_are_there(digits):
    whole, few = load(digits), load(digits, 50, 20)
    assert few.describe() == load(digits, 50, 20).describe() != whole.describe()
    assert load(digits, 140, 60).describe() == whole.describe()
    digests = {few.describe().sha256}
    for changed in (few.train.images, few.test.labels):
        changed[3] ^= 1
        digests.add(few.describe().sha256)
        changed[3] ^= 1
    assert len(digests) == 3
    assert (few.describe().train_images, few.describe().test_images) == (50, 20)
    labels = {image.tobytes(): label for image, label in zip(*whole.train, strict=True)}
    assert all(labels[image.tobytes()] == label for image, label in zip(*few.train, strict=True))
    assert len(set(few.train.labels.tolist())) == 10
    for wanted in (0, 61):
        with pytest.raises(DataError, match=f"{wanted} images were asked for, and test has 60"):
            load(digits, 50, wanted)
