"""Print README.md, made from nbs/index.ipynb: markdown and saved text outputs, without front matter and hidden cells."""
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent
book = nbformat.read(root / "nbs" / "index.ipynb", as_version=4)
book.cells = [c for c in book.cells if not re.match(r"#\|\s*(hide|include)", c.source)]
for cell in book.cells:
    if cell.cell_type == "code":  # directives are for nbdev, not for the reader
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
text, _ = MarkdownExporter().from_notebook_node(book)
print("<!-- Made from nbs/index.ipynb by `make readme`. Do not edit here. -->\n")
print(re.sub(r"\n{3,}", "\n\n", text).strip())
