"""The core needs neither torch nor numpy, and imports fast."""

import inspect
import os
import pydoc
import statistics
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

BLOCKED = """
import sys
for name in ("torch", "numpy"):
    sys.modules[name] = None
from batch_sampler_attn import BatchAttentionSchedule, Decision, EpochSummary, EqualComputeControl
import batch_sampler_attn.recorders
schedule = BatchAttentionSchedule(k=1.2)
for losses in ([1.0, 1.0], [1.0, 2.0, 1.0]):
    remaining = iter(losses)
    for batch in schedule.attend("ab"):
        schedule.decide(next(remaining))
assert schedule.last_summary.repeats == 1
from batch_sampler_attn import *
assert "BatchAttentionSampler" not in dir() and EpochLoss is not None
import io, pydoc
text = pydoc.render_doc(batch_sampler_attn, renderer=pydoc.plaintext)
assert "class BatchAttentionSchedule" in text and "BatchAttentionSampler(" not in text
try:
    from batch_sampler_attn import BatchAttentionSampler
except ImportError as error:
    print(error)
"""


def test_the_core_works_where_torch_and_numpy_cannot_be_imported():
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (
        "BatchAttentionSampler needs PyTorch, which is not installed: pip install 'batch-sampler-attn[torch]'\n",
        "",
    )


def test_importing_the_core_imports_no_heavy_module():
    code = """
import sys
before = set(sys.modules)
from batch_sampler_attn import BatchAttentionSchedule
print(*set(sys.modules) - before)
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "asyncio"} & {name.partition(".")[0] for name in loaded}


def test_importing_takes_at_most_100_ms_longer_than_nothing():
    # An installed package is compiled; from a checkout, the first import here compiles it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def seconds(code):
        # Of the processor: on a busy machine the clock runs on for others.
        before = os.times()
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    extra = [seconds("from batch_sampler_attn import BatchAttentionSchedule") - seconds("pass") for _ in range(15)]
    # A busy machine delays some, so the faster half is looked at.
    assert statistics.median(sorted(extra)[:8]) < 0.100


def test_an_unknown_name_is_an_attribute_error():
    import batch_sampler_attn

    with pytest.raises(AttributeError, match="nothing"):
        batch_sampler_attn.nothing  # noqa: B018


def test_with_torch_everything_is_exported_and_documented():
    import batch_sampler_attn

    pytest.importorskip("torch")
    code = "from batch_sampler_attn import *; print(*sorted(name for name in dir() if name[0] != '_'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert names == sorted(batch_sampler_attn.__all__)
    assert {"BatchAttentionSampler", "EpochLoss", "EpochSummary"} <= set(names) <= set(dir(batch_sampler_attn))
    text = pydoc.render_doc(batch_sampler_attn, renderer=pydoc.plaintext)
    assert "class BatchAttentionSampler" in text
    assert get_args(batch_sampler_attn.EpochLoss) == ("first", "last", "all")


@pytest.mark.parametrize("name", ["BatchAttentionSchedule", "EqualComputeControl", "EpochSummary"])
def test_the_types_of_a_constructor_can_be_looked_up(name):
    import batch_sampler_attn

    public = getattr(batch_sampler_attn, name)
    hints = get_type_hints(public.__init__)
    parameters = set(inspect.signature(public).parameters)
    assert parameters <= set(hints)
    get_type_hints(public)


def test_a_type_checker_sees_a_name_that_is_not_there(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import batch_sampler_attn\n"
        "from batch_sampler_attn import BatchAttentionSchedul\n"
        "batch_sampler_attn.nothing\n"
        "from batch_sampler_attn import BatchAttentionSchedule\n"
        "reveal_type(BatchAttentionSchedule().batch_index)\n"
        "BatchAttentionSchedule(epoch_loss='mean')\n"
    )
    root = Path(__file__).parents[2]
    options = ["--strict", "--config-file", "", "--cache-dir", str(tmp_path), "--follow-imports", "silent"]
    environment = {**os.environ, "MYPYPATH": str(root)}
    command = [sys.executable, "-m", "mypy", *options, str(script)]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False).stdout
    assert 'has no attribute "BatchAttentionSchedul"' in said
    assert 'Module has no attribute "nothing"' in said
    assert 'Revealed type is "int"' in said or 'Revealed type is "builtins.int"' in said
    assert "incompatible type \"Literal['mean']\"" in said or "arg-type" in said
