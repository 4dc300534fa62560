"""Reports of made-up records, and how they are read."""

import itertools
from html.parser import HTMLParser

from markdown_it import MarkdownIt

from benchmarks.report.__main__ import main
from tests.benchmarks.report_records import Setting, write_records

# Of every number of batches a share is repeated once in the last of 4 epochs; without chance in the accuracies.
PLAIN = Setting(epochs=4, batches=100, readings=("first",), noises=(0, 3), jitter=0, repeats_from=4, repeated_once=20)


class Page(HTMLParser):
    """The elements of a page, and the text in each kind of them."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.inside, self.texts = [], [], {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.inside.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        for tag in set(self.inside):
            self.texts[tag][-1] += data

    def values(self, tag, name):
        return [attributes[name] for each, attributes in self.elements if each == tag and name in attributes]


# A name that is a tag, a link, emphasis and the end of a cell.
HOSTILE = "<img src=x onerror=alert(1)>|*b*|[c](d)|`e`&lt;"


def read_markdown(text):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def inline_tokens(text):
    return [child for token in read_markdown(text) for child in token.children or []]


def read_links(text):
    """The titles, where links lead, and the files of pictures."""
    tokens = read_markdown(text)
    titles = [
        "".join(child.content for child in token.children)
        for before, token in itertools.pairwise(tokens)
        if before.type == "heading_open" and before.tag != "h1"
    ]
    links = [token.attrs["href"] for token in inline_tokens(text) if token.type == "link_open"]
    return titles, links, [token.attrs["src"] for token in inline_tokens(text) if token.type == "image"]


def name_on_github(title):
    """Small letters, no punctuation but hyphens and underscores, and a hyphen for each space."""
    return "".join(letter for letter in title.lower() if letter.isalnum() or letter in "-_ ").replace(" ", "-")


def make_report(folder, *settings):
    paths = [write_records(folder / str(place), setting) for place, setting in enumerate(settings)]
    main([*map(str, paths), "--out", str(folder / "report")])
    return (folder / "report" / "report.md").read_text()
