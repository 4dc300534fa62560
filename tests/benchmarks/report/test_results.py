"""Which runs there are, and what experiments are called."""

import pytest

from benchmarks.errors import RecordsError
from benchmarks.report.__main__ import main
from benchmarks.report.results import name_experiments, read_folders, tabulate
from tests.benchmarks.report_records import EXACT, Setting, make_configuration, write_records, write_selection

PLAIN = Setting()


def names(*settings):
    return name_experiments([make_configuration(setting) for setting in settings])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": (50_000, 20_000)}, ("640 images", "50,000 images")),
        ({"images": (640, 100)}, ("20,000 test images", "100 test images")),
        ({"is_paper": True}, ("max visits 5", "")),
        ({"options": (("depth", 4),)}, ("", "depth 4")),
        ({"k": 1.5, "epochs": 5}, ("epochs 4, K 1.25", "epochs 5, K 1.5")),
        ({"data": "birds", "k": 1.5}, ("", "")),
    ],
)
def test_experiments_of_one_model_and_data_are_named_by_what_differs(changes, said):
    both = names(PLAIN, PLAIN._replace(**changes))
    assert [name.partition(" (")[2].rstrip(")") for name in both] == list(said)


def test_where_nothing_differs_that_a_reader_understands_the_digest_does():
    settings = PLAIN, PLAIN._replace(classes=tuple("abcdefghij"))
    assert names(*settings) == [f"small_resnet on cifar10 [{make_configuration(each).digest()}]" for each in settings]
    assert len(set(names(PLAIN._replace(data="a b"), PLAIN._replace(data="a\nb")))) == 2


def test_folders_of_one_configuration_are_put_together_and_a_run_does_not_count_twice(tmp_path):
    seeds = {"1": (0, 1), "2": (2,), "3": (1,)}
    one, two, again = (write_records(tmp_path / name, EXACT._replace(seeds=each)) for name, each in seeds.items())
    cifar = tabulate(read_folders([one, two]))
    assert sorted(cifar.runs[cifar.runs["arm"] == "attention"]["seed"]) == [0, 1, 2]
    assert len(cifar.configurations) == 1
    with pytest.raises(RecordsError, match="give each run once"):
        read_folders([one, two, again])


def test_unfinished_runs_are_left_out_and_counted(tmp_path, report):
    one = ("attention", "first", 0, 0)
    text = report(EXACT._replace(unfinished=(one,)))
    assert "| 11, 1 unfinished left out |" in text
    every = EXACT._replace(arms=("baseline",), unfinished=tuple(("baseline", None, 0, seed) for seed in range(3)))
    with pytest.raises(RecordsError, match="no run of small_resnet on two is finished"):
        tabulate(read_folders([write_records(tmp_path / "none", every)]))


def test_a_report_is_on_one_kind_of_records(tmp_path):
    cifar = write_records(tmp_path / "cifar", EXACT)
    images = write_selection(tmp_path / "images", "images", {("noisy", "plain"): [50]})
    with pytest.raises(SystemExit, match=r"^error: the folders are of cifar, images; a report is on one of these"):
        main([str(cifar), str(images)])
