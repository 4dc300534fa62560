"""Runs made again from their records."""

import json
import shutil

import pytest

from benchmarks.cifar.again import main, options_of
from benchmarks.cifar.models import find_recipe
from benchmarks.reading import read_records
from benchmarks.tables.newest import RECORDS
from tests.benchmarks.cifar_helpers import read_lines, write_digits

ATTENTION = ["--arm", "attention", "--label-noise", "3", "--seed", "1"]


@pytest.fixture
def again(digits, tmp_path):
    """The command's exit status, and what it says if that is a text."""

    def run(folder, *options):
        data = [] if "--data" in options else ["--data", str(digits)]
        with pytest.raises(SystemExit) as ended:
            main([str(folder), *data, "--data-dir", str(digits.parent / "cache"), *options])
        return ended.value.code

    return run


@pytest.mark.parametrize("options", [[], ATTENTION, [*ATTENTION, "--epoch-loss", "last"], ["--arm", "random"]])
def test_on_the_same_machine_nothing_differs(out, again, tmp_path, capsys, options):
    record = tmp_path / "records" / "again.jsonl"
    assert again(out, *options, "--record", str(record)) == 0
    assert "nothing" in capsys.readouterr().out
    lines = read_lines(record)
    assert [(line["epoch"], line["differs"]) for line in lines] == [(1, {}), (2, {}), (3, {})]
    assert again(out, *options, "--epochs", "1", "--record", str(record)) == 0
    assert len(read_lines(record)) == 4


def test_what_differs_is_shown_with_both_values(out, again, tmp_path, capsys):
    changed = shutil.copytree(out, tmp_path / "changed", ignore=shutil.ignore_patterns("work"))
    lines = read_lines(changed / "epochs.jsonl")
    for line in lines:
        if line["arm"] == "baseline" and line["epoch"] == 2:
            line["test_loss"] = 12.5
    (changed / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert again(changed) == 1
    shown = capsys.readouterr().out
    assert "test_loss" in shown
    assert "12.5" in shown


def test_what_cannot_be_made_again_is_said(out, again, tmp_path):
    assert "error: " in again(out, "--seed", "7")
    assert "it has attention-first-noise0-seed0, " in again(out, "--seed", "7")
    assert "longer ends where attention does" in again(out, "--arm", "longer")
    assert "--epochs is 4; the record has 3 of baseline-noise0-seed0" in again(out, "--epochs", "4")
    assert "--epochs is 0" in again(out, "--epochs", "0")
    assert "cannot be read" in again(tmp_path / "nowhere")
    others = write_digits(tmp_path / "others", train_per_class=15)
    message = again(out, "--data", str(others))
    assert "cannot be had as it was: data differ" in message or "images were asked for" in message


def test_the_command_that_is_documented_is_understood():
    text = (RECORDS.parent / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("python -m benchmarks.cifar.again")]
    with pytest.raises(SystemExit, match=r"RECORDS/...-cifar10-resnet34/configuration.json cannot be read"):
        main(line.split()[3:])


@pytest.mark.parametrize("folder", sorted(path.parent for path in RECORDS.glob("*/configuration.json")), ids=str)
def test_the_options_of_every_record_that_is_kept_give_its_configuration(folder):
    records = read_records(folder)
    asked = records.configuration
    for name, run in records.runs.items():
        if name.arm == "longer":
            continue
        options = options_of(asked, name, run.surroundings[0], epochs=2)
        assert options.plan()[-1] == name
        data = asked.data
        recipe = find_recipe(
            options.model, data.height, data.width, pretrained=options.pretrained, reduced=options.reduced
        )
        assert recipe.options == asked.model_options
        assert (options.images, options.test_images) == (data.train_images, data.test_images)
        assert (options.max_visits or None, options.k) == (asked.max_visits, asked.k)
        assert (options.precision, options.channels_last) == (asked.precision, asked.channels_last)
