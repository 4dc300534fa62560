"""The examples: all with few epochs; and as a reader runs them, where what they print says what they are there to show.

The second takes minutes, so most of it is slow.
"""

import functools
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

PRINTING_EPOCHS = [
    "augmented_dataloader.py",
    "checkpoint_resume.py",
    "ddp.py",
    "device_loop.py",
    "jax_optax.py",
    "mixed_precision.py",
    "numpy_loop.py",
    "sklearn_partial_fit.py",
]
EVERY = [*PRINTING_EPOCHS, "sample_attention.py"]
IN_THIS_PROCESS = [name for name in EVERY if name != "jax_optax.py"]  # whose threads no other test could fork beside
ARGUMENTS = {"quickstart.py": ("--seeds", "2", "--epochs", "2")}

IS_TORCH_IMPORTED = """
import runpy, sys
runpy.run_path(sys.argv[1], run_name="__main__")
print("torch imported:", "torch" in sys.modules)
"""

# Where Python alone is not enough.
LAUNCHERS = {
    "ddp.py": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    "numpy_loop.py": ("-c", IS_TORCH_IMPORTED),
}


def run(*arguments):
    # Models this small gain nothing from threads, which on busy machines wait for each other for minutes.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@functools.cache
def output(name):
    if name == "jax_optax.py":
        pytest.importorskip("optax")
    return run(*LAUNCHERS.get(name, ()), str(EXAMPLES / name), *ARGUMENTS.get(name, ()))


def load(name):
    """An example as a module, so that its ``main`` can be called."""
    spec = importlib.util.spec_from_file_location(f"example_{name[:-3]}", EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(EXAMPLES))  # as for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


def epochs(text):
    """Each printed epoch: its number, batches, repeats, overhead in percent and mean loss."""
    lines = re.findall(
        r"^epoch (\d+): (\d+) \w+, (\d+) repeats? \(overhead (\d+)%\), mean loss (\d+\.\d+)$", text, re.M
    )
    return [
        (int(epoch), int(batches), int(repeats), int(overhead), float(loss))
        for epoch, batches, repeats, overhead, loss in lines
    ]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # forked workers
@pytest.mark.parametrize("name", IN_THIS_PROCESS)
def test_an_example_runs_for_a_few_epochs(name, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module = load(name)
    vars(module).update(EPOCHS=3, SAVE_AFTER_UPDATES=100)
    module.main()
    printed, complaints = capfd.readouterr()
    assert printed
    assert not complaints
    assert "identical: False" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EVERY, *ARGUMENTS])
def test_an_example_runs_and_writes_nothing_to_stderr(name):
    assert output(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTING_EPOCHS)
def test_an_example_repeats_batches_after_the_first_epoch_and_learns(name):
    printed = epochs(output(name).partition("resumed")[0])
    assert [epoch for epoch, *_ in printed] == list(range(len(printed)))
    assert printed[0][2] == 0
    assert sum(repeats for _, _, repeats, *_ in printed) > 0
    assert all(abs(overhead - 100 * repeats / batches) <= 0.5 for _, batches, repeats, overhead, _ in printed)
    assert printed[-1][-1] < printed[0][-1] / 2


def test_the_numpy_loop_never_imports_torch():
    assert output("numpy_loop.py").endswith("torch imported: False\n")


@pytest.mark.slow
def test_deferred_repeats_are_augmented_again_and_find_more_wrong_labels_than_chance_has_it():
    text = output("augmented_dataloader.py")
    redrawn, repeats = map(int, re.search(r"^(\d+) of (\d+) repeats were augmented again$", text, re.M).groups())
    assert redrawn == repeats == sum(repeats for _, _, repeats, *_ in epochs(text))
    held, by_chance = re.search(r"hold (\d+) of \d+ wrong labels \((\d+\.\d) by chance\)$", text, re.M).groups()
    assert int(held) >= 2 * float(by_chance) > 0


@pytest.mark.slow
def test_the_resumed_run_resumes_between_two_visits_to_a_batch_and_ends_up_identical():
    before, after = output("checkpoint_resume.py").split("resumed in ")
    epoch, batch, visits = map(
        int, re.match(r"epoch (\d+), batch (\d+), after (\d+) visits to it$", after, re.M).groups()
    )
    assert batch > 0
    assert visits > 0
    assert epochs(after) == epochs(before)[epoch:]
    assert re.search(r"^[1-9]\d* losses identical: True$", after, re.M)
    assert "final weights identical: True\n" in after
