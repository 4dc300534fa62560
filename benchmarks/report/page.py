"""A report as Markdown with PNGs beside it, and as one HTML page with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.errors import StorageError
from benchmarks.report import figures, forest, markdown, mistakes, paper, rules, tables, web
from benchmarks.report.claims import CLAIMS, Finding, judge_claims
from benchmarks.report.document import Block, Box, Document, Folded, Paragraph, Picture, Section, Table, Verdicts
from benchmarks.report.results import Experiment
from benchmarks.report.summary import summarize

FOREST = "forest.png"
_FOREST_TITLE = (
    "Attention less every other arm, paired by seed: to the right of 0 attention is ahead. Line: 95 % interval; grey: "
    "sampling error of the test set"
)
# Longer tables are folded away.
_MOST_ROWS = 16


def write_report(experiments: Sequence[Experiment], folder: Path, epoch_loss: str = "first") -> Path:
    """Write ``report.md``, its figures, and ``report.html``.

    Args:
        experiments: What to report on.
        folder: Where to; made if it is not there.
        epoch_loss: The reading that claims are judged by.

    Returns:
        The HTML page.

    Raises:
        StorageError: If a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        document = compose(experiments, folder, epoch_loss)
        (folder / "report.md").write_text(markdown.render(document), encoding="utf-8")
        page = folder / "report.html"
        page.write_text(web.render(document, folder), encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"the report cannot be written to {folder}: {error.strerror}; choose another --out"
        ) from error
    return page


def compose(experiments: Sequence[Experiment], folder: Path, epoch_loss: str) -> Document:
    """The report, with its figures drawn into ``folder``."""
    opening: list[Block] = [
        Paragraph(f"The paper: {paper.CITATION}."),
        Paragraph(
            "Made by `python -m benchmarks.report` from raw records. Arms are paired by seed: `baseline` is plain "
            "training, `attention` is Batch-attention, `random` makes as many visits to random batches, `longer` is "
            "plain training for as many updates."
        ),
    ]
    sections = [
        *_claims(experiments, judge_claims(experiments, epoch_loss)),
        _differences(experiments, folder),
        Section("What was trained", [tables.runs_table(experiments)]),
        Section("Table 1: the best over the epochs, and the last epoch", [_fold_long(tables.table_1(experiments))]),
        Section(
            "What it costs",
            [
                tables.overhead_table(experiments),
                Folded("Epoch by epoch", [tables.overhead_by_epoch_table(experiments)]),
            ],
        ),
        *_mistakes(experiments),
        *_figures(experiments, folder, epoch_loss),
    ]
    return Document(
        "Batch-attention: do the paper's claims hold?", Box(summarize(experiments, epoch_loss)), opening, sections
    )


def verdicts_at_a_glance(experiments: Sequence[Experiment], findings: Sequence[Finding]) -> Verdicts:
    """A row a claim and a column an experiment; where a claim was judged several times, the first is shown."""
    first = {(finding.claim, finding.experiment): finding.verdict for finding in reversed(findings)}
    rows = [[claim, *(first.get((claim, each.name), "-") for each in experiments)] for claim in CLAIMS]
    return Verdicts(["claim", *(each.name for each in experiments)], rows)


def _claims(experiments: Sequence[Experiment], findings: Sequence[Finding]) -> list[Section]:
    sections = [Section("Do the claims hold?", [verdicts_at_a_glance(experiments, findings)])]
    for experiment in experiments:
        said = [finding for finding in findings if finding.experiment == experiment.name]
        reductions = ", ".join(experiment.reductions)
        about = f"Reduced: {reductions}." if reductions else "At the paper's size and settings."
        rows: list[list[object]] = [[each.verdict, each.claim, each.numbers, each.caveat] for each in said]
        head = ["verdict", "claim", "attention less the other arm", "remark"]
        verdicts = Verdicts(head, rows)  # type: ignore[arg-type]
        sections.append(Section(f"Claims: {experiment.name}", [Paragraph(markdown.escape(about)), verdicts], level=3))
    texts: list[Block] = [Paragraph(text) for text in rules.describe(len(CLAIMS))]
    sections.append(Section("What a verdict takes", [Folded("The rules", texts)], level=3))
    return sections


def _differences(experiments: Sequence[Experiment], folder: Path) -> Section:
    table = Folded("The same as a table, with macro-F1", [tables.differences_table(experiments)])
    figure = forest.draw(experiments)
    if figure is None:
        return Section("Paired differences", [table])
    figure.savefig(folder / FOREST, dpi=110)
    return Section("Paired differences", [Picture(FOREST, _FOREST_TITLE), table])


def _mistakes(experiments: Sequence[Experiment]) -> list[Section]:
    best, last = mistakes.table_2(experiments, "best"), mistakes.table_2(experiments, "last")
    sections: list[Section] = []
    if best is not None and last is not None:
        title = "Table 2: wrong predictions by predicted class, at the best epoch"
        sections.append(Section(title, [_fold_long(best), Folded("Table 2 at the last epoch", [last])]))
    flipped = mistakes.flipped_table(experiments)
    if flipped is not None:
        sections.append(Section("Do repeats point to wrong labels?", [flipped]))
    return sections


def _figures(experiments: Sequence[Experiment], folder: Path, epoch_loss: str) -> list[Section]:
    drawn = figures.draw_all(experiments, folder, epoch_loss)
    sections = [
        Section("Figures", [Paragraph("Lines are means over seeds, bands reach from the least to the greatest.")])
    ]
    for name, pictures in drawn.items():
        blocks: list[Block] = [
            Folded(picture.title, [picture]) if picture.file.endswith(f"-{figures.BARS}.png") else picture
            for picture in pictures
        ]
        sections.append(Section(f"Figures: {name}", blocks, level=3))
    return sections


def _fold_long(table: Table) -> Block:
    return Folded(f"{len(table.rows)} rows", [table]) if len(table.rows) > _MOST_ROWS else table
