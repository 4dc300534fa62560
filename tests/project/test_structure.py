"""The architecture's rules, read off the syntax tree of the package and of the benchmarks."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("batch_sampler_attn/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])
IMPORTS = runpy.run_path(str(ROOT / "docs" / "draw_imports.py"))

# Of Python, named tuples, torch and the classes of users: nobody here can give them other names.
OTHERS = {
    "_BaseDataLoaderIter",
    "_asdict",
    "_exit",
    "_fields",
    "_getframe",
    "_growth_tracker",
    "_replace",
    "_version",
    "_warned_capturable_if_run_uncaptured",
}


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def private_names_made(tree):
    """The underscore names that a module makes: of functions, classes, variables, attributes and slots."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            # What is set on anything but oneself is somebody else's.
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "twin"):
                yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value


def private_names_taken(tree):
    """The underscore names that a module takes from something else, by import or as an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr


def crossings(source):
    tree = ast.parse(source)
    made = set(private_names_made(tree)) | OTHERS
    return [(line, name) for line, name in private_names_taken(tree) if is_private(name) and name not in made]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_underscore_name_crosses_modules(path):
    assert crossings(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from a import _b", ["_b"]),
        ("import a\na._b()", ["_b"]),
        ("def f(x):\n    return x.y._z", ["_z"]),
        ("def f(x):\n    x._z = 1", ["_z"]),
        ("class A:\n    def __init__(self): self._z = 1\n    def __eq__(self, o): return o._z == self._z", []),
        ("class A(B):\n    def f(self): return self._inherited", ["_inherited"]),
    ],
)
def test_a_crossing_is_found(source, found):
    assert [name for _, name in crossings(source)] == found


def test_no_module_is_imported_by_what_it_imports():
    assert IMPORTS["find_circles"](IMPORTS["read_imports"]()) == []


def test_a_circle_is_found():
    assert IMPORTS["find_circles"]({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"], ["c", "b", "c"]]


def test_the_core_knows_nothing_of_what_drives_it():
    graph = IMPORTS["read_imports"]()
    outside = ("batch_sampler_attn.loading", "batch_sampler_attn.device")
    for module, imported in graph.items():
        if not module.startswith(outside) and module != "batch_sampler_attn":
            assert not [other for other in imported if other.startswith(outside)], module


def test_loading_and_device_know_nothing_of_each_other():
    for module, imported in IMPORTS["read_imports"]().items():
        for here, there in (("loading", "device"), ("device", "loading")):
            if module.startswith(f"batch_sampler_attn.{here}"):
                assert not [other for other in imported if other.startswith(f"batch_sampler_attn.{there}")], module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_longer_than_300_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_nothing_imports_from_the_examples():
    for path in [*FILES, *ROOT.glob("tests/**/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [module for module in modules if module.partition(".")[0] == "examples"], path


def test_the_picture_shows_the_imports_as_they_are():
    command = [sys.executable, str(ROOT / "docs" / "draw_imports.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
