"""What is set to the right, and what in front of the report is said of how many."""

import pytest

from benchmarks.report.document import Table
from benchmarks.report.results import read_experiments
from benchmarks.report.summary import summarize
from tests.benchmarks.report_records import AS_IN_PAPER, Setting, write_records


@pytest.mark.parametrize(
    ("cells", "is_numeric"),
    [
        (["3", "+1.5 ± 2"], True),
        (["1,000", "-"], True),
        (["-0.04", "+0.06 (-0.78 to +0.89), n = 10"], True),
        (["162 ns (154 to 165)", "1.60 µs (1.57 to 1.63)", "0%", "14.4 %"], True),
        (["2.5 times the cost"], True),
        (["3 of 32", "0"], False),
        (["32 of 32"], False),
        (["640 + 2,000 images of 32x24"], False),
        (["12, 2 unfinished left out", "12"], False),
        (["14.5 % on birds"], False),
        (["-"], False),
    ],
)
def test_only_columns_of_numbers_are_set_to_the_right(cells, is_numeric):
    assert Table(["column"], [[cell] for cell in cells]).numeric == [is_numeric]


# As little as the paper's settings take: one seed of two arms.
AS_THEIRS = AS_IN_PAPER._replace(arms=("baseline", "attention"), seeds=(0,))
LESS = Setting(arms=("baseline", "attention"), seeds=(0,), readings=("first",), noises=(0,))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([LESS], "All of this is at reduced size"),
        ([AS_THEIRS, LESS], "1 of 2 experiments is at reduced size"),
        ([AS_THEIRS, LESS, LESS._replace(model="other")], "2 of 3 experiments are at reduced size"),
    ],
)
def test_the_limits_agree_in_number_with_what_they_are_said_of(tmp_path, settings, said):
    paths = [write_records(tmp_path / setting.model, setting) for setting in settings]
    sentence = summarize(read_experiments(paths))[-1]
    assert sentence.startswith(said)
    so = "they neither confirm nor refute" if " are at " in said else "it neither confirms nor refutes"
    assert f", so {so} the paper's figures" in sentence


def test_the_range_in_front_is_of_the_experiments_that_were_judged(tmp_path):
    judged = Setting(jitter=0, readings=("first",), noises=(0,))
    few = judged._replace(model="few", seeds=(0, 1), gain=0.1)
    idle = judged._replace(model="idle", repeats=0, gain=-0.1)
    paths = [write_records(tmp_path / setting.model, setting) for setting in (judged, few, idle)]
    experiments = read_experiments(paths)
    sentence = summarize(experiments)[1]
    (mean,) = [each for each in experiments if each.name.startswith("small_resnet")]
    difference = mean.differences(mean.conditions()[0], "baseline", lambda epochs: 100 * epochs[-1].accuracy).mean
    assert f"of 3 experiments ({difference:+.2f} points" in sentence
    without = summarize(read_experiments(paths[1:]))[1]
    assert (
        "is judged in none of 2 experiments; in 1 it hardly repeats anything; in 1 fewer than 3 seeds were run"
        in without
    )
