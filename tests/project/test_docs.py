"""The site: Python blocks of its pages run as they stand, links lead somewhere, every public name has an entry."""

import ast
import os
import re
import subprocess
import sys
import textwrap
import warnings
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import batch_sampler_attn
from batch_sampler_attn.errors import BatchAttentionWarning

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^ *```$", re.DOTALL | re.MULTILINE)

TRAINERS = {"accelerate", "fastai", "ignite", "jax", "keras", "lightning", "ray", "skorch", "transformers"}

# Modules without __all__ whose public classes and functions are for users.
PUBLIC_MODULES = ("accumulation", "distributed", "errors", "recorders.plots", "trainers.accelerate")
# These are for other modules of the package.
INTERNAL_NAMES = (
    "accumulation.refuse_own_loader",
    "errors.plural",
    "errors.short_repr",
    "errors.warn",
    "trainers.accelerate.check_updates",
)


def name_of(page):
    return page.relative_to(DOCS).as_posix()


def blocks_of(page):
    """Each Python block of a page, at the lines that it has there."""
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        lines_before = text.count("\n", 0, block.start("code"))
        yield "\n" * lines_before + textwrap.dedent(block["code"])


def modules_imported(blocks):
    """The modules that the blocks import, by their full names."""
    for node in ast.walk(ast.parse("\n".join(textwrap.dedent(block.lstrip("\n")) for block in blocks))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def is_with_trainer(page):
    modules = modules_imported(blocks_of(page))
    return any({*module.removeprefix("batch_sampler_attn.").split(".")} & TRAINERS for module in modules)


def missing_for(page):
    """The packages that a page's blocks import and that are not installed."""
    packages = {module.partition(".")[0] for module in modules_imported(blocks_of(page))}
    return sorted(package for package in packages if find_spec(package) is None)


def test_every_page_has_an_example():
    assert len(PAGES) > 30
    assert [name_of(page) for page in PAGES if not list(blocks_of(page))] == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # forked workers
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores
@pytest.mark.parametrize("page", [page for page in PAGES if not is_with_trainer(page)], ids=name_of)
def test_the_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    if missing := missing_for(page):
        pytest.skip(f"needs {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


def test_the_blocks_of_pages_about_trainers_run_too(tmp_path):
    pages = [page for page in PAGES if is_with_trainer(page) and not missing_for(page)]
    if not pages:
        pytest.skip("no trainer is installed")
    # In a process of their own: JAX's threads are none that other tests could fork beside.
    done = subprocess.run(
        [sys.executable, __file__, *map(str, pages)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def run_blocks(page):
    namespace = {"__name__": "__main__"}
    for block in blocks_of(page):
        exec(compile(block, str(page), "exec"), namespace)


def test_every_public_name_is_in_the_reference():
    griffe = pytest.importorskip("griffe")
    package = griffe.load("batch_sampler_attn", search_paths=[ROOT], resolve_aliases=True)
    entries = re.findall(
        r"^::: batch_sampler_attn\.(\S+)$", "".join(page.read_text("utf-8") for page in PAGES), re.MULTILINE
    )
    shown = {package[entry].canonical_path for entry in entries}
    for module in modules_in(package):
        name = module.path.partition(".")[2]
        if module.exports is None and name not in PUBLIC_MODULES:
            continue
        names = module.exports
        if names is None:
            names = [own for own, member in module.members.items() if is_public(member)]
        names = [str(own) for own in names if f"{name}.{own}" not in INTERNAL_NAMES]
        missing = [own for own in names if module[own].canonical_path not in shown]
        assert not missing, f"of {module.path}, docs/reference/ lacks {missing}"
    assert len(shown) == len(entries), "a name stands twice in docs/reference/"


def modules_in(package):
    yield package
    for member in package.modules.values():
        yield from modules_in(member)


def is_public(member):
    return not member.is_alias and (member.is_class or member.is_function) and not member.name.startswith("_")


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {batch_sampler_attn.__version__}\n" in citation


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs_material" if find_spec("mkdocs_material") else "material")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
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


def test_links_between_pages_work_in_the_repository_too():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            is_made = target.startswith(("evidence/", "../evidence/", "examples/", "../examples/"))
            if ":" not in target and not is_made:
                assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


if __name__ == "__main__":
    warnings.simplefilter("error", BatchAttentionWarning)
    for argument in sys.argv[1:]:
        run_blocks(Path(argument))
