"""The report on runs of ``benchmarks.selection``: which choice of samples pays, and where."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from benchmarks.environment import one_line
from benchmarks.errors import RecordsError
from benchmarks.reading import Records
from benchmarks.report.document import Cell, Mark, Report, correct, render_template, table
from benchmarks.report.figures import Row, forest
from benchmarks.report.results import gain
from benchmarks.report.statistics import LEAST_RUNS, SIGNIFICANCE, Verdict, holm, sample
from benchmarks.report.wording import Gain, mean_and_deviation
from benchmarks.schema import Epoch, RunName, SelectionConfiguration
from benchmarks.selection.rates import RATES, TUNING_SEEDS, choose_rate

# An arm that is said to pay has been run with so many seeds.
LEAST_SEEDS_TO_PAY = 8
# Of kinds; the others were added when the results of these had been seen.
PLANNED_SEEDS = range(8)
_COLORS = {Verdict.PAYS: "#009E73", Verdict.HARMS: "#D55E00", Verdict.NO_DIFFERENCE: "#777777"}


class Study(NamedTuple):
    """What is known of a study before it has run, from selection.json.

    Attributes:
        title: Of the report.
        arms: What each trains on, in words, without plain training and controls.
        controls: What a gain has to be over, besides plain training, to come from which samples are chosen.
        peer: The arm that others are compared with too.
        compared: These; empty for all.
        measures: Secondary ones.
    """

    title: str
    arms: dict[str, str]
    controls: dict[str, str]
    peer: str
    compared: list[str]
    measures: list[str]

    @property
    def only_controls(self) -> set[str]:
        """Arms that are run for the comparison alone."""
        return {*self.controls.values()} - {*self.arms}


_WORDS = json.loads(Path(__file__).with_name("selection.json").read_text(encoding="utf-8"))
SETTINGS: dict[str, str] = _WORDS.pop("settings")
IMAGES, KINDS = (Study(**_WORDS[name]) for name in ("images", "kinds"))


class Finding(NamedTuple):
    """One arm in one setting.

    Attributes:
        setting: The data.
        arm: The arm.
        gain: Its score minus plain training's, with the adjusted p-value.
        control: The arm that it has to be ahead of as well; None without one.
        over: Its score minus that one's.
        verdict: By the intervals.
    """

    setting: str
    arm: str
    gain: Gain
    control: str | None
    over: Gain
    verdict: Verdict

    @property
    def survives(self) -> bool:
        """Whether a verdict survives the correction; one that neither pays nor harms does."""
        tested = {Verdict.PAYS: [self.gain.p, self.over.p], Verdict.HARMS: [self.gain.p]}.get(self.verdict, [])
        return all(p is None or p < SIGNIFICANCE for p in tested)

    def __str__(self) -> str:
        return f"{self.arm} on {SETTINGS.get(self.setting, self.setting)} {self.gain}{'' if self.survives else '*'}"


class Results:
    """What the runs of a study, or those of its planned or its added seeds, come to.

    Args:
        study: The study.
        frame: A row a run.
        seeds: Which, in words; may be empty.
    """

    def __init__(self, study: Study, frame: pd.DataFrame, seeds: str = "") -> None:
        order = ["plain", *study.arms, *sorted(study.only_controls)]
        frame = frame.assign(place=[order.index(arm) if arm in order else len(order) for arm in frame["arm"]])
        frame = frame.sort_values(["place", "arm", "seed"], ignore_index=True)
        self.study, self.frame, self.seeds = study, frame, seeds
        self.settings = {name: frame[frame["setting"] == name] for name in SETTINGS if name in {*frame["setting"]}}
        pairs = [
            (name, arm) for name, runs in self.settings.items() for arm in dict.fromkeys(runs["arm"]) if arm != "plain"
        ]
        self.findings = [found for name, arm in pairs if (found := self._judge(name, arm)).gain.values.n]
        # Kinds planned to compare gains over plain training; images have controls among what is tested.
        gains = [
            each
            for found in self.findings
            for each in ([found.gain, found.over] if study is IMAGES else [found.gain])
            if study is IMAGES or found.verdict is not Verdict.CONTROL
        ]
        adjusted = holm({place: each.values.p() for place, each in enumerate(gains)})
        self.family = len(adjusted)
        for place, p in adjusted.items():
            gains[place].p = p

    def _judge(self, setting: str, arm: str) -> Finding:
        runs, control = self.settings[setting], self.study.controls.get(arm)
        over_plain = gain(runs, arm, "plain", "score")
        over = gain(runs, arm, control, "score") if control else sample([])
        (low, high), verdict = over_plain.interval, Verdict.NO_DIFFERENCE
        if arm in self.study.only_controls:
            verdict = Verdict.CONTROL
        elif over_plain.n < LEAST_RUNS or (control and over.n < LEAST_RUNS):
            verdict = Verdict.NOT_ENOUGH_RUNS
        elif high < 0:
            verdict = Verdict.HARMS
        elif low > 0 and (not control or over.interval[0] > 0):
            verdict = Verdict.PAYS if over_plain.n >= LEAST_SEEDS_TO_PAY else Verdict.NOT_ENOUGH_RUNS
        digits = _digits(setting)
        return Finding(setting, arm, Gain(over_plain, digits), control, Gain(over, digits), verdict)

    def compared(self, *verdicts: Verdict) -> list[Finding]:
        """Findings on arms that are no mere controls, of these verdicts, or of all."""
        found = [each for each in self.findings if each.verdict is not Verdict.CONTROL]
        return [each for each in found if not verdicts or each.verdict in verdicts]


def read_results(read: Sequence[Records]) -> list[Results]:
    """The results of a study, of its planned and of its added seeds.

    Raises:
        RecordsError: If the records were made with different plans, or no run is finished.
    """
    configuration = read[0].configuration
    assert isinstance(configuration, SelectionConfiguration)
    if len({records.configuration.digest() for records in read}) > 1:
        raise RecordsError("the folders were made with different plans; give each its own report")
    runs = [
        (name, records.epochs[name][-1]) for records in read for name, run in records.runs.items() if run.is_finished
    ]
    if not runs:
        raise RecordsError("there is no finished run; give the benchmarks.selection command first")
    frame = pd.DataFrame([_measure(name, epoch) for name, epoch in runs])
    if configuration.study == "images":
        return [Results(IMAGES, frame)]
    scores = {name: epoch.chosen.validation for name, epoch in runs if epoch.chosen}
    rates = {pair: choose_rate(scores, *pair) for pair in {(name.setting or "", name.arm) for name, _ in runs}}
    frame = frame[[row.rate == rates[row.setting, row.arm] for row in frame.itertuples()]]
    is_planned = frame["seed"].isin(PLANNED_SEEDS)
    parts = {"the planned seeds": frame[is_planned], "the added seeds": frame[~is_planned]}
    return [Results(KINDS, part, seeds) for seeds, part in parts.items() if len(part)]


def _measure(name: RunName, epoch: Epoch) -> dict[str, Any]:
    chosen = epoch.chosen
    assert chosen is not None
    groups = (
        [-loss for loss in chosen.group_losses] if name.setting == "text" and chosen.group_losses else chosen.recalls
    )
    by_count = [value for _, value in sorted(zip(chosen.counts, groups, strict=True))]
    has_tail = len({*chosen.counts}) > 1
    return {
        "setting": name.setting,
        "arm": name.arm,
        "seed": name.seed,
        "rate": name.rate,
        "has_tail": has_tail,
        "score": 100 * epoch.accuracy if chosen.score is None else chosen.score,
        "macro_f1": 100 * epoch.macro_f1,
        "rarest_third": statistics.fmean(by_count[: len(by_count) // 3] if has_tail else by_count),
        "worst": min(groups),
        "updates": epoch.updates,
        "repeats": epoch.repeats,
        "extra": 100 * epoch.repeats / epoch.updates,
        "seconds": epoch.seconds,
        "looked": chosen.forward_samples,
        "pruned": chosen.pruned,
        "pruned_share": 100 * chosen.pruned / (chosen.pruned + chosen.forward_samples),
    }


def report_selection(read: Sequence[Records]) -> Report:
    """The report."""
    parts, figures, sections = read_results(read), {}, []
    configuration = read[0].configuration
    assert isinstance(configuration, SelectionConfiguration)
    for results in parts:
        file = f"gains{results.seeds.removeprefix('the').removesuffix(' seeds').replace(' ', '-')}.png"
        figures[file] = _forest(results)
    secondary = [(results, setting, *_secondary(results, setting)) for results in parts for setting in results.settings]
    correct([row for *_, rows in secondary for row in rows])
    for results, setting, head, rows in secondary:
        title = ": ".join(filter(None, [SETTINGS[setting], results.seeds]))
        rate = configuration.settings[setting].get("learning_rate")
        sections.append((title, _primary(results, setting), table(head, rows), rate))
    edges = [row for results in parts for row in results.frame.itertuples() if row.rate in (RATES[0], RATES[-1])]
    places = [place for records in read for run in records.runs.values() for place in run.surroundings]
    versions = {
        package: ", ".join(
            sorted({found[package] for place in places if package in (found := place.environment["packages"])})
        )
        for package in ("mosaicml", "infobatch")
    }
    text = render_template(
        "selection.md.jinja",
        study=parts[0].study,
        is_images=parts[0].study is IMAGES,
        parts=parts,
        verdicts=Verdict,
        titles=[
            f"Gain in points over plain training, 95 % CI{f', {each.seeds}' if each.seeds else ''}" for each in parts
        ],
        files=[*figures],
        sections=sections,
        peer=_over_peer(parts[0]),
        doses=_doses(parts[0]),
        edges=sorted({f"{row.arm} on {row.setting}" for row in edges}),
        rates=", ".join(f"{rate:g}" for rate in RATES),
        tuning=" and ".join(map(str, TUNING_SEEDS)),
        versions=versions,
        machines=sorted({one_line(place.environment) for place in places}),
    )
    return Report(text, figures)


def _over_peer(results: Results) -> dict[str, list[str]]:
    """The significant gains over the peer: of arms that pay, and of plain training at the peer's cost."""
    study, found = results.study, {}
    if study is IMAGES:
        payers = dict.fromkeys(each.arm for each in results.compared(Verdict.PAYS))
        for arm in [
            *(arm for arm in payers if study.controls.get(arm) in study.only_controls),
            study.controls[study.peer],
        ]:
            gains = {setting: gain(runs, arm, study.peer, "score") for setting, runs in results.settings.items()}
            gains = {setting: each for setting, each in gains.items() if each.n >= LEAST_RUNS}
            apart = {setting: each for setting, each in gains.items() if not each.interval[0] <= 0 <= each.interval[1]}
            if gains:
                found[arm] = [f"{Gain(each)} on {SETTINGS[setting]}" for setting, each in apart.items()]
    return found


def _doses(results: Results) -> list[str]:
    """How much of what an arm does its random control does too."""
    said = []
    doses = {"left_out": ("samples left out", "pruned"), "pooled": ("extra updates", "repeats")}
    for arm, (words, measure) in doses.items() if results.study is IMAGES else ():
        for setting, runs in results.settings.items():
            both = (
                runs.pivot(index="seed", columns="arm", values=measure).reindex(columns=[arm, f"{arm}_random"]).dropna()
            )
            ours, theirs = both.sum()
            if ours:
                said.append(f"{100 * theirs / ours:.0f} % of the {words} of `{arm}` on {setting}")
    return said


def _digits(setting: str) -> int:
    return 4 if setting == "text" else 2


def _primary(results: Results, setting: str) -> str:
    found = {each.arm: each for each in results.findings if each.setting == setting}
    rows: list[list[Cell]] = []
    for arm, runs in results.settings[setting].groupby("arm", sort=False):
        rate = "-" if runs["rate"].isna().any() else f"{runs['rate'].iloc[0]:g}"
        cells: list[Cell] = ["-", "-", "-", "-"]
        if each := found.get(str(arm)):
            cells = [each.gain, each.over, each.control or "-", Mark(each.verdict, not each.survives)]
        rows.append(
            [str(arm), str(len(runs)), rate, mean_and_deviation(sample(runs["score"]), _digits(setting)), *cells]
        )
    score = "minus loss, nats" if setting == "text" else "accuracy, %"
    head = ["arm", "n", "rate", score, "gain over plain (95 % CI)", "over control (95 % CI)", "control", "verdict"]
    return table(head, rows)


def _secondary(results: Results, setting: str) -> tuple[list[str], list[list[Cell]]]:
    study, runs, digits = results.study, results.settings[setting], _digits(setting)
    measures = [name for name in study.measures if name == "macro_f1" or runs["has_tail"].any()]
    rows: list[list[Cell]] = []
    for arm, of_arm in runs.groupby("arm", sort=False):
        cells: list[Cell] = [str(arm)]
        for measure in measures:
            others = [None if arm == "plain" else "plain", study.controls.get(str(arm))]
            gains = [Gain(gain(runs, str(arm), other, measure), digits) if other else "-" for other in others]
            cells += [mean_and_deviation(sample(of_arm[measure]), digits), *gains]
        is_compared = arm != study.peer and (not study.compared or arm in study.compared)
        cells.append(Gain(gain(runs, str(arm), study.peer, "score"), digits) if is_compared else "-")
        of_plain = of_arm.merge(runs[runs["arm"] == "plain"], on="seed", suffixes=("", "_plain"))
        seconds, updates = ((of_plain[each] / of_plain[f"{each}_plain"]).median() for each in ("seconds", "updates"))
        cells += [f"{sample(of_arm['extra']).mean:.1f} %", f"{100 * updates:.0f} %", f"{seconds:.2f}"]
        cells += [
            f"{of_arm['looked'].mean():,.0f}",
            f"{of_arm['pruned'].mean():,.0f}",
            f"{of_arm['pruned_share'].mean():.0f} %",
        ]
        rows.append(cells)
    names = [name.replace("macro_f1", "macro-F1").replace("_", " ") for name in measures]
    head = [
        "arm",
        *(text for name in names for text in (name, "over plain", "over control")),
        f"score over {study.peer}",
    ]
    head += ["extra updates", "updates, of plain's", "time, plain = 1", "samples looked at", "left out", "of all"]
    return head, rows


def _forest(results: Results) -> Any:
    rows = [
        Row(SETTINGS[each.setting], each.arm, each.gain.values, _COLORS.get(each.verdict, "#BBBBBB"))
        for each in results.findings
        if each.gain.values.n > 1 and each.setting != "text"  # which is in nats
    ]
    return forest(rows, "gain in points over plain training (95 % CI), at as many updates")


def glance(results: Results) -> tuple[list[str], list[list[Cell]]]:
    """The mean gain of each arm in each setting, what pays most often first: the head and rows of a table."""
    found = {(each.arm, each.setting): each for each in results.compared()}
    most = {arm: max(each.gain.values.n for each in found.values() if each.arm == arm) for arm, _ in found}
    shown = [arm for arm in results.study.arms if most.get(arm, 0) >= LEAST_SEEDS_TO_PAY or arm == "repeated"]
    shown.sort(key=lambda arm: -sum(each.verdict is Verdict.PAYS for each in found.values() if each.arm == arm))
    rows: list[list[Cell]] = []
    for arm in [arm for arm in shown if "+" not in arm]:
        rows.append([f"{results.study.arms[arm]} ({arm})"])
        for setting in results.settings:
            each = found.get((arm, setting))
            mark = "" if each is None else f"{each.verdict.symbol}{'' if each.survives else '*'}"
            rows[-1].append("-" if each is None else f"{each.gain.values.mean:+.{_digits(setting)}f} {mark}")
    return ["what is trained on", *(SETTINGS[setting] for setting in results.settings)], rows
