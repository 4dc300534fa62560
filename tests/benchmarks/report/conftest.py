"""Records and reports that several tests read."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from benchmarks.report.__main__ import main
from tests.benchmarks.cifar_helpers import room_for_runs, run_benchmark
from tests.benchmarks.report.pages import HOSTILE, PLAIN
from tests.benchmarks.report_records import write_records


@pytest.fixture(scope="module", autouse=True)
def keep_the_process_as_it_was():
    with room_for_runs():
        yield


@pytest.fixture(scope="session")
def out(digits, tmp_path_factory):
    """Records of all arms, three seeds, with and without noise. To be read, not to be changed."""
    options = ["--epochs", "2", "--seeds", "0", "1", "2", "--label-noise", "0", "3"]
    with room_for_runs():
        return run_benchmark(digits, tmp_path_factory.mktemp("records") / "out", *options)


@pytest.fixture(scope="session")
def written(out, tmp_path_factory):
    """The folder of the report of these."""
    folder = tmp_path_factory.mktemp("written")
    main([str(out), "--out", str(folder)])
    return folder


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """A report's folder, of two experiments."""
    folder = tmp_path_factory.mktemp("hostile")
    settings = [PLAIN._replace(model=model, data=HOSTILE, classes=("<b>", "*c*", "d|e")) for model in ("one", "two")]
    paths = [write_records(folder / setting.model, setting) for setting in settings]
    main([*map(str, paths), "--out", str(folder / "report")])
    return folder / "report"


@pytest.fixture
def undrawn(monkeypatch):
    """Files of figures stay empty: where what is drawn is not looked at, drawing would take most of the time."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())
