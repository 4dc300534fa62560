"""The operators that updates are known to be made of, as a list that is committed."""

from pathlib import Path

import torch

FILE = Path(__file__).with_name("operators.txt")
RENEW = "python -m tests.device.fake_cuda"
_HEAD = "# Operators in the captured updates of DeviceLoop, as torch {} calls them. Renewed by: {}\n"


def read():
    """The operators, and the version of torch that they were listed with."""
    head, *lines = FILE.read_text(encoding="utf-8").splitlines()
    return set(lines), head.partition("torch ")[2].partition(" calls")[0]


def write(operators):
    FILE.write_text(_HEAD.format(version(), RENEW) + "".join(f"{name}\n" for name in sorted(operators)), "utf-8")


def version():
    """Of torch, as far as it counts here: major and minor."""
    return ".".join(torch.__version__.split(".")[:2])


def complain_of(operators):
    """What is to be done about operators that are not in the list; None if all of them are."""
    known, listed_with = read()
    if not (new := sorted(operators - known)):
        return None
    return (
        f"updates call operators that are not in {FILE.name}: {', '.join(new)}. None is of a kind that captures are "
        f"known to refuse; look whether their CUDA kernels can be captured. If so, `{RENEW}` adds them, and the change "
        f"is seen in review (the list is of torch {listed_with}, and this is {version()})"
    )
