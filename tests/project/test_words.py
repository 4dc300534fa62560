"""What a user reads of a run: numbers and the nouns that go with them."""

import pytest

from batch_sampler_attn import EpochSummary


def summary(repeats):
    return EpochSummary(
        epoch=3,
        batches=50,
        visits=50 + repeats,
        repeats=repeats,
        overhead=repeats / 50,
        mean_loss=0.5,
        threshold=0.6,
        capped_batches=0,
        nonfinite_losses=0,
        most_visits=1 + repeats,
    )


@pytest.mark.parametrize(("repeats", "said"), [(0, "0 repeats"), (1, "1 repeat"), (2, "2 repeats")])
def test_a_summary_counts_repeats_in_the_right_number(repeats, said):
    assert str(summary(repeats)) == f"epoch 3: 50 batches, {said} (overhead {repeats / 50:.0%}), mean loss 0.500"
