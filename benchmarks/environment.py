"""What a measurement ran on, to stand beside its numbers."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("batch-sampler-attn", "torch", "torchvision", "timm", "numpy", "scikit-learn")


def describe_environment(device: str | None = None) -> dict[str, Any]:
    """Hardware, versions and the time, as JSON types; ``device`` says which GPU, or that none was used."""
    import torch  # takes seconds, and reports need only ``one_line``

    packages = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device != "cpu" and torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": packages,
    }


def one_line(environment: dict[str, Any]) -> str:
    """The same in a line, for the caption of a table."""
    device = environment["gpu"] or f"{environment['cpu']}, {environment['cores']} cores"
    torch_version = environment["packages"].get("torch")
    packages = [f"Python {environment['python']}", *([f"torch {torch_version}"] if torch_version else [])]
    return ", ".join([device, *packages, environment["date"][:10]])


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return model[1] if model else platform.processor() or platform.machine()
