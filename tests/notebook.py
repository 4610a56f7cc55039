"""Runs a notebook's code cells in a fresh interpreter; `python -m tests.notebook FILE` writes their outputs into it.

nbclient and ipykernel would do that too, with more than twenty packages that nothing else here needs. What is run here
are plain cells: no magics, no widgets, figures of pyplot as PNG.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import environment

RUNNER = """
import ast, base64, contextlib, io, json, sys
import matplotlib.pyplot as plt
names, found = {"__name__": "__main__"}, []
for source in json.load(sys.stdin):
    body = ast.parse(source)
    last = body.body.pop() if body.body and isinstance(body.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(body, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            value = None if source.rstrip().endswith(";") else value
    shown = {} if value is None else {"text/plain": repr(value)}
    if hasattr(value, "_repr_html_"):
        shown["text/html"] = value._repr_html_()
    images = []
    for number in plt.get_fignums():
        buffer = io.BytesIO()
        plt.figure(number).savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
        images.append(base64.b64encode(buffer.getvalue()).decode())
    plt.close("all")
    found.append({"printed": printed.getvalue(), "shown": shown, "images": images})
json.dump(found, sys.stdout)
"""


def run(path: Path) -> list[dict[str, Any]]:
    """For each code cell what it printed, what its last expression shows by kind, and its figures as PNG in base64."""
    sources = ["".join(cell["source"]) for cell in code_cells(json.loads(path.read_text(encoding="utf-8")))]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        cwd=path.parent,
        env={**environment(), "MPLBACKEND": "agg", "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(found: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """As a notebook keeps them."""
    kept: list[dict[str, Any]] = []
    if found["printed"]:
        kept.append({"name": "stdout", "output_type": "stream", "text": _lines(found["printed"])})
    if found["shown"]:
        data = {kind: _lines(text) for kind, text in found["shown"].items()}
        kept.append({"data": data, "execution_count": number, "metadata": {}, "output_type": "execute_result"})
    for image in found["images"]:
        data = {"image/png": image, "text/plain": ["<Figure>"]}
        kept.append({"data": data, "metadata": {}, "output_type": "display_data"})
    return kept


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for number, (cell, found) in enumerate(zip(code_cells(notebook), run(path), strict=True), 1):
        cell["execution_count"], cell["outputs"] = number, outputs(found, number)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
