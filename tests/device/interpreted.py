"""The fused visit where Triton interprets, which takes no GPU."""

import importlib.util

from batch_sampler_attn.device import arithmetic


def interpreted_kernel(monkeypatch):
    """The kernel's module, apart from the one that is imported elsewhere."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spec = importlib.util.find_spec("batch_sampler_attn.device.kernel")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # The interpreter calls what is called in a kernel as it is.
    module.is_above, module.after_visit = arithmetic.is_above, arithmetic.after_visit
    return module
