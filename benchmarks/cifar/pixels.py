"""The pixels of image files, as 8 bits of red, green and blue; what has no such form is refused."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.cifar.folders import Listing
from benchmarks.errors import DataError

# To be raised whenever files would be decoded to other pixels than before.
DECODER_VERSION = 3

_WITHOUT_RANGE = {"I": "32-bit integers", "F": "floating-point numbers"}
_WHITE_IS_ZERO = 0
_PHOTOMETRIC = 262
_SEVERAL_FRAMES = "of images with several frames, the first is taken"
_UPPER_BITS = "of 16 bits a channel, the upper 8 are taken"


class Decoded(NamedTuple):
    """The images of a split.

    Attributes:
        images: uint8, (images, 3, height, width).
        words: What was converted, for people.
    """

    images: NDArray[np.uint8]
    words: list[str]


def decode(listing: Listing, expected_size: tuple[int, int] | None) -> Decoded:
    """Decode all images of a split.

    Grey of 16 bits, and of 12, is scaled to 8. Integers and floating-point numbers of no known range are refused, and
    so are transparent pixels.

    Args:
        listing: Its files.
        expected_size: Height and width that they must have; None for those of the first.

    Raises:
        DataError: If a file cannot be decoded or is refused, its size is another, or memory does not suffice.
    """
    files, words = listing.files, Counter[str]()
    highest = 0
    with warnings.catch_warnings():
        # Pillow only warns of images that are too large, up to a size at which it refuses.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with _opened(files[0]) as first:
            height, width = expected_size or (first.height, first.width)
        images = _make_room(listing.folder, len(files), height, width)

        def read(place: int) -> tuple[list[str], int]:
            path = files[place]
            with _opened(path) as image:
                # Before anything of it is decoded, or one huge image could take all memory.
                if (image.height, image.width) != (height, width):
                    raise DataError(
                        f"{path} is {image.height}x{image.width} pixels, and the images before it are "
                        f"{height}x{width}; resize them all to one size first"
                    )
                of_image = _describe(image)
                pixels, brightest = _as_rgb(path, image)
                images[place] = pixels.transpose(2, 0, 1)
                return of_image, brightest

        with ThreadPoolExecutor() as pool:
            for of_image, brightest in pool.map(read, range(len(files))):
                words.update(of_image)
                highest = max(highest, brightest)
    scale = f"; the highest value is {highest}" if highest else ""
    return Decoded(images, [f"{listing.folder}: {word}{scale if 'scaled' in word else ''}" for word in sorted(words)])


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} is too large to be decoded: {error} Make it smaller, or delete it") from error
    except Exception as error:  # of damaged files Pillow raises many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} cannot be decoded: {reason}. Replace the file, or delete it") from error


def _make_room(folder: Path, count: int, height: int, width: int) -> NDArray[np.uint8]:
    try:
        return np.empty((count, 3, height, width), dtype=np.uint8)
    except MemoryError as error:
        size = count * 3 * height * width / 2**30
        raise DataError(
            f"{folder}: {count} images of {height}x{width} take {size:.1f} GiB, and there is not as much memory; make "
            "them smaller, or fewer"
        ) from error


def _describe(image: Image.Image) -> list[str]:
    """What is to be said of an image that is not simply 8 bits of red, green and blue."""
    words: list[str] = []
    bits = _grey_bits(image)
    if image.mode != "RGB":
        scaled = f", {bits} bits scaled to 8" if bits else ""
        words.append(f"images of mode {image.mode} are converted to RGB, three channels{scaled}")
    if not bits and ";16" in _raw_mode(image):
        words.append(_UPPER_BITS)
    if getattr(image, "n_frames", 1) > 1:
        words.append(_SEVERAL_FRAMES)
    return words


def _as_rgb(path: Path, image: Image.Image) -> tuple[NDArray[np.uint8], int]:
    """Pixels, (height, width, 3), and the highest value before it was scaled; 0 where it was not."""
    if bits := _grey_bits(image):
        return _scale_grey(path, image, bits)
    if image.mode in _WITHOUT_RANGE:
        raise DataError(
            f"{path} holds {_WITHOUT_RANGE[image.mode]} (mode {image.mode}), whose range is not known; convert it to 8 "
            "bits a channel first"
        )
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB")), 0
    pixels = np.asarray(image.convert("RGBA"))
    _check_opaque(path, (pixels[:, :, 3] < 255).any())
    return pixels[:, :, :3], 0


def _scale_grey(path: Path, image: Image.Image, bits: int) -> tuple[NDArray[np.uint8], int]:
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise DataError(f"{path} is grey of {bits} bits in which 0 is white; convert it to 8 bits a channel first")
    values = np.asarray(image).astype(np.uint32)
    _check_opaque(path, (values == image.info.get("transparency", -1)).any())
    most = 2**bits - 1
    grey = ((values * 255 + most // 2) // most).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2), int(values.max())


def _check_opaque(path: Path, is_transparent: np.bool_) -> None:
    if is_transparent:
        raise DataError(
            f"{path} has transparent pixels, and what is to be seen behind them is not known; put it on a background "
            "first"
        )


def _grey_bits(image: Image.Image) -> int | None:
    """The bits of a grey image that has more than 8, where these are known; else None."""
    raw = _raw_mode(image)
    if image.mode.startswith("I;16"):
        return 12 if raw == "I;12" else 16
    # What PGM holds is scaled to 16 bits by Pillow, and some of its versions have no other mode for 16-bit PNG.
    is_16_bits = image.format == "PPM" or (image.format == "PNG" and raw == "I;16B")
    return 16 if image.mode == "I" and is_16_bits else None


def _raw_mode(image: Image.Image) -> str:
    """How the file stores pixels, in Pillow's terms; known until it is decoded."""
    if not (tiles := getattr(image, "tile", None)):
        return ""
    args = tiles[0][3]
    return str(args[0] if isinstance(args, tuple) and args else args)
