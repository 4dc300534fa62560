"""The words of the pages, docstrings and messages: the field's own, and none of those that readers had to decode."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = sorted(ROOT.glob("batch_sampler_attn/**/*.py"))
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("docs/outputs/*.txt")),
    *sorted(ROOT.glob("examples/*.py")),
    *sorted(ROOT.glob("benchmarks/report/*.jinja")),
    *sorted(ROOT.glob("benchmarks/tables/*.jinja")),
]

# What not to write, and what to write. Only what is wrong in every sense.
GLOSSARY = {
    r"told apart|cannot be told": "no significant difference (n, 95 % CI)",
    r"\bless (?:plain|baseline|the other arm)\b": "minus",
    r"\bis better by\b|so many more": "accuracy gain (95 % CI), extra updates",
    r"labels? (?:are |were |is )?redrawn": "label noise",
    r"learn(?:t|ed) by heart": "memorized",
    r"no label tells": "hidden subgroups",
    r"\bdealt\b|\bdealing\b": "assigned at random, drawn",
    r"\bsamples? [^.|]{0,40}left out\b|leav(?:e|es|ing) out samples": "pruned",
    r"\bgo(?:es|ne) on\b|\bgoing on\b": "resumes, progress",
    r"\banew\b|\bafresh\b": "again",
    r"batch that is out\b": "the current batch",
    r"\b(?:is|are) told\b|\btold (?:of|so)\b|\bhears? of\b": "receives, is notified of, an error says so",
    r"\bbeside (?:nothing|\d)": "on an idle machine, vs",
    r"word is due|without a word|a word about": "a warning, silently, without synchronizing, a note on",
    r"\bheed(?:s|ed|ing)?\b": "follow",
    r"\bwhoever\b": "any code that",
    r"for want of": "because there is no",
    r"let go of": "drop",
    r"what it came to": "result",
    r"has an ear|is none of the": "if it defines `set_epoch`, is not in the dataset",
    r"hold together": "inconsistent state",
    r"\bIf so\.|\bLikewise\.": "the condition, in full",
}


def wrong_words(text):
    """The line number and the words of each match."""
    for words in GLOSSARY:
        for match in re.finditer(words.replace(" ", r"\s+"), text):
            yield text.count("\n", 0, match.start()) + 1, match[0]


def strings_of(source):
    """Docstrings and messages at the lines that they have, and nothing else."""
    lines = [""] * (source.count("\n") + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for number, line in enumerate(node.value.split("\n"), start=node.lineno - 1):
                lines[min(number, len(lines) - 1)] += line
    return "\n".join(lines)


@pytest.mark.parametrize("path", [*TEXTS, *PACKAGE], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_word_has_to_be_decoded(path):
    text = path.read_text(encoding="utf-8")
    assert list(wrong_words(strings_of(text) if path in PACKAGE else text)) == []


def test_the_latest_section_of_the_changelog_is_plain_too():
    latest = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    assert list(wrong_words(latest)) == []


@pytest.mark.parametrize("words", ["it is not told\napart from plain", "fetched anew", "beside 0.06 us"])
def test_a_wrong_word_is_found(words):
    assert len(list(wrong_words(words))) == 1
