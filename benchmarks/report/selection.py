"""The report on runs of ``benchmarks.selection``: which choice of samples pays, and where."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from benchmarks.environment import one_line
from benchmarks.errors import RecordsError
from benchmarks.reading import Records
from benchmarks.report.document import Cell, Report, Table, correct, escape, fold, pictures, render
from benchmarks.report.figures import Row, forest
from benchmarks.report.results import Runs
from benchmarks.report.statistics import LEAST_RUNS, SIGNIFICANCE, Sample, Verdict, holm
from benchmarks.report.wording import Gain, mean_and_deviation, show, show_p
from benchmarks.schema import Epoch, RunName, SelectionConfiguration
from benchmarks.selection.rates import RATES, TUNING_SEEDS, choose_rate

# An arm that is said to pay has been run with so many seeds.
LEAST_SEEDS_TO_PAY = 8
# Of kinds; the others were added when the results of these had been seen.
PLANNED_SEEDS = range(8)
SETTINGS = {
    "balanced": "balanced data",
    "long_tail": "rare classes",
    "hidden_kinds": "hidden subgroups",
    "noisy": "10 % label noise",
    "hidden_fine": "hidden subgroups (CIFAR-100 superclasses)",
    "text": "text with rare sorts",
    "table": "table with rare groups",
}
_COLORS = {Verdict.PAYS: "#009E73", Verdict.HARMS: "#D55E00", Verdict.NO_DIFFERENCE: "#777777"}


class Study(NamedTuple):
    """What is known of a study before it has run.

    Attributes:
        title: Of its report.
        arms: What each trains on, in words, without plain training and controls.
        controls: What a gain has to be over, besides plain training, to come from which samples are chosen.
        only_controls: Arms that are run for the comparison alone.
        peer: The arm that others are compared with too.
        compared: These; empty for all.
        measures: Secondary ones.
        method: Paragraphs.
    """

    title: str
    arms: Mapping[str, str]
    controls: Mapping[str, str]
    only_controls: frozenset[str]
    peer: str
    compared: Sequence[str]
    measures: Sequence[str]
    method: Sequence[str]


IMAGES = Study(
    "Samples worth an update",
    {
        "left_out": "samples with a loss below the mean left out half the time",
        "left_out_weighted": "samples with a loss below the mean left out half the time, those that stay weighted up",
        "both": "samples with a loss below the mean left out half the time, those far above it repeated",
        "pooled": "samples with a loss far above the mean repeated",
        "selective_backprop": "the worse half of two batches trained on (Selective Backprop)",
        "selective_backprop_composer": "the worse half of two batches trained on, by Composer's own function",
        "infobatch": "samples with a loss below the mean left out half the time, by InfoBatch's own code",
        "repeated": "whole batches repeated, as in the paper",
        "repeated_fresh": "whole batches repeated, augmented again",
        "repeated_budget": "whole batches repeated, 15 % of them at most",
        "sqrt_frequency": "rare classes drawn more often",
        "sqrt_frequency+left_out": "rare classes drawn more often, well-fitted samples left out half the time",
    },
    {
        **dict.fromkeys(("left_out", "left_out_weighted", "infobatch"), "left_out_random"),
        "both": "both_random",
        "pooled": "pooled_random",
        "sqrt_frequency+left_out": "sqrt_frequency",
        "selective_backprop": "plain_longer",
    },
    frozenset({"left_out_random", "both_random", "pooled_random", "plain_longer"}),
    "selective_backprop",
    (),
    ("macro_f1", "rarest_third", "worst"),
    (
        "`plain` is plain training. `left_out`: samples with a loss below the mean are left out of a pass with probability "
        "1/2; `_weighted`: those that stay weigh more, so that the expected gradient is that of all data (our reading of "
        "InfoBatch, Qin et al., 2024). `pooled`: samples above 1.2 times the mean are repeated, in batches of such samples. "
        "`both` is both. `_random` chooses at random, as many as its own losses say. `repeated` is the paper's rule on whole "
        "batches (K = 1.2), its repeats counted among the updates; `_fresh` augments a repeat again, `_budget` repeats at "
        "most 15 %. `sqrt_frequency` draws samples by the square root of the inverse frequency of their label. "
        "`selective_backprop` is our reading of Composer's (Jiang et al., 2019), which looks at twice as many samples as it "
        "trains on, at every update between 50 and 90 % of training; by Composer's defaults, every other of these updates "
        "would be plain. `plain_longer` is plain training with 27 % more updates: what `selective_backprop` spends on "
        "looking, with a backward pass counted as two forward ones.",
        "`selective_backprop_composer` calls Composer itself, with its defaults. `infobatch` calls InfoBatch itself, with its "
        "defaults: the samples left out are by its own count. Its sampler, which counts epochs, is not used; pruning ends "
        "after 87.5 % of the updates. Its weights, 1 and 2, have a mean above 1 over a pass, which makes its steps longer "
        "than those of the other arms; the weights of `left_out_weighted` are scaled to a mean of 1.",
        "One value of each option was run: K is the paper's, and the probability of leaving out InfoBatch's; the last 15 % "
        "of training, in whole epochs, is plain (InfoBatch: 12.5 %). No value was chosen by these results. Test images are "
        "as many of each kind. Other work shared the machine: times are no measurement.",
    ),
)
KINDS = Study(
    "Which samples to leave out, by kind of data",
    {
        "left_out": "well-fitted samples left out half the time",
        "left_out_weighted": "the same, those that stay weighted up",
        "trimmed": "the same unweighted, and outliers by mean loss left out",
        "half_weighted": "well-fitted samples left out, those that stay weighted by the root",
        "batch_mean": "left out by batch means instead of losses",
        "saving": "left out and weighted, with fewer updates",
    },
    {
        **dict.fromkeys(("left_out", "left_out_weighted", "trimmed", "half_weighted", "batch_mean"), "left_out_random"),
        "saving": "plain_short",
    },
    frozenset({"left_out_random", "plain_short"}),
    "left_out",
    ("left_out_weighted", "half_weighted", "trimmed", "batch_mean"),
    ("rarest_third",),
    (
        "`plain` is plain training. `left_out`: samples with a loss below the mean of the last epoch are left out of a pass "
        "with probability 1/2, and the last 15 % of training, in whole epochs, is on all data. `left_out_weighted`: those "
        "that stay weigh twice as much, at a mean weight of 1. `half_weighted`: the square root of that. `left_out_random`: "
        "as many samples a pass as in the `left_out` run of the same seed and learning rate, drawn at random. `trimmed`: as "
        "`left_out`, and from the third epoch to the last share of training also all samples whose mean loss over epochs is "
        "above Q3 + 1.5 (Q3 - Q1). `batch_mean`: as `left_out`, by an exponential mean of the mean losses of a sample's "
        "batches, below the mean score (after Batch Loss Score, arXiv 2604.04681). `saving`: an epoch is one pass, with "
        "fewer updates and weights of 1 and 2 (after InfoBatch, Qin et al., 2024). `plain_short`: plain training with as "
        "many updates as the `saving` run of the same seed and rate, and a whole learning-rate schedule over them.",
        "Images: a two-layer perceptron on fixed features (64 random whitened patches of 6 by 6 pixels, four quarters) and "
        "their mirror images. Text: an LSTM over windows of 64 bytes, from files of the standard library and the installed "
        "packages; training, validation and test files differ. Table: `make_classification` of scikit-learn and a "
        "perceptron. AdamW and a one-cycle schedule everywhere. Every seed draws other data and other rare groups.",
        f"Every arm ran with seeds {' and '.join(map(str, TUNING_SEEDS))} at {', '.join(f'{rate:g}' for rate in RATES)} "
        "times the base learning rate; the rate with the best mean validation score is its own, and all its runs below are "
        "at that one. Nothing was chosen by test scores. "
        f"Seeds {PLANNED_SEEDS[0]} to {PLANNED_SEEDS[-1]} were planned. The others were added, for the arms of most "
        "interest, when the results of these had been seen, with nothing else changed. Sixteen were meant; they were stopped "
        "at eight because there was no more time, with interim results in sight. The rule of `trimmed` is one of eight, "
        "chosen before these runs by the wrong labels that it named with another seed. Validation labels have no noise. "
        "Other work shared the machine: times are no measurement.",
    ),
)
_RULE = (
    f"An arm pays where the 95 % interval of its gain is above 0, over plain training and over its control if it has one, "
    f"with at least {LEAST_SEEDS_TO_PAY} seeds; it harms where the interval is below 0. Its control chooses as many samples "
    "at random, is what the arm adds to, or is plain training at the arm's cost. Verdicts are by the interval alone; p is of "
    "a paired t-test, adjusted by Holm's method over {family}, and secondary measures over one another."
)


class Finding(NamedTuple):
    """One arm in one setting.

    Attributes:
        setting: The data.
        arm: The arm.
        gain: Its score minus plain training's.
        control: The arm that it has to be ahead of as well; None without one.
        over_control: Its score minus that one's.
        verdict: By the intervals.
        p: Of the gain, adjusted; None where it is not compared.
        p_over_control: The same over the control.
    """

    setting: str
    arm: str
    gain: Sample
    control: str | None
    over_control: Sample
    verdict: Verdict
    p: float | None = None
    p_over_control: float | None = None

    @property
    def survives(self) -> bool:
        """Whether a verdict of paying or harming survives the correction."""
        tested = [self.p, self.p_over_control] if self.verdict is Verdict.PAYS else [self.p]
        return all(p is None or p < SIGNIFICANCE for p in tested)


class Results:
    """What a part of a study's runs come to: those of all seeds, or of the planned or the added ones.

    Args:
        study: The study.
        frame: A row a run.
        seeds: Which, in words; may be empty.
    """

    def __init__(self, study: Study, frame: pd.DataFrame, seeds: str = "") -> None:
        self.study, self.frame, self.seeds = study, frame, seeds
        found = {setting: Runs(group) for setting, group in frame.groupby("setting")}
        self.settings = {setting: found[setting] for setting in sorted(found, key=[*SETTINGS, *found].index)}
        findings = [
            self._judge(setting, arm)
            for setting, runs in self.settings.items()
            for arm in self.arms(runs)
            if arm != "plain" and runs.pairs(arm, "plain")
        ]
        is_images = study is IMAGES
        tested = {
            (place, name): values.p()
            for place, each in enumerate(findings)
            for name, values in (("p", each.gain), ("p_over_control", each.over_control))
            if is_images or (name == "p" and each.verdict is not Verdict.CONTROL)
        }
        adjusted = holm(tested)
        self.family = len(adjusted)
        self.findings = [
            each._replace(p=adjusted.get((place, "p")), p_over_control=adjusted.get((place, "p_over_control")))
            for place, each in enumerate(findings)
        ]

    def arms(self, runs: Runs) -> list[str]:
        """The arms of a setting, in the order of the study."""
        order = ["plain", *self.study.arms, *sorted(self.study.only_controls), *sorted(runs.arms)]
        return sorted(runs.arms, key=order.index)

    def _judge(self, setting: str, arm: str) -> Finding:
        runs, control = self.settings[setting], self.study.controls.get(arm)
        gain, over = runs.gain(arm, "plain", "score"), runs.gain(arm, control or "", "score")
        low, high = gain.interval
        verdict = Verdict.NO_DIFFERENCE
        if arm in self.study.only_controls:
            verdict = Verdict.CONTROL
        elif gain.n < LEAST_RUNS or (control is not None and over.n < LEAST_RUNS):
            verdict = Verdict.NOT_ENOUGH_RUNS
        elif high < 0:
            verdict = Verdict.HARMS
        elif low > 0 and (control is None or over.interval[0] > 0):
            verdict = Verdict.PAYS if gain.n >= LEAST_SEEDS_TO_PAY else Verdict.NOT_ENOUGH_RUNS
        return Finding(setting, arm, gain, control, over, verdict)

    def compared(self, *verdicts: Verdict) -> list[Finding]:
        """Findings on arms that are no mere controls, of these verdicts, or of all."""
        found = [each for each in self.findings if each.verdict is not Verdict.CONTROL]
        return [each for each in found if not verdicts or each.verdict in verdicts]


def read_results(read: Sequence[Records]) -> list[Results]:
    """The results of a study.

    Raises:
        RecordsError: If the records were made with different plans, or no run is finished.
    """
    if len({records.configuration.digest() for records in read}) > 1:
        raise RecordsError("the folders were made with different plans; give each its own report")
    epochs = {
        name: of_run[-1]
        for records in read
        for name, of_run in records.epochs.items()
        if records.runs[name].is_finished
    }
    if not epochs:
        raise RecordsError("there is no finished run; give the benchmarks.selection command first")
    frame = pd.DataFrame([_measure(name, epoch) for name, epoch in epochs.items()])
    configuration = read[0].configuration
    assert isinstance(configuration, SelectionConfiguration)
    if configuration.study == "images":
        return [Results(IMAGES, frame)]
    scores = {name: epoch.chosen.validation for name, epoch in epochs.items() if epoch.chosen}
    chosen = {
        (setting, arm): choose_rate({name: score for name, score in scores.items() if score is not None}, setting, arm)
        for setting, arm in {(name.setting, name.arm) for name in epochs}
    }
    frame = frame[[row.rate == chosen[row.setting, row.arm] for row in frame.itertuples()]]
    is_planned = frame["seed"].isin(PLANNED_SEEDS)
    parts = {"the planned seeds": frame[is_planned], "the added seeds": frame[~is_planned]}
    return [Results(KINDS, part, seeds) for seeds, part in parts.items() if len(part)]


def _measure(name: RunName, epoch: Epoch) -> dict[str, Any]:
    chosen = epoch.chosen
    assert chosen is not None
    groups = (
        [-loss for loss in chosen.group_losses] if name.setting == "text" and chosen.group_losses else chosen.recalls
    )
    by_count = sorted(zip(chosen.counts, groups, strict=True))
    has_tail = len({*chosen.counts}) > 1
    rare = [value for _, value in (by_count[: len(by_count) // 3] if has_tail else by_count)]
    return {
        **{"setting": name.setting, "arm": name.arm, "seed": name.seed, "rate": name.rate, "has_tail": has_tail},
        "score": 100 * epoch.accuracy if chosen.score is None else chosen.score,
        "macro_f1": 100 * epoch.macro_f1,
        "rarest_third": statistics.fmean(rare),
        "worst": min(groups),
        "updates": epoch.updates,
        "extra": 100 * epoch.repeats / epoch.updates,
        "seconds": epoch.seconds,
        "looked": chosen.forward_samples,
        "pruned": chosen.pruned,
        "pruned_share": 100 * chosen.pruned / (chosen.pruned + chosen.forward_samples),
    }


def report_selection(read: Sequence[Records]) -> Report:
    """The report."""
    parts = read_results(read)
    study = parts[0].study
    runs = [run for records in read for run in records.runs.values()]
    machines = sorted({one_line(place.environment) for run in runs for place in run.surroundings})
    family = "the gains over plain training with the same seeds" if study is KINDS else "the {:,} intervals of accuracy"
    blocks = [_RULE.format(family=family.format(parts[0].family)), fold("Arms and method", *study.method)]
    blocks += [f"{'; '.join(machines)}.", *_doses(parts[0]), *_edges(parts)]
    figures = {}
    for results in parts:
        name = "gains-added.png" if results is not parts[0] else "gains.png"
        figures[name] = _forest(results)
        title = f"Gain in points over plain training (95 % CI){f', {results.seeds}' if results.seeds else ''}"
        blocks.append(pictures({name: title}))
    secondary = {
        (results.seeds, setting): _secondary(results, setting) for results in parts for setting in results.settings
    }
    correct(secondary.values())
    for results in parts:
        for setting in results.settings:
            title = ": ".join(filter(None, [SETTINGS.get(setting, setting), results.seeds]))
            blocks += [f"## {escape(title)}", render(_primary(results, setting))]
            blocks.append(fold("Secondary measures", render(secondary[results.seeds, setting])))
    return Report(study.title, summarize(parts), blocks, figures)


def summarize(parts: Sequence[Results]) -> list[str]:
    """What pays, what harms, and what remains after the correction."""
    said = []
    for results in parts:
        seeds = f" with {results.seeds}" if results.seeds else ""
        compared, runs = results.compared(), len(results.frame)
        most = int(results.frame.groupby(["setting", "arm"])["seed"].nunique().max())
        said.append(f"{runs:,} runs{seeds}, at most {most} of an arm on the same kind of data.")
        for verdict, word in ((Verdict.PAYS, "Pays"), (Verdict.HARMS, "Harms")):
            listed = [_in_words(results.study, each) for each in results.compared(verdict)]
            said.append(f"{word}{seeds}, gain over plain training (95 % CI): {'; '.join(listed) or 'nothing'}.")
        counts = [len(results.compared(each)) for each in (Verdict.NO_DIFFERENCE, Verdict.NOT_ENOUGH_RUNS)]
        survivors = [
            f"{each.arm} on {each.setting}" for each in results.compared(Verdict.PAYS, Verdict.HARMS) if each.survives
        ]
        said.append(
            f"Of {len(compared)} comparisons with plain training{seeds}, {counts[0]} have no significant difference and "
            f"{counts[1]} not enough runs. After Holm's correction p < 0.05 remains for {', '.join(survivors) or 'none'}."
        )
    return [*said, *_against_peer(parts[0])]


def _in_words(study: Study, finding: Finding) -> str:
    arm = f"{study.arms[finding.arm]} ({finding.arm})" if finding.arm in study.arms else finding.arm
    fate = "" if finding.survives else ", does not survive the correction"
    gain = Gain(finding.gain, _digits(finding.setting), finding.p)
    return f"{arm} on {SETTINGS.get(finding.setting, finding.setting)} {gain}{fate}"


def _against_peer(results: Results) -> list[str]:
    """Where arms that pay, and plain training at the peer's cost, are ahead of the peer or behind it."""
    study, told = results.study, []
    payers = dict.fromkeys(
        each.arm for each in results.compared(Verdict.PAYS) if study.controls.get(each.arm, "").endswith("_random")
    )
    for arm in [*payers, study.controls.get(study.peer, "")] if study is IMAGES else []:
        gains = {setting: runs.gain(arm, study.peer, "score") for setting, runs in results.settings.items()}
        apart = [
            f"on {SETTINGS.get(setting, setting)} {Gain(gain)}"
            for setting, gain in gains.items()
            if gain.n >= LEAST_RUNS and not gain.interval[0] <= 0 <= gain.interval[1]
        ]
        if any(gain.n >= LEAST_RUNS for gain in gains.values()):
            told.append(f"{arm} {', '.join(apart) or 'no significant difference'}")
    return [f"Over {study.peer}, which runs the network on more samples: {'; '.join(told)}."] if told else []


def _doses(results: Results) -> list[str]:
    """How much of what an arm does its random control does too."""
    doses = {"left_out": ("samples left out", "pruned"), "pooled": ("extra updates", "extra")}
    said = []
    for arm, (name, measure) in doses.items() if results.study is IMAGES else ():
        for setting, runs in results.settings.items():
            pairs = runs.pairs(arm, results.study.controls[arm])
            ours, theirs = (
                sum(getattr(pair[place], measure) * pair[place].updates for pair in pairs) for place in (0, 1)
            )
            if ours:
                said.append(f"{100 * theirs / ours:.0f} % of the {name} of `{arm}` on {setting}")
    words = "A random control is no exact match in number, for its own losses say how many it chooses. It has"
    return (
        [f"{words} {', '.join(said)}. A gain over it is for the choice and for that difference together."]
        if said
        else []
    )


def _edges(parts: Sequence[Results]) -> list[str]:
    """Which arms might be better still at a rate that was not tried."""
    rows = [row for results in parts for row in results.frame.itertuples() if row.rate in (RATES[0], RATES[-1])]
    arms = sorted({f"{row.arm} on {row.setting}" for row in rows})
    return [f"At the lowest or highest rate, so that others might be better still: {', '.join(arms)}."] if arms else []


def _digits(setting: str) -> int:
    return 4 if setting == "text" else 2


def _primary(results: Results, setting: str) -> Table:
    runs = results.settings[setting]
    findings = {each.arm: each for each in results.findings if each.setting == setting}
    digits, rows = _digits(setting), []
    for arm in results.arms(runs):
        values, found = runs.values(arm, "score"), findings.get(arm)
        rate = runs.pairs(arm, arm)[0][0].rate
        cells: list[Cell] = ["-", "-", "-", "-"]
        if found is not None:
            over = Gain(found.over_control, digits, found.p_over_control)
            cells = [Gain(found.gain, digits, found.p), over, found.control or "-", found.verdict]
            if found.verdict in (Verdict.PAYS, Verdict.HARMS) and not found.survives:
                cells[3] = f"{found.verdict.symbol} {found.verdict.text}, not after correction"
        rows.append(
            [
                arm,
                str(values.n),
                "-" if rate is None or math.isnan(rate) else f"{rate:g}",
                mean_and_deviation(values, digits),
                *cells,
            ]
        )
    score = "minus loss, nats" if setting == "text" else "accuracy, %"
    head = ["arm", "n", "rate", score, "gain over plain (95 % CI)", "over control (95 % CI)", "control", "verdict"]
    return Table(head, rows, "Mean ± standard deviation; gains are paired by seed.")


def _secondary(results: Results, setting: str) -> Table:
    study, runs, digits = results.study, results.settings[setting], _digits(setting)
    measures = [name for name in study.measures if name == "macro_f1" or runs.pairs("plain", "plain")[0][0].has_tail]
    rows = []
    for arm in results.arms(runs):
        cells: list[Cell] = [arm]
        for measure in measures:
            gains = [runs.gain(arm, other or "", measure) for other in ("plain", study.controls.get(arm))]
            cells += [mean_and_deviation(runs.values(arm, measure), digits), *(Gain(each, digits) for each in gains)]
            cells[-2] = "-" if arm == "plain" else cells[-2]
        is_compared = arm != study.peer and (not study.compared or arm in study.compared)
        cells.append(Gain(runs.gain(arm, study.peer, "score"), digits) if is_compared else "-")
        pairs = runs.pairs(arm, "plain")
        seconds, updates = (
            statistics.median(getattr(ours, name) / getattr(plain, name) for ours, plain in pairs)
            if pairs
            else math.nan
            for name in ("seconds", "updates")
        )
        means = {name: runs.values(arm, name).mean for name in ("extra", "looked", "pruned", "pruned_share")}
        cells += [f"{means['extra']:.1f} %", f"{100 * updates:.0f} %", f"{seconds:.2f}", f"{means['looked']:,.0f}"]
        rows.append([*cells, f"{means['pruned']:,.0f}", f"{means['pruned_share']:.0f} %"])
    names = [name.replace("_", " ").replace(" f1", "-F1") for name in measures]
    head = [
        "arm",
        *(text for name in names for text in (name, "over plain", "over control")),
        f"score over {study.peer}",
    ]
    head += [
        "repeats, of updates",
        "updates, of plain's",
        "seconds, plain = 1",
        "samples looked at",
        "left out",
        "of all",
    ]
    caption = (
        "The rarest third is the mean recall of the groups with the fewest samples, the worst the lowest recall of one."
    )
    return Table(head, rows, caption if len(measures) > 1 else "")


def _forest(results: Results) -> Any:
    rows = [
        Row(SETTINGS.get(each.setting, each.setting), each.arm, each.gain, _COLORS.get(each.verdict, "#BBBBBB"))
        for each in results.findings
        if each.gain.n > 1 and each.setting != "text"  # which is in nats
    ]
    return forest(rows, "gain in points over plain training (95 % CI), at as many updates")


def glance(results: Results) -> Table:
    """The mean gain of each arm in each setting, what pays most often first."""
    study, found = results.study, {(each.setting, each.arm): each for each in results.compared()}
    shown = [
        arm
        for arm in study.arms
        if "+" not in arm
        and (arm == "repeated" or any(each.gain.n >= LEAST_SEEDS_TO_PAY for each in _of(results, arm)))
    ]
    shown.sort(key=lambda arm: -sum(each.verdict is Verdict.PAYS for each in _of(results, arm)))
    rows = []
    for arm in shown:
        cells = [f"{study.arms[arm]} ({arm})"]
        for setting in results.settings:
            each = found.get((setting, arm))
            symbol = "" if each is None else f"{each.verdict.symbol}{'' if each.survives else '*'}"
            cells.append("-" if each is None else f"{each.gain.mean:+.{_digits(setting)}f} {symbol}")
        rows.append(cells)
    return Table(["what is trained on", *(SETTINGS.get(each, each) for each in results.settings)], rows)


def _of(results: Results, arm: str) -> list[Finding]:
    return [each for each in results.findings if each.arm == arm]
