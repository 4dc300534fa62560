"""Runs examples, and keeps what they print and draw for their pages on the site.

    python docs/keep_outputs.py [NAME ...]     # such as numpy_loop; without a name, all

A notebook is written again with its outputs, and its pictures beside those of others. Of a page, such as
getting-started, the pictures are kept that its blocks save.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXAMPLES, DOCS = ROOT / "examples", ROOT / "docs"
OUTPUTS = DOCS / "outputs"
# Pages with a picture that their blocks save.
PAGES = ("getting-started",)
# What an example leaves where it is run has no part in its page.
_FOLDER = re.compile(r"\S*/(?=\w+\.(?:png|pt|jsonl)\b)")
# How long it took depends on what else the machine did.
_ELAPSED = re.compile(r"(?<=━ 100%) +\d+:\d\d:\d\d *$", re.MULTILINE)
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def keep_script(example: Path) -> None:
    """Run a script, and keep what it printed, with the machine that it was run on.

    Raises:
        CalledProcessError: If it fails.
    """
    from benchmarks.environment import describe_environment, one_line

    is_for_ranks = "torchrun" in example.read_text(encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if is_for_ranks else []
    # Models this small gain nothing from threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *launcher, str(example)]
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True
        )
    printed = "\n".join(line.rstrip() for line in _ELAPSED.sub("", _FOLDER.sub("", done.stdout)).splitlines())
    machine = one_line(describe_environment("cpu"))
    (OUTPUTS / f"{example.stem}.txt").write_text(f"{printed}\n\n{machine}\n", encoding="utf-8")


def keep_notebook(path: Path) -> None:
    """Run a notebook, and keep its outputs in it, and its pictures as ``NAME-1.png`` and so on."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    run_cells(notebook["cells"])
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", ())]
    for number, picture in enumerate(pictures, start=1):
        (OUTPUTS / f"{path.stem}-{number}.png").write_bytes(base64.b64decode(picture))


def run_cells(cells: list[dict[str, Any]]) -> None:
    """Run a notebook's code cells in this process, from top to bottom, and replace their outputs, as Jupyter does."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate((cell for cell in cells if cell["cell_type"] == "code"), start=1):
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        printed, shown = io.StringIO(), None
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
            if isinstance(last, ast.Expr):
                shown = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        lines = printed.getvalue().splitlines(keepends=True)
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
        cell["execution_count"] = number
        if shown is not None:
            data = {"image/png": base64.b64encode(shown._repr_png_()).decode(), "text/plain": [repr(shown)]}
            result = {"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"}
            cell["outputs"].append(result)


def keep_pictures(page: Path) -> None:
    """Run the Python blocks of a page, and keep the pictures that they save."""
    code = "\n".join(_BLOCK.findall(page.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
        )
        for picture in Path(folder).glob("*.png"):
            shutil.copy(picture, OUTPUTS / picture.name)


def main() -> None:
    """The command."""
    sys.path.insert(0, str(ROOT))
    keepers: dict[str, tuple[Callable[[Path], None], Path]]
    keepers = {path.stem: (keep_notebook, path) for path in EXAMPLES.glob("*.ipynb")}
    keepers |= {
        path.stem: (keep_script, path)
        for path in sorted(EXAMPLES.glob("*.py"))
        if "__main__" in path.read_text(encoding="utf-8")
    }
    keepers |= {name: (keep_pictures, DOCS / f"{name}.md") for name in PAGES}
    for name in sys.argv[1:] or keepers:
        print(name)  # noqa: T201
        keeper, path = keepers[name]
        keeper(path)


if __name__ == "__main__":
    main()
