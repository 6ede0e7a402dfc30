"""What is shown to others: notebooks name nobody's disk, be it in an output, a parameter or a source, and hold no errors."""
import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BOOKS = sorted([*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("reports/**/*.ipynb")])
BOOKS = [b for b in BOOKS if ".ipynb_checkpoints" not in b.parts]


@pytest.mark.parametrize("book", BOOKS, ids=lambda b: str(b.relative_to(ROOT)))
def test_a_notebook_names_no_place_and_shows_no_fault(book):
    read = json.loads(book.read_text(encoding="utf-8"))
    for cell in read["cells"]:
        for out in cell.get("outputs", []):
            assert out["output_type"] != "error", f"{book.name} was saved with an error: {out.get('evalue')}"
            out["data"] = {k: v for k, v in out.get("data", {}).items() if not k.startswith("image/")}
    for part in [read["metadata"], *read["cells"]]: # metadata holds papermill's parameters and paths
        for place in ("site-packages", "/home/", "/root/", "/tmp/", str(ROOT)):
            assert place not in json.dumps(part), f"{book.name} names {place!r} in {json.dumps(part)[:300]}"


def markdown(book):
    return ["".join(c["source"]) for c in json.loads(book.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown"]


def test_links_to_sections_arrive_in_jupyterlab():
    "There a heading is called by its words, joined and in their case; tests/docs.py makes small letters of it for the site."
    lost, found = [], 0
    for book in ROOT.glob("nbs/*.ipynb"):
        for name, place in re.findall(r"\]\((\w+\.ipynb)?#([^)\s]+)\)", "\n".join(markdown(book))):
            there = {h.replace("`", "").replace(" ", "-") for h in re.findall(r"(?m)^#+ (.+?) *$", "\n".join(markdown(book.parent/name if name else book)))}
            found += 1
            if place not in there: lost.append(f"{book.name}: {name}#{place}")
    assert found >= 7 and not lost, lost


def test_what_the_site_hides_is_folded_in_jupyterlab():
    "A cell of checks or of drawing is shorter than what it would stand between."
    aside = [(book.name, c) for book in ROOT.glob("nbs/*.ipynb") for c in json.loads(book.read_text(encoding="utf-8"))["cells"]
             if c["cell_type"] == "code" and re.match(r"#\|\s*(hide|echo:\s*false)\b", "".join(c["source"]))]
    open_ones = [(name, "".join(c["source"])[:60]) for name, c in aside if not c["metadata"].get("jupyter", {}).get("source_hidden")]
    assert len(aside) > 50 and not open_ones, f"give these the metadata {{'jupyter': {{'source_hidden': true}}}}: {open_ones}"


CHAPTERS = [b for b in BOOKS if b.parent.name in ("nbs", "solutions") and b.name[:2].isdigit() or b.name == "index.ipynb"]


def is_to_be_seen(expr):
    "Is an expression there to be looked at: a name, a table, a figure, a sentence?"
    if isinstance(expr, (ast.Name, ast.Attribute, ast.Subscript)): return True
    if not isinstance(expr, ast.Call): return False
    made = ast.unparse(expr.func)
    return made in ("Markdown", "Image", "HTML") or made.startswith(("pd.", "figure_")) or made.endswith(
        ("_table", ".round", ".unstack", ".rename", ".rename_axis", ".to_frame", ".head", ".hide", ".format"))


def lost(cell):
    "What a cell makes to be seen and does not show."
    source = "".join(cell["source"])
    *before, last = ast.parse("\n".join("" if line.startswith(("%", "!")) else line for line in source.splitlines())).body or [None]
    for s in before: # Jupyter shows the last expression alone
        if isinstance(s, ast.Expr) and is_to_be_seen(s.value): yield ast.unparse(s)
    shown = any(o["output_type"] in ("execute_result", "display_data") for o in cell["outputs"])
    if isinstance(last, ast.Expr) and is_to_be_seen(last.value) and not shown and not source.rstrip().endswith(";"): yield ast.unparse(last)


@pytest.mark.parametrize("book", CHAPTERS, ids=lambda b: b.stem)
def test_a_chapter_shows_its_tables_and_figures(book):
    for cell in json.loads(book.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code" or "#| export" in "".join(cell["source"]): continue
        assert not (gone := list(lost(cell))), f"{book.name}, cell {cell['id']}: not shown: {gone}. Make it the last expression and run the chapter."


def test_a_table_before_a_test_and_a_table_without_its_output_are_noticed():
    def cell(source, *kinds): return dict(source=source, outputs=[dict(output_type=k) for k in kinds])
    assert list(lost(cell("table = pd.DataFrame([1])\ntable.T.round(2)\ntest_eq(1, 1)")))
    assert list(lost(cell("table")))
    assert list(lost(cell("figure_dice(found)", "stream")))
    assert list(lost(cell("Image(file)\nprint(1)", "stream")))
    assert not list(lost(cell("test_eq(1, 1)\ntable", "execute_result")))
    assert not list(lost(cell("fig, ax = plt.subplots()\nax.plot([1])\nprint(table)", "stream")))


def fresh(book):
    "What the cells of a notebook whose code is not shown give when they are run now: (cell, its last expression)."
    names = {}
    for cell in json.loads(book.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or not source.startswith(("#| hide", "#| echo: false")): continue
        *before, last = ast.parse(source).body
        exec(compile(ast.Module(before, []), book.name, "exec"), names)
        if isinstance(last, ast.Expr): yield cell, eval(compile(ast.Expression(last.value), book.name, "eval"), names)
        else: exec(compile(ast.Module([last], []), book.name, "exec"), names)


@pytest.mark.dev
def test_the_index_tells_what_the_kept_runs_found():
    "Tables and sentences with numbers are made from reports/; who adds a run there runs the index again and remakes the README."
    told = 0
    for cell, value in fresh(ROOT / "nbs" / "index.ipynb"):
        if not hasattr(value, "_repr_markdown_"): continue
        saved = "".join(cell["outputs"][0]["data"]["text/markdown"])
        assert saved == value._repr_markdown_(), "nbs/index.ipynb shows other numbers than reports/. Run it again (jupyter nbconvert --to notebook --execute --inplace nbs/index.ipynb), then nbdev_clean and make readme."
        told += 1
    assert told >= 4
