"""What the site is made of besides the pages in docs/: a hook of MkDocs.

The changelog, the reports and the examples stand elsewhere in the repository, where their own readers and commands look
for them. They become pages here as they are. Links between all of these work in the repository and on the site alike,
and names of the package that a page mentions lead to the reference.
"""

from __future__ import annotations

import ast
import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = "batch_sampler_attn"

# Folders and files of the repository, and where they are on the site; the longest that fits counts.
PLACES = {
    "docs/": "",
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/": "examples/",
    "benchmarks/README.md": "evidence/benchmarks.md",
    "benchmarks/records/report/": "evidence/report/",
    "benchmarks/records/selection-report/": "evidence/selection-report/",
    # One folder a day, of which only the figure is shown.
    **{
        path.relative_to(ROOT).as_posix(): f"examples/{path.parent.name}.png"
        for path in sorted((ROOT / "benchmarks" / "records").glob("????-??-??-quickstart/figure.png"))
    },
}
# What is taken from these folders besides Markdown: figures.
FIGURES = (".png", ".svg")

# What examples printed, NAME.txt, where it was kept: python docs/keep_outputs.py.
OUTPUTS = ROOT / "docs" / "outputs"
# The examples' subjects, in the order of the gallery; those in none come last.
SUBJECTS = {
    "Does it help? Each with the control": (
        "quickstart",
        "language_model",
        "segmentation",
        "tabular_regression",
        "paired_arms",
    ),
    "Attention to samples": ("wrong_labels", "sample_attention"),
    "Loops and frameworks": ("numpy_loop", "sklearn_partial_fit", "jax_optax", "mixed_precision", "device_loop"),
    "Data, checkpoints and ranks": ("augmented_dataloader", "checkpoint_resume", "ddp"),
}
# An example's lines need the room of the table of contents.
WIDE = "---\nhide: [toc]\n---"
# The sentences that an example of the first kind ends with.
_FINDING = re.compile(r"^(?:attention minus|[^│\n]+: batch attention, at)\b.*$", re.MULTILINE)

# What guides call their objects, and of which class these are: `schedule.skip()` leads to the method's entry.
OBJECTS = {
    "schedule": "BatchAttentionSchedule",
    "sampler": "BatchAttentionSampler",
    "attention": "SampleAttention",
    "loop": "DeviceLoop",
    "recorder": "MemoryRecorder",
}

# Methods of the schedule that guides call by their names alone.
METHODS = ("abandon_epoch", "attend", "decide", "end_epoch", "report")

_LINK = re.compile(r"(?P<text>!?\[[^\]\n]*\]\()(?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")
_FENCE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)
_SUMMARY = re.compile(r"<!-- found: (?P<path>\S+) -->")
_FROM_README = re.compile(r"<!-- from README\.md: (?P<name>\S+) -->")
_CODE = re.compile(r"(<(?:a|pre|h\d)\b.*?</(?:a|pre|h\d)>)|<code>(?P<words>[^<>]+)</code>", re.DOTALL)
_DIAGRAM = re.compile(r"```mermaid\ngraph TD\n(.*?)```\n", re.DOTALL)
_REFERENCE = re.compile(r"^::: (\S+)$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the examples in the navigation."""
    for part in config.nav or []:
        if "Examples" in part:
            part["Examples"] = ["examples/index.md", *(place_of(example) for example in _examples().values())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what stands elsewhere."""
    # Where a page of docs/ has the same place, such as index.md, it is used.
    for source in _sources():
        place = place_of(source)
        if place is not None and files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for example in _examples().values():
        path = ROOT / example
        content = example_page(path) if path.suffix == ".py" else notebook_page(path, config.repo_url)
        files.append(File.generated(config, place_of(example) or "", content=content))
    files.append(File.generated(config, "examples/index.md", content=examples_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what the reports found and README.md has, and lead links to where their targets are on the site."""
    source = repository_path(page.file)
    markdown = _SUMMARY.sub(lambda match: found(ROOT / match["path"], match["path"], page.file.src_uri), markdown)
    markdown = _DIAGRAM.sub(lambda match: arrows(match[1]), markdown)
    parts = _FENCE.split(markdown)
    # Every other part is code.
    parts[::2] = [_LINK.sub(lambda link: moved(link, source, page, config, files), part) for part in parts[::2]]

    def from_readme(match: re.Match[str]) -> str:
        return _LINK.sub(lambda link: moved(link, "README.md", page, config, files), readme_block(match["name"]))

    return _FROM_README.sub(from_readme, "".join(parts))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead names of the package, where they stand as code in a sentence, to the reference."""
    del page, config, files
    known = reference_names()

    def linked(match: re.Match[str]) -> str:
        words = match["words"]
        identifier = words and _identifier(words, known)
        if not identifier:
            return match[0]
        return f'<autoref identifier="{identifier}" optional><code>{words}</code></autoref>'

    return _CODE.sub(linked, html)


def place_of(path: str) -> str | None:
    """Where a file of the repository is on the site; None if it is not."""
    fitting = [source for source in PLACES if path == source or (source.endswith("/") and path.startswith(source))]
    if not fitting:
        return None
    source = max(fitting, key=len)
    place = PLACES[source] + path.removeprefix(source) if source.endswith("/") else PLACES[source]
    return posixpath.splitext(place)[0] + ".md" if path.endswith((".py", ".ipynb")) else place


def repository_path(file: File) -> str:
    """Where a page of the site is in the repository; of an example's, where the example is."""
    if file.abs_src_path is not None:
        return Path(file.abs_src_path).relative_to(ROOT).as_posix()
    return _examples().get(Path(file.src_uri).stem, file.src_uri)


def reference_names() -> dict[str, str]:
    """What users call names of the package, and the reference does: ``{"Decision": "batch_sampler_attn.Decision"}``.

    A name that two areas have leads nowhere, and nor does one that is an everyday word, such as ``accumulate``.
    """
    pages = (page for page in sorted((ROOT / "docs" / "reference").glob("*.md")) if page.stem != "extending")
    entries = [name for page in pages for name in _REFERENCE.findall(page.read_text(encoding="utf-8"))]
    called = [name.rpartition(".")[2] for name in entries]
    known = {
        call: name
        for call, name in zip(called, entries, strict=True)
        if called.count(call) == 1 and not (call.islower() and call.isalpha())
    }
    return {**known, **{method: f"{known['BatchAttentionSchedule']}.{method}" for method in METHODS}}


def moved(link: re.Match[str], source: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link in the repository, as it is on the site; its text alone, if there is nowhere to lead to."""
    target, anchor = link["target"], link["anchor"] or ""
    if not target or ":" in target or target.startswith("/"):
        return link[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    place = place_of(path)
    if place is None or files.get_file_from_path(place) is None:
        # A page that another hook or this one has made is linked to by its place; MkDocs says if there is none.
        if not (ROOT / path).exists():
            return link[0]
        if not path.startswith(PACKAGE):
            url = (config.repo_url or "").rstrip("/")
            return f"{link['text']}{url}/blob/HEAD/{path}{anchor})" if url else link["text"].strip("![](")
        place, anchor = "reference/index.md", ""
    return f"{link['text']}{posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"


def found(report: Path, path: str, page: str) -> str:
    """The quotation that a report begins with: what was found, in its own words."""
    lines = [line for line in report.read_text(encoding="utf-8").splitlines() if line.startswith("> ")]
    if not lines:
        raise PluginError(f"{page}: {path} does not begin with what was found, in lines that begin with '> '")
    return "\n".join(lines)


def readme_block(name: str) -> str:
    """What README.md has between ``<!-- generated: NAME -->`` and ``<!-- end -->``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, begin, rest = text.partition(f"<!-- generated: {name} -->\n")
    if not begin:
        raise PluginError(f"README.md has no block '{name}'")
    return rest.partition("<!-- end -->")[0]


def arrows(diagram: str) -> str:
    """A Mermaid diagram as a table: it needs no script from elsewhere, and can be read on a phone and searched."""
    ends: dict[str, list[str]] = {}
    for start, end in re.findall(r"(\w+) --> (\w+)", diagram):
        ends.setdefault(start, []).append(f"`{end}`")
    rows = [f"| `{start}` | {', '.join(there)} |" for start, there in ends.items()]
    return "\n".join(["| room | imports |", "| --- | --- |", *rows]) + "\n"


def example_page(path: Path) -> str:
    """An example: what it says of itself, how it is started, what it printed and drew where that was kept, its code."""
    code = path.read_text(encoding="utf-8")
    title, _, rest = (ast.get_docstring(ast.parse(code)) or "").partition("\n")
    command = "torchrun --standalone --nproc-per-node 2" if "torchrun" in rest else "python"
    # The command stands below, as of every example.
    rest = "\n".join(line for line in rest.splitlines() if not line.startswith("torchrun"))
    rest = re.sub(r"^ {4}(\S+(?: \S+)*) {2,}(?=\S)", r"- **\1**: ", rest, flags=re.MULTILINE)
    parts = [WIDE, f"# {path.name}", title, rest, f"```bash\n{command} examples/{path.name}\n```"]
    printed = OUTPUTS / f"{path.stem}.txt"
    if printed.exists():
        parts += ["## What it prints", f"```text\n{printed.read_text(encoding='utf-8')}```"]
    if drawn := _drawn(path.stem):
        parts += [
            f"## What it draws, with {_seeds(drawn)} seeds",
            f"![What {path.name} draws]({posixpath.relpath(drawn, 'examples')})",
        ]
    body = code.partition('"""')[2].partition('"""')[2].lstrip("\n")
    return "\n\n".join([*parts, "## Its code", f"```python\n{body}```"]) + "\n"


def notebook_page(path: Path, repo_url: str | None) -> str:
    """A notebook: its cells, what they printed and drew, and where it opens in Colab if the repository is on GitHub."""
    parts = [WIDE]
    pictures = 0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text'])}```")
            else:
                pictures += 1
                parts.append(f"![What the cell above draws](../outputs/{path.stem}-{pictures}.png)")
    parts.append(f"The notebook is `examples/{path.name}`.")
    if repository := (repo_url or "").rstrip("/").partition("github.com/")[2]:
        notebook = f"{repository}/blob/HEAD/examples/{path.name}"
        parts.append(f"[Open it in Colab](https://colab.research.google.com/github/{notebook})")
    return "\n\n".join(parts) + "\n"


def examples_page() -> str:
    """All examples by subject, each with what it says of itself first, and what it found."""
    known = _examples()
    subjects = {subject: [name for name in names if name in known] for subject, names in SUBJECTS.items()}
    subjects["Others"] = [name for name in known if all(name not in names for names in subjects.values())]
    parts = ["# Examples", "The tests run each of them. All of their data comes with scikit-learn or Python."]
    for subject, names in subjects.items():
        if names:
            parts += [f"## {subject}", *(_entry(name, ROOT / known[name]) for name in names)]
    return "\n\n".join(parts) + "\n"


def _entry(name: str, path: Path) -> str:
    if path.suffix == ".ipynb":
        heading = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"][0].strip("# \n")
        shown = f"[![What {path.name} finds](../outputs/{name}-1.png)]({name}.md)"
        return f"**[{path.name}]({name}.md)**: {heading}.\n\n{shown}"
    code = path.read_text(encoding="utf-8")
    words = (ast.get_docstring(ast.parse(code)) or "").partition("\n")[0]
    printed = OUTPUTS / f"{name}.txt"
    said = _FINDING.findall(printed.read_text(encoding="utf-8")) if printed.exists() else []
    drawn = _drawn(name)
    picture = (
        f"[![What {name}.py draws, with {_seeds(drawn)} seeds]({posixpath.relpath(drawn, 'examples')})]({name}.md)"
        if drawn
        else ""
    )
    quoted = "\n".join(f"> {sentence}\n>" for sentence in said)
    return "\n\n".join(filter(None, [f"**[{name}.py]({name}.md)**: {words}", quoted, picture]))


def _drawn(name: str) -> str | None:
    """The figure of an example's newest records, by its place in the repository; None if there is none."""
    figures = sorted((ROOT / "benchmarks" / "records").glob(f"????-??-??-{name}/figure.png"))
    return figures[-1].relative_to(ROOT).as_posix() if figures else None


def _seeds(figure: str) -> int:
    """How many seeds the records beside a figure have."""
    lines = (ROOT / figure).with_name("runs.jsonl").read_text(encoding="utf-8").splitlines()
    return len({json.loads(line)["seed"] for line in lines})


def _identifier(words: str, known: dict[str, str]) -> str | None:
    """What the reference calls the code ``words``; None if it has no entry of its own."""
    if words.startswith(f"{PACKAGE}."):
        return words
    head, _, member = re.sub(r"\(.*\)$", "", words).partition(".")
    if not member:
        return known.get(head)
    owner = known.get(OBJECTS.get(head, head))
    return f"{owner}.{member}" if owner and member.isidentifier() else None


def _examples() -> dict[str, str]:
    """The scripts and notebooks by their names."""
    paths = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb"))
    return {path.stem: f"examples/{path.name}" for path in paths}


def _sources() -> list[str]:
    paths = [ROOT / source for source in PLACES if not source.endswith("/")]
    for folder in ("benchmarks/records/report", "benchmarks/records/selection-report", "examples"):
        paths += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".md", *FIGURES)]
    return [path.relative_to(ROOT).as_posix() for path in paths if path.exists()]
