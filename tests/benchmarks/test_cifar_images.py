"""Image folders and CIFAR itself: what is read, what is converted, and what is refused."""

import hashlib
import os
import pickle

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from benchmarks.cifar import decoded, images, recognition
from benchmarks.cifar.images import load_images
from benchmarks.errors import DataError
from tests.benchmarks.cifar_helpers import write_digits


def load(folder, data_dir=None):
    said = []
    return load_images(str(folder), data_dir or folder.parent / "cache", said.append), said


def test_a_folder_is_read_pixel_by_pixel_in_the_order_of_its_names(tmp_path):
    loaded, said = load(write_digits(tmp_path / "digits", size=32, mode="RGB"))
    assert said == []
    assert loaded.name == "digits"
    assert loaded.classes == [f"digit {label}" for label in range(10)]
    for split, name in ((loaded.train, "train"), (loaded.test, "test")):
        files = sorted((tmp_path / "digits" / name).glob("*/*.png"))
        expected = np.stack([np.asarray(Image.open(path)) for path in files]).transpose(0, 3, 1, 2)
        assert (split.images == expected).all()
        assert split.labels.tolist() == [loaded.classes.index(path.parent.name) for path in files]


def test_grey_images_of_another_size_go_through_after_a_word(tmp_path):
    loaded, said = load(write_digits(tmp_path / "digits"))
    assert loaded.train.images.shape == (140, 3, 28, 28)
    assert (loaded.train.images[:, 0] == loaded.train.images[:, 2]).all()
    assert "mode L are converted to RGB" in said[0]
    assert "28x28 and stay so" in said[-1]


def test_images_are_decoded_once_until_a_file_changes(tmp_path, monkeypatch):
    folder = write_digits(tmp_path / "digits", size=32, mode="RGB")
    first, _ = load(folder)
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda *arguments: pytest.fail("decoded again"))
    second, _ = load(folder)
    assert (first.train.images == second.train.images).all()
    assert (first.test.labels == second.test.labels).all()
    monkeypatch.setattr(images, "decode", decode)
    path = next((folder / "train").glob("*/*.png"))
    Image.fromarray(np.full((32, 32, 3), 7, dtype=np.uint8)).save(path)
    changed, _ = load(folder)
    assert (changed.train.images == 7).all(axis=(1, 2, 3)).sum() == 1


def test_a_file_replaced_at_the_same_size_and_time_is_decoded_anew(tmp_path):
    folder = write_digits(tmp_path / "digits", size=32, mode="RGB")
    path = folder / "train" / "digit 0" / "000.bmp"
    times = (1_700_000_000_000_000_000,) * 2
    for value in (7, 9):
        Image.fromarray(np.full((32, 32, 3), value, dtype=np.uint8)).save(path)
        os.utime(path, ns=times)
        loaded, _ = load(folder)
        assert (loaded.train.images == value).all(axis=(1, 2, 3)).sum() == 1


def test_images_of_another_decoder_are_decoded_anew(tmp_path, monkeypatch):
    folder = write_digits(tmp_path / "digits", size=32, mode="RGB")
    load(folder)
    monkeypatch.setattr(decoded, "DECODER_VERSION", 99)
    load(folder)
    assert len(list((tmp_path / "cache" / "decoded").iterdir())) == 2


@pytest.mark.parametrize(("dtype", "said"), [(np.float32, "floating-point numbers"), (np.int32, "32-bit integers")])
def test_values_without_a_known_range_are_refused(tmp_path, dtype, said):
    folder = write_digits(tmp_path / "digits", size=32)
    Image.fromarray(np.zeros((32, 32), dtype=dtype)).save(folder / "train" / "digit 0" / "000.tiff")
    with pytest.raises(DataError, match=rf"000.tiff holds {said} .*convert it to 8 bits"):
        load(folder)


def test_a_link_to_nothing_is_refused_by_name(tmp_path):
    folder = write_digits(tmp_path / "digits", size=32, mode="RGB")
    (folder / "train" / "digit 0" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png is a link to a file that is not there"):
        load(folder)


def test_a_damaged_cache_is_made_anew(tmp_path):
    folder = write_digits(tmp_path / "digits", size=32, mode="RGB")
    first, _ = load(folder)
    (cache,) = (tmp_path / "cache" / "decoded").iterdir()
    cache.write_bytes(cache.read_bytes()[:1000])
    second, _ = load(folder)
    assert (first.train.images == second.train.images).all()


def test_a_folder_of_cifars_classes_is_recognized(tmp_path):
    assert load(write_pictures(tmp_path / "pictures", CIFAR10))[0].name == "cifar10"


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_pictures(folder, names, size=32):
    for split in ("train", "test"):
        for name in names:
            (folder / split / name).mkdir(parents=True)
            Image.new("RGB", (size, size)).save(folder / split / name / "0.png")
    return folder


def test_others_data_does_not_pass_as_cifar(tmp_path, monkeypatch):
    frogs = ["airplane", "frog", *map(str, range(8))]
    assert load(write_pictures(tmp_path / "aerial", frogs))[0].name == "aerial"
    assert load(write_pictures(tmp_path / "cinic", CIFAR10, size=64))[0].name == "cinic"
    # As many images as the original has, and others.
    monkeypatch.setattr(recognition, "_SIZES", (10, 10))
    assert load(write_pictures(tmp_path / "as many", CIFAR10))[0].name == "as many"
    monkeypatch.setattr(recognition, "_SIZES", (9, 10))
    assert load(write_pictures(tmp_path / "more", CIFAR10))[0].name == "more"


def test_a_split_is_known_by_its_images_and_labels_in_any_order():
    generator = np.random.default_rng(0)
    pixels, labels = generator.integers(0, 256, (20, 3, 4, 4), dtype=np.uint8), generator.integers(0, 10, 20)
    order = generator.permutation(20)
    known = recognition.digest(pixels, labels)
    assert recognition.digest(pixels[order], labels[order]) == known
    assert recognition.digest(pixels, labels[order]) != known
    pixels[3, 0, 1, 2] ^= 1
    assert recognition.digest(pixels, labels) != known


def remove_test(folder):
    for path in sorted((folder / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "test").rmdir()


def remove_class(folder, split, label):
    for path in (folder / split / f"digit {label}").iterdir():
        path.unlink()
    (folder / split / f"digit {label}").rmdir()


def empty_class(folder):
    for path in (folder / "train" / "digit 3").iterdir():
        path.unlink()


def leave_one_class(folder):
    for label in range(1, 10):
        remove_class(folder, "train", label)
        remove_class(folder, "test", label)


def resize_one(folder):
    Image.new("L", (16, 28)).save(folder / "test" / "digit 4" / "odd.png")


def cut_one_off(folder):
    path = folder / "train" / "digit 5" / "000.png"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (remove_test, "there is no folder .*test"),
        (lambda folder: remove_class(folder, "test", 2), "different classes; only one of them has digit 2"),
        (empty_class, "digit 3"),
        (leave_one_class, "has one class, 'digit 0'"),
        (resize_one, "odd.png is 28x16 pixels, and the images before it are 28x28"),
        (cut_one_off, "000.png cannot be decoded"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_refused(tmp_path, spoil, said):
    folder = write_digits(tmp_path / "digits")
    spoil(folder)
    with pytest.raises(DataError, match=said):
        load(folder)


def test_a_missing_folder_is_refused_with_what_a_folder_looks_like(tmp_path):
    with pytest.raises(DataError, match="train/<class>/"):
        load(tmp_path / "nothing")


def test_cifar_that_can_neither_be_read_nor_downloaded_is_refused(tmp_path):
    (tmp_path / "a file").write_text("in the way")
    with pytest.raises(DataError, match=r"neither be read .* nor downloaded"):
        load_images("cifar10", tmp_path / "a file" / "data")


def write_small_cifar10(folder):
    """CIFAR-10's files, with 5 times 20 and 10 images; and torchvision's class of it, with their checksums."""
    generator = np.random.default_rng(0)
    base = folder / datasets.CIFAR10.base_folder
    base.mkdir(parents=True)

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((base / name).read_bytes()).hexdigest()

    def batch(count):
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": generator.integers(0, 10, count).tolist()}

    meta_name, meta_md5 = write("batches.meta", {"label_names": list("abcdefghij")})

    class SmallCIFAR10(datasets.CIFAR10):
        train_list = tuple(write(f"data_batch_{number}", batch(20)) for number in range(1, 6))
        test_list = (write("test_batch", batch(10)),)
        meta = {"filename": meta_name, "key": "label_names", "md5": meta_md5}  # noqa: RUF012

    return SmallCIFAR10


def test_cifar_is_read_through_torchvision(tmp_path, monkeypatch):
    dataset = write_small_cifar10(tmp_path)
    monkeypatch.setitem(images._CIFAR, "cifar10", dataset)
    loaded = load_images("cifar10", tmp_path)
    reference = dataset(str(tmp_path), train=True)
    assert loaded.name == "cifar10"
    assert (loaded.train.images == reference.data.transpose(0, 3, 1, 2)).all()
    assert loaded.train.labels.tolist() == reference.targets
    assert loaded.test.images.shape == (10, 3, 32, 32)


def test_a_sample_is_always_the_same_and_of_images_that_are_there(tmp_path):
    loaded, _ = load(write_digits(tmp_path / "digits"))
    few, again = loaded.sample(50, 50), loaded.sample(50, 50)
    assert (len(few.train.images), len(few.test.images)) == (50, 50)
    assert few.describe() == again.describe() != loaded.describe()
    whole = {image.tobytes(): label for image, label in zip(loaded.train.images, loaded.train.labels, strict=True)}
    assert all(whole[image.tobytes()] == label for image, label in zip(few.train.images, few.train.labels, strict=True))
    assert len(set(few.train.labels.tolist())) == 10
    with pytest.raises(DataError, match="61 images were asked for, and test has 60"):
        loaded.sample(61, 61)
    few = loaded.sample(50, None)
    assert (len(few.train.images), len(few.test.images)) == (50, 60)
    assert len(loaded.sample(None, 7).test.images) == 7
    assert loaded.sample(None, None).describe() == loaded.describe()


def test_the_description_changes_with_a_single_pixel_or_label(tmp_path):
    loaded, _ = load(write_digits(tmp_path / "digits"))
    described = loaded.describe()
    loaded.train.images[3, 0, 5, 5] ^= 1
    other = loaded.describe()
    assert described.sha256 != other.sha256
    loaded.test.labels[0] += 1
    assert loaded.describe().sha256 != other.sha256
