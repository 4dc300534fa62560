"""Records as they are read, and the verdicts, pages and figures that are made of them."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.errors import RecordsError
from benchmarks.reading import read_records
from benchmarks.report import paper
from benchmarks.report.__main__ import main
from benchmarks.report.comparisons import (
    accuracy_at_same_cost,
    accuracy_at_same_loss,
    overhead_before_convergence,
)
from benchmarks.report.results import read_experiments, variance
from benchmarks.report.statistics import Verdict, judge_above, judge_at_most, judge_gain, judge_range, sample
from benchmarks.schema import Epoch
from tests.cifar_helpers import run_benchmark, write_digits

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    options = ["--epochs", "2", "--seeds", "0", "1", "2", "--label-noise", "0", "3"]
    return run_benchmark(write_digits(folder / "digits"), folder / "out", *options)


@pytest.fixture
def copied(out, tmp_path):
    """Records that may be spoiled."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for name in ("configuration.json", "runs.jsonl", "epochs.jsonl"):
        (folder / name).write_bytes((out / name).read_bytes())
    return folder


def edit(path, line, **changes):
    lines = path.read_text().splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **changes})
    path.write_text("\n".join(lines) + "\n")


def drop(path, line):
    lines = path.read_text().splitlines()
    del lines[line]
    path.write_text("\n".join(lines) + "\n")


# Records ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "epochs.jsonl").unlink(), "epochs.jsonl cannot be read"),
        (lambda folder: edit(folder / "epochs.jsonl", 4, accuracy="high"), "epochs.jsonl, line 5 .* accuracy"),
        (lambda folder: edit(folder / "epochs.jsonl", 0, accuracy=1.5), "line 1 .* accuracy"),
        (lambda folder: edit(folder / "epochs.jsonl", 0, surprise=1), "line 1 .* surprise"),
        (lambda folder: edit(folder / "runs.jsonl", 1, arm="magic"), "runs.jsonl, line 2 .* arm"),
        (lambda folder: edit(folder / "configuration.json", 0, schema_version=2), "schema"),
        (lambda folder: edit(folder / "epochs.jsonl", 3, configuration="other"), "two configurations"),
        (lambda folder: edit(folder / "runs.jsonl", 0, configuration="other"), "two configurations"),
        (lambda folder: drop(folder / "epochs.jsonl", 0), "is missing"),
        (lambda folder: drop(folder / "epochs.jsonl", -1), "runs.jsonl says"),
        (lambda folder: drop(folder / "runs.jsonl", 0), "of which runs.jsonl does not know"),
        (lambda folder: (folder / "runs.jsonl").write_text((folder / "runs.jsonl").read_text() * 2), "two lines"),
    ],
)
def test_records_that_are_not_what_they_should_be_are_refused(copied, spoil, said):
    one_line = copied / "configuration.json"
    one_line.write_text(json.dumps(json.loads(one_line.read_text())))
    read_records(copied)
    spoil(copied)
    with pytest.raises(RecordsError, match=said):
        read_records(copied)
    with pytest.raises(SystemExit, match=r"^error: "):
        main([str(copied)])


def test_two_configurations_of_one_experiment_do_not_go_into_one_report(out, tmp_path):
    other = run_benchmark(out.parent / "digits", tmp_path / "out", "--k", "1.3", "--epochs", "1", "--arms", "baseline")
    with pytest.raises(RecordsError, match=r"in two configurations, which differ in epochs \(.*k \(0.7 and 1.3"):
        read_experiments([out, other])


def test_the_same_run_does_not_count_twice(out, copied):
    with pytest.raises(RecordsError, match="give each run once"):
        read_experiments([out, copied])


def test_runs_of_one_configuration_from_two_folders_are_put_together(out, tmp_path):
    other = run_benchmark(out.parent / "digits", tmp_path / "out", "--epochs", "2", "--seeds", "7")
    (experiment,) = read_experiments([out, other])
    assert len(experiment.runs) == 2 * 3 * 4 + 4


def test_runs_that_are_not_finished_are_left_out_and_counted(copied):
    lines = (copied / "runs.jsonl").read_text().splitlines()
    for line in range(len(lines)):
        edit(copied / "runs.jsonl", line, is_finished=line > 0)
    (experiment,) = read_experiments([copied])
    assert (len(experiment.runs), experiment.unfinished) == (len(lines) - 1, 1)
    for line in range(len(lines)):
        edit(copied / "runs.jsonl", line, is_finished=False)
    with pytest.raises(RecordsError, match="no run of small_resnet on digits is finished"):
        read_experiments([copied])


# Statistics ------------------------------------------------------------------------------------------------

NUMBERS = st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=2, max_size=8)


@given(NUMBERS)
def test_the_interval_is_that_of_scipys_paired_t_test(values):
    differences = sample(values)
    low, high = differences.interval
    if differences.deviation < 1e-9:
        assert (low, high) == (pytest.approx(values[0], abs=1e-6), pytest.approx(values[0], abs=1e-6))
        return
    expected = stats.ttest_rel(values, [0.0] * len(values)).confidence_interval(0.95)
    assert (low, high) == (
        pytest.approx(expected.low, rel=1e-6, abs=1e-9),
        pytest.approx(expected.high, rel=1e-6, abs=1e-9),
    )


def test_the_papers_own_variances_come_from_its_counts():
    assert [variance(row.wrong_predictions) for row in paper.TABLE_2] == pytest.approx([11144.36, 9163.96], abs=1e-9)
    assert [row.variance for row in paper.TABLE_2] == [11144.36, 9163.96]


@pytest.mark.parametrize(
    ("values", "above", "gain"),
    [
        ([2.0, 2.5, 3.0], "holds", "holds"),
        ([0.9, 1.0, 1.1], "holds", "does not hold"),
        ([-0.1, 0.0, 0.1], "does not hold", "does not hold"),
        ([-3.0, -2.0, -1.0], "does not hold", "does not hold"),
        ([-2.0, 1.0, 4.0], "not enough runs", "not enough runs"),
        ([2.5, 2.6], "not enough runs", "not enough runs"),
        ([], "not enough runs", "not enough runs"),
    ],
)
def test_a_claim_of_a_gain_is_judged_by_its_interval(values, above, gain):
    assert judge_above(sample(values), least_gain=0.5) is Verdict(above)
    assert judge_gain(sample(values), claimed=2.0) is Verdict(gain)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([17.0, 18.0, 19.0], "holds"),
        ([12.0, 13.0, 14.0], "holds"),
        ([11.0, 11.1, 11.2], "does not hold"),
        ([30.0, 31.0, 32.0], "does not hold"),
        ([5.0, 17.0, 30.0], "not enough runs"),
        ([17.0], "not enough runs"),
    ],
)
def test_a_claim_of_a_range_is_judged_by_its_interval(values, said):
    assert judge_range(sample(values), least=15, most=20, widest=10) is Verdict(said)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([3.0, 3.5, 4.0], "holds"),
        ([0.0, 0.0, 0.0], "holds"),
        ([6.9, 8.9, 10.9], "not enough runs"),
        ([20.0, 21.0, 22.0], "does not hold"),
        ([1.0, 1.0], "not enough runs"),
    ],
)
def test_a_claim_of_at_most_so_much_is_judged_by_its_interval(values, said):
    assert judge_at_most(sample(values), most=5) is Verdict(said)


# Comparisons -----------------------------------------------------------------------------------------------


def make_epochs(accuracies, losses=None, repeats=None, seconds=None):
    return [
        Epoch.model_construct(
            epoch=number + 1,
            accuracy=accuracy,
            train_loss=None if losses is None else losses[number],
            repeats=0 if repeats is None else repeats[number],
            batches=10,
            updates=10 + (0 if repeats is None else repeats[number]),
            seconds=1.0 if seconds is None else seconds[number],
        )
        for number, accuracy in enumerate(accuracies)
    ]


def test_accuracy_at_the_same_cost_takes_attentions_last_epoch_within_the_baselines_time():
    baseline = make_epochs([0.1, 0.2, 0.3, 0.4])
    attention = make_epochs([0.1, 0.3, 0.45, 0.6], repeats=[0, 5, 5, 5], seconds=[1, 1, 1, 1.5])
    # Updates: 10, 25, 40 of the baseline's 40; seconds: 3 of 4.
    assert accuracy_at_same_cost(baseline, attention, in_seconds=False) == pytest.approx(5)
    assert accuracy_at_same_cost(baseline, attention, in_seconds=True) == pytest.approx(5)
    assert accuracy_at_same_cost(baseline, baseline, in_seconds=True) == 0
    late = make_epochs([0.9], seconds=[9.0])
    assert np.isnan(accuracy_at_same_cost(baseline, late, in_seconds=True))


def test_accuracy_at_the_same_loss_compares_where_both_arms_have_been():
    baseline = make_epochs([0.1, 0.2, 0.3], losses=[3.0, 2.0, 1.0])
    attention = make_epochs([0.2, 0.4], losses=[2.0, 0.0])
    # At losses 2 to 1 the baseline has 0.2 to 0.3, and so has attention.
    assert accuracy_at_same_loss(baseline, attention) == pytest.approx(0)
    better = make_epochs([0.25, 0.35], losses=[2.0, 1.0])
    assert accuracy_at_same_loss(baseline, better) == pytest.approx(5)
    apart = make_epochs([0.5], losses=[0.5])
    assert np.isnan(accuracy_at_same_loss(baseline, apart))


def test_repeats_count_before_the_baseline_first_has_nearly_its_best_accuracy():
    baseline = make_epochs([0.5, 0.7, 0.96, 1.0])
    attention = make_epochs([0.5, 0.7, 0.9, 0.9], repeats=[0, 1, 9, 9])
    # Epoch 2 only: nothing can repeat in epoch 1, and epoch 3 has 96 % of the best.
    assert overhead_before_convergence(baseline, attention) == pytest.approx(10)
    assert np.isnan(overhead_before_convergence(make_epochs([1.0, 1.0]), make_epochs([1.0, 1.0], repeats=[0, 9])))


# The report ------------------------------------------------------------------------------------------------


def test_the_page_holds_every_figure_and_asks_for_nothing_from_elsewhere(out, tmp_path, capsys):
    main([str(out), "--out", str(tmp_path / "report")])
    page = (tmp_path / "report" / "report.html").read_text()
    text = (tmp_path / "report" / "report.md").read_text()
    figures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(figures) == 7
    for name in figures:
        assert (tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG")
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 7
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<table>") == text.count("| --- |\n")
    assert "Claims" in capsys.readouterr().out


def test_a_reduced_experiment_says_so_in_every_row_of_the_claims(out, tmp_path):
    main([str(out), "--out", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.md").read_text()
    claims = text[text.index("## Claims") : text.index("A verdict rests")]
    rows = [row for row in claims.splitlines() if "small_resnet on digits" in row]
    assert len(rows) >= 10
    assert all("reduced: small_resnet on digits" in row and "on a CPU" in row and "2 epochs" in row for row in rows)


def test_a_claim_without_records_is_said_to_have_none(out, tmp_path):
    main([str(out), "--out", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.md").read_text()
    claim = "Accuracy is up, by less, on CIFAR-100 (section 4.3)"
    assert f"| {claim} | - | **not enough runs** | no runs that it applies to |" in text


def test_a_report_of_a_baseline_alone_has_its_table_and_no_verdict(out, tmp_path):
    alone = run_benchmark(out.parent / "digits", tmp_path / "out", "--arms", "baseline", "--epochs", "1")
    main([str(alone)])
    text = (alone / "report" / "report.md").read_text()
    assert "| small_resnet on digits | none | baseline | 3 |" in text
    assert "**holds**" not in text
