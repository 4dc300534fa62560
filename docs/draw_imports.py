"""The package's imports as a picture, from the code itself.

    python docs/draw_imports.py            # write the picture into architecture.md
    python docs/draw_imports.py --check    # say whether it is the one that is there
    python docs/draw_imports.py --size     # print lines, modules and floors of the package, by folder

The picture is a Mermaid diagram, which GitHub and documentation sites draw. A folder is one box. An arrow says who
imports whom; one that follows from others (A to B to C, and A to C) is left out.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "batch_sampler_attn"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- imports: begin, made by docs/draw_imports.py -->", "<!-- imports: end -->"

Graph = dict[str, set[str]]


def read_imports() -> Graph:
    """Which modules each module of the package imports from it: those for types, and those within functions, too."""
    files = {_name_of(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
    graph: Graph = {}
    for name, path in files.items():
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                # What is named may be a module, or something in the one that it is imported from.
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                imported.update(inner & files.keys() or {node.module})
        graph[name] = {module for module in imported & files.keys() if module != name}
    return graph


def find_circles(graph: Graph) -> list[list[str]]:
    """Every module that can be reached from itself, with the way back."""
    circles = []
    for start in graph:
        ways, seen = [[start]], set()
        while ways:
            way = ways.pop()
            for following in sorted(graph[way[-1]]):
                if following == start:
                    circles.append([*way, start])
                elif following not in seen:
                    seen.add(following)
                    ways.append([*way, following])
    return circles


def to_rooms(graph: Graph) -> Graph:
    """The same graph with one room for each folder, and one for each module outside of folders."""
    rooms: Graph = {}
    for module, imported in graph.items():
        inside = rooms.setdefault(_room_of(module), set())
        inside.update({_room_of(other) for other in imported} - {_room_of(module)})
    return rooms


def count_floors(graph: Graph) -> int:
    """How many rooms there are in the longest chain of imports."""
    floors: dict[str, int] = {}

    def floor(module: str) -> int:
        if module not in floors:
            floors[module] = 1 + max(map(floor, graph[module]), default=0)
        return floors[module]

    return max(map(floor, graph))


def describe_size() -> str:
    """Lines and modules by folder, and the floors of the whole package."""
    lines: dict[str, list[int]] = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        folder = path.parent.relative_to(ROOT).as_posix()
        lines.setdefault(folder, []).append(len(path.read_text(encoding="utf-8").splitlines()))
    rows = [f"{sum(each):7,} lines in {len(each):2} modules: {folder}/" for folder, each in lines.items()]
    modules = [count for each in lines.values() for count in each]
    floors = count_floors(to_rooms(read_imports()))
    total = f"{sum(modules):7,} lines in {len(modules):2} modules, on {floors} floors of rooms"
    return "\n".join([*rows, total])


def draw(graph: Graph) -> str:
    """The picture, with folders for boxes."""
    rooms = to_rooms(graph)
    del rooms[PACKAGE]  # the front door imports what it exports
    lines = ["```mermaid", "graph TD"]
    for room, imported in sorted(rooms.items()):
        folder = (ROOT / PACKAGE / room).is_dir()
        lines.append(f"    {room}[[{room}/]]" if folder else f"    {room}[{room}]")
        for other in sorted(imported):
            if not any(_reaches(rooms, between, other) for between in imported - {other}):
                lines.append(f"    {room} --> {other}")
    return "\n".join([*lines, "```"])


def _reaches(graph: Graph, start: str, end: str) -> bool:
    return any(following == end or _reaches(graph, following, end) for following in graph[start])


def _name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def main() -> None:
    """Write the picture, or check it, or print the size."""
    if "--size" in sys.argv:
        print(describe_size())  # noqa: T201
        return
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    made = f"{before}{BEGIN}\n\n{draw(read_imports())}\n\n{END}{after}"
    if "--check" not in sys.argv:
        PAGE.write_text(made, encoding="utf-8")
    elif made != page:
        sys.exit(f"{PAGE.name} does not show the imports as they are; run python docs/draw_imports.py")


if __name__ == "__main__":
    main()
