"""Loops on a device that is not there, one for each combination of what an update may be made of."""

import functools
import itertools

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.device import Augmentation, DeviceLoop, ResidentData, StagedData
from batch_sampler_attn.device.update import Update
from tests.device.fake_cuda.pretence import DEVICE, pretended

BATCH_SIZE = 4
# Two full batches and a shorter one.
SAMPLES = 10

OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, fused=True, capturable=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, fused=True, capturable=True),
    "adam in parts": lambda parameters: torch.optim.AdamW(parameters, foreach=True, capturable=True, amsgrad=True),
    "adam one by one": lambda parameters: torch.optim.Adam(
        parameters, lr=torch.tensor(1e-3, device=DEVICE), foreach=False, capturable=True
    ),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
    "sgd in parts": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, capturable=True),
    "radam": lambda parameters: torch.optim.RAdam(parameters, capturable=True),
}
CONTROLS = {
    "plain": lambda: None,
    "attention": lambda: BatchAttentionSchedule(1.2, max_visits=20),
    "all losses": lambda: BatchAttentionSchedule(1.2, epoch_loss="all"),
    "last losses": lambda: BatchAttentionSchedule(1.2, epoch_loss="last"),
    "budget": lambda: BatchAttentionSchedule(1.2, budget=0.2),
    "dealt": lambda: EqualComputeControl([[1, 2, 1]]),
}
PRECISIONS = {"default": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHOICES = {
    "optimizer": OPTIMIZERS,
    "control": CONTROLS,
    "augmentation": ("none", "by position", "afresh"),
    "precision": PRECISIONS,
    "channels_last": (False, True),
    "staged": (False, True),
    "count_visits": (False, True),
}


def is_possible(case):
    """A scaler, which float16 takes, takes an optimizer that is fused."""
    return case["precision"] != "float16" or case["optimizer"] in ("adam", "adamw", "sgd")


def pairwise():
    """Combinations in which each two choices of two kinds meet, where they can."""
    cases = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]
    remaining = [case for case in cases if is_possible(case)]

    def pairs(case):
        return set(itertools.combinations(case.items(), 2))

    pairs_of = {id(case): pairs(case) for case in remaining}
    left = set().union(*pairs_of.values())
    chosen = []
    while left:
        best = max(remaining, key=lambda case: len(left & pairs_of[id(case)]))
        left -= pairs_of[id(best)]
        chosen.append(best)
    return chosen


def make_network():
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 36, 5)
    return nn.Sequential(*layers)


def shift(images, uniforms):
    return images + 0.1 * uniforms[:, :, None, None]


def make_data(staged, size):
    generator = torch.Generator()
    images = torch.zeros(SAMPLES, 3, size, size, dtype=torch.uint8, device="cpu" if staged else DEVICE)
    targets = torch.zeros(SAMPLES, dtype=torch.int64, device=images.device)
    if not staged:
        return ResidentData(images, targets, BATCH_SIZE, generator=generator)
    loader = DataLoader(TensorDataset(images, targets), BATCH_SIZE, shuffle=True, generator=generator)
    return StagedData(loader, BATCH_SIZE, DEVICE, slots=2)


def make_loop(
    *,
    optimizer="adam",
    control="attention",
    augmentation="none",
    precision="default",
    channels_last=False,
    staged=False,
    count_visits=False,
    make_model=make_network,
    loss_fn=nn.functional.cross_entropy,
    augment=shift,
    size=8,
):
    """A loop; to be called while CUDA is ``pretended``."""
    with DEVICE:
        model = make_model()
    return DeviceLoop(
        model,
        OPTIMIZERS[optimizer](model.parameters()),
        loss_fn,
        make_data(staged, size),
        schedule=CONTROLS[control](),
        normalize=tuple(torch.full((1, 3, 1, 1), number, device=DEVICE) for number in (0.5, 0.2)),
        augmentation=None if augmentation == "none" else Augmentation(augment, 3, fresh=augmentation == "afresh"),
        autocast=PRECISIONS[precision],
        scaler=torch.amp.GradScaler("cuda") if precision == "float16" else None,
        channels_last=channels_last,
        count_visits=count_visits,
    )


def operators_of(**case):
    """The names of the operators in a loop's update, as it would be captured: on a full batch, and on a shorter one.

    Raises:
        RefusedError: If a capture refuses one of them.
    """
    with pretended() as watch:
        loop = make_loop(**case)
        update = Update(loop.parts)
        for made in (update.full_batch, update.tail_batch):
            # The first of each is eager, and makes the optimizer's state.
            made()
            with watch.listening([loop.parts.randomness.fresh]):
                made()
        return watch.operators


def make_of_benchmarks(name):
    """One of the paper's models, as the benchmarks make it for CIFAR."""
    from benchmarks.cifar.models import find_recipe, make_model

    return make_model(find_recipe(name, 32, 32, pretrained=False), classes=10, seed=0)


MODEL_CASES = {
    f"{name} {precision}": {
        "make_model": functools.partial(make_of_benchmarks, name),
        "precision": precision,
        "channels_last": precision != "default",
        "size": 32,
    }
    for name in ("resnet34", "tnt", "efficientnet_b7")
    for precision in ("default", "bfloat16")
}
