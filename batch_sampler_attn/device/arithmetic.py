"""The rule of a visit without branches, in operators that tensors have and a kernel has: it stands here for both."""

from typing import Any

# How the numbers of ``rule.State`` lie on a device, one behind the other: whole numbers, and those in double precision.
COUNTS = ("batches", "visits", "loss_count", "repeats", "most_visits", "capped_batches", "nonfinite_losses")
INTEGERS = ("cursor", *COUNTS)
FLOATS = ("loss_sum", "threshold", "strictness")


def is_above(loss: "Any", threshold: "Any") -> "Any":
    """Whether a loss, in double precision, is finite and above the threshold."""
    return (loss - loss == 0.0) & (loss > threshold)


# Without calls, and its types quoted, which Triton would look up: so it can be compiled as it is.
def after_visit(
    loss: "Any",
    wants_repeat: "Any",
    max_visits: "Any",
    epoch_loss: "Any",
    cursor: "Any",
    batches: "Any",
    visits: "Any",
    loss_count: "Any",
    repeats: "Any",
    most_visits: "Any",
    capped_batches: "Any",
    nonfinite_losses: "Any",
) -> "Any":
    """``rule.visit`` on a device, from the numbers before it, each as in ``rule.State``.

    ``loss`` is in double precision, ``wants_repeat`` what is said for a repeat but for ``max_visits`` (that the loss
    ``is_above``, say), and ``epoch_loss`` a string that is known when this is compiled.

    Returns:
        Whether the loss enters the epoch's mean, and the numbers from ``cursor`` on, as after the visit.
    """
    visits = visits + 1
    finite = loss - loss == 0.0
    repeat = wants_repeat & (visits < max_visits)
    advance = repeat == 0
    enters = finite
    if epoch_loss == "first":
        enters = finite & (visits == 1)
    if epoch_loss == "last":
        enters = finite & advance
    is_most = advance & (visits > 1) & (visits > most_visits)
    return (
        enters,
        cursor + advance,
        batches + advance,
        visits * repeat,
        loss_count + enters,
        repeats + repeat,
        most_visits + (visits - most_visits) * is_most,
        capped_batches + (wants_repeat & advance),
        nonfinite_losses + (finite == 0),
    )
