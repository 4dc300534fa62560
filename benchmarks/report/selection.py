"""The report on runs of ``benchmarks.selection``: which choice of samples pays, and where."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.environment import one_line
from benchmarks.errors import RecordsError
from benchmarks.reading import Records
from benchmarks.report.document import Report, render_template
from benchmarks.report.figures import Line, forest
from benchmarks.report.results import gain
from benchmarks.report.statistics import LEAST_RUNS, SIGNIFICANCE, Gain, Verdict, correct, show
from benchmarks.schema import Epoch, SelectionConfiguration
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
    only_controls: list[str]  # arms that are run for the comparison alone
    peer: str  # the arm that others are compared with too
    compared: list[str]  # these; empty for all
    measures: list[str]  # secondary ones


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


def digits_of(setting: str) -> int:
    """Of a score: text is measured in nats, all else in per cent."""
    return 4 if setting == "text" else 2


class Results:
    """What the runs of a study, or those of its planned or its added seeds, come to."""

    def __init__(self, study: Study, frame: pd.DataFrame, seeds: str = "") -> None:
        arms = dict.fromkeys(["plain", *study.arms, *study.only_controls, *sorted(frame["arm"])])
        order = {arm: place for place, arm in enumerate(arms)}
        frame = frame.sort_values("seed").sort_values("arm", key=lambda arms: arms.map(order), kind="stable")
        self.study, self.frame, self.seeds = study, frame, seeds
        self.settings = {name: frame[frame["setting"] == name] for name in SETTINGS if name in {*frame["setting"]}}
        found = [self._judge(name, arm) for name, runs in self.settings.items() for arm in runs["arm"].unique()]
        self.findings = [each for each in found if each.gain.values.n]
        self.by_arm = {(each.setting, each.arm): each for each in self.findings}
        # Kinds planned to compare gains over plain training; images have controls among what is tested.
        if study is IMAGES:
            gains = [each for found in self.findings for each in (found.gain, found.over)]
        else:
            gains = [each.gain for each in self.compared()]
        correct(gains)
        self.family = sum(each.values.n > 1 for each in gains)

    def _judge(self, setting: str, arm: str) -> Finding:
        runs, control, digits = self.settings[setting], self.study.controls.get(arm), digits_of(setting)
        over_plain, over = (gain(runs, arm, other, "score", digits) for other in ("plain", control))
        (low, high), verdict = over_plain.values.interval, Verdict.NO_DIFFERENCE
        if arm in self.study.only_controls:
            verdict = Verdict.CONTROL
        elif over_plain.values.n < LEAST_RUNS or (control and over.values.n < LEAST_RUNS):
            verdict = Verdict.NOT_ENOUGH_RUNS
        elif high < 0:
            verdict = Verdict.HARMS
        elif low > 0 and (not control or over.values.interval[0] > 0):
            verdict = Verdict.PAYS if over_plain.values.n >= LEAST_SEEDS_TO_PAY else Verdict.NOT_ENOUGH_RUNS
        return Finding(setting, arm, over_plain, control, over, verdict)

    def measures(self, setting: str) -> list[str]:
        """The secondary measures; those of rare groups only where there are some."""
        has_tail = self.settings[setting]["has_tail"].any()
        return [each for each in self.study.measures if has_tail or each == "macro_f1"]

    def secondary(self, setting: str) -> dict[str, dict[str, Gain]]:
        """By arm, its gains of the secondary measures over plain training and its control, and over the peer."""
        runs, digits, found = self.settings[setting], digits_of(setting), dict[str, dict[str, Gain]]()
        for arm in runs["arm"].unique():
            others = {"plain": "plain", "control": self.study.controls.get(arm)}
            found[arm] = {
                f"{measure} over {words}": gain(runs, arm, other, measure, digits)
                for measure in self.measures(setting)
                for words, other in others.items()
            }
            peer = self.study.peer if arm in (self.study.compared or runs["arm"].unique()) else None
            found[arm]["score over peer"] = gain(runs, arm, peer, "score", digits)
        return found

    def shown(self) -> list[str]:
        """The arms of the table of gains at a glance: those with enough seeds, what pays most often first."""
        pays = Counter(each.arm for each in self.compared(Verdict.PAYS))
        shown = {each.arm for each in self.compared() if each.gain.values.n >= LEAST_SEEDS_TO_PAY} | {"repeated"}
        shown -= {arm for arm in shown if "+" in arm}
        return sorted((arm for arm in self.study.arms if arm in shown), key=lambda arm: -pays[arm])

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
    frame = pd.DataFrame([_measure(epoch) for _, epoch in runs])
    if cast("SelectionConfiguration", read[0].configuration).study == "images":
        return [Results(IMAGES, frame)]
    scores = {name: epoch.chosen.validation for name, epoch in runs if epoch.chosen}
    rates = {pair: choose_rate(scores, *pair) for pair in {(name.setting or "", name.arm) for name, _ in runs}}
    frame = frame[[row.rate == rates[row.setting, row.arm] for row in frame.itertuples()]]
    is_planned = frame["seed"].isin(PLANNED_SEEDS)
    parts = {"the planned seeds": frame[is_planned], "the added seeds": frame[~is_planned]}
    return [Results(KINDS, part, seeds) for seeds, part in parts.items() if len(part)]


def _measure(epoch: Epoch) -> dict[str, Any]:
    chosen = epoch.chosen
    assert chosen is not None
    is_text = epoch.setting == "text" and chosen.group_losses
    groups = [-loss for loss in chosen.group_losses or []] if is_text else chosen.recalls
    by_count = [value for _, value in sorted(zip(chosen.counts, groups, strict=True))]
    has_tail = len({*chosen.counts}) > 1
    return epoch.model_dump() | {
        "has_tail": has_tail,
        "score": 100 * epoch.accuracy if chosen.score is None else chosen.score,
        "macro_f1": 100 * epoch.macro_f1,
        "rarest_third": statistics.fmean(by_count[: len(by_count) // 3] if has_tail else by_count),
        "worst": min(groups),
        "extra": 100 * epoch.repeats / epoch.updates,
        "looked": chosen.forward_samples,
        "pruned": chosen.pruned,
        "pruned_share": 100 * chosen.pruned / (chosen.pruned + chosen.forward_samples),
    }


def report_selection(read: Sequence[Records]) -> Report:
    """The report."""
    parts, sizes = read_results(read), cast("SelectionConfiguration", read[0].configuration).settings
    figures = {f"gains{'-' * bool(each.seeds)}{each.seeds[4:-6]}.png": _forest(each) for each in parts}
    secondary = [(each, setting, each.secondary(setting)) for each in parts for setting in each.settings]
    correct([gain for *_, of_arms in secondary for gains in of_arms.values() for gain in gains.values()])
    rows = [row for each in parts for row in each.frame.itertuples()]
    places = [place.environment for records in read for run in records.runs.values() for place in run.surroundings]
    text = render_template(
        "selection.md.jinja",
        study=parts[0].study,
        is_images=parts[0].study is IMAGES,
        parts=parts,
        verdicts=Verdict,
        files=[*figures],
        names=SETTINGS,
        secondary=secondary,
        base_rates={setting: sizes[setting].get("learning_rate") for each in parts for setting in each.settings},
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
    study, found = results.study, dict[str, list[str]]()
    payers = dict.fromkeys(each.arm for each in results.compared(Verdict.PAYS))
    arms = [arm for arm in payers if study.controls.get(arm) in study.only_controls]
    for arm, (setting, runs) in itertools.product([*arms, study.controls[study.peer]], results.settings.items()):
        over = gain(runs, arm, study.peer, "score").values
        if over.n >= LEAST_RUNS:
            is_apart = not over.interval[0] <= 0 <= over.interval[1]
            found.setdefault(arm, []).extend([f"{show(over, with_n=False)} on {SETTINGS[setting]}"] * is_apart)
    return found


def _doses(results: Results) -> list[str]:
    """How much of what an arm does its random control does too."""
    said = []
    for arm, words, measure in (("left_out", "samples pruned", "pruned"), ("pooled", "extra updates", "repeats")):
        for setting, runs in results.settings.items():
            by_arm = runs.pivot(index="seed", columns="arm", values=measure)
            ours, theirs = by_arm.reindex(columns=[arm, f"{arm}_random"]).dropna().sum()
            if ours:
                said.append(f"{100 * theirs / ours:.0f} % of the {words} of `{arm}` on {setting}")
    return said


def _forest(results: Results) -> Figure:
    lines = [
        Line(SETTINGS[each.setting], each.arm, each.gain.values, _COLORS.get(each.verdict, "#BBBBBB"))
        for each in results.findings
        if each.gain.values.n > 1 and each.setting != "text"  # which is in nats
    ]
    return forest(lines, "gain in points over plain training (95 % CI), at as many updates")
