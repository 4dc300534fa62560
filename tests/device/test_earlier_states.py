"""States that earlier releases saved are loaded, and training goes on from them to the same end."""

import pytest
import torch

from tests.device.earlier_states import FOLDER, KINDS, make_loop, train_on

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = sorted(FOLDER.glob("loops-*.pt"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_an_earlier_release_goes_on_to_the_end_that_it_had_there(file, kind):
    saved = torch.load(file, weights_only=True)[kind]
    loop = make_loop(KINDS[kind])
    loop.load_state_dict(saved["state"])
    end, expected = train_on(loop), saved["end"]
    # Other machines round in other ways.
    for ours, theirs in zip(end["summaries"], expected["summaries"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert (end["visits"], end["updates"]) == (expected["visits"], expected["updates"])
    assert end["weights"] == pytest.approx(expected["weights"], rel=1e-3, abs=1e-5)
