"""The report as Markdown and as a page."""

import html
import re

import pytest
from markdown_it import MarkdownIt

from benchmarks.report.document import finish
from tests.benchmarks.report_records import EXACT, ODD, Setting


def texts_of(page, tag):
    """The text in each element of a kind."""
    elements = re.findall(rf"<{tag}(?: [^>]*)?>(.*?)</{tag}>", page, re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]*>", "", element)) for element in elements]


@pytest.mark.usefixtures("drawn")
def test_the_page_holds_every_figure_and_asks_for_nothing_from_elsewhere(report, tmp_path):
    figures = re.findall(r"\]\((.+\.png)\)", report(EXACT._replace(noises=(0, 3), readings=("first", "last"))))
    page = (tmp_path / "report" / "report.html").read_text()
    sources = re.findall(r'<img src="([^"]*)"', page)
    assert figures[0] == "forest.png"
    assert len(figures) == len(sources) == 7
    assert all((tmp_path / "report" / name).read_bytes().startswith(b"\x89PNG") for name in figures)
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert "http" not in page


@pytest.mark.usefixtures("drawn")
def test_odd_names_stay_text(report, tmp_path, capsys):
    odd = f"{ODD}\n[bold]"
    text = report(EXACT._replace(data=odd, classes=("<b>", "*c*\n", "$d|e$")))
    name = "small_resnet on " + " ".join(odd.split())
    page = (tmp_path / "report" / "report.html").read_text()
    assert not re.findall(r"<(?:u|b|a)\b", page)
    assert {*texts_of(page, "code")} == {"baseline", "attention", "random", "longer"}
    assert len(texts_of(page, "em")) == 1  # the paper's title
    assert {f"Claims: {name}", name} <= {*texts_of(page, "summary")}
    assert name in texts_of(page, "td")
    assert {"<b>", "*c*", "$d|e$"} <= {each.strip() for each in texts_of(page, "th")}
    alternatives = [html.unescape(words) for words in re.findall(r' alt="([^"]*)"', page)]
    assert all(alternative.endswith(name) for alternative in alternatives[1:])
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    cells = ["".join(each.content for each in token.children) for token in tokens if token.type == "inline"]
    assert cells.count(name) >= 8
    assert name in capsys.readouterr().out


def test_a_table_leaves_out_columns_without_a_cell_and_sets_numbers_to_the_right():
    rows = "| name | none | number | empty |\n| a | - | +1.5 (-1.0 to +2.0), p = 0.010 |  |\n| 3 of 32 | - | - |  |\n"
    assert finish(f"Above\n\n{rows}\n| head | without rows |\n").splitlines() == [
        "Above",
        "",
        "| name | number |",
        "| --- | ---: |",
        "| a | +1.5 (-1.0 to +2.0), p = 0.010 |",
        "| 3 of 32 | - |",
    ]


def test_the_summary_says_how_often_attention_is_ahead_of_what_remains_and_by_how_much_in_each_condition(report):
    settings = EXACT._replace(noises=(0, 3), readings=("first", "all")), EXACT._replace(model="worse", gain=-0.01)
    text = report(*settings).replace("\\", "")
    assert "| small_resnet on two | none | first | random | 3 |" in text
    said = [line for line in text.splitlines() if line.startswith("> ")]
    assert "2 at reduced size" in said[0]
    assert "ahead in 4, behind in 1 of 5 conditions (-1.00 to +2.40 points at the last epoch)" in said[1]
    remaining = "over 15 comparisons of accuracy, p < 0.05 remains for small_resnet on two, first over baseline"
    assert remaining in said[4]
    noisy = "all, label noise 3 of 32: +1.20 over baseline"
    assert [noisy in line for line in said if "small" in line][-1]


def test_an_experiment_with_too_few_repeats_or_seeds_is_not_judged_in_the_summary(report):
    text = report(EXACT._replace(model="idle", repeated=0), EXACT._replace(model="few", seeds=(0, 1)))
    assert "hardly any repeats in 1, not enough runs in 1 of 2 conditions" in text


@pytest.mark.parametrize(("falls", "is_said"), [(0.0199, False), (0.0201, True)])
def test_it_says_that_a_network_is_overfitted_where_accuracy_falls_by_2_points(report, falls, is_said):
    text = report(EXACT._replace(falls=falls, rise=9, gain=0.01))
    assert ("Networks are overfitted" in text) is ("of an overfitted network" in text) is is_said
    assert ("test accuracy falls from its best epoch to its last, 45 to 43 %" in text) is is_said


def test_the_papers_table_stands_beside_ours_and_full_size_is_not_called_reduced(report):
    theirs = Setting("resnet34", images=(50_000, 10_000), epochs=100, k=1.2, is_paper=True, jitter=0)
    text = report(theirs._replace(arms=("baseline", "attention")))
    assert "at reduced size" not in text
    assert "at the paper's own size and settings." in text
    assert "At the paper's size and settings." in text
    values = "0.925596 | 0.856234 | 73.7586 | 75.3712 | +1.61"
    assert f"| paper: resnet34 on cifar10 | {values} |\n| ours: resnet34 on cifar10 | 1.8" in text


def test_a_report_of_a_baseline_alone_has_its_table_and_no_verdict(report, tmp_path):
    text = report(EXACT._replace(arms=("baseline",), epochs=3))
    assert " nan | " in text  # the records have no test loss in the third epoch
    assert "| small_resnet on two | none | baseline | 3 |" in text
    assert "forest" not in text
    assert not list((tmp_path / "report").glob("*.png"))
