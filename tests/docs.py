"""What the docs site has besides nbs/: the source under each function, executed reports, answers, an index of the library.

docs.sh calls it step by step: `before` copies nbs/ in the form that nbdev wants, `process` is nbdev, `after` adds pages to _proc,
`polish` touches up the rendered pages.
"""
import ast
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS, PROC = ROOT / "nbs", ROOT / "_proc"


def read(path): return nbformat.read(path, as_version=4)


def write(book, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


# Before nbdev: exported cells show their source, folded under the documentation of what they define.

def parsed(source):
    try: return ast.parse(source).body
    except SyntaxError: return []


def exported(cell): return cell.cell_type == "code" and re.match(r"#\|\s*export\s*$", cell.source, re.M)


def before(folder):
    shutil.copytree(NBS, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("solutions", ".*"))
    for path in Path(folder).glob("*.ipynb"):
        book = read(path)
        for cell in filter(exported, book.cells):
            if only_imports(cell) or not parsed(cell.source): continue
            cell.source = re.sub(r"#\|\s*export\s*$", "#| exports", cell.source, count=1, flags=re.M)
        write(book, path)


# What the command nbdev_proc_nbs does, without its first step: that one downloads and installs Quarto where there is none.

def process(folder):
    from nbdev.serve import proc_nbs
    proc_nbs(folder, n_workers=2)


# After nbdev.

LONG = 15 # lines of a constant that stay in sight


def fold(cell):
    "A function's source is folded, for what it does stands above it; a constant stays in sight unless it is long."
    lines = [l for l in cell.source.splitlines() if not re.match(r"#\|\s*code-(fold|summary)", l)]
    if len(lines) > LONG or defined(cell):
        lines[:0] = ["#| code-fold: true", '#| code-summary: "Source"']
    cell.source = "\n".join(lines)


def only_imports(cell): return (found := parsed(cell.source)) and all(isinstance(s, (ast.Import, ast.ImportFrom)) for s in found)


def fold_imports(cell):
    if only_imports(cell) and "#| code-fold" not in cell.source: cell.source = "#| code-fold: true\n#| code-summary: Imports\n" + cell.source


def defined(cell): return [s.name for s in parsed(cell.source) if isinstance(s, (ast.FunctionDef, ast.ClassDef))]


def documents(cell):
    "The name that a cell made by nbdev explains."
    return (m := re.search(r"show_doc\((\w+)", cell.source)) and cell.cell_type == "code" and m[1]


def in_order(cells):
    "nbdev puts what a cell's last function does above the cell and the others below: all of them above, as they stand in the source."
    out, i = [], 0
    while i < len(cells):
        names = defined(cells[i]) if cells[i].cell_type == "code" and "code-fold" in cells[i].source else []
        docs, end = [], i + 1
        while names and out and documents(out[-1]) in names: docs.append(out.pop())
        while names and end < len(cells) and documents(cells[end]) in names: docs.append(cells[end]); end += 1
        out += sorted(docs, key=lambda c: names.index(documents(c))) + [cells[i]]
        i = end
    return out


def plain_words(text):
    "What nbdev says of a name, without the rule above it, words that Python put there, and the two dozen arguments of every fastai callback."
    text = re.sub(r"\A---\n+", "", text)
    text = text.replace("*Call self as a function.*", "").replace("*Initialize self.  See help(type(self)) for accurate signature.*", "")
    text = re.sub(r"\(\s*after_create:NoneType=None.*?after_fit:NoneType=None\s*\)", "()", text, flags=re.S)
    return re.sub(r"def ([A-Z]\w*)\((.*?)\)(->None)?:\n```", r"class \1(\2):\n```", text, flags=re.S)


def to_reports(text):
    "Links to executed reports: a chapter lies one folder below them in the checkout, and beside them on the site."
    return text.replace("](../reports/", "](reports/")


def to_sections(text):
    "Links to sections: JupyterLab keeps the case of a heading, the site does not."
    return re.sub(r"\]\(((?:\w+\.ipynb)?#)([^)\s]+)\)", lambda m: f"]({m[1]}{m[2].lower()})", text)


def tidy_chapter(path, names):
    book = read(path)
    for cell in book.cells:
        if cell.cell_type == "markdown": cell.source = to_reports(link_names(to_sections(cell.source), names))
        if cell.cell_type != "code": continue
        if "#| code-fold: show" in cell.source: fold(cell)
        fold_imports(cell)
        cell.source = re.sub(r"(?m)(\S) {3,}(#\s)", r"\1  \2", cell.source) # comments in a column want a wider page
        cell.outputs = without_bars(cell.outputs)
        for out in cell.outputs:
            text = "".join(out.get("data", {}).get("text/markdown", ""))
            if text: out.data["text/markdown"] = plain_words(text) if documents(cell) else to_reports(text)
    book.cells = in_order(book.cells)
    write(book, path)


def link_names(text, names):
    "Names of the library in running text become links to where they are explained; fenced code stays as it is."
    parts = re.split(r"(```.*?```)", text, flags=re.S)
    link = lambda m: f"[`{m[1]}`]({names[m[1]]})" if m[1] in names else m[0]
    return "".join(p if p.startswith("```") else re.sub(r"(?<!\[)`(\w+)`(?!\])", link, p) for p in parts)


def modules():
    "The notebook behind each module: {module: notebook name}."
    found = {}
    for path in sorted(NBS.glob("*.ipynb")):
        code = "\n".join(c.source for c in read(path).cells if c.cell_type == "code")
        if m := re.search(r"^#\|\s*default_exp\s+(\w+)", code, re.M): found[m[1]] = path.name
    return found


def public(module):
    "What a module offers: (name, kind, first line of its documentation)."
    tree = ast.parse((ROOT / "lazyseg" / f"{module}.py").read_text())
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_" and not any("patch" in ast.dump(d) for d in node.decorator_list):
            yield node.name, "class" if isinstance(node, ast.ClassDef) else "function", (ast.get_docstring(node) or "").split("\n")[0]


def anchors():
    "Where a name is explained, for names that cannot be mistaken for a word and stand in one module only."
    places = {}
    for module, notebook in modules().items():
        for name, _, _ in public(module): places.setdefault(name, []).append(f"{notebook}#{name.lower()}")
    return {n: p[0] for n, p in places.items() if len(p) == 1 and (re.search(r".[A-Z_]", n))}


def api():
    "A page for each module: every public name, what it does, and where it is explained with an example."
    pages = []
    for module, notebook in sorted(modules().items()):
        about = ast.get_docstring(ast.parse((ROOT / "lazyseg" / f"{module}.py").read_text())) or ""
        rows = [f"| [`{name}`](../{notebook}#{name.lower()}) | {text.replace('|', chr(92) + '|')} |" for name, _, text in sorted(public(module), key=lambda r: r[0].lower())]
        path = PROC / "api" / f"{module}.qmd"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"---\ntitle: lazyseg.{module}\n---\n\n{about}\n\nEach name leads to its arguments, an example and its source, in the chapter that makes it.\n\n"
                        "| name | what it does |\n|---|---|\n" + "\n".join(rows) + '\n\n: {tbl-colwidths="[35,65]"}\n')
        pages.append(dict(text=module, href=f"api/{module}.qmd"))
    return pages


def titled(book, title, about=""):
    "The book with the title in front matter, as a page wants it."
    book.cells[:0] = [nbformat.v4.new_raw_cell("---\n" + yaml.safe_dump(dict(title=title, **(dict(description=about) if about else {}))) + "---\n")]


def pop_title(book):
    "Take the title cell out: title, subtitle and what else the cell said."
    for i, cell in enumerate(book.cells):
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            title, _, rest = cell.source.partition("\n")
            sub = re.match(r"\s*>\s*(.*)\n?", rest)
            cell.source = rest[sub.end():].strip() if sub else rest.strip()
            book.cells = [c for c in book.cells[i:] if c.cell_type != "markdown" or c.source]
            return title[2:].strip(), sub[1].strip() if sub else ""
    return "", ""


def answers():
    "Worked exercises, a page a chapter."
    pages = []
    for path in sorted((NBS / "solutions").glob("*.ipynb")):
        book = read(path)
        title, about = pop_title(book)
        for cell in book.cells:
            if cell.cell_type == "code": cell.outputs = without_bars(cell.outputs); fold_imports(cell)
        titled(book, title, about)
        write(book, PROC / "solutions" / path.name)
        pages.append(dict(text=title, href=f"solutions/{path.name}"))
    return pages


def without_bars(outputs):
    "Outputs but for progress bars that ran through, sliders that no kernel moves, and what was written to stderr."
    def bar(out):
        html = "".join(out.get("data", {}).get("text/html", ""))
        return "<progress" in html or html and not re.sub(r"<style.*?</style>|<[^>]*>|\s", "", html, flags=re.S)
    def slider(out): return re.match(r"[VH]?Box\(children=", "".join(out.get("data", {}).get("text/plain", "")))
    kept = []
    for o in outputs:
        if bar(o) or slider(o) or o.get("name") == "stderr": continue
        if o["output_type"] == "stream" and kept and kept[-1]["output_type"] == "stream": kept[-1]["text"] += o["text"] # what was printed bit by bit stands together
        else: kept.append(o)
    return kept


def quiet(cell):
    "A report is for reading: the code is folded away."
    if cell.cell_type != "code": return
    cell.source = "#| code-fold: true\n#| code-summary: Code\n" + cell.source
    cell.outputs = without_bars(cell.outputs)


def settings_of(folder):
    "The settings of a run, in words, where it left them."
    file = folder / "metrics.json"
    settings = json.loads(file.read_text()).get("settings") if file.is_file() else None
    return ": " + ", ".join(f"{k} {v}" for k, v in settings.items() if v not in ("", None)) if isinstance(settings, dict) else ""


def report(path):
    "One executed notebook as a page; its sidebar group and its name there."
    folder, book = path.parent, read(path)
    group, text = "", ""
    title, about = pop_title(book)
    where = path.relative_to(ROOT / "reports").parts
    if len(where) > 3: # a single run: <source or kind>/<disease>/<what was run>/notebook
        group, text, about = f"{where[0]}: {where[1]}", where[2], "What one run found, as it left it."
        kind, template, title = title, ROOT / "nbs" / path.name, f"{where[1]}, {where[0]}: {where[2]}"
        book.cells = book.cells[next((i for i, c in enumerate(book.cells) if c.cell_type == "code"), 0):]
        origin = f"[{kind}]({'../' * len(where)}{path.name})" if template.is_file() else kind
        book.cells[:0] = [nbformat.v4.new_markdown_cell(f"An executed copy of {origin}{settings_of(folder)}. The code of each step is folded away. **Not a medical device.**")]
    elif (ROOT / "nbs" / path.name).is_file(): # its notebook is a page too, under the same title
        about, book.cells[:0] = "", [nbformat.v4.new_markdown_cell(f"{about} An executed copy of [{title}]({'../' * len(where)}{path.name}); the code of each step is folded away. **Not a medical device.**")]
        title += ": what was found" if folder.name == path.stem else f" ({folder.name})" # the same notebook may have run on several sets
    for cell in book.cells:
        quiet(cell)
        if cell.cell_type == "markdown": # links to chapters were written where the chapters lie
            cell.source = re.sub(r"\]\((\w+\.ipynb)", lambda m: f"]({'../' * len(where)}{m[1]}" if (NBS / m[1]).is_file() else m[0], cell.source)
    for credit in folder.glob("CREDIT.md"): book.cells.append(nbformat.v4.new_markdown_cell(re.sub(r"^#", "##", credit.read_text())))
    titled(book, title or path.stem, about)
    write(book, PROC / path.relative_to(ROOT))
    return group, dict(text=text or title, href=str(path.relative_to(ROOT)))


def reports():
    "Every executed notebook below reports/; those of single runs in a section for each source and disease."
    pages, groups = [], {}
    for path in sorted((ROOT / "reports").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts or path.name.endswith("running.ipynb"): continue
        group, page = report(path)
        (groups.setdefault(group, []) if group else pages).append(page)
    return pages + [dict(section=g, contents=p) for g, p in groups.items()]


def after():
    names = anchors()
    for path in PROC.glob("*.ipynb"): tidy_chapter(path, names)
    sidebar = yaml.safe_load((PROC / "sidebar.yml").read_text())
    contents = sidebar["website"]["sidebar"]["contents"]
    section = lambda name: next(c["contents"] for c in contents if isinstance(c, dict) and c.get("section") == name)
    if found := answers(): section("Course").append(dict(section="Answers", contents=found))
    section("Reports")[:0] = reports() # what was found first, then the notebooks that find it
    contents.append(dict(section="API", contents=api()))
    (PROC / "sidebar.yml").write_text(yaml.safe_dump(sidebar, sort_keys=False))


def polish(folder):
    "In tables, an interval goes on a line of its own below its value, and a long name may break where its words do. Printed words are told from printed columns, which must not wrap."
    def may_break(cell): return re.sub(r"(?<=\w)([_/|])(?=\w)(?![^<]*>)", r"\1<wbr>", cell[0])
    def words(pre): return pre[0] if re.search(r"\S  +\S", pre[1]) else pre[0].replace("<pre>", '<pre class="words">')
    for path in Path(folder).rglob("*.html"):
        text = path.read_text()
        new = re.sub(r"(<td[^>]*>\s*-?\d[\d.]*) (\(-?[\d.]+ to -?[\d.]+\))", r'\1 <span class="interval">\2</span>', text)
        new = re.sub(r"<(t[hd])\b[^>]*>.*?</\1>", may_break, new, flags=re.S)
        new = re.sub(r"<pre><code>(.*?)</code></pre>", words, new, flags=re.S)
        if new != text: path.write_text(new)


if __name__ == "__main__":
    dict(before=before, process=process, after=after, polish=polish)[sys.argv[1]](*sys.argv[2:])
