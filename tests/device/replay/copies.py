"""The package, and changed copies of it that are imported beside it."""

import contextlib
import importlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import batch_sampler_attn

NAME = "batch_sampler_attn"
SOURCE = Path(batch_sampler_attn.__file__).parent


def loaded():
    """What scenarios take from the package."""
    root, device = importlib.import_module(NAME), importlib.import_module(f"{NAME}.device")
    names = {name: getattr(root, name) for name in ("BatchAttentionSchedule", "EqualComputeControl")}
    return SimpleNamespace(**names, **{name: getattr(device, name) for name in device.__all__})


@contextlib.contextmanager
def changed(old, new, folder):
    """A copy of the package in ``folder``, in which ``old`` stands once in ``device/``, and here ``new``.

    Raises:
        LookupError: If it does not: then the change is to be written anew.
    """
    copy = folder / NAME
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((copy / "device").glob("*.py"))}
    places = [path for path, text in texts.items() for _ in range(text.count(old))]
    if len(places) != 1:
        raise LookupError(f"{old!r} stands {len(places)} times in device/; write this change anew")
    places[0].write_text(texts[places[0]].replace(old, new), encoding="utf-8")
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == NAME}
    for name in ours:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        yield loaded()
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            del sys.modules[name]
        sys.modules.update(ours)
