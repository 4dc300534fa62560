"""Report on records of benchmarks.selection.kinds: which form of leaving samples out pays on which kind of data.

    python -m benchmarks.selection.kinds.report FOLDER --to FOLDER

Writes kinds.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy import stats

from benchmarks.environment import one_line
from benchmarks.errors import BenchmarkError, RecordsError
from benchmarks.report import markdown
from benchmarks.report.document import Block, Box, Document, Paragraph, Section, Table
from benchmarks.report.statistics import Sample
from benchmarks.selection.judging import LEAST_SEEDS_TO_PAY, Finding, Results, Verdict, judge
from benchmarks.selection.kinds.data import SETTINGS
from benchmarks.selection.kinds.forms import ARMS
from benchmarks.selection.kinds.rates import RATES, TUNING_SEEDS, at_chosen_rates
from benchmarks.selection.records import Folder, KindsPlan, Run

REPORT = "kinds.md"
# The others were added when the results of these had been seen.
PLANNED_SEEDS = range(8)
KINDS = {
    "hidden_fine": "hidden subgroups (CIFAR-100 superclasses)",
    "text": "text with rare sorts",
    "noisy": "10 % label noise (CIFAR-10)",
    "table": "table with rare groups",
}
FORMS = {
    "left_out": "well-fitted samples left out half the time",
    "left_out_weighted": "the same, those that stay weighted up",
    "trimmed": "the same unweighted, and outliers by mean loss left out",
    "half_weighted": "well-fitted samples left out, those that stay weighted by the root",
    "batch_mean": "left out by batch means instead of losses",
    "saving": "left out and weighted, with fewer updates",
}
# What an arm has to gain over besides plain training, for the gain to come from which samples it leaves out.
CONTROLS = dict.fromkeys(FORMS, "left_out_random") | {"saving": "plain_short"}
_VARIANTS = ("left_out_weighted", "half_weighted", "trimmed", "batch_mean")
_ONLY_CONTROLS = {"left_out_random", "plain_short"}
_WORDS = {
    Verdict.PAYS: "pays",
    Verdict.HARMS: "harms",
    Verdict.CANNOT_BE_TOLD: "no significant difference",
    Verdict.NOT_ENOUGH_RUNS: "too few seeds",
    Verdict.CONTROL: "control",
}
_SYMBOLS = {Verdict.PAYS: "✓", Verdict.HARMS: "✗", Verdict.CANNOT_BE_TOLD: "", Verdict.NOT_ENOUGH_RUNS: "…"}
_METHOD = (
    "`plain` is plain training. `left_out`: samples with a loss below the mean of the last epoch are left out of a "
    "pass with probability 1/2, and the last 15 % of training, in whole epochs, is on all data. `left_out_weighted`: "
    "those that stay weigh twice as much, at a mean weight of 1. `half_weighted`: the square root of that. "
    "`left_out_random`: as many samples a pass as in the `left_out` run of the same seed and learning rate, drawn at "
    "random. `trimmed`: as `left_out`, and from the third epoch to the last share of training also all samples whose "
    "mean loss over epochs is above Q3 + 1.5 (Q3 - Q1). `batch_mean`: as `left_out`, by an exponential mean of "
    "the mean losses of a sample's batches, below the mean score (after Batch Loss Score, arXiv 2604.04681). "
    "`saving`: an epoch is one pass, with fewer updates and weights of 1 and 2 (after InfoBatch, Qin et al., 2024). "
    "`plain_short`: plain training with as many updates as the `saving` run of the same seed and rate, and a whole "
    "learning-rate schedule over them."
)
_DATA = (
    "Images: a two-layer perceptron on fixed features (64 random whitened patches of 6 by 6 pixels, four quarters) "
    "and their mirror images. Text: an LSTM over windows of 64 bytes, from files of the standard library and the "
    "installed packages; training, validation and test files differ. Table: `make_classification` of scikit-learn and "
    "a perceptron. AdamW and a one-cycle schedule everywhere. Every seed draws other data and other rare groups."
)


def read(folder: Path) -> list[Run]:
    """The runs of a folder.

    Raises:
        RecordsError: If there is none, or they are of another study.
    """
    records = Folder(folder, KindsPlan)
    records.read_plan()
    if not (runs := records.read_runs()):
        raise RecordsError(f"{folder} has no finished run; give the benchmarks.selection.kinds command first")
    return runs


def score(run: Run) -> float:
    """Accuracy in per cent; of text minus the mean loss over sorts, in nats."""
    if run.score is None:
        raise RecordsError(f"the run {run.name} has no score; it is of another study")
    return run.score


def rarest_third(run: Run) -> float:
    """The same over the rarest third of the groups, by their training samples."""
    values = [-loss for loss in run.group_losses or ()] if run.setting == "text" else run.recalls
    by_count = sorted(zip(run.counts, values, strict=True))
    return statistics.fmean(value for _, value in by_count[: len(by_count) // 3])


def find(runs: Sequence[Run], *, added: bool = False) -> tuple[Results, list[Finding]]:
    """What the planned or the added seeds come to at the chosen rates; arms without a rate are left out."""
    part = [run for run in at_chosen_rates(runs) if (run.seed not in PLANNED_SEEDS) is added]
    results = Results(sorted(part, key=lambda run: list(SETTINGS).index(run.setting)))
    return results, judge(results, score, CONTROLS, _ONLY_CONTROLS)


def holm(findings: Sequence[Finding]) -> dict[tuple[str, str], float]:
    """The p-value of each arm's gain over plain training (paired t-test), adjusted by Holm's method over all."""
    raw = {
        (each.setting, each.arm): float(stats.ttest_1samp(each.gain.values, 0.0).pvalue)
        for each in findings
        if each.verdict is not Verdict.CONTROL and each.gain.n > 1
    }
    adjusted, least = {}, 0.0
    for rank, (name, p) in enumerate(sorted(raw.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(raw) - rank) * p))
        adjusted[name] = least
    return adjusted


def glance(runs: Sequence[Run]) -> Table:
    """The gain of each form on each kind of data, for other pages."""
    results, findings = find(runs)
    adjusted = holm(findings)
    added = [each for each in find(runs, added=True)[1] if each.arm == "left_out"]
    repeated = "; ".join(
        f"{each.setting} {_interval(each.gain, each.setting)}" for each in added if each.gain.n >= LEAST_SEEDS_TO_PAY
    )
    by_name = {(each.setting, each.arm): each for each in findings}
    rows = []
    for arm, words in FORMS.items():
        cells = []
        for setting in results.settings:
            each = by_name.get((setting, arm))
            mean = "-" if each is None else f"{each.gain.mean:+.{_digits(setting)}f} {_SYMBOLS[each.verdict]}".strip()
            cells.append(mean)
        rows.append([f"{words} ({arm})", *cells])
    survive = sorted(
        f"{arm} on {setting}"
        for (setting, arm), each in by_name.items()
        if each.verdict in (Verdict.PAYS, Verdict.HARMS) and adjusted[setting, arm] < 0.05
    )
    caption = (
        "Gain over plain training, each arm at its own learning rate, paired by seed: points of accuracy, for text "
        f"nats of loss. ✓ pays: with {LEAST_SEEDS_TO_PAY} seeds the 95 % interval is above 0, over the control too "
        "(as many left out at random; for fewer updates, plain training with as few); ✗ harms: it is below 0; no mark: "
        f"neither; … too few seeds. left_out with seeds that were added later: {repeated or 'none'}. "
        f"After Holm's correction p < 0.05 remains for {', '.join(survive) or 'none of these'}. "
        f"{one_line(runs[0].environment)}."
    )
    return Table(["what is trained on", *(KINDS[setting] for setting in results.settings)], rows, caption)


def compose(runs: Sequence[Run]) -> Document:
    """The report."""
    found, sections = [], []
    for added, seeds in ((False, "the planned seeds"), (True, "the added seeds")):
        results, findings = find(runs, added=added)
        if not results.settings:
            continue
        adjusted = holm(findings)
        for verdict, word in ((Verdict.PAYS, "pays"), (Verdict.HARMS, "harms")):
            listed = [
                f"{each.arm} on {each.setting} {_interval(each.gain, each.setting)}"
                for each in findings
                if each.verdict is verdict
            ]
            found.append(f"With {seeds} {word}: {'; '.join(listed) or 'nothing'}.")
        survive = sorted(f"{arm} on {setting}" for (setting, arm), p in adjusted.items() if p < 0.05)
        found.append(
            f"Of {len(adjusted)} comparisons of {seeds} with plain training, p < 0.05 remains after Holm's correction "
            f"for {', '.join(survive) or 'none'}."
        )
        sections += [
            Section(f"{KINDS[setting]}: {seeds}", [_table(results, setting, findings, adjusted)])
            for setting in results.settings
        ]
    edges = sorted(
        {f"{run.arm} on {run.setting}" for run in at_chosen_rates(runs) if run.rate in (RATES[0], RATES[-1])}
    )
    opening: list[Block] = [
        Paragraph(_METHOD),
        Paragraph(_DATA),
        Paragraph(
            f"Every arm ran with seeds {' and '.join(map(str, TUNING_SEEDS))} at "
            f"{', '.join(f'{rate:g}' for rate in RATES)} times the base learning rate; the rate with the best mean "
            "validation score is its own, and all its runs below are at that one. Nothing was chosen by test scores. "
            f"At the lowest or highest rate, so that others might be better still: {', '.join(edges) or 'none'}. "
            "An arm pays where the 95 % interval of its gain is above 0, over plain training and over its control, "
            f"with at least {LEAST_SEEDS_TO_PAY} seeds; it harms where the interval is below 0. p is of the gain over "
            "plain training, adjusted by Holm's method over all comparisons of the same seeds; the verdict is by the "
            "interval alone. "
            f"Seeds {PLANNED_SEEDS[0]} to {PLANNED_SEEDS[-1]} were planned. The others were added, for the arms of "
            "most interest, when the results of these had been seen, with nothing else changed. Sixteen were meant; "
            "they were stopped at eight for lack of time, with interim results in sight. The rule of trimmed is one of "
            "eight, chosen before these runs by the wrong labels that it named with another seed. Validation labels "
            "have no noise. Other work shared the machine, so that seconds are no measurement. "
            f"{'; '.join(sorted({one_line(run.environment) for run in runs}))}."
        ),
    ]
    return Document("Which samples to leave out, by kind of data", Box(found), opening, sections)


def _table(
    results: Results, setting: str, findings: Sequence[Finding], adjusted: Mapping[tuple[str, str], float]
) -> Table:
    by_arm = {each.arm: each for each in findings if each.setting == setting}
    rows = []
    for arm in (arm for arm in ARMS if arm in results.arms(setting)):
        values, each = results.values(setting, arm, score), by_arm.get(arm)
        left_out = results.values(setting, arm, lambda run: run.left_out / (run.left_out + run.forward_samples))
        rate = results.values(setting, arm, lambda run: run.rate or 0.0)
        updates = results.ratio(setting, arm, lambda run: run.updates)
        over = "-" if each is None or not each.over_control else _interval(each.over_control, setting)
        p = adjusted.get((setting, arm))
        rows.append(
            [
                arm,
                str(values.n),
                f"{rate.mean:g}",
                f"{values.mean:.{_digits(setting)}f}",
                "-" if each is None else _interval(each.gain, setting),
                "-" if p is None else f"{p:.3f}",
                over,
                _interval(results.differences(setting, arm, "left_out", score), setting) if arm in _VARIANTS else "-",
                "-" if each is None else _interval(results.differences(setting, arm, "plain", rarest_third), setting),
                f"{100 * left_out.mean:.0f} %",
                f"{100 * updates:.0f} %",
                "-" if each is None else _WORDS[each.verdict],
            ]
        )
    unit = "minus nats" if setting == "text" else "%"
    head = ["arm", "n", "rate", f"score, {unit}", "gain over plain", "p, Holm", "over control", "over left_out"]
    head += ["rarest third, gain", "left out", "updates", "verdict"]
    if setting == "noisy":
        # All groups are as frequent.
        head, rows = head[:8] + head[9:], [row[:8] + row[9:] for row in rows]
    sizes = SETTINGS[setting]
    caption = (
        f"Rate: times {sizes.learning_rate:g}. Gains with 95 % intervals, paired by seed. The control is "
        "left_out_random, of saving plain_short."
    )
    return Table(head, rows, caption)


def _digits(setting: str) -> int:
    return 4 if setting == "text" else 2


def _interval(values: Sample, setting: str) -> str:
    if not values.n:
        return "-"
    digits, (low, high) = _digits(setting), values.interval
    return f"{values.mean:+.{digits}f}" + (f" ({low:+.{digits}f} to {high:+.{digits}f})" if values.n > 1 else "")


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of records")
    parser.add_argument("--to", type=Path, required=True, help="folder for the report")
    options = parser.parse_args(arguments)
    try:
        report = markdown.render(compose(read(options.folder)))
        options.to.mkdir(parents=True, exist_ok=True)
        (options.to / REPORT).write_text(report, encoding="utf-8")
    except (BenchmarkError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
