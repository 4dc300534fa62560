"""The site as it is built into dist/site: links lead somewhere, code fits its box, search finds what users ask for."""

import json
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

# It takes a while to build, and .ci/run builds it once, by this file.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "wrong_labels.ipynb"
# Columns of code in a window 1366 wide, with the widest of the fonts and a scroll bar; without a table of contents; and
# how many of them each entry of the reference takes from what is inside of it.
COLUMNS, COLUMNS_WITHOUT_TOC, COLUMNS_OF_ENTRY = 100, 124, 3


@pytest.fixture(scope="module")
def site():
    folder = ROOT / "dist" / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


class PageReader(HTMLParser):
    """What a page refers to, what it loads, and what can be referred to on it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.update(attributes[name] for name in ("id", "name") if name in attributes)
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if (tag in ("script", "img") and "src" in attributes) or (
            tag == "link" and attributes.get("rel") != "canonical"
        ):
            self.loaded.append(attributes.get("src") or attributes["href"])


def test_no_link_of_the_site_is_dead_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: PageReader(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 30
    dead = []
    for path, page in pages.items():
        for target in [*page.links, *page.loaded]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                assert target in page.links, f"{path} loads {target}"
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            if not there.exists() or (parts.fragment and there in pages and parts.fragment not in pages[there].anchors):
                dead.append((path.relative_to(site).as_posix(), target))
    assert not dead


def test_names_of_the_package_in_a_sentence_lead_to_the_reference(site):
    links = PageReader(site / "guides" / "hand-written-loop" / "index.html").links
    assert "../../reference/errors/#batch_sampler_attn.errors.BatchChangedError" in links
    assert "../../reference/schedule/#batch_sampler_attn.BatchAttentionSchedule.skip" in links


def test_defaults_are_shown_by_their_values(site):
    text = re.sub(r"<[^>]+>", "", (site / "reference" / "schedule" / "index.html").read_text(encoding="utf-8"))
    assert "max_visits: int | None = 100," in text
    for path in (site / "reference").rglob("*.html"):
        shown = re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8"))
        assert not re.findall(r"\w: [\w |]+ = [A-Z_]{3,}\b", shown), path


def test_the_gallery_leads_to_every_example_with_what_it_printed_and_found(site):
    gallery = site / "examples" / "index.html"
    links = PageReader(gallery).links
    for path in (ROOT / "examples").glob("*.py"):
        assert f"{path.stem}/" in links, path
        if "__main__" in path.read_text(encoding="utf-8"):
            assert "What it prints" in (site / "examples" / path.stem / "index.html").read_text(encoding="utf-8"), path
    text = gallery.read_text(encoding="utf-8")
    assert text.count("sample attention, at 0.0% more updates") == 6  # two scores of three examples
    assert "quickstart.png" in text


class CodeReader(HTMLParser):
    """The lines of code on a page that are wider than their box."""

    def __init__(self, path):
        super().__init__()
        self.boxes, self.too_wide = [], []
        text = path.read_text(encoding="utf-8")
        self.columns = COLUMNS_WITHOUT_TOC if 'data-md-type="toc" hidden' in text else COLUMNS
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag in ("div", "pre"):
            self.boxes.append("pre" if tag == "pre" else dict(attributes).get("class") or "")
            self.code = ""

    def handle_data(self, data):
        self.code = getattr(self, "code", "") + data

    def handle_endtag(self, tag):
        is_wrapped = re.search(r"language-(bash|console|text)\b", " ".join(self.boxes))
        if tag == "pre" and not is_wrapped:
            fitting = self.columns - COLUMNS_OF_ENTRY * sum("doc-contents" in box for box in self.boxes)
            self.too_wide += [line for line in self.code.splitlines() if len(line) > fitting]
        if tag in ("div", "pre"):
            self.boxes.pop()


def test_no_line_of_a_signature_or_of_other_code_is_wider_than_its_box(site):
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    too_wide = {path.parent.relative_to(site).as_posix(): CodeReader(path).too_wide for path in pages}
    assert {page: lines for page, lines in too_wide.items() if lines} == {}


@pytest.mark.parametrize(
    "words",
    ["OneCycleLR", "EMA", "fastai", "wandb", "DeepSpeed", "Composer", "Ignite", "skorch", "Ray Train"],
)
def test_search_finds_what_users_ask_for(site, words):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    sections = [f"{section['title']} {re.sub('<[^>]+>', ' ', section['text'])}" for section in index["docs"]]
    terms = [{*re.split(index["config"]["separator"], section.lower())} for section in sections]
    assert any({*words.lower().split()} <= found for found in terms)


def test_the_first_page_has_the_table_of_the_readme(site):
    text = re.sub(r"</?(?:code|strong)\b[^>]*>", "", (site / "index.html").read_text(encoding="utf-8"))
    block = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- generated: advice -->")[2]
    first_cells = re.findall(r"^\| ([^|]+?) \|", block.partition("<!-- end -->")[0], re.MULTILINE)[2:]
    assert len(first_cells) > 3
    assert all(f"<td>{cell.replace('`', '')}</td>" in text for cell in first_cells)


def test_the_notebook_runs_from_top_to_bottom_and_its_outputs_are_on_the_site(site):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    kept = [kinds_of_output(cell) for cell in cells]
    runpy.run_path(str(ROOT / "docs" / "keep_outputs.py"))["run_cells"](cells)
    assert [kinds_of_output(cell) for cell in cells] == kept
    found, suspects = re.match(r"(\d+) of the (\d+) samples", "".join(cells[5]["outputs"][0]["text"])).groups()
    assert int(found) > 0.7 * int(suspects)
    page = (site / "examples" / "wrong_labels" / "index.html").read_text(encoding="utf-8")
    assert page.count("../../outputs/wrong_labels-") == sum("image/png" in kinds for kinds in kept) == 2


def kinds_of_output(cell):
    return [kind for output in cell.get("outputs", ()) for kind in output.get("data", ("text",))]


@pytest.mark.parametrize("address", [None, "https://github.com/somebody/package/"])
def test_the_notebook_opens_in_colab_once_the_repository_has_an_address(address):
    page = runpy.run_path(str(ROOT / "docs" / "site_pages.py"))["notebook_page"](NOTEBOOK, address)
    place = "https://colab.research.google.com/github/somebody/package/blob/HEAD/examples/wrong_labels.ipynb"
    assert (place in page) is (address is not None)
    assert ("colab" in page) is (address is not None)
