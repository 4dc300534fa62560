"""Report on records of benchmarks.selection: what pays where.

    python -m benchmarks.selection.report FOLDER [FOLDER ...] --to FOLDER

Writes report.md and gains.png.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.environment import one_line
from benchmarks.errors import BenchmarkError, RecordsError
from benchmarks.report import markdown
from benchmarks.report.document import Block, Box, Document, Paragraph, Picture, Section, Table
from benchmarks.report.statistics import Sample
from benchmarks.report.wording import mean_and_deviation
from benchmarks.selection.judging import LEAST_SEEDS_TO_PAY, Finding, Results, Verdict, accuracy, judge
from benchmarks.selection.records import Folder, Run

FIGURE = "gains.png"
_TITLES = {
    "balanced": "Balanced: 10,000 images of CIFAR-10",
    "long_tail": "Long tail: CIFAR-10, classes 50 to 1",
    "hidden_kinds": "Hidden kinds: ten kinds under two labels, 50 to 1",
    "noisy": "Noisy: 10,000 images, 10 % of labels redrawn",
}
_COLORS = {Verdict.PAYS: "#009E73", Verdict.HARMS: "#D55E00", Verdict.CANNOT_BE_TOLD: "#777777"}
_ARMS = (
    "`plain` is plain training. `left_out`: samples with a loss below the mean are left out of a pass with probability "
    "1/2; `_weighted`: those that stay weigh more, so that the expected gradient is that of all data (our reading of "
    "InfoBatch, Qin et al., 2024). `pooled`: samples above 1.2 times the mean come again, in batches of such samples. "
    "`both` is both. `_random` chooses as many, whichever they are. `repeated` is the paper's rule on whole batches "
    "(K = 1.2), its repeats counted among the updates; `_fresh` augments a repeat anew, `_budget` repeats at most "
    "15 %. `sqrt_frequency` draws samples by the square root of the inverse frequency of their label. "
    "`selective_backprop` is our reading of Composer's (Jiang et al., 2019), which looks at twice as many samples as "
    "it trains on between 50 and 90 % of training."
)


def read(folders: Sequence[Path]) -> list[Run]:
    """The runs of folders that were made with one plan.

    Raises:
        RecordsError: If they were not, if a run is there twice, or if there is none.
    """
    plans = {folder: Folder(folder).read_plan() for folder in folders}
    if len(set(map(repr, plans.values()))) > 1:
        raise RecordsError(f"{', '.join(map(str, folders))} were made with different plans; report on each")
    runs = [run for folder in folders for run in Folder(folder).read_runs()]
    if not runs:
        raise RecordsError("there is no finished run; give the benchmarks.selection command first")
    if len({run.name for run in runs}) < len(runs):
        raise RecordsError("a run is in two folders; give each once")
    return runs


def sum_up(findings: Sequence[Finding], runs: Sequence[Run]) -> list[str]:
    """What pays where, in a few sentences."""
    compared = [finding for finding in findings if not finding.arm.endswith("_random")]
    seeds = len({run.seed for run in runs})
    said = [
        f"{len(runs)} runs of a small network, every arm with exactly {runs[0].updates:,} updates; {seeds} "
        f"{'seeds' if seeds > 1 else 'seed'} at most."
    ]
    for verdict, words in ((Verdict.PAYS, "pays"), (Verdict.HARMS, "harms")):
        found = [finding for finding in compared if finding.verdict is verdict]
        if found:
            shown = "; ".join(f"`{each.arm}` on {each.setting} ({_points(each.gain)})" for each in found)
            said.append(f"What {words}, in points of accuracy over plain training: {shown}.")
        else:
            said.append(f"Nothing is found that {words}.")
    open_ones = [
        finding for finding in compared if finding.verdict in (Verdict.CANNOT_BE_TOLD, Verdict.NOT_ENOUGH_RUNS)
    ]
    few = sum(finding.verdict is Verdict.NOT_ENOUGH_RUNS for finding in open_ones)
    said.append(f"Of {len(compared)} comparisons, {len(open_ones)} are open, {few} of these for want of runs.")
    return said


def compose(runs: Sequence[Run], to: Path) -> Document:
    """The report, with its figure drawn into ``to``."""
    results = Results(runs)
    findings = judge(results)
    _draw(findings).savefig(to / FIGURE, dpi=130)
    machines = sorted({one_line(run.environment) for run in runs})
    by_chance = 0.05 * sum(1 + (finding.over_twin is not None) for finding in findings)
    opening: list[Block] = [
        Paragraph(_ARMS),
        Paragraph(
            "An arm pays where the 95 % interval of its gain is above 0, over plain training and over its random twin "
            f"if it has one, with at least {LEAST_SEEDS_TO_PAY} seeds; it harms where the interval is below 0. Of as "
            f"many intervals as there are here, about {by_chance:.1f} miss by chance. K, the shares and probabilities "
            "are published values; nothing was tuned. Other work went on beside these runs, so that times are rough. "
            f"{'; '.join(machines)}."
        ),
        Picture(FIGURE, "Accuracy less plain training's, with 95 % intervals"),
    ]
    sections = [_section(results, setting, findings) for setting in results.settings]
    return Document("Samples worth an update", Box(sum_up(findings, runs)), opening, sections)


def _section(results: Results, setting: str, findings: Sequence[Finding]) -> Section:
    has_tail = setting in ("long_tail", "hidden_kinds")
    head = ["arm", "n", "accuracy, %", "less plain", "less its random twin", "macro-F1 less plain"]
    head += ["rarest third less plain", "worst less plain"] if has_tail else []
    head += ["extra updates", "time, plain = 1", "verdict"]
    by_arm = {finding.arm: finding for finding in findings if finding.setting == setting}
    rows = []
    for arm in results.arms(setting):
        values, finding = results.values(setting, arm, accuracy), by_arm.get(arm)
        measures = [lambda run: run.macro_f1]
        if has_tail:
            measures += [lambda run: run.rarest_third, lambda run: min(run.recalls)]
        others = [_points(results.differences(setting, arm, "plain", measure)) for measure in measures]
        twin = "-" if finding is None or finding.over_twin is None else _points(finding.over_twin)
        extra = results.values(setting, arm, lambda run: 100 * run.extra_updates / run.updates)
        rows.append(
            [
                arm,
                str(values.n),
                mean_and_deviation(values, 2),
                "-" if finding is None else _points(finding.gain),
                twin,
                *("-" if finding is None else text for text in others),
                f"{statistics.fmean(extra.values):.1f} %",
                f"{results.time_ratio(setting, arm):.2f}",
                "-" if finding is None else finding.verdict.value,
            ]
        )
    return Section(
        _TITLES[setting], [Table(head, rows, "Mean and standard deviation; differences with 95 % intervals.")]
    )


def _points(values: Sample) -> str:
    if not values.n:
        return "-"
    low, high = values.interval
    interval = f" ({low:+.2f} to {high:+.2f})" if values.n > 1 else ""
    return f"{values.mean:+.2f}{interval}"


def _draw(findings: Sequence[Finding]) -> Figure:
    shown = [finding for finding in findings if finding.gain.n > 1]
    settings = list(dict.fromkeys(finding.setting for finding in shown))
    figure = Figure(figsize=(8, 1 + 0.26 * len(shown) + 0.4 * len(settings)), layout="constrained")
    axes = figure.subplots()
    labels: list[tuple[float, str]] = []
    place = 0.0
    for setting in settings:
        place += 1.3
        labels.append((place, setting))
        for finding in (each for each in shown if each.setting == setting):
            place += 1
            color = _COLORS.get(finding.verdict, "#BBBBBB")
            axes.plot(finding.gain.interval, [place, place], color=color, linewidth=2)
            axes.plot(finding.gain.mean, place, "o", color=color)
            labels.append((place, f"{finding.arm}, n = {finding.gain.n}"))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks([at for at, _ in labels], [text for _, text in labels], fontsize=8)
    for tick, (_, text) in zip(axes.get_yticklabels(), labels, strict=True):
        tick.set_fontweight("bold" if text in settings else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place + 1, 0)
    axes.set_xlabel("points of test accuracy: the arm less plain training, at as many updates", fontsize=9)
    axes.grid(axis="x", color="#EEEEEE")
    axes.set_axisbelow(True)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of records")
    parser.add_argument("--to", type=Path, required=True, help="folder for the report")
    options = parser.parse_args(arguments)
    try:
        runs = read(options.folders)
        options.to.mkdir(parents=True, exist_ok=True)
        (options.to / "report.md").write_text(markdown.render(compose(runs, options.to)), encoding="utf-8")
    except (BenchmarkError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
