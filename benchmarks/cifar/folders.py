"""Folders of images: which files are images of which class."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets.folder import IMG_EXTENSIONS

from benchmarks.errors import DataError

Say = Callable[[str], None]

_ENDINGS = ", ".join(IMG_EXTENSIONS)
_HIDDEN = "since names that begin with a dot are no data"
_SEEN = "since such links lead to folders whose images are there already"
_NO_IMAGE = f"since images end in {_ENDINGS}"
_NO_CLASS = "since they are in no class; each class is a sub-folder"


class Listing(NamedTuple):
    """The images of a split.

    Attributes:
        folder: Of the split.
        classes: Their names, sorted.
        files: Sorted by class, folder and name.
        labels: int64, (files,).
    """

    folder: Path
    classes: list[str]
    files: list[Path]
    labels: NDArray[np.int64]


def list_splits(folder: Path, splits: Sequence[str], say: Say) -> list[Listing]:
    """The images in a folder's splits, each with the same sub-folders, which are the classes.

    Names that begin with a dot are left out, and so are links to folders whose images are there already.

    Args:
        folder: With a sub-folder for each split.
        splits: Their names.
        say: Told of what is left out.

    Raises:
        DataError: If a split, a class or a file is missing or cannot be read, splits share images by being one folder,
            or their classes are not the same.
    """
    places = [folder / split for split in splits]
    for place in places:
        if not place.is_dir():
            raise DataError(
                f"there is no folder {place}; an image folder has train/<class>/*.png and test/<class>/*.png"
            )
    for one, other in itertools.combinations(places, 2):
        if _overlap(one.resolve(), other.resolve()):
            raise DataError(f"{one} and {other} lead to the same images; a test takes images of its own")
    seen = [place.resolve() for place in places]
    listings = [_Search(place, seen).list_classes(say) for place in places]
    for listing in listings[1:]:
        _check_same_classes(folder, listings[0], listing)
    return listings


class _Search:
    """Looks for the images of a split.

    Args:
        folder: Of the split.
        seen: Where all splits have been looked into, links resolved; what links lead to is added.
    """

    def __init__(self, folder: Path, seen: list[Path]) -> None:
        self._folder = folder
        self._seen = seen
        self._left_out: dict[str, list[str]] = defaultdict(list)

    def list_classes(self, say: Say) -> Listing:
        classes, loose = self._look_into(self._folder)
        for path in loose:
            self._leave_out(path, _NO_CLASS)
        names = [path.name for path in classes]
        self._check_names(names)
        files: list[Path] = []
        labels: list[int] = []
        for label, place in enumerate(classes):
            # As torchvision sorts them, so that labels, orders and digests stay what they were.
            of_class = sorted(self._find_images(place), key=lambda path: (str(path.parent), path.name))
            if not of_class:
                raise DataError(
                    f"{self._folder}: there is no image in the class {place.name!r}. Put some there, or remove the "
                    f"sub-folder; images end in {_ENDINGS}"
                )
            files += of_class
            labels += [label] * len(of_class)
        for reason, left_out in self._left_out.items():
            more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
            say(f"{self._folder}: {', '.join(left_out[:3])}{more} left out, {reason}")
        return Listing(self._folder, names, files, np.asarray(labels, dtype=np.int64))

    def _find_images(self, place: Path) -> Iterable[Path]:
        folders, files = self._look_into(place)
        for path in files:
            if not path.name.lower().endswith(IMG_EXTENSIONS):
                self._leave_out(path, _NO_IMAGE)
            else:
                yield path
        for inside in folders:
            yield from self._find_images(inside)

    def _look_into(self, place: Path) -> tuple[list[Path], list[Path]]:
        """Sub-folders and files, sorted by name."""
        folders: list[Path] = []
        files: list[Path] = []
        try:
            with os.scandir(place) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            for entry in entries:
                path = place / entry.name
                if entry.name.startswith("."):
                    self._leave_out(path, _HIDDEN)
                elif entry.is_dir() and entry.is_symlink() and not self._may_follow(path):
                    self._leave_out(path, _SEEN)
                elif entry.is_dir():
                    folders.append(path)
                elif entry.is_file():
                    files.append(path)
                elif entry.is_symlink():
                    raise DataError(f"{path} is a link to a file that is not there. Delete the link, or mend it")
                else:  # reading a pipe or a device may never end
                    raise DataError(f"{path} is neither a file nor a folder. Delete it")
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}. Delete it, or mend it") from error
        return folders, files

    def _may_follow(self, link: Path) -> bool:
        target = link.resolve()
        if any(_overlap(target, seen) for seen in self._seen):
            return False
        self._seen.append(target)
        return True

    def _leave_out(self, path: Path, reason: str) -> None:
        self._left_out[reason].append(str(path.relative_to(self._folder)))

    def _check_names(self, names: list[str]) -> None:
        if not names:
            raise DataError(f"{self._folder} has no sub-folders. Each class is a sub-folder with images in it")
        for name in names:
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"{self._folder}: the class {name!a} is not named in UTF-8. Rename it") from error
        by_look = {_look(name): name for name in names}
        for name in names:
            if (other := by_look[_look(name)]) != name:
                raise DataError(
                    f"{self._folder}: two classes look alike and differ in Unicode form or in spaces alone: "
                    f"{name!a} and {other!a}. Put them together, or rename one"
                )


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _look(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip()


def _check_same_classes(folder: Path, one: Listing, other: Listing) -> None:
    only_one, only_other = set(one.classes) - set(other.classes), set(other.classes) - set(one.classes)
    by_look = {_look(name): name for name in only_other}
    alike = [
        f"{name!a} in {one.folder.name} and {by_look[_look(name)]!a} in {other.folder.name}"
        for name in sorted(only_one)
        if _look(name) in by_look
    ]
    if alike:
        raise DataError(
            f"{folder}: names of classes look alike and differ in Unicode form or in spaces alone: "
            f"{', '.join(alike[:3])}. Rename them alike"
        )
    if apart := sorted(only_one | only_other):
        raise DataError(
            f"{folder}: {one.folder.name} and {other.folder.name} have different classes; only one of them has "
            f"{', '.join(apart[:5])}. Give both the same sub-folders"
        )
