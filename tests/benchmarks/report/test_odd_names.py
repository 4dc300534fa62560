"""Names that nobody expects stay text."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from benchmarks.report import web
from benchmarks.report.__main__ import main
from benchmarks.report.document import Box, Document, Section
from benchmarks.text import visible
from tests.benchmarks.report.pages import (
    HOSTILE,
    PLAIN,
    Page,
    inline_tokens,
    make_report,
    name_on_github,
    read_links,
    read_markdown,
)
from tests.benchmarks.report_records import write_records


def test_what_a_data_set_is_called_stays_text_on_the_page(hostile):
    page = Page((hostile / "report.html").read_text())
    assert page.values("img", "src").count("x") == 0
    assert not {"b", "script"} & {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert f"Claims: one on {HOSTILE}" in page.texts["h3"]
    assert f"two on {HOSTILE}" in page.texts["td"]
    assert {"<b>", "*c*", "d|e"} <= set(page.texts["th"])
    assert [text for text in page.texts["figcaption"] if text.endswith(f", one on {HOSTILE}")]


def test_what_a_data_set_is_called_stays_text_in_the_markdown(hostile):
    text = (hostile / "report.md").read_text()
    tokens = read_markdown(text)
    raw = [token.content for token in tokens if token.type == "html_block"]
    assert raw
    assert {tag for block in raw for tag in re.findall(r"<(\w+)", block)} == {"details", "summary"}
    assert not [token for token in inline_tokens(text) if token.type == "html_inline"]
    cells = ["".join(child.content for child in token.children or []) for token in tokens if token.type == "inline"]
    assert cells.count(f"one on {HOSTILE}") >= 10
    assert {"<b>", "*c*", "d|e"} <= set(cells)
    assert any(f"(one on {HOSTILE}; two on {HOSTILE})" in cell for cell in cells)
    emphasized = {token.content for token in inline_tokens(text) if token.type == "code_inline"}
    assert "e" not in emphasized


def test_brackets_in_a_name_do_not_end_a_link(hostile):
    titles, links, pictures = read_links((hostile / "report.md").read_text())
    assert links == [f"#{name_on_github(title)}" for title in titles]
    assert all((hostile / unquote(picture)).exists() for picture in pictures)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["_a_ b", "a __b__", "~~a~~ b"])
def test_a_name_is_not_emphasized(tmp_path, name):
    assert f"Claims: small_resnet on {name}" in read_links(make_report(tmp_path, PLAIN._replace(data=name)))[0]


def test_dollars_in_a_name_are_no_formula(tmp_path):
    make_report(tmp_path, PLAIN._replace(data="$x_$", classes=("$\\a$", "b")))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("names", [("birds", "Birds"), ("a b", "a-b")])
def test_two_data_sets_whose_names_are_nearly_the_same_have_figures_of_their_own(tmp_path, names):
    pictures = read_links(make_report(tmp_path, *(PLAIN._replace(data=name) for name in names)))[2]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize(
    ("titles", "anchors"),
    [
        (
            ["Claims: a/b", "Claims: ab", "Claims: a-b", "Claims: ab"],
            ["claims-ab", "claims-ab-1", "claims-a-b", "claims-ab-2"],
        ),
        (["a-1", "a", "a", "a"], ["a-1", "a", "a-2", "a-3"]),
        (["Report", "a\nb"], ["report-1", "a-b"]),
    ],
)
def test_every_section_has_an_anchor_of_its_own_as_on_github(titles, anchors):
    document = Document("Report", Box([]), [], [Section(title, []) for title in titles])
    assert document.anchors == anchors
    page = web.render(document, Path())
    assert [page.count(f'id="{anchor}"') for anchor in anchors] == [1] * len(anchors)
    assert [page.count(f'href="#{anchor}"') for anchor in anchors] == [1] * len(anchors)


@pytest.mark.usefixtures("undrawn")
def test_a_line_break_in_a_name_breaks_neither_tables_nor_titles(tmp_path):
    setting = PLAIN._replace(data="a\nb", classes=("x\ny", "z"))
    text = make_report(tmp_path, setting)
    titles, links, _ = read_links(text)
    assert "Claims: small_resnet on a b" in titles
    assert links == [f"#{name_on_github(title)}" for title in titles]
    cells = [token.content for token in read_markdown(text) if token.type == "inline"]
    assert {"small_resnet on a b", "x y"} <= set(cells)
    assert not [cell for cell in cells if cell.startswith(("b |", "y |"))]


# Turns a terminal's text red, changes its title, and writes over the line.
ODD_CONTROLS = "birds\x1b[31m\x1b]0;title\x07\x9b1m\r\u202egpj"


@pytest.mark.usefixtures("undrawn")
def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path, capsys):
    setting = PLAIN._replace(model="net\x1b[2J", data=ODD_CONTROLS, classes=("cat\x1b[1m", "dog"))
    text = make_report(tmp_path, setting)
    printed = capsys.readouterr().out
    for shown in (printed, text, (tmp_path / "report" / "report.html").read_text()):
        assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(shown)
    assert r"Claims: net\x1b[2J on birds\x1b[31m" in "".join(read_links(text)[0])


@pytest.mark.parametrize("name", ["data\0set", "\0"])
def test_a_null_character_in_a_name_is_shown_as_an_escape(tmp_path, capsys, name):
    text = make_report(tmp_path, PLAIN._replace(data=name, classes=("cat\0", "dog")))
    assert "\0" not in capsys.readouterr().out + text
    pictures = read_links(text)[2]
    assert pictures
    assert all((tmp_path / "report" / unquote(picture)).exists() for picture in pictures)


def test_control_characters_do_not_reach_the_terminal_by_an_error(tmp_path):
    folder = write_records(tmp_path / "records", PLAIN)
    line = (folder / "runs.jsonl").read_text().splitlines()[0]
    (folder / "runs.jsonl").write_text(line[:-1] + r', "\u001b[31m": 1}' + "\n")
    with pytest.raises(SystemExit) as stopped:
        main([str(folder)])
    assert "\x1b" not in str(stopped.value)
    assert r"\x1b[31m" in str(stopped.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tab\tand\nline", "tab\tand\nline"),
        ("\x7f\x85", r"\x7f\x85"),
        ("\ud800", r"\ud800"),
        ("naïve 猫 👩‍🔬", "naïve 猫 👩‍🔬"),
    ],
)
def test_only_control_characters_become_escapes(text, shown):
    assert visible(text) == shown
