"""Every public name says what it is, and is seen at work where it is made."""
import ast
import json
import re

import pytest
from conftest import ROOT

pytestmark = pytest.mark.dev
BOOKS = {p.stem: [("".join(c["source"])) for c in json.loads(p.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
         for p in sorted((ROOT / "nbs").glob("*.ipynb"))}
CHAPTERS = [b for b, cells in BOOKS.items() if any(re.search(r"^#\|\s*default_exp", c, re.M) for c in cells)]
is_exported = lambda cell: re.match(r"#\|\s*export", cell)


def definitions(book):
    "What the exported cells of a notebook define: {name: (its node, its source)}; methods added by `@patch` and constants too."
    found = {}
    for cell in filter(is_exported, BOOKS[book]):
        for node in ast.parse(cell).body:
            names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else [getattr(t, "id", getattr(t, "attr", "")) for t in getattr(node, "targets", [])]
            for name in names: found[name] = node, found.get(name, (0, ""))[1] + ast.get_source_segment(cell, node)
    return found


@pytest.mark.parametrize("book", CHAPTERS)
def test_every_public_name_says_what_it_is(book):
    silent = [name for name, (node, _) in definitions(book).items()
              if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and name[0] != "_" and not ast.get_docstring(node)]
    assert not silent, f"no docstring: {', '.join(silent)}"


@pytest.mark.parametrize("book", CHAPTERS)
def test_every_public_name_is_at_work_in_its_notebook(book):
    "Functions, classes and methods added by `@patch` are named in a cell of the same notebook that is not exported: an example, a test. Properties and constants show themselves."
    shown = set(re.findall(r"\w+", "\n".join(c for c in BOOKS[book] if not is_exported(c))))
    is_property = lambda node: any("property" in ast.unparse(d) or "as_prop" in ast.unparse(d) for d in node.decorator_list)
    idle = [name for name, (node, _) in definitions(book).items() if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and name[0] != "_" and not is_property(node) and name not in shown]
    assert not idle, f"no cell beside them: {', '.join(idle)}. Show each at work in a cell with a test, or make it private."


@pytest.mark.parametrize("book", CHAPTERS)
def test_exported_code_fits_a_screen(book):
    "Nothing runs out of sight, to the right or below. A table of choices with a comment a line, `Method`, may be a little longer."
    for cell in filter(is_exported, BOOKS[book]):
        lines = cell.rstrip().splitlines()
        wide = [line for line in lines if len(line) > 140]
        assert not wide, f"longer than 140 characters: {wide[0]}"
        assert len(lines) <= (35 if "class Method:" in cell else 31), f"{len(lines)} lines: {lines[1]}"
