"""Reports of records that nobody made; figures are drawn only where they are looked at."""

import gc
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from benchmarks.report.__main__ import main
from tests.benchmarks.report_records import write_records


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Statsmodels collects garbage at every call, and looks at all modules that were ever imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).write_bytes(b"\x89PNG"))


@pytest.fixture
def drawn():
    """Figures are drawn after all."""


@pytest.fixture
def report(tmp_path):
    """The text of the report on made-up settings, which lies in ``tmp_path / "report"``."""

    def make(*settings):
        paths = [write_records(tmp_path / str(place), setting) for place, setting in enumerate(settings)]
        main([*map(str, paths), "--out", str(tmp_path / "report")])
        return (tmp_path / "report" / "report.md").read_text()

    return make
