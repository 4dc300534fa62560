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
from benchmarks.report.statistics import CONFIDENCE, Sample
from benchmarks.report.wording import mean_and_deviation
from benchmarks.selection.arms import AS_COSTLY, BASES, CONTROLS, PEERS, TWINS
from benchmarks.selection.findings import PEER, say_what_is_found
from benchmarks.selection.judging import LEAST_SEEDS_TO_PAY, Finding, Measure, Results, Verdict, accuracy, judge
from benchmarks.selection.records import Folder, Run

FIGURE = "gains.png"
_WITH_TAIL = ("long_tail", "hidden_kinds")
_TITLES = {
    "balanced": "Balanced: {images:,} images of CIFAR-10",
    "long_tail": "Long tail: CIFAR-10, classes {imbalance:.0f} to 1",
    "hidden_kinds": "Hidden kinds: ten kinds under two labels, {imbalance:.0f} to 1",
    "noisy": "Noisy: {images:,} images, 10 % of labels redrawn",
}
_COLORS = {Verdict.PAYS: "#009E73", Verdict.HARMS: "#D55E00", Verdict.CANNOT_BE_TOLD: "#777777"}
_ARMS = (
    "`plain` is plain training. `left_out`: samples with a loss below the mean are left out of a pass with probability "
    "1/2; `_weighted`: those that stay weigh more, so that the expected gradient is that of all data (our reading of "
    "InfoBatch, Qin et al., 2024). `pooled`: samples above 1.2 times the mean come again, in batches of such samples. "
    "`both` is both. `_random` chooses by chance, as many as its own losses would have it. `repeated` is the paper's "
    "rule on whole batches (K = 1.2), its repeats counted among the updates; `_fresh` augments a repeat anew, "
    "`_budget` repeats at most 15 %. `sqrt_frequency` draws samples by the square root of the inverse frequency of "
    "their label. "
    "`selective_backprop` is our reading of Composer's (Jiang et al., 2019), which looks at twice as many samples as "
    "it trains on, at every update between 50 and 90 % of training; by Composer's defaults, every other of these "
    "updates would be plain. `plain_longer` is plain training with 27 % more updates: what `selective_backprop` spends "
    "on looking, a backward pass reckoned as two forward ones."
)
_PEERS = {
    "selective_backprop_composer": (
        "`selective_backprop_composer` calls Composer {versions} itself, with its defaults."
    ),
    "infobatch": (
        "`infobatch` calls InfoBatch {versions} itself, with its defaults: the samples left out are by its own count. "
        "Its sampler, which counts epochs, is not used; pruning ends after 87.5 % of the updates. Its weights, 1 and "
        "2, have a mean above 1 over a pass, which makes its steps longer than those of the other arms; the weights of "
        "`left_out_weighted` are scaled to a mean of 1."
    ),
}


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


def compose(runs: Sequence[Run], to: Path) -> Document:
    """The report, with its figure drawn into ``to``."""
    results = Results(runs)
    findings = judge(results)
    _draw(findings).savefig(to / FIGURE, dpi=130)
    machines = sorted({one_line(run.environment) for run in runs})
    intervals = sum(
        values is not None and values.n > 1 for finding in findings for values in (finding.gain, finding.over_control)
    )
    opening: list[Block] = [
        Paragraph(_ARMS + _name_peers(runs)),
        Paragraph(
            "An arm pays where the 95 % interval of its gain is above 0, over plain training and over its control if "
            f"it has one, with at least {LEAST_SEEDS_TO_PAY} seeds; it harms where the interval is below 0. Its "
            "control is its random twin, the sampler that it adds to, or plain training at its cost where it looks at "
            "more samples than it trains on (`plain_longer`); an arm without control is judged against "
            f"plain training alone. Of the {intervals} intervals of accuracy here, about "
            f"{(1 - CONFIDENCE) * intervals:.1f} miss by chance. One value of each option was run: K is the paper's "
            "and the probability of leaving out InfoBatch's; the last 15 % of training, in whole epochs, is plain "
            "(InfoBatch: 12.5 %). No value was chosen by these results. Other work went on beside these runs, and "
            "they were stopped for a while at times, which their seconds contain: times are no measurement. "
            f"{'; '.join(machines)}."
        ),
        *([Paragraph(doses)] if (doses := _compare_doses(results)) else []),
        Picture(FIGURE, "Accuracy less plain training's, with 95 % intervals"),
    ]
    counts = {run.setting: run.counts for run in runs}
    sections = [_section(results, setting, findings, counts[setting]) for setting in results.settings]
    return Document("Samples worth an update", Box(say_what_is_found(runs)), opening, sections)


def _section(results: Results, setting: str, findings: Sequence[Finding], counts: Sequence[int]) -> Section:
    has_tail = setting in _WITH_TAIL
    head = ["arm", "n", "accuracy, %", "less plain", "less its control", "macro-F1 less plain"]
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
        control = "-" if finding is None or finding.over_control is None else _points(finding.over_control)
        if finding is not None and finding.control in {*BASES.values(), *AS_COSTLY.values()}:
            control += f", over {finding.control}"
        extra = results.values(setting, arm, lambda run: 100 * run.extra_updates / run.updates)
        rows.append(
            [
                arm,
                str(values.n),
                mean_and_deviation(values, 2),
                "-" if finding is None else _points(finding.gain),
                control,
                *("-" if finding is None else text for text in others),
                f"{statistics.fmean(extra.values):.1f} %",
                f"{results.ratio(setting, arm, lambda run: run.seconds):.2f}",
                "-" if finding is None else finding.verdict.value,
            ]
        )
    caption = "Mean and standard deviation; differences with 95 % intervals."
    if setting == "hidden_kinds":
        caption += " There are as many test images of each kind, so that accuracy is the mean over kinds."
    title = _TITLES[setting].format(images=sum(counts), imbalance=max(counts) / min(counts))
    return Section(title, [Table(head, rows, caption), _other_measures(results, setting)])


def _other_measures(results: Results, setting: str) -> Table:
    measures: dict[str, Measure] = {"macro-F1": lambda run: run.macro_f1}
    if setting in _WITH_TAIL:
        measures |= {"rarest third": lambda run: run.rarest_third, "worst": lambda run: min(run.recalls)}
    rows = []
    for arm in results.arms(setting):
        row = [arm]
        for measure in measures.values():
            row.append(mean_and_deviation(results.values(setting, arm, measure), 2))
            control = CONTROLS.get(arm)
            row.append("-" if control is None else _points(results.differences(setting, arm, control, measure)))
        seen = results.values(setting, arm, lambda run: run.forward_samples)
        left_out = results.values(setting, arm, lambda run: run.left_out)
        ahead = "-" if arm == PEER else _points(results.differences(setting, arm, PEER, accuracy))
        rows.append([*row, ahead, f"{seen.mean:,.0f}", f"{left_out.mean:,.0f}"])
    head = ["arm", *(text for name in measures for text in (f"{name}, %", "less its control"))]
    return Table(
        [*head, f"accuracy less {PEER}", "samples looked at", "left out"],
        rows,
        "The rarest third is the mean recall of the three kinds with the fewest images, the worst the lowest recall of "
        "a kind."
        if setting in _WITH_TAIL
        else "Samples: the mean of a run.",
    )


def _compare_doses(results: Results) -> str:
    """How much of what an arm does its random twin does too, where both have run."""
    doses: list[tuple[str, str, Measure]] = [
        ("left_out", "samples left out", lambda run: run.left_out),
        ("pooled", "extra updates", lambda run: run.extra_updates),
    ]
    said = []
    for arm, name, measure in doses:
        for setting in results.settings:
            ours, theirs = results.paired(setting, arm, TWINS[arm], measure)
            if sum(ours):
                said.append(f"{100 * sum(theirs) / sum(ours):.0f} % of the {name} of `{arm}` on {setting}")
    if not said:
        return ""
    return (
        "A random twin is no exact match in number, for its own losses say how many it chooses. Over the same seeds it "
        f"has {', '.join(said)}. A gain over it is for the choice and for that difference together."
    )


def _name_peers(runs: Sequence[Run]) -> str:
    said = []
    for arm, words in _PEERS.items():
        versions = {str(run.environment["packages"].get(PEERS[arm].package)) for run in runs if run.arm == arm}
        if versions:
            said.append(" " + words.format(versions=", ".join(sorted(versions))))
    return "".join(said)


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
