"""The core needs neither torch nor numpy, and exports the same names wherever torch is installed."""

import inspect
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

import batch_sampler_attn

WITHOUT_TORCH = """
import sys
before = set(sys.modules)
from batch_sampler_attn import BatchAttentionSchedule, Decision, EpochSummary, EqualComputeControl
heavy = {"torch", "numpy", "asyncio"} & {name.partition(".")[0] for name in set(sys.modules) - before}
assert not heavy, heavy
for name in ("torch", "numpy"):
    sys.modules[name] = None
import batch_sampler_attn.recorders
schedule = BatchAttentionSchedule(k=1.2)
for losses in ([1.0, 1.0], [1.0, 2.0, 1.0]):
    remaining = iter(losses)
    for batch in schedule.attend("ab"):
        schedule.decide(next(remaining))
assert schedule.last_summary.repeats == 1
try:
    from batch_sampler_attn import BatchAttentionSampler
except ImportError as error:
    print(error)
"""

# As on a machine without torch: nothing finds it.
NAMES_WITHOUT_TORCH = """
import importlib.util
importlib.util.find_spec = lambda name: None
from batch_sampler_attn import *
print(*sorted(name for name in dir() if name[0] != "_"))
"""


def output(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_core_imports_no_heavy_module_and_works_where_there_is_none():
    assert output(WITHOUT_TORCH) == (
        "BatchAttentionSampler needs PyTorch, which is not installed: pip install 'batch-sampler-attn[torch]'\n"
    )


def test_what_needs_torch_is_exported_where_torch_is_installed():
    pytest.importorskip("torch")
    assert {"BatchAttentionSampler", "SeededDataset"} < set(batch_sampler_attn.__all__) < set(dir(batch_sampler_attn))
    for name in batch_sampler_attn.__all__:
        assert getattr(batch_sampler_attn, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        batch_sampler_attn.nothing  # noqa: B018
    without = output(NAMES_WITHOUT_TORCH).split()
    assert {"BatchAttentionSampler", "SeededDataset", "importlib"} ^ {*without} == {*batch_sampler_attn.__all__}


@pytest.mark.parametrize(("missing", "said"), [("torch", "needs PyTorch"), ("numpy", "halted")])
def test_only_a_missing_torch_is_called_a_missing_torch(monkeypatch, missing, said):
    def refuse(module):
        raise ModuleNotFoundError(f"import of {missing} halted", name=missing)

    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(ModuleNotFoundError, match=said) as error:
        batch_sampler_attn.__getattr__("BatchAttentionSampler")
    assert error.value.name == missing


@pytest.mark.parametrize("name", ["BatchAttentionSchedule", "EqualComputeControl", "EpochSummary"])
def test_the_types_of_a_constructor_can_be_looked_up(name):
    public = getattr(batch_sampler_attn, name)
    assert set(inspect.signature(public).parameters) <= set(get_type_hints(public.__init__))
    get_type_hints(public)
    assert get_args(batch_sampler_attn.EpochLoss) == ("first", "last", "all")
