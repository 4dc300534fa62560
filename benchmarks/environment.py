"""What a measurement ran on, to stand beside its numbers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

PACKAGES = ("batch-sampler-attn", "torch", "torchvision", "timm", "numpy", "scikit-learn", "cleanlab")


def describe_environment(device: str | None = None) -> dict[str, Any]:
    """Hardware, versions and the time, as JSON types; ``device`` says which GPU, or that none was used."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": _gpu_model(device),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def one_line(environment: dict[str, Any]) -> str:
    """The same in a line, for the caption of a table."""
    device = environment["gpu"] or f"{environment['cpu']}, {environment['cores']} cores"
    torch_version = environment["packages"].get("torch")
    packages = [f"Python {environment['python']}", *([f"torch {torch_version}"] if torch_version else [])]
    return ", ".join([device, *packages, environment["date"][:10]])


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_model(device: str | None) -> str | None:
    if _version("torch") is None or device == "cpu":
        return None
    import torch

    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
