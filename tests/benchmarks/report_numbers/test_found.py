"""What stands in front of the study of samples: its words fit whatever records there are."""

import re

import pytest

from benchmarks.selection import findings
from benchmarks.selection.arms import ARMS, ONLY_CONTROLS
from benchmarks.selection.settings import SETTINGS
from tests.benchmarks.test_selection import made_up, noise


def say(gain, seeds, twins_gain=0.0, setting="noisy"):
    plain = 50 + noise(0, seeds)
    values = {"plain": plain, "left_out": plain + gain + noise(1, seeds)}
    values["left_out_random"] = plain + twins_gain + noise(2, seeds)
    return findings.say_what_is_found(made_up(values, setting))


def test_every_arm_and_every_setting_is_said_in_words():
    assert set(findings.ARMS) == ARMS.keys() - {"plain"} - ONLY_CONTROLS
    assert set(findings.SETTINGS) == set(SETTINGS)


def test_what_pays_is_said_in_words_with_its_name_its_setting_and_its_interval():
    runs, pays, harms, counted = say(2.0, 8)[:4]
    assert runs == "24 runs of a small network, every arm with exactly 100 updates; 8 seeds at most."
    shown = r"on 10 % of labels redrawn (\S+) \((\S+) to (\S+)\)\."
    found = re.search(rf"^Found to pay, .+: samples .+ left out half the time \(left_out\), {shown}$", pays)
    mean, low, high = map(float, found.groups())
    assert 0 < low < mean < high
    assert harms == "Nothing is found to harm."
    assert counted.endswith("0 cannot be told from their runs, and 0 have too few of them.")


@pytest.mark.parametrize(("gain", "twins_gain", "seeds"), [(2.0, 0.0, 7), (2.0, 2.0, 8), (0.0, 0.0, 8)])
def test_nothing_pays_with_fewer_seeds_or_no_gain_over_the_twin_or_none_at_all(gain, twins_gain, seeds):
    _, pays, harms, counted = say(gain, seeds, twins_gain)
    assert pays == "Nothing is found to pay; that takes 8 seeds."
    assert harms == "Nothing is found to harm."
    assert re.search(r"^Of 1 comparisons? with plain training, ", counted)


def test_what_harms_is_said_with_fewer_seeds_too_and_one_seed_is_one():
    assert say(-2.0, 4)[2].startswith(
        "Found to harm, in points of accuracy over plain training (95 % interval): samples "
    )
    assert "; 1 seed at most." in say(-2.0, 1)[0]


def test_an_arm_that_nobody_has_put_into_words_is_called_by_its_name():
    plain = 50 + noise(0)
    said = findings.say_what_is_found(made_up({"plain": plain, "brand_new": plain + 5 + noise(1)}, "elsewhere"))
    assert ": brand_new, on elsewhere +" in said[1]


@pytest.mark.parametrize(
    ("behind", "said"),
    [(-3.0, "ahead on 10 % of labels redrawn"), (3.0, "behind on 10 % of labels redrawn"), (0.0, "told apart nowhere")],
)
def test_what_pays_is_compared_with_selective_backprop(behind, said):
    plain = 50 + noise(0)
    values = {"plain": plain, "left_out": plain + 4 + noise(1), "left_out_random": plain + noise(2)}
    values |= {"selective_backprop": plain + 4 + behind + noise(3), "plain_longer": plain + 9 + noise(4)}
    last = findings.say_what_is_found(made_up(values, "noisy"))[-1]
    assert last.startswith("Against selective_backprop, which runs the network on more samples: ")
    assert f"left_out is {said}" in last
    assert "plain training at its cost (plain_longer) is ahead on 10 % of labels redrawn" in last
