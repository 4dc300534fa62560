"""Image files of every kind: scaled rightly, or refused with the file's name."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.cifar.images import load_images
from benchmarks.errors import DataError
from tests.benchmarks.cifar_helpers import write_digits

SIDE = 32
STEPS = np.resize(np.array([0, 128, 129, 257, 32896, 65406, 65407, 65535], dtype=np.uint16), (SIDE, SIDE))
STEPS_AS_8_BITS = np.resize(np.array([0, 0, 1, 1, 128, 254, 255, 255]), (SIDE, SIDE))


@pytest.fixture
def folder(tmp_path):
    return write_digits(tmp_path / "digits", train_per_class=2, test_per_class=1, size=SIDE, mode="RGB")


def load(folder):
    said = []
    return load_images(str(folder), folder.parent / "cache", said.append), said


def load_first(folder):
    """The pixels of ``digit 0/000.*``, (3, height, width), and what was said."""
    loaded, said = load(folder)
    return loaded.train.images[0], said


def first(folder, ending="png"):
    path = folder / "train" / "digit 0" / f"000.{ending}"
    path.with_suffix(".png").unlink()
    return path


def write_grey_tiff(path, values, bits, photometric=1):
    """Uncompressed, little-endian, with the tags that it takes and no others."""
    flat = values.astype(np.uint16).ravel()
    if bits == 12:
        pairs = flat.reshape(-1, 2)
        packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
        pixels = packed.astype(np.uint8).tobytes()
    else:
        pixels = flat.astype("<u2").tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height, 279: len(pixels)}
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels)


def write_16_bit_png(path, values, colour_type):
    """(height, width, channels) of 16 bits, which Pillow cannot write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    path.write_bytes(signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def as_png(path):
    Image.fromarray(STEPS).save(path)


def as_tiff(path):
    Image.fromarray(STEPS).save(path)


def as_big_endian_tiff(path):
    Image.frombytes("I;16B", (SIDE, SIDE), STEPS.astype(">u2").tobytes()).save(path)


def as_compressed_tiff(path):
    Image.fromarray(STEPS).save(path, compression="tiff_lzw")


def as_pgm(path):
    path.write_bytes(b"P5 %d %d 65535\n" % (SIDE, SIDE) + STEPS.astype(">u2").tobytes())


@pytest.mark.parametrize(
    ("write", "ending"),
    [
        (as_png, "png"),
        (as_tiff, "tiff"),
        (as_big_endian_tiff, "tiff"),
        (as_compressed_tiff, "tiff"),
        (as_pgm, "pgm"),
    ],
)
def test_grey_of_16_bits_is_scaled_to_8_in_every_byte_order(folder, write, ending):
    write(first(folder, ending))
    pixels, said = load_first(folder)
    assert (pixels == STEPS_AS_8_BITS).all()
    assert any("16 bits scaled to 8; the highest value is 65535" in text for text in said)


def test_grey_of_12_bits_is_scaled_by_its_own_range(folder):
    values = np.resize(np.arange(4096), (SIDE, SIDE))
    write_grey_tiff(first(folder, "tif"), values, 12)
    pixels, said = load_first(folder)
    assert (pixels == (values * 255 / 4095).round()).all()
    assert any("12 bits scaled to 8" in text for text in said)


def test_the_highest_value_is_said_so_that_images_that_come_out_dark_are_noticed(folder):
    Image.fromarray(np.minimum(STEPS, 4095)).save(first(folder))
    pixels, said = load_first(folder)
    assert pixels.max() == 16
    assert any("the highest value is 4095" in text for text in said)


def test_grey_of_16_bits_in_which_0_is_white_is_refused(folder):
    write_grey_tiff(first(folder, "tif"), STEPS, 16, photometric=0)
    with pytest.raises(DataError, match=r"000\.tif is grey of 16 bits in which 0 is white"):
        load(folder)


def test_of_16_bits_of_colour_the_upper_8_are_taken_after_a_word(folder):
    values = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE, 3))
    write_16_bit_png(first(folder), values, 2)
    pixels, said = load_first(folder)
    assert (pixels.transpose(1, 2, 0) == values >> 8).all()
    assert any("of 16 bits a channel, the upper 8 are taken" in text for text in said)


def test_what_was_converted_is_said_again_when_images_come_from_the_cache(folder):
    as_png(first(folder))
    once, again = load(folder)[1], load(folder)[1]
    assert once == again
    assert any("16 bits" in text for text in once)


def colours():
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16"])
def test_transparent_pixels_are_refused_by_name(folder, mode):
    path, picture = first(folder), Image.fromarray(colours())
    if mode == "RGBA":
        picture.putalpha(254)
        picture.save(path)
    elif mode == "LA":
        grey = picture.convert("L")
        grey.putalpha(0)
        grey.save(path)
    elif mode == "I;16":
        Image.fromarray(STEPS).save(path, transparency=257)
    else:
        picture.convert(mode).save(path, transparency=int(np.asarray(picture.convert(mode))[0, 0]))
    with pytest.raises(DataError, match=r"000\.png has transparent pixels"):
        load(folder)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_an_alpha_channel_that_hides_nothing_is_left_out(folder, mode):
    picture = Image.fromarray(colours()).quantize(16).convert("RGB") if mode == "P" else Image.fromarray(colours())
    path = first(folder)
    if mode == "P":
        quantized = picture.quantize(17)
        unused = set(range(256)) - set(np.unique(np.asarray(quantized)).tolist())
        quantized.save(path, transparency=min(unused))
    else:
        picture.convert("RGBA").save(path)
    pixels, said = load_first(folder)
    assert (pixels.transpose(1, 2, 0) == np.asarray(picture)).all()
    assert any(f"mode {mode} are converted" in text for text in said)


@pytest.mark.parametrize(("mode", "ending"), [("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "tif"), ("1", "png")])
def test_other_colours_are_converted_after_a_word(folder, mode, ending):
    path = first(folder, ending)
    Image.new("RGB", (SIDE, SIDE), (255, 255, 255)).convert(mode).save(path)
    pixels, said = load_first(folder)
    assert (pixels >= 254).all()
    assert any("converted to RGB" in text for text in said)


def test_of_several_frames_the_first_is_taken_after_a_word(folder):
    red, blue = (Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue"))
    red.save(first(folder), save_all=True, append_images=[blue])
    pixels, said = load_first(folder)
    assert (pixels[0] == 255).all()
    assert any("of images with several frames, the first is taken" in text for text in said)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n", b"BM", b"P5 32 32 255\n"])
def test_a_file_that_is_no_image_is_refused_by_name(folder, content):
    first(folder).write_bytes(content)
    with pytest.raises(DataError, match=r"000\.png cannot be decoded: \w"):
        load(folder)


def test_an_image_cut_off_anywhere_is_refused_by_name(folder):
    path = first(folder)
    Image.fromarray(colours()).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 20, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"000\.png cannot be decoded: \w"):
            load(folder)


@pytest.mark.parametrize("place", ["000", "002"])
@pytest.mark.parametrize("side", [9_500, 15_000])
def test_an_image_that_pillow_warns_of_or_refuses_for_its_size_is_refused_by_name(folder, place, side):
    path = folder / "train" / "digit 0" / f"{place}.png"
    Image.new("1", (side, side)).save(path)
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with pytest.raises(DataError, match=rf"{place}\.png is too large to be decoded: \w[^\n]*$"):
        load(folder)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert list(warnings.filters) == filters


def test_an_image_of_another_size_is_refused_before_it_is_decoded(folder):
    path = folder / "train" / "digit 0" / "002.png"
    Image.fromarray(colours()).resize((64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:100])  # its size is there, its pixels are not
    with pytest.raises(DataError, match=r"002\.png is 64x64 pixels, and the images before it are 32x32"):
        load(folder)
