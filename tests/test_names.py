"""Every public name says what it is, and is seen at work where it is made."""
import ast
import dataclasses
import importlib
import inspect
import json
import re

import pytest
from conftest import ROOT
from fastcore.docments import docments

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


def public_functions(module):
    "The functions of a module's `__all__`, and `__init__` and the public methods of its classes, by name."
    for name in module.__all__:
        thing = getattr(module, name)
        members = {f"{name}.{k}": v for k, v in vars(thing).items() if k == "__init__" or k[0] != "_"} if inspect.isclass(thing) else {name: thing}
        for k, f in members.items():
            f = getattr(f, "fget", None) or getattr(f, "__func__", f) # a property, a method of the class
            if inspect.isfunction(f) and f.__module__ == module.__name__:
                yield k, thing if dataclasses.is_dataclass(thing) and k.endswith(".__init__") else f # whose arguments are its fields


def commented(f):
    "The arguments of a function, or the fields of a dataclass, that should have a comment beside them."
    if inspect.isclass(f): return inspect.get_annotations(f) # what it inherits is told where it is defined
    unseen = inspect.Parameter.POSITIONAL_ONLY # by docments
    return [k for k, p in inspect.signature(f).parameters.items() if k not in ("self", "cls", "ctx") and p.kind != unseen]


@pytest.mark.parametrize("book", CHAPTERS)
def test_every_argument_says_what_it_is(book):
    "By a comment beside it, which the docs site and `show_doc` print."
    module = re.search(r"#\|\s*default_exp (\w+)", "\n".join(BOOKS[book]))[1]
    silent = []
    for name, f in public_functions(importlib.import_module(f"lazyseg.{module}")):
        told = docments(f, args_kwargs=True)
        silent += [f"{name}: {arg}" for arg in commented(f) if not told.get(arg)]
        rest = [k for k, p in inspect.signature(f).parameters.items() if p.kind == inspect.Parameter.VAR_KEYWORD]
        if rest and docments(f).get("return") == told[rest[0]]: silent.append(f"{name}: what it returns, where the site would print what {rest[0]} is")
    assert not silent, f"no comment: {'; '.join(silent)}"


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
    "Nothing runs out of sight, to the right or below."
    for cell in filter(is_exported, BOOKS[book]):
        lines = cell.rstrip().splitlines()
        wide = [line for line in lines if len(line) > 140]
        assert not wide, f"longer than 140 characters: {wide[0]}"
        assert len(lines) <= 36, f"{len(lines)} lines: {lines[1]}"
