"""The site as it is built into dist/site: links lead somewhere, names of the package lead to the reference."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

# It takes a while to build, and .ci/run builds it once, by this file.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


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
