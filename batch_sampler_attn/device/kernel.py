"""A visit as one kernel: two dozen launches of single numbers would cost more than they compute.

Imported only where Triton is, which comes with torch's CUDA builds.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from batch_sampler_attn.device import arithmetic

is_above = triton.jit(arithmetic.is_above)
after_visit = triton.jit(arithmetic.after_visit)


@triton.jit
def visit_on_device(
    loss_at: tl.tensor, floats: tl.tensor, integers: tl.tensor, max_visits_at: tl.tensor, epoch_loss: tl.constexpr
) -> None:
    """``visit``, compiled; the arguments are where its arguments are."""
    loss = tl.load(loss_at).to(tl.float64)
    wants_repeat = is_above(loss, tl.load(floats + 1))
    enters, cursor, batches, visits, loss_count, repeats, most_visits, capped_batches, nonfinite_losses = after_visit(
        loss,
        wants_repeat,
        tl.load(max_visits_at),
        epoch_loss,
        tl.load(integers),
        tl.load(integers + 1),
        tl.load(integers + 2),
        tl.load(integers + 3),
        tl.load(integers + 4),
        tl.load(integers + 5),
        tl.load(integers + 6),
        tl.load(integers + 7),
    )
    tl.store(floats, tl.load(floats) + tl.where(enters, loss, 0.0))
    tl.store(integers, cursor)
    tl.store(integers + 1, batches)
    tl.store(integers + 2, visits)
    tl.store(integers + 3, loss_count)
    tl.store(integers + 4, repeats)
    tl.store(integers + 5, most_visits)
    tl.store(integers + 6, capped_batches)
    tl.store(integers + 7, nonfinite_losses)


def visit(loss: Tensor, floats: Tensor, integers: Tensor, max_visits: Tensor, epoch_loss: str) -> None:
    """One visit, on the current stream, of a 0-d loss of any floating-point type; the rest is ``DeviceCounters``'."""
    visit_on_device[(1,)](loss, floats, integers, max_visits, epoch_loss, num_warps=1)
