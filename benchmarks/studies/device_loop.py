"""Milliseconds an update: eager or captured, decided on the host or on the device, one run or several at once.

    python -m benchmarks.studies.device_loop --record FILE
    python -m benchmarks.studies.device_loop --record FILE --models resnet18 --batches 3 --rounds 2

The first command is for a GPU. The second runs on a CPU: eager rows, the others not measured.

Random 32x32 images, batch size 32, Adam at 1e-4, any timm model; CUBLAS_WORKSPACE_CONFIG=:4096:8 unless set. Rows:

    eager, loss.item()        a hand-written loop around ``schedule.decide(loss)``
    captured, read            a CUDA graph, and the host asked after every update
    captured, decided there   the device loop
    captured, no schedule     the device loop without a schedule
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import DeviceLoop
from benchmarks.environment import describe_environment, one_line
from benchmarks.precision import tf32

BATCH_SIZE = 32
CLASSES = 10
ROWS = ("eager, loss.item()", "captured, read", "captured, decided there", "captured, no schedule")
# TNT's inner transformer gets 16 pixels of each 4x4 patch at this stride, as in the original.
MODEL_OPTIONS: dict[str, dict[str, Any]] = {"tnt_s_patch16_224": {"img_size": 32, "patch_size": 4, "first_stride": 1}}


def make_parts(name: str, device: torch.device, batches: int, channels_last: bool) -> tuple[Any, ...]:
    """A model, its optimizer, inputs and targets, always the same."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, **MODEL_OPTIONS.get(name, {})).to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    is_cuda = device.type == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=is_cuda, capturable=is_cuda)
    images = torch.randint(0, 256, (batches * BATCH_SIZE, 3, 32, 32), dtype=torch.uint8).to(device)
    return model, optimizer, images, torch.randint(0, CLASSES, (len(images),)).to(device)


def make_loop(
    parts: tuple[Any, ...], schedule: BatchAttentionSchedule | None, setting: dict[str, Any], graph: bool | None = None
) -> DeviceLoop:
    """The device loop over these parts."""
    model, optimizer, images, targets = parts
    generator = torch.Generator().manual_seed(0)
    return DeviceLoop(
        model,
        optimizer,
        nn.functional.cross_entropy,
        images,
        targets,
        BATCH_SIZE,
        schedule=schedule,
        generator=generator,
        prepare=lambda images: prepare(images, setting),
        graph=graph,
    )


def prepare(images: Tensor, setting: dict[str, Any]) -> Tensor:
    """Bytes as the model gets them."""
    scaled = images.float().div(255)
    return scaled.contiguous(memory_format=torch.channels_last) if setting["channels_last"] else scaled


def eager_epoch(parts: tuple[Any, ...], schedule: BatchAttentionSchedule, setting: dict[str, Any]) -> int:
    """One epoch of a hand-written loop; returns its updates."""
    model, optimizer, images, targets = parts
    model.train()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(images.device)
    for batch in schedule.attend(order.split(BATCH_SIZE)):
        loss = nn.functional.cross_entropy(model(prepare(images[batch], setting)), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.decide(loss.item())
    return schedule.last_summary.visits


def runners(
    name: str, device: torch.device, batches: int, setting: dict[str, Any]
) -> dict[str, Callable[[], int] | None]:
    """For each row, a function that trains for an epoch and returns its updates; None where it takes a GPU."""

    def parts() -> tuple[Any, ...]:
        return make_parts(name, device, batches, setting["channels_last"])

    eager_parts, eager_schedule = parts(), BatchAttentionSchedule(1.2)
    rows: dict[str, Callable[[], int] | None] = dict.fromkeys(ROWS)
    rows["eager, loss.item()"] = lambda: eager_epoch(eager_parts, eager_schedule, setting)
    if device.type == "cuda":
        asked = make_loop(parts(), BatchAttentionSchedule(1.2), setting)
        decided = make_loop(parts(), BatchAttentionSchedule(1.2), setting)
        plain = make_loop(parts(), None, setting)

        def ask_after_every_update() -> int:
            while (summary := asked.run_updates(1)) is None:
                pass
            return summary.visits

        rows["captured, read"] = ask_after_every_update
        rows["captured, decided there"] = lambda: decided.run_epoch().visits
        rows["captured, no schedule"] = lambda: plain.run_epoch().visits
    return rows


def measure_rows(name: str, device: torch.device, batches: int, rounds: int, setting: dict[str, Any]) -> list[Any]:
    """Milliseconds an update of every row, the rows taking turns; the first two epochs warm up."""
    rows = runners(name, device, batches, setting)
    milliseconds: dict[str, list[float]] = {row: [] for row in rows}
    for round_number in range(-2, rounds):
        for row, run in rows.items():
            if run is None:
                continue
            synchronize(device)
            start = time.perf_counter()
            updates = run()
            synchronize(device)
            if round_number >= 0:
                milliseconds[row].append((time.perf_counter() - start) / updates * 1e3)
    return [
        {"kind": "update", "model": name, "row": row, "setting": setting, "milliseconds": values}
        for row, values in milliseconds.items()
    ]


def measure_together(name: str, device: torch.device, batches: int, runs: int) -> dict[str, Any]:
    """Milliseconds an update of each of several runs at once."""
    setting = {"tf32": None, "channels_last": False}
    milliseconds: list[float] = []
    if device.type == "cuda":
        schedules = [BatchAttentionSchedule(1.2) for _ in range(runs)]
        loops = [make_loop(make_parts(name, device, batches, False), schedule, setting) for schedule in schedules]
        run_by_turns(loops, 2)
        for _ in range(3):
            synchronize(device)
            start, before = time.perf_counter(), sum(loop.updates for loop in loops)
            run_by_turns(loops, 1)
            synchronize(device)
            updates = sum(loop.updates for loop in loops) - before
            milliseconds.append((time.perf_counter() - start) / updates * 1e3)
    return {"kind": "together", "model": name, "runs": runs, "milliseconds": milliseconds}


def run_by_turns(loops: list[DeviceLoop], epochs: int, updates_a_turn: int = 64) -> None:
    """Train each loop for so many epochs, all of them by turns."""
    left = dict.fromkeys(loops, epochs)
    while running := [loop for loop in loops if left[loop]]:
        # All of them have work before one is waited for.
        waiting = [loop for loop in running if loop.enqueue(updates_a_turn) < updates_a_turn]
        for loop in waiting:
            left[loop] -= loop.synchronize() is not None


def check_equality(name: str, device: torch.device, batches: int) -> dict[str, Any]:
    """Captured against eager, bit by bit, with deterministic algorithms, and with implicit waits forbidden."""
    if device.type != "cuda":
        return {"kind": "equality", "model": name, "is_equal": None, "host_reads": None}
    setting = {"tf32": False, "channels_last": False}
    with deterministic(), tf32(False):
        loops = [
            make_loop(make_parts(name, device, batches, False), BatchAttentionSchedule(1.0), setting, graph=graph)
            for graph in (None, False)
        ]
        summaries = []
        for loop in loops:
            summaries.append([loop.run_epoch() for _ in range(2)])
            torch.cuda.set_sync_debug_mode("error")
            try:
                summaries[-1].append(loop.run_epoch())
            finally:
                torch.cuda.set_sync_debug_mode("default")
    states = [loop.model.state_dict().values() for loop in loops]
    is_equal = summaries[0] == summaries[1] and all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    reads = [summary.host_reads for summary in summaries[0]]
    return {"kind": "equality", "model": name, "is_equal": is_equal, "host_reads": reads}


@contextmanager
def deterministic() -> Any:
    """Deterministic algorithms for a while."""
    before = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned_only)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_setting(setting: dict[str, Any]) -> str:
    """Precision and memory layout in words."""
    numbers = {None: "PyTorch's default", False: "fp32", True: "TF32"}[setting["tf32"]]
    return f"{numbers}, {'channels-last' if setting['channels_last'] else 'contiguous'}"


def show(records: list[dict[str, Any]], console: Console) -> None:
    """Medians as a table, with the speed of each row against the eager one."""
    table = Table("model", "setting", "what", "ms an update", "times eager")
    eager: dict[str, float] = {}
    for record in records:
        values = record.get("milliseconds", [])
        median = f"{statistics.median(values):.3f} (n = {len(values)})" if values else "not measured"
        if record["kind"] == "update":
            setting = describe_setting(record["setting"])
            if record["row"] == ROWS[0]:
                eager[setting] = statistics.median(values)
            # A line of the eager row may be lost.
            speed = f"{eager[setting] / statistics.median(values):.2f}" if values and setting in eager else ""
            table.add_row(record["model"], setting, record["row"], median, speed)
        elif record["kind"] == "together":
            table.add_row(record["model"], f"{record['runs']} at once", "captured, decided there", median, "")
        else:
            equal = {None: "not measured", True: "bit-equal", False: "DIFFERENT"}[record["is_equal"]]
            table.add_row(record["model"], "deterministic", "captured against eager", equal, "")
    console.print(table)


def measure(
    record: Path,
    *,
    models: tuple[str, ...] = ("resnet34",),
    batches: int = 200,
    rounds: int = 5,
    runs: tuple[int, ...] = (1, 2, 3, 6),
) -> None:
    """Measure, record each line as it is there, and print the table last.

    Args:
        record: Gets JSON lines.
        models: Their names in timm.
        batches: Base batches in an epoch.
        rounds: Measured epochs a row.
        runs: How many runs at once.
    """
    # For the check of equality; it counts only before CUDA is set up, so every row is measured with it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    environment = describe_environment()
    console = Console()
    console.print(one_line(environment), highlight=False)
    records: list[dict[str, Any]] = []
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("w", encoding="utf-8") as file:

        def keep(new: list[dict[str, Any]]) -> None:
            for line in new:
                records.append(line)
                file.write(json.dumps({**line, "environment": environment}) + "\n")
            file.flush()

        for name in models:
            for allowed in (False, True) if device.type == "cuda" else (None,):
                for channels_last in (False, True):
                    setting = {"tf32": allowed, "channels_last": channels_last}
                    with tf32(allowed):
                        keep(measure_rows(name, device, batches, rounds, setting))
            keep([measure_together(name, device, batches, count) for count in runs])
            keep([check_equality(name, device, min(batches, 20))])
    show(records, console)


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
