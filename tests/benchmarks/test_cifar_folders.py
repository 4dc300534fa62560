"""Which files of a folder are images of which class."""

import os

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from benchmarks.cifar import images
from benchmarks.cifar.folders import list_splits
from benchmarks.cifar.images import load_images
from benchmarks.errors import DataError
from tests.benchmarks.cifar_helpers import write_digits

SPLITS = ("train", "test")


@pytest.fixture
def folder(tmp_path):
    return write_digits(tmp_path / "digits", train_per_class=2, test_per_class=1, classes=3, size=32, mode="RGB")


def list_train(folder):
    """The files of the training split, relative to it, and what was said."""
    said = []
    listing, _ = list_splits(folder, SPLITS, said.append)
    return [str(path.relative_to(listing.folder)) for path in listing.files], said


def put_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32)).save(path)


PLAIN = [f"digit {label}/{number:03d}.png" for label in range(3) for number in range(2)]


def test_files_labels_and_classes_are_those_of_torchvision(folder):
    for name in ("a/0.png", "a-b/0.png", "a/c/0.jpg", "Z.PNG"):
        put_image(folder / "train" / "digit 1" / name)
    listing, _ = list_splits(folder, SPLITS, print)
    expected = datasets.ImageFolder(str(folder / "train"))
    assert [(str(path), label) for path, label in zip(listing.files, listing.labels, strict=True)] == expected.samples
    assert listing.classes == expected.classes


@pytest.mark.parametrize("target", [".", "..", "../..", "../digit 1", "../../test/digit 0", "../../test"])
def test_a_link_to_where_images_are_already_adds_none_and_is_said(folder, target):
    (folder / "train" / "digit 0" / "more").symlink_to(target)
    files, said = list_train(folder)
    assert files == PLAIN
    assert any("digit 0/more left out" in text for text in said)


@pytest.mark.parametrize("target", [".", "..", "digit 1"])
def test_a_link_among_the_classes_to_where_images_are_already_is_no_class(folder, target):
    for split in SPLITS:
        (folder / split / "more").symlink_to(target)
    listing, _ = list_splits(folder, SPLITS, print)
    assert listing.classes == ["digit 0", "digit 1", "digit 2"]


def test_a_folder_elsewhere_is_followed_once_with_its_own_links(folder, tmp_path):
    for name in ("near/0.png", "near/deep/1.png"):
        put_image(tmp_path / "else" / name)
    (tmp_path / "else" / "near" / "deep" / "up").symlink_to("../..")
    (folder / "train" / "digit 0" / "from else").symlink_to(tmp_path / "else" / "near")
    (folder / "train" / "digit 1" / "again").symlink_to(tmp_path / "else" / "near")
    (folder / "test" / "digit 1" / "tested too").symlink_to(tmp_path / "else" / "near" / "deep")
    files, said = list_train(folder)
    extra = ["digit 0/from else/0.png", "digit 0/from else/deep/1.png"]
    assert files == [*PLAIN[:2], *extra, *PLAIN[2:]]
    assert any("digit 0/from else/deep/up, digit 1/again left out" in text for text in said)
    assert any("digit 1/tested too left out" in text for text in said)


def test_classes_and_splits_may_be_links(folder, tmp_path):
    (folder / "train" / "digit 2").rename(tmp_path / "kept elsewhere")
    (folder / "train" / "digit 2").symlink_to(tmp_path / "kept elsewhere")
    (folder / "test").rename(tmp_path / "test elsewhere")
    (folder / "test").symlink_to(tmp_path / "test elsewhere")
    assert list_train(folder) == (PLAIN, [])


@pytest.mark.parametrize("target", ["train", "train/digit 0", "."])
def test_a_test_split_that_leads_to_the_training_images_is_refused(folder, target):
    (folder / "test").rename(folder / "real test")
    (folder / "test").symlink_to(target)
    with pytest.raises(DataError, match="lead to the same images"):
        list_train(folder)


def test_everything_that_is_left_out_is_said(folder):
    put_image(folder / "train" / "digit 0" / ".ipynb_checkpoints" / "000-checkpoint.png")
    put_image(folder / "train" / ".ipynb_checkpoints" / "x" / "0.png")
    (folder / "train" / "digit 1" / "._000.png").write_bytes(b"\0\5\26\7")
    (folder / "train" / "digit 1" / "000.gif").write_bytes(b"GIF89a")
    put_image(folder / "train" / "loose.png")
    files, said = list_train(folder)
    assert files == PLAIN
    hidden, no_class, no_image = said
    left_out = ".ipynb_checkpoints, digit 0/.ipynb_checkpoints, digit 1/._000.png left out"
    assert f"{left_out}, since names that begin with a dot" in hidden
    assert "loose.png left out, since they are in no class" in no_class
    assert "digit 1/000.gif left out, since images end in .jpg" in no_image


def test_of_many_that_are_left_out_three_are_named(folder):
    for number in range(1000):
        (folder / "train" / "digit 1" / f"{number:03d}.txt").touch()
    _, (said,) = list_train(folder)
    assert "digit 1/000.txt, digit 1/001.txt, digit 1/002.txt and 997 more left out" in said


def test_a_link_in_a_circle_is_refused_by_name(folder):
    (folder / "train" / "digit 1" / "round.png").symlink_to("round.png")
    with pytest.raises(DataError, match=r"round\.png cannot be read: \w"):
        list_train(folder)


def test_a_pipe_is_refused_and_not_waited_for(folder):
    os.mkfifo(folder / "train" / "digit 1" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png is neither a file nor a folder"):
        list_train(folder)


@pytest.mark.parametrize(
    ("one", "other"), [("caf\u00e9", "cafe\u0301"), ("\u2126", "\u03a9"), ("tea", "tea "), ("A\u030a", "\u212b")]
)
def test_names_of_classes_that_look_alike_are_told_apart(tmp_path, one, other):
    for split, name in zip(SPLITS, (one, other), strict=True):
        put_image(tmp_path / "apart" / split / "water" / "0.png")
        put_image(tmp_path / "apart" / split / name / "0.png")
        for both in (one, other):
            put_image(tmp_path / "beside" / split / both / "0.png")
    with pytest.raises(DataError) as said:
        list_train(tmp_path / "apart")
    assert f"Unicode form or in spaces alone: {one!a} in train and {other!a} in test" in str(said.value)
    with pytest.raises(DataError, match="two classes look alike and differ in Unicode form") as said:
        list_train(tmp_path / "beside")
    assert ascii(one) in str(said.value)
    assert ascii(other) in str(said.value)


def test_a_class_that_is_not_named_in_utf8_is_refused(folder):
    for split in SPLITS:
        put_image(folder / split / os.fsdecode(b"caf\xe9") / "0.png")
    with pytest.raises(DataError, match=r"class 'caf\\udce9' is not named in UTF-8"):
        list_train(folder)


def test_a_file_that_is_not_named_in_utf8_is_an_image_like_others(folder):
    put_image(folder / "train" / "digit 0" / os.fsdecode(b"caf\xe9.png"))
    assert len(load_images(str(folder), folder.parent / "cache", print).train.images) == 7


def test_a_file_replaced_while_it_is_decoded_leaves_no_cache_behind(folder, monkeypatch):
    path, decode = folder / "train" / "digit 0" / "000.png", images.decode

    def replace_and_decode(*arguments):
        Image.fromarray(np.full((32, 32, 3), 7, dtype=np.uint8)).save(path)
        return decode(*arguments)

    before = path.read_bytes()
    monkeypatch.setattr(images, "decode", replace_and_decode)
    assert (load_images(str(folder), folder.parent / "cache", print).train.images[0] == 7).all()
    monkeypatch.setattr(images, "decode", decode)
    path.write_bytes(before)
    again = load_images(str(folder), folder.parent / "cache", print).train.images[0]
    assert (again.transpose(1, 2, 0) == np.asarray(Image.open(path))).all()
