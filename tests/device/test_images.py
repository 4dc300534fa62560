"""Images, normalized, cropped and mirrored on the device."""

import pytest
import torch

from batch_sampler_attn import EqualComputeControl
from batch_sampler_attn.device import Normalize, RandomCropFlip
from tests.device.helpers import make_loop

pytestmark = pytest.mark.usefixtures("one_thread")


def make_images(count=16, dtype=torch.uint8):
    images = torch.randint(0, 256, (count, 3, 6, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return images if dtype is torch.uint8 else images.to(dtype) / 255


def test_bytes_are_scaled_and_every_channel_is_normalized():
    images = make_images()
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    expected = torch.stack([(images[:, c].float() / 255 - mean[c]) / std[c] for c in range(3)], dim=1)
    assert torch.allclose(Normalize(mean, std)(images), expected)
    assert torch.allclose(Normalize(mean, std)(images.float() / 255), expected)


def find(image, cropped, padding):
    """How an image was shifted and mirrored, by trying all ways."""
    height, width = image.shape[1:]
    ways = []
    for is_mirrored in (False, True):
        source = torch.nn.functional.pad(image.flip(2) if is_mirrored else image, [padding] * 4)
        for down in range(2 * padding + 1):
            for right in range(2 * padding + 1):
                if torch.equal(source[:, down : down + height, right : right + width], cropped):
                    ways.append((down, right, is_mirrored))
    return ways


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("per_visit", [False, True])
def test_every_image_is_shifted_and_mirrored_in_all_ways_equally_often(dtype, per_visit):
    images, crop = make_images(400, dtype), RandomCropFlip(1, per_visit=per_visit)
    found = []
    for image, cropped in zip(images, crop(images), strict=True):
        assert cropped.dtype == dtype
        (way,) = find(image, cropped, 1)
        found.append(way)
    # Of 18 ways each comes 22 times on average.
    assert len(set(found)) == 18
    assert max(map(found.count, set(found))) < 45
    assert 150 < sum(is_mirrored for *_, is_mirrored in found) < 250


def test_draws_depend_on_the_image_the_epoch_and_the_seed_alone():
    images = make_images(64)
    crop = RandomCropFlip(2)
    first = crop(images)
    assert torch.equal(crop(images), first)
    assert torch.equal(crop(images.flip(0)).flip(0), first)
    assert not torch.equal(RandomCropFlip(2, seed=1)(images), first)
    crop.set_epoch(torch.tensor(1))
    assert not torch.equal(crop(images), first)
    crop.set_epoch(0)
    assert torch.equal(crop(images), first)
    per_visit = RandomCropFlip(2, per_visit=True)
    assert not torch.equal(per_visit(images), per_visit(images))


@pytest.mark.parametrize("per_visit", [False, True])
def test_a_repeat_sees_the_same_images_or_others_as_asked(per_visit):
    seen = []

    def note(images):
        seen.append(images)
        return images.float().flatten(1)

    model = torch.nn.Linear(90, 3)
    prepare = RandomCropFlip(2, note, per_visit=per_visit)
    targets = torch.zeros(16, dtype=torch.int64)
    schedule = EqualComputeControl([[3, 3]] * 2)
    loop = make_loop(make_images(), targets, model=model, prepare=prepare, schedule=schedule)
    for _ in range(2):
        loop.run_epoch()
    for first, second, third in (seen[:3], seen[3:6], seen[6:9], seen[9:]):
        assert torch.equal(first, second) is not per_visit
        assert torch.equal(second, third) is not per_visit
    assert not torch.equal(torch.cat([seen[0], seen[3]]).sum(0), torch.cat([seen[6], seen[9]]).sum(0))
