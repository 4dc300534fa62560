"""Configurations of one model and data in one report."""

import pytest

from benchmarks.report.naming import tell_apart
from benchmarks.report.results import read_experiments
from tests.benchmarks.cifar_helpers import run_benchmark
from tests.benchmarks.report.pages import PLAIN, make_report, read_links
from tests.benchmarks.report_records import make_configuration


def told(*settings, folders=None):
    configurations = [make_configuration(setting) for setting in settings]
    return tell_apart(configurations, folders or [f"folder{place}" for place in range(len(settings))])


def test_two_configurations_of_one_experiment_are_told_apart_by_what_differs(digits, out, tmp_path):
    other = run_benchmark(digits, tmp_path / "out", "--k", "1.3", "--epochs", "1", "--arms", "baseline")
    alone = [read_experiments([folder])[0].name for folder in (out, other)]
    together = [experiment.name for experiment in read_experiments([out, other])]
    assert alone == ["small_resnet on digits"] * 2
    assert together == ["small_resnet on digits (1 epoch, K 1.3)", "small_resnet on digits (2 epochs, K 0.7)"]


@pytest.mark.usefixtures("undrawn")
def test_each_of_them_has_its_claims_its_column_and_figures_of_its_own(tmp_path):
    text = make_report(tmp_path, PLAIN, PLAIN._replace(k=1.5))
    names = [f"small_resnet on cifar10 (K {k})" for k in ("1.25", "1.5")]
    titles, _, pictures = read_links(text)
    assert all(f"Claims: {name}" in titles and f"Figures: {name}" in titles for name in names)
    assert f"| claim | {names[0]} | {names[1]} |" in text
    assert len(set(pictures)) == len(pictures)


def test_a_single_configuration_and_those_of_other_data_have_plain_names():
    assert told(PLAIN) == [""]
    assert told(PLAIN, PLAIN._replace(data="birds", k=1.5), PLAIN._replace(model="tnt", k=1.5)) == ["", "", ""]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": (50_000, 20_000)}, ("640 images", "50,000 images")),
        ({"images": (640, 100)}, ("20,000 test images", "100 test images")),
        ({"batch_size": 32}, ("batches of 30", "batches of 32")),
        ({"learning_rate": 1e-4}, ("learning rate 0.0003", "learning rate 0.0001")),
        ({"max_visits": None}, ("max_visits 5", "max_visits none")),
        ({"precision": "bf16"}, ("precision tf32", "precision bf16")),
        ({"pretrained": True}, ("not pretrained", "pretrained")),
        ({"options": (("depth", 4),)}, ("", "depth 4")),
        ({"weights": "some 1.0"}, ("", "weights some 1.0")),
    ],
)
def test_every_setting_that_differs_has_words(changes, said):
    assert told(PLAIN, PLAIN._replace(**changes)) == list(said)


def test_of_several_all_say_the_same_things():
    settings = (PLAIN, PLAIN._replace(k=1.5), PLAIN._replace(k=1.5, epochs=5))
    assert told(*settings) == ["4 epochs, K 1.25", "4 epochs, K 1.5", "5 epochs, K 1.5"]


def test_where_no_setting_differs_the_folder_does_and_at_last_the_digest():
    settings = (PLAIN, PLAIN._replace(classes=tuple("abcdefghij")), PLAIN._replace(k=1.5))
    assert told(*settings) == ["K 1.25, folder0", "K 1.25, folder1", "K 1.5"]
    same = told(*settings, folders=["out", "out", "out"])
    digests = [make_configuration(setting).digest() for setting in settings]
    assert same == [f"K 1.25, out, {digests[0]}", f"K 1.25, out, {digests[1]}", "K 1.5"]


def test_names_that_are_read_alike_are_told_apart():
    names = told(PLAIN._replace(data="a b"), PLAIN._replace(data="a\nb"), folders=["one", "two"])
    assert names == ["one", "two"]
