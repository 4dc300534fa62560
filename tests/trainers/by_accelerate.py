"""Trainings by hand around accelerate, and without it."""

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration

from batch_sampler_attn import Decision
from batch_sampler_attn.accumulation import AccumulatedLoss
from batch_sampler_attn.trainers.accelerate import attend, register_for_checkpointing
from tests.trainers import plain_loop, sample_loop
from tests.trainers.cases import EPOCHS, PLAIN, cross_entropy, make_loader, make_network, make_optimizer
from tests.trainers.plain_loop import finish, make_schedule
from tests.trainers.sample_loop import finish_samples, make_attention, make_sample_loader


def make_accelerator(case=PLAIN, **options):
    # Their state is one for all of a process, and keeps the settings of the first.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if case.precision == "bf16" else "no", **options)
    if case.precision == "scaler":
        # Which accelerate has on a GPU alone.
        accelerator.scaler = case.scaler()
        accelerator.native_amp = True
        accelerator.state._mixed_precision = "fp16"
    return accelerator


def make_prepared(**configuration):
    """A loader whose order follows from the epoch's number, and its accelerator."""
    configuration = DataLoaderConfiguration(use_seedable_sampler=True, **configuration)
    accelerator = make_accelerator(dataloader_config=configuration)
    torch.manual_seed(5)  # which the loader's order follows from
    return accelerator, accelerator.prepare(make_loader())


def train(case, folder=None, *, saves=False, resume=None, is_skipping=False):
    """The run of the guide's loop, and the accelerator; resumed by ``attend()``, or by ``skip_first_batches``."""
    is_seedable = DataLoaderConfiguration(use_seedable_sampler=saves or resume is not None)
    accelerator = make_accelerator(case, dataloader_config=is_seedable)
    network = make_network(case)
    parts = network, *make_optimizer(network, case), make_loader()
    network, optimizer, lr_scheduler, whole = accelerator.prepare(*parts)
    schedule, recorder = make_schedule(**case.options)
    accelerator.register_for_checkpointing(schedule)
    rates, windows, loader = [], 0, whole
    torch.manual_seed(6)
    if resume is not None:
        accelerator.load_state(str(resume))
        if is_skipping:
            loader = accelerator.skip_first_batches(whole, schedule.batch_index * case.accumulation)
    while schedule.epoch < EPOCHS:
        for window in attend(schedule, accelerator, loader, case.accumulation):
            loss = AccumulatedLoss()
            for index, batch in enumerate(window):
                with nullcontext() if index == len(window) - 1 else accelerator.no_sync(network):
                    batch_loss = cross_entropy(network, batch)
                    accelerator.backward(batch_loss / len(window))
                loss.add(batch_loss, len(batch[0]))
            if case.clip is not None:
                accelerator.clip_grad_norm_(network.parameters(), case.clip)
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            optimizer.zero_grad()
            if schedule.decide(loss.mean, samples=loss.samples) is Decision.ADVANCE:
                lr_scheduler.step()
                windows += 1
            if saves:
                accelerator.save_state(str(checkpoint(folder, windows, schedule.visits)))
        loader = whole
    return finish(schedule, recorder, accelerator.unwrap_model(network), rates), accelerator


def checkpoint(folder, windows, visits=0):
    """After so many windows, and visits to the next."""
    return folder / f"{windows}-{visits}"


def by_hand(case, folder=None, *, is_resumable=False):
    """The plain loop's, without accelerate, but for the order of batches."""
    return plain_loop.by_hand(case, make_prepared()[1] if is_resumable else make_loader())


# Attention to samples

ON_RANKS = {}
samples_by_hand = sample_loop.samples_by_hand


def train_samples(case, folder=None, *, attention=None, saves=False, resume=None, is_prepared=False):
    """As in the guide; ``saves`` writes a checkpoint after each update."""
    accelerator = make_accelerator(case, gradient_accumulation_steps=case.accumulation)
    attention = attention or make_attention(**case.options)
    network = make_network(case)
    optimizer, lr_scheduler = make_optimizer(network, case)
    model, optimizer = accelerator.prepare(network, optimizer)
    accelerator.register_for_checkpointing(lr_scheduler)
    loader = make_sample_loader(attention, case)
    attended = attention.attend(accelerator.prepare(loader) if is_prepared else loader)
    register_for_checkpointing(accelerator, attention)
    torch.manual_seed(6)
    if resume is not None:
        accelerator.load_state(str(resume))
    rates = []
    for _ in range(attention.epoch, EPOCHS):
        for batch in attended:
            with accelerator.accumulate(model):
                accelerator.backward(attention.weighted_mean(cross_entropy(model, batch, "none")))
                is_update = accelerator.sync_gradients
                if is_update:
                    rates.append(optimizer.param_groups[0]["lr"])
                    if case.clip:
                        accelerator.clip_grad_norm_(model.parameters(), case.clip)
                optimizer.step()
                optimizer.zero_grad()
            if is_update:
                lr_scheduler.step()
            if saves and is_update:
                accelerator.save_state(str(checkpoint(folder, len(rates))))
    return finish_samples(attention, rates, network)
