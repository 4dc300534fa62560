"""Pictures and tables of runs: what is drawn is what was recorded."""

import math

import numpy as np
import pytest
import torch

from batch_sampler_attn import BatchAttentionSchedule, SampleAttention
from batch_sampler_attn.errors import RecordError
from batch_sampler_attn.recorders import JsonLinesRecorder, MemoryRecorder, VisitRecord
from batch_sampler_attn.recorders.plots import plot_run, plot_suspects

pytestmark = pytest.mark.filterwarnings("ignore:a loss of nan:batch_sampler_attn.errors.BatchAttentionWarning")


def train(*recorders):
    schedule = BatchAttentionSchedule(1.2, max_visits=3, recorders=recorders)
    for epoch in range(4):
        for _ in schedule.attend(range(6)):
            loss = 3.0 if schedule.batch_index == 2 else 1.0
            schedule.decide(math.nan if (epoch, schedule.batch_index) == (3, 5) else loss / (1 + epoch / 4))


def bars(figure):
    return [round(patch.get_height(), 6) for patch in figure.axes[1].patches]


def lines(figure):
    return {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}


def test_losses_thresholds_and_repeats_are_the_recorded_ones(tmp_path):
    recorder = MemoryRecorder()
    with JsonLinesRecorder(tmp_path / "visits.jsonl") as file:
        train(recorder, file)
    figure = plot_run(recorder)
    assert bars(figure) == [round(summary.overhead, 6) for summary in recorder.summaries]
    assert lines(figure)["their mean"][:, 1] == pytest.approx([summary.mean_loss for summary in recorder.summaries])
    drawn = {int(epoch): threshold for epoch, threshold in lines(figure)["threshold"]}
    assert drawn == {s.epoch: s.threshold for s in recorder.summaries if s.threshold is not None}
    assert len(lines(figure)["a batch, first visit"]) == 23

    # What a notebook asks of the last thing in a cell.
    assert figure._repr_png_().startswith(b"\x89PNG")
    for other in (tmp_path / "visits.jsonl", recorder.visits):
        again = plot_run(other)
        assert bars(again) == bars(figure)
        assert "threshold" not in lines(again)  # a batch that advanced at max_visits lies above it


def test_of_visits_alone_the_threshold_is_drawn_between_the_losses_on_both_sides():
    recorder = MemoryRecorder()
    schedule = BatchAttentionSchedule(1.2, recorders=[recorder])
    for losses in ([1.0, 2.0], [2.4, 1.4]):
        for batch in schedule.attend(range(2)):
            schedule.decide(losses[batch] / (1 + schedule.visits))
    assert lines(plot_run(recorder.visits))["threshold"].tolist() == [[1.0, (2.4 + 1.4) / 2]]


def test_a_run_without_a_finite_loss_is_drawn_and_one_without_a_visit_refused():
    assert plot_run([VisitRecord(0, 0, 1, math.nan, "advance")]).axes
    with pytest.raises(RecordError, match="no visit to draw"):
        plot_run(MemoryRecorder())


@pytest.mark.parametrize("kind", ["tensor", "grey tensor", "array", "PIL", "grey PIL"])
def test_suspects_are_drawn_with_index_mean_loss_and_label_whatever_images_are(kind):
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.arange(9 * 8 * 3, dtype=np.uint8).reshape(9, 8, 3)
    image = {
        "tensor": torch.tensor(pixels).permute(2, 0, 1),
        "grey tensor": torch.tensor(pixels[None, ..., 0]),
        "array": pixels,
        "PIL": image_module.fromarray(pixels),
        "grey PIL": image_module.fromarray(pixels[..., 0]),
    }[kind]
    attention = SampleAttention(8, 4, prune_probability=0.0)
    for indices in attention.attend():
        attention.report([float(index) for index in indices])
    suspects = attention.suspects(7)
    figure = plot_suspects(lambda _: image, suspects, labels=lambda index: f"kind {index % 2}")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["kind 1\n7: 7", "kind 0\n6: 6"]
    assert len(titles) == 10 > sum(map(bool, titles)) == 7
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert (shown == (pixels[..., 0] if "grey" in kind else pixels)).all()
    assert plot_suspects(lambda _: image, suspects[:1]).axes[0].get_title() == "7: 7"
    with pytest.raises(RecordError, match="no suspect"):
        plot_suspects(lambda _: image, [])
