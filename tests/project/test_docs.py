"""The pages: their Python blocks run as they stand and print what is shown, links and the reference are complete."""

import ast
import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
import textwrap
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

from batch_sampler_attn.errors import BatchAttentionWarning

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^ *```(?P<language>python|text)\n(?P<code>.*?)^ *```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")

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
    """The language and the code of each block of a page, at the lines that it has there."""
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        lines_before = text.count("\n", 0, block.start("code"))
        yield block["language"], "\n" * lines_before + textwrap.dedent(block["code"])


def python_of(page):
    return [code for language, code in blocks_of(page) if language == "python"]


def modules_imported(blocks):
    """The modules that the blocks import, by their full names."""
    for node in ast.walk(ast.parse("\n".join(textwrap.dedent(block.lstrip("\n")) for block in blocks))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def is_with_trainer(page):
    modules = modules_imported(python_of(page))
    return any({*module.removeprefix("batch_sampler_attn.").split(".")} & TRAINERS for module in modules)


def missing_for(page):
    """The packages that a page's blocks import and that are not installed."""
    packages = {module.partition(".")[0] for module in modules_imported(python_of(page))}
    return sorted(package for package in packages if find_spec(package) is None)


def test_every_page_has_an_example():
    assert len(PAGES) > 30
    assert [name_of(page) for page in PAGES if not python_of(page)] == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # forked workers
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores
@pytest.mark.parametrize("page", [page for page in PAGES if not is_with_trainer(page)], ids=name_of)
def test_the_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    if missing := missing_for(page):
        pytest.skip(f"needs {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "name",
    [path.stem for path in sorted(ROOT.glob("batch_sampler_attn/trainers/*.py")) if ">>>" in path.read_text("utf-8")],
)
def test_the_example_of_a_trainer_s_docstring_runs(name):
    # These modules are imported here and not as tests are collected: their frameworks take seconds each.
    module = pytest.importorskip(f"batch_sampler_attn.trainers.{name}")
    result = doctest.testmod(module)
    assert result.attempted > result.failed == 0


def run_blocks(page):
    """Run the Python blocks of a page. A text block shows what the block before it prints."""
    namespace, printed = {"__name__": "__main__"}, ""
    for language, code in blocks_of(page):
        if language == "text":
            assert NUMBER.sub("#", printed) == NUMBER.sub("#", code.lstrip("\n"))
            # Another processor or PyTorch may round differently.
            numbers, shown = ([float(number) for number in NUMBER.findall(text)] for text in (printed, code))
            assert numbers == pytest.approx(shown, rel=0.05, abs=0.005)
            continue
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(code, str(page), "exec"), namespace)
        printed = output.getvalue()


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
