"""The architecture's rules, read off the syntax tree of the package and of the benchmarks."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("batch_sampler_attn/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])
IMPORTS = runpy.run_path(str(ROOT / "docs" / "draw_imports.py"))
GRAPH = IMPORTS["read_imports"]()

# Of Python, named tuples, torch and the classes of users: nobody here can give them other names.
OTHERS = {
    "_BaseDataLoaderIter",
    "_asdict",
    "_combined_loader",
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


def crossings(source, made):
    """Underscore names that are taken and that nobody in ``made`` makes, which are those of the same folder."""
    tree = ast.parse(source)
    allowed = made | set(private_names_made(tree)) | OTHERS
    return [(line, name) for line, name in private_names_taken(tree) if is_private(name) and name not in allowed]


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in FILES}), ids=lambda path: str(path.relative_to(ROOT))
)
def test_what_is_private_is_private_to_its_folder(folder):
    sources = {path: path.read_text(encoding="utf-8") for path in FILES if path.parent == folder}
    made = {name for source in sources.values() for name in private_names_made(ast.parse(source))}
    assert {str(path): found for path, source in sources.items() if (found := crossings(source, made))} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from a import _b", ["_b"]),
        ("def f(x):\n    x.y._z = 1", ["_z"]),
        ("class A:\n    def __init__(self): self._z = 1\n    def __eq__(self, o): return o._z == self._z", []),
        ("class A(B):\n    def f(self): return self._inherited", ["_inherited"]),
        ("def f(x):\n    return x._of_a_neighbour", []),
    ],
)
def test_a_crossing_is_found(source, found):
    assert [name for _, name in crossings(source, {"_of_a_neighbour"})] == found


def test_no_module_and_no_folder_is_imported_by_what_it_imports():
    assert IMPORTS["find_circles"](GRAPH) == []
    assert IMPORTS["find_circles"](IMPORTS["to_rooms"](GRAPH)) == []


def test_a_circle_is_found():
    assert IMPORTS["find_circles"]({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"], ["c", "b", "c"]]


def test_the_core_knows_nothing_of_what_drives_it_and_loading_and_device_nothing_of_each_other():
    outside = {"batch_sampler_attn.loading", "batch_sampler_attn.device"}
    for module, imported in GRAPH.items():
        here = {folder for folder in outside if module.startswith(folder)}
        if module != "batch_sampler_attn":
            assert not [other for other in imported if other.startswith(tuple(outside - here))], module


def test_nothing_imports_from_the_examples():
    importing = re.compile(r"^\s*(from|import) examples\b", re.MULTILINE)
    for path in [*FILES, *ROOT.glob("tests/**/*.py")]:
        assert not importing.search(path.read_text(encoding="utf-8")), path


def test_the_picture_shows_the_imports_as_they_are():
    command = [sys.executable, str(ROOT / "docs" / "draw_imports.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
