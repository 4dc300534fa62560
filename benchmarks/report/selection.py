"""The report on runs of ``benchmarks.selection``: which choice of samples pays, and where."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.environment import one_line
from benchmarks.errors import RecordsError
from benchmarks.reading import Records
from benchmarks.report.document import Report, Row, correct, render_template, table
from benchmarks.report.figures import Line, forest
from benchmarks.report.results import gain
from benchmarks.report.statistics import LEAST_RUNS, SIGNIFICANCE, Verdict, sample
from benchmarks.report.wording import Gain, Mark, mean_and_deviation
from benchmarks.schema import Epoch, RunName, SelectionConfiguration
from benchmarks.selection.rates import RATES, TUNING_SEEDS, choose_rate

# An arm that is said to pay has been run with so many seeds.
LEAST_SEEDS_TO_PAY = 8
# Of kinds; the others were added when the results of these had been seen.
PLANNED_SEEDS = range(8)
_COLORS = {Verdict.PAYS: "#009E73", Verdict.HARMS: "#D55E00", Verdict.NO_DIFFERENCE: "#777777"}


class Study(NamedTuple):
    """What is known of a study before it has run, from selection.json."""

    title: str
    arms: dict[str, str]  # what each trains on, in words, without plain training and controls
    controls: dict[str, str]  # what a gain has to be over as well, to come from which samples are chosen
    peer: str  # the arm that others are compared with too
    compared: list[str]  # these; empty for all
    measures: list[str]  # secondary ones

    @property
    def only_controls(self) -> set[str]:
        """Arms that are run for the comparison alone."""
        return {*self.controls.values()} - {*self.arms}


_WORDS = json.loads(Path(__file__).with_name("selection.json").read_text(encoding="utf-8"))
SETTINGS: dict[str, str] = _WORDS.pop("settings")
IMAGES, KINDS = (Study(**_WORDS[name]) for name in ("images", "kinds"))


class Finding(NamedTuple):
    """One arm in one setting."""

    setting: str
    arm: str
    gain: Gain  # over plain training
    control: str | None
    over: Gain  # the same over the control
    verdict: Verdict  # by the intervals

    @property
    def survives(self) -> bool:
        """Whether a verdict survives the correction; one that neither pays nor harms does."""
        tested = {Verdict.PAYS: [self.gain.p, self.over.p], Verdict.HARMS: [self.gain.p]}.get(self.verdict, [])
        return not any(p >= SIGNIFICANCE for p in tested)

    def __str__(self) -> str:
        return f"{self.arm} on {SETTINGS.get(self.setting, self.setting)} {self.gain}{'' if self.survives else '*'}"


class Results:
    """What the runs of a study, or those of its planned or its added seeds, come to."""

    def __init__(self, study: Study, frame: pd.DataFrame, seeds: str = "") -> None:
        order = ["plain", *study.arms, *sorted(study.only_controls)]
        frame = frame.assign(place=[order.index(arm) if arm in order else len(order) for arm in frame["arm"]])
        frame = frame.sort_values(["place", "arm", "seed"], ignore_index=True)
        self.study, self.frame, self.seeds = study, frame, seeds
        self.settings = {name: frame[frame["setting"] == name] for name in SETTINGS if name in {*frame["setting"]}}
        found = [
            self._judge(name, arm)
            for name, runs in self.settings.items()
            for arm in runs["arm"].unique()
            if arm != "plain"
        ]
        self.findings = [each for each in found if each.gain.values.n]
        # Kinds planned to compare gains over plain training; images have controls among what is tested.
        if study is IMAGES:
            gains = [each for found in self.findings for each in (found.gain, found.over)]
        else:
            gains = [each.gain for each in self.compared()]
        correct(gains)
        self.family = sum(each.values.n > 1 for each in gains)

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
    """The results of a study, of its planned and of its added seeds; the folders have one plan and a finished run."""
    if len({records.configuration.digest() for records in read}) > 1:
        raise RecordsError("the folders were made with different plans; give each its own report")
    runs = [
        (name, records.epochs[name][-1]) for records in read for name, run in records.runs.items() if run.is_finished
    ]
    if not runs:
        raise RecordsError("there is no finished run; give the benchmarks.selection command first")
    frame = pd.DataFrame([_measure(name, epoch) for name, epoch in runs])
    if cast("SelectionConfiguration", read[0].configuration).study == "images":
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
    is_text = name.setting == "text" and chosen.group_losses
    groups = [-loss for loss in chosen.group_losses or []] if is_text else chosen.recalls
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
    parts, sizes = read_results(read), cast("SelectionConfiguration", read[0].configuration).settings
    figures = {f"gains{'-' * bool(each.seeds)}{each.seeds[4:-6]}.png": _forest(each) for each in parts}
    secondary = {(each, setting): _secondary(each, setting) for each in parts for setting in each.settings}
    correct([cell for rows in secondary.values() for row in rows for cell in row.values() if isinstance(cell, Gain)])
    sections = []
    for (each, setting), cells in secondary.items():
        title = ": ".join(filter(None, [SETTINGS[setting], each.seeds]))
        sections.append((title, _primary(each, setting), table(cells), sizes[setting].get("learning_rate")))
    rows = [row for each in parts for row in each.frame.itertuples()]
    places = [place.environment for records in read for run in records.runs.values() for place in run.surroundings]
    text = render_template(
        "selection.md.jinja",
        study=parts[0].study,
        is_images=parts[0].study is IMAGES,
        parts=parts,
        verdicts=Verdict,
        files=[*figures],
        sections=sections,
        peer=_over_peer(parts[0]) if parts[0].study is IMAGES else {},
        doses=_doses(parts[0]) if parts[0].study is IMAGES else [],
        edges=sorted({f"{row.arm} on {row.setting}" for row in rows if row.rate in (RATES[0], RATES[-1])}),
        rates=[f"{rate:g}" for rate in RATES],
        tuning=TUNING_SEEDS,
        packages=pd.DataFrame([each["packages"] for each in places], columns=["mosaicml", "infobatch"]),
        machines=sorted({*map(one_line, places)}),
    )
    return Report(text, figures)


def _over_peer(results: Results) -> dict[str, list[str]]:
    """The significant gains over the peer: of arms that pay, and of plain training at the peer's cost."""
    study, found = results.study, {}
    payers = dict.fromkeys(each.arm for each in results.compared(Verdict.PAYS))
    arms = [arm for arm in payers if study.controls.get(arm) in study.only_controls]
    for arm in [*arms, study.controls[study.peer]]:
        gains = {setting: gain(runs, arm, study.peer, "score") for setting, runs in results.settings.items()}
        gains = {setting: each for setting, each in gains.items() if each.n >= LEAST_RUNS}
        apart = {setting: each for setting, each in gains.items() if not each.interval[0] <= 0 <= each.interval[1]}
        if gains:
            found[arm] = [f"{Gain(each)} on {SETTINGS[setting]}" for setting, each in apart.items()]
    return found


def _doses(results: Results) -> list[str]:
    """How much of what an arm does its random control does too."""
    said = []
    for arm, words, measure in (("left_out", "samples left out", "pruned"), ("pooled", "extra updates", "repeats")):
        for setting, runs in results.settings.items():
            by_arm = runs.pivot(index="seed", columns="arm", values=measure)
            ours, theirs = by_arm.reindex(columns=[arm, f"{arm}_random"]).dropna().sum()
            if ours:
                said.append(f"{100 * theirs / ours:.0f} % of the {words} of `{arm}` on {setting}")
    return said


def _digits(setting: str) -> int:
    return 4 if setting == "text" else 2


def _primary(results: Results, setting: str) -> str:
    found = {each.arm: each for each in results.findings if each.setting == setting}
    rows: list[dict[str, Any]] = []
    for arm, runs in results.settings[setting].groupby("arm", sort=False):
        score = mean_and_deviation(sample(runs["score"]), _digits(setting))
        rows.append({"arm": str(arm), "n": str(len(runs))})
        rows[-1]["rate"] = "-" if runs["rate"].isna().any() else f"{runs['rate'].iloc[0]:g}"
        rows[-1]["minus loss, nats" if setting == "text" else "accuracy, %"] = score
        if each := found.get(str(arm)):
            rows[-1] |= {"gain over plain (95 % CI)": each.gain, "over control (95 % CI)": each.over}
            rows[-1] |= {"control": each.control or "-", "verdict": Mark(each.verdict, not each.survives)}
    return table(rows)


def _secondary(results: Results, setting: str) -> list[Row]:
    study, runs, digits = results.study, results.settings[setting], _digits(setting)
    rows: list[Row] = []
    for arm, of_arm in runs.groupby("arm", sort=False):
        row: dict[str, Any] = {"arm": str(arm)}
        for measure in study.measures if runs["has_tail"].any() else {"macro_f1"} & {*study.measures}:
            name = measure.replace("macro_f1", "macro-F1").replace("_", " ")
            row[name] = mean_and_deviation(sample(of_arm[measure]), digits)
            for other, words in (
                (None if arm == "plain" else "plain", "plain"),
                (study.controls.get(str(arm)), "control"),
            ):
                row[f"{name} over {words}"] = Gain(gain(runs, str(arm), other, measure), digits) if other else "-"
        is_compared = arm != study.peer and (not study.compared or arm in study.compared)
        over_peer = gain(runs, str(arm), study.peer, "score") if is_compared else sample([])
        row[f"score over {study.peer}"] = Gain(over_peer, digits)
        of_plain = of_arm.merge(runs[runs["arm"] == "plain"], on="seed", suffixes=("", "_plain"))
        seconds, updates = ((of_plain[each] / of_plain[f"{each}_plain"]).median() for each in ("seconds", "updates"))
        means = {name: sample(of_arm[name]).mean for name in ("extra", "looked", "pruned", "pruned_share")}
        row |= {"extra updates": f"{means['extra']:.1f} %", "updates, of plain's": f"{100 * updates:.0f} %"}
        row |= {"time, plain = 1": f"{seconds:.2f}", "samples looked at": f"{means['looked']:,.0f}"}
        rows.append(row | {"left out": f"{means['pruned']:,.0f}", "of all": f"{means['pruned_share']:.0f} %"})
    return rows


def _forest(results: Results) -> Figure:
    lines = [
        Line(SETTINGS[each.setting], each.arm, each.gain.values, _COLORS.get(each.verdict, "#BBBBBB"))
        for each in results.findings
        if each.gain.values.n > 1 and each.setting != "text"  # which is in nats
    ]
    return forest(lines, "gain in points over plain training (95 % CI), at as many updates")


def glance(results: Results) -> str:
    """The mean gain of each arm in each setting, what pays most often first, as a table."""
    found = {(each.arm, each.setting): each for each in results.compared()}
    most = {arm: max(each.gain.values.n for each in found.values() if each.arm == arm) for arm, _ in found}
    shown = [arm for arm in results.study.arms if most.get(arm, 0) >= LEAST_SEEDS_TO_PAY or arm == "repeated"]
    shown.sort(key=lambda arm: -sum(each.verdict is Verdict.PAYS for each in found.values() if each.arm == arm))
    rows = []
    for arm in [arm for arm in shown if "+" not in arm]:
        row = {"what is trained on": f"{results.study.arms[arm]} ({arm})"}
        for setting in results.settings:
            row[SETTINGS[setting]] = "-"
            if each := found.get((arm, setting)):
                mark = f"{each.verdict.symbol}{'' if each.survives else '*'}"
                row[SETTINGS[setting]] = f"{each.gain.values.mean:+.{_digits(setting)}f} {mark}"
        rows.append(row)
    return table(rows)
