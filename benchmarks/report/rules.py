"""What a verdict takes. Fixed before any arms were compared; the dose and the sampling error were added since."""

from __future__ import annotations

from benchmarks.report import paper
from benchmarks.report.comparisons import NEARLY_CONVERGED
from benchmarks.report.statistics import LEAST_RUNS

# A gain below half a point would not pay for the extra time.
LEAST_GAIN_POINTS = 0.5
WIDEST_OVERHEAD_PERCENT = 10.0
FEW_REPEATS_PERCENT = 5.0
# The paper leaves out models that do not fit more than half of the data.
LOW_ACCURACY_PERCENT = 50.0
# With fewer repeats there is nothing that a difference could come from.
LEAST_DOSE_PERCENT = 1.0


def describe(claims: int) -> list[str]:
    """The rules, a paragraph each, for so many claims."""
    least, most = paper.GAIN_POINTS
    return [
        "A verdict rests on paired differences by seed, at the last epoch, and their 95 % t interval, from at least "
        f"{LEAST_RUNS} seeds (else: not enough runs) in which attention's repeats are at least "
        f"{LEAST_DOSE_PERCENT:g} % of batches (else: hardly any repeats). The interval that is judged reaches at least "
        "as far as the sampling error of the test set: one standard error of a difference of two accuracies, each on "
        "as many images of its own. Where neither case of a rule applies, it cannot be told; then the difference is "
        "given that so many seeds would have shown.",
        f'"Up by {least:g} to {most:g} points" holds if the interval is above 0 and reaches {least:g}, and does not '
        f'hold if it ends below {least:g}. "Ahead" or "higher" holds if the interval is above 0, and does not hold if '
        f'it ends below {LEAST_GAIN_POINTS:g} points (a lower variance or a shrinking lead: 0), and "harm" the other '
        f"way round, where the baseline is below {LOW_ACCURACY_PERCENT:g} %. The same training loss is the mean over "
        "losses that both arms went through, interpolated between epochs; the same training time is attention's last "
        "whole epoch within all of the baseline's time. An overhead is in the paper's range if the interval touches "
        f'it and is at most {WIDEST_OVERHEAD_PERCENT:g} points wide. "Almost no repeats" holds if the interval is at '
        f"most {FEW_REPEATS_PERCENT:g} % of batches, from the second epoch to where the baseline first has "
        f"{100 * NEARLY_CONVERGED:g} % of its best test accuracy, and does not hold if it is above.",
        f"There are {claims} claims, each judged at 95 % by itself and for each experiment by itself. Of as many "
        f"claims with no truth in them, {claims / 40:.2g} in each experiment would come out as holding by chance.",
    ]
