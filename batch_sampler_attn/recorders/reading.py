"""Reading recorded visits back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from batch_sampler_attn.errors import RecordError
from batch_sampler_attn.recorders.line_file import is_whole
from batch_sampler_attn.recorders.timeline import Timeline
from batch_sampler_attn.recorders.visits import VisitRecord
from batch_sampler_attn.rule import Decision


def read_visits(path: str | os.PathLike[str]) -> list[VisitRecord]:
    """Read the visits that a ``JsonLinesRecorder`` wrote: those of one run, each once, in the order of training.

    Of a file that several runs wrote to, one after the other, the last one counts. Where it went on from a saved state,
    the visits up to there are those before, and what an earlier run did from there on is left out; where it began anew,
    all before is. Abandoned epochs are left out, and so is a last line that was not written to its end.

    Raises:
        RecordError: If a line is not one of a ``JsonLinesRecorder``'s, or a run goes on from visits that are not there.
    """
    timeline = Timeline()
    with Path(path).open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not text.endswith(b"\n") and not is_whole(text):
                break
            try:
                line = json.loads(text)
                if "abandoned_epoch" in line:
                    timeline.abandon(line["abandoned_epoch"])
                elif "resumed_epoch" in line:
                    if not timeline.go_on(line["resumed_epoch"], line["visits"]):
                        raise RecordError(_missing(line["resumed_epoch"], line["visits"]))
                elif "another_pass" in line:
                    timeline.begin_pass()
                else:
                    timeline.add(_record_from_line(line))
            except RecordError as error:
                raise RecordError(f"{path}, line {number}: {error}") from None
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                shown = text.strip()[:80].decode(errors="replace")
                raise RecordError(f"{path}, line {number} is not a recorded visit: {shown!r}") from error
    return timeline.visits


def _record_from_line(line: dict[str, Any]) -> VisitRecord:
    indices = line.get("indices")
    numbers = line["epoch"], line["batch"], line["visit"]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"{numbers} are not whole numbers")
    return VisitRecord(
        *numbers,
        float(line["loss"]),
        Decision(line["decision"]).value,
        None if indices is None else tuple(indices),
    )


def _missing(epoch: int, visits: int) -> str:
    return (
        f"a run goes on here from visit {visits} of epoch {epoch}, which is not in the lines above: some are "
        "missing, or they are another run's. Give each run a file of its own, or take these lines out"
    )
