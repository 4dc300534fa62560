"""The report as Markdown and as a page, and what it says."""

import pytest

from benchmarks.report.__main__ import main
from benchmarks.report.claims import judge_claims
from benchmarks.report.results import read_experiments
from benchmarks.report.statistics import Verdict
from tests.benchmarks.cifar_helpers import run_benchmark
from tests.benchmarks.report.pages import (
    PLAIN,
    Page,
    inline_tokens,
    make_report,
    name_on_github,
    read_links,
    read_markdown,
)


def test_the_page_holds_every_figure_and_asks_for_nothing_from_elsewhere(written):
    page, text = ((written / name).read_text() for name in ("report.html", "report.md"))
    figures = [token.attrs["src"] for token in inline_tokens(text) if token.type == "image"]
    assert len(figures) == 8
    assert figures[0] == "forest.png"
    for name in figures:
        assert (written / name).read_bytes().startswith(b"\x89PNG")
    sources = Page(page).values("img", "src")
    assert len(sources) == 8
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<table>") == sum(token.type == "table_open" for token in read_markdown(text))


def test_the_page_fits_a_small_screen(hostile):
    page = Page((hostile / "report.html").read_text())
    viewports = [attributes["content"] for tag, attributes in page.elements if attributes.get("name") == "viewport"]
    assert viewports == ["width=device-width, initial-scale=1"]


def test_every_link_of_the_pages_contents_leads_to_a_title_and_every_title_has_one(hostile):
    page = Page((hostile / "report.html").read_text())
    titles = [attributes["id"] for tag, attributes in page.elements if tag in ("h2", "h3")]
    assert page.values("a", "href") == [f"#{title}" for title in titles]
    assert len(set(titles)) == len(titles) >= 10


def test_every_link_of_the_markdown_leads_to_a_title_as_github_names_it(written):
    titles, links, _ = read_links((written / "report.md").read_text())
    assert len(titles) >= 10
    assert links == [f"#{name_on_github(title)}" for title in titles]


def test_a_reduced_experiment_says_so_above_its_claims(written):
    text = (written / "report.md").read_text()
    claims = text[text.index("### Claims: ") : text.index("### What a verdict takes")]
    said = "Reduced: small_resnet on digits, which the paper has not, 140 training images, 60 test images, 2 epochs, "
    assert said in claims
    assert "on a CPU" in claims[claims.index(said) : claims.index("| verdict |")]


def test_a_claim_without_records_has_no_verdict(written):
    text = (written / "report.md").read_text()
    claim = "Accuracy is up, by less, on CIFAR-100 (section 4.3)"
    assert f"| {claim} | - |\n" in text
    assert text.count(claim) == 1


def test_a_report_of_a_baseline_alone_has_its_table_and_no_verdict(digits, tmp_path):
    alone = run_benchmark(digits, tmp_path / "out", "--arms", "baseline", "--epochs", "1")
    main([str(alone)])
    text = (alone / "report" / "report.md").read_text()
    assert "| small_resnet on digits | none | baseline | 3 |" in text
    assert not [verdict.value for verdict in Verdict if f"**{verdict.value}**" in text]
    assert not list((alone / "report").glob("*.png"))


@pytest.mark.usefixtures("undrawn")
def test_a_test_loss_that_is_not_finite_at_last_is_shown_as_that(tmp_path):
    # The records have no test loss of the baselines' third epoch.
    text = make_report(tmp_path, PLAIN._replace(epochs=3, repeats_from=3))
    assert "| baseline | 3 |" in text
    assert " nan | " in text


@pytest.mark.usefixtures("undrawn")
def test_the_command_says_of_every_finding_of_a_reduced_experiment_that_it_is_reduced(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    make_report(tmp_path, PLAIN)
    said = capsys.readouterr().out
    assert "Claims" in said
    assert said.count("(reduced)") == len(judge_claims(read_experiments([tmp_path / "0"])))
