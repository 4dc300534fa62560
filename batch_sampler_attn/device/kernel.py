"""A visit as one kernel: two dozen launches of single numbers would cost more than they compute.

Imported only where Triton is, which comes with torch's CUDA builds. The arithmetic is that of ``DeviceCounters.visit``.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from batch_sampler_attn.device.counters import COUNTS

# Where each number lies in DeviceCounters' packed tensors.
_LOSS_SUM = tl.constexpr(0)
_THRESHOLD = tl.constexpr(1)
_CURSOR = tl.constexpr(0)
_BATCHES = tl.constexpr(1 + COUNTS.index("batches"))
_VISITS = tl.constexpr(1 + COUNTS.index("visits"))
_LOSS_COUNT = tl.constexpr(1 + COUNTS.index("loss_count"))
_REPEATS = tl.constexpr(1 + COUNTS.index("repeats"))
_MOST_VISITS = tl.constexpr(1 + COUNTS.index("most_visits"))
_CAPPED = tl.constexpr(1 + COUNTS.index("capped_batches"))
_NONFINITE = tl.constexpr(1 + COUNTS.index("nonfinite_losses"))


@triton.jit
def _visit(loss_at: Any, floats: Any, integers: Any, max_visits_at: Any, epoch_loss: tl.constexpr) -> None:
    loss = tl.load(loss_at).to(tl.float64)
    is_finite = (loss == loss) & (tl.abs(loss) != float("inf"))
    finite = is_finite.to(tl.int64)
    visits = tl.load(integers + _VISITS) + 1
    above = finite * (loss > tl.load(floats + _THRESHOLD)).to(tl.int64)
    repeat = above * (visits < tl.load(max_visits_at)).to(tl.int64)
    advance = 1 - repeat
    enters = finite
    if epoch_loss == "first":
        enters = finite * (visits == 1).to(tl.int64)
    if epoch_loss == "last":
        enters = finite * advance
    most_visits = tl.load(integers + _MOST_VISITS)
    finished_after = visits * advance * (visits > 1).to(tl.int64)
    entering = tl.where(enters != 0, loss, 0.0)
    tl.store(floats + _LOSS_SUM, tl.load(floats + _LOSS_SUM) + entering)
    tl.store(integers + _CURSOR, tl.load(integers + _CURSOR) + advance)
    tl.store(integers + _BATCHES, tl.load(integers + _BATCHES) + advance)
    tl.store(integers + _VISITS, visits * repeat)
    tl.store(integers + _LOSS_COUNT, tl.load(integers + _LOSS_COUNT) + enters)
    tl.store(integers + _REPEATS, tl.load(integers + _REPEATS) + repeat)
    tl.store(integers + _MOST_VISITS, tl.maximum(most_visits, finished_after))
    tl.store(integers + _CAPPED, tl.load(integers + _CAPPED) + above * advance)
    tl.store(integers + _NONFINITE, tl.load(integers + _NONFINITE) + 1 - finite)


def visit(loss: Tensor, floats: Tensor, integers: Tensor, max_visits: Tensor, epoch_loss: str) -> None:
    """One visit, on the current stream.

    Args:
        loss: 0-d, of any floating-point type.
        floats: float64 (2,): the sum of losses and the threshold.
        integers: int64 (8,): the cursor and the counts, in the order of ``DeviceCounters``.
        max_visits: int64, 0-d.
        epoch_loss: Which loss of a repeated batch enters the mean.
    """
    _visit[(1,)](loss, floats, integers, max_visits, epoch_loss, num_warps=1)
