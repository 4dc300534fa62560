"""The examples for text, images and tables: five arms, paired by seed, and what the tables say of them."""

import functools
import re

import pytest

from tests.project.test_examples import EXAMPLES, run

# The score that counts: whether less of it is better.
IS_LOW_GOOD = {"language_model.py": True, "segmentation.py": False, "tabular_regression.py": True}
pytestmark = pytest.mark.slow
ARMS = ("plain", "batch attention", "random repeats", "sample attention", "random samples")


@functools.cache
def output(name):
    # Two epochs prune nothing, and a warning says so.
    return run("-W", "ignore:with epochs=2", str(EXAMPLES / name), "--seeds", "2", "--epochs", "2")


def rows(text, title):
    """The cells of each line of the table under a title, by the first of them."""
    below = text.partition(title)[2].partition("└")[0]
    lines = [line.strip("│").split("│") for line in below.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line] for line in lines]


def arms(name):
    """Of each arm: its mean scores, updates and samples pruned."""
    found = {}
    for arm, *scores, updates, pruned in rows(output(name), "Test, last epoch"):
        found[arm] = [float(score.partition(" ")[0]) for score in scores], float(updates), int(pruned)
    return found


@pytest.mark.parametrize("name", IS_LOW_GOOD)
def test_each_arm_takes_as_many_updates_as_it_promises(name):
    updates = {arm: updates for arm, (_, updates, _) in arms(name).items()}
    assert updates["plain"] == updates["sample attention"] == updates["random samples"]
    assert updates["random repeats"] == updates["batch attention"]
    assert updates["plain"] <= updates["batch attention"] <= 1.2 * updates["plain"]


@pytest.mark.parametrize("name", IS_LOW_GOOD)
def test_arms_that_have_pruned_nothing_yet_are_plain_training_to_the_last_digit(name):
    found = arms(name)
    assert found["sample attention"] == found["random samples"] == found["plain"]
    assert found["plain"][2] == 0
    assert "sample attention, at 0.0% more updates than plain: equal to plain in every run" in output(name)
    if name != "segmentation.py":  # whose batches differ too little to be repeated this early
        assert found["batch attention"][1] > found["plain"][1]
        assert found["batch attention"][0] != found["random repeats"][0]


@pytest.mark.parametrize("name", IS_LOW_GOOD)
def test_the_sentences_say_what_the_intervals_show(name):
    text = output(name)
    sentences = re.findall(r"^.+: batch attention, at .+: .+; sample attention, .+: .+\.$", text, re.M)
    assert len(sentences) == 2
    verdicts = r"(better than|worse than|no significant difference from|equal to) (?:plain|random)"
    said = [re.findall(verdicts, sentence) for sentence in sentences]
    seen = 0
    for _, *gains in rows(text, "Paired gains"):
        if gains == ["", ""]:  # the arm whose gains follow
            continue
        for score, gain in enumerate(gains):
            mean, low, high = map(float, re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", gain).groups())
            assert low <= mean <= high
            expected = "better than" if low > 0 else "worse than" if high < 0 else "no significant difference from"
            assert said[score][seen] == ("equal to" if low == high == 0 else expected)
        seen += 1
    assert seen == 4
