"""The command line: what it is by default, what is documented, and what is refused."""

import shlex
from pathlib import Path

import pytest

from benchmarks.cifar import __main__ as command
from benchmarks.cifar.models import MODELS
from benchmarks.cifar.options import Options, parse
from benchmarks.reading import read_records
from tests.benchmarks.cifar_helpers import run_benchmark, run_once, write_digits

ROOT = Path(__file__).parents[3]


def test_the_defaults_are_the_papers():
    options = parse([])
    assert options == Options()
    assert (options.model, options.data, options.epochs, options.batch_size) == ("resnet34", "cifar10", 100, 32)
    assert (options.learning_rate, options.k, options.label_noise, options.pretrained) == (1e-4, None, (0,), False)


def documented_commands():
    texts = [command.__doc__, (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")]
    for text in texts:
        for line in text.replace("\\\n", " ").splitlines():
            if line.split()[:3] == ["python", "-m", "benchmarks.cifar"]:
                yield line.strip()


def test_every_command_that_is_documented_is_understood():
    lines = list(documented_commands())
    assert len(lines) > 10
    for line in lines:
        parse(shlex.split(line, comments=True)[3:])


def test_every_option_is_understood():
    words = """--model tnt --reduced --pretrained --data DIR --data-dir CACHE --images 5000 --test-images 0
        --arms baseline attention --seeds 0 1 2 --epochs 7 --epoch-loss first last all --label-noise 1 3 6
        --precision bf16 --channels-last --no-deterministic --device cpu --at-once 2 --threads 3
        --checkpoint-seconds 60 --k 1.3 --max-visits 50 --batch-size 16 --learning-rate 1e-3 --out FOLDER"""
    assert parse(words.split()) == Options(
        model="tnt",
        reduced=True,
        pretrained=True,
        data="DIR",
        data_dir=Path("CACHE"),
        images=5000,
        test_images=0,
        arms=("baseline", "attention"),
        seeds=(0, 1, 2),
        epochs=7,
        epoch_loss=("first", "last", "all"),
        label_noise=(1, 3, 6),
        precision="bf16",
        channels_last=True,
        deterministic=False,
        device="cpu",
        at_once=2,
        threads=3,
        checkpoint_seconds=60.0,
        k=1.3,
        max_visits=50,
        batch_size=16,
        learning_rate=1e-3,
        out=Path("FOLDER"),
    )


def test_an_option_that_is_given_twice_has_its_last_value():
    options = parse(["--epochs", "3", "--seeds", "0", "1", "--epochs", "4", "--seeds", "2"])
    assert (options.epochs, options.seeds) == (4, (2,))


@pytest.mark.parametrize(
    "words", [["--epochs", "x"], ["--epoch-loss", "middle"], ["--precision", "int8"], ["--epoc", "1"]]
)
def test_words_that_are_no_options_end_the_command_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_the_help_has_every_model_and_the_commands_in_whole_lines(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    indented = [line for line in command.__doc__.splitlines() if line.startswith("    ")]
    assert len(indented) == 10
    assert set(indented) <= set(said.splitlines())
    assert all(model in said for model in MODELS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--arms", "baseline", "magic"], "magic"),
        (["--seeds", "1", "1"], "none twice"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--label-noise", "40"], "0 to 32"),
        (["--learning-rate", "-1"], "above 0"),
        (["--learning-rate", "inf"], "a number above 0"),
        (["--k", "-1"], "k is -1.0"),
        (["--k", "nan"], "k is nan"),
        (["--seeds", "-1"], "at least 0"),
        (["--batch-size", "139"], "leave one for the last"),
        (["--device", "cuda:9"], "none here"),
        (["--device", "tpu"], "must be cpu or cuda"),
        (["--batch-size", "1000"], "batch_size is 1000, for 140 inputs and 140 targets"),
        (["--model", "resnet43"], "did you mean"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(digits, tmp_path, options, said):
    with pytest.raises(SystemExit, match=said) as stopped:
        run_benchmark(digits, tmp_path / "out", *options)
    assert str(stopped.value).startswith("error: ")
    assert "\n" not in str(stopped.value)


def test_control_characters_in_names_of_files_do_not_reach_the_terminal(tmp_path, capsys):
    folder = write_digits(tmp_path / "odd \x1b[31m\x07", train_per_class=16, test_per_class=2, classes=2, size=12)
    (folder / "train" / "loose \x1b[2J.png").touch()
    run_once(folder, tmp_path / "out \x1b[1m")
    printed = capsys.readouterr()
    assert not {"\x1b", "\x07"} & set(printed.out + printed.err)
    assert r"loose \x1b[2J.png" in printed.out
    assert len(read_records(tmp_path / "out \x1b[1m").runs) == 1
