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
        source = cell.source
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
        for out in cell.get("outputs", []):
            data = out.get("data", {})
            if "image/png" in data:  # a picture that a run left in reports/: the README shows the file itself
                file = re.search(r"reports/[^'\"]+\.png", cell.source)[0]
                out["data"] = {"text/markdown": f"![{Path(file).stem}, a figure that a run left]({file})"}
        if "echo: false" in source:
            cell.source = ""
text, _ = MarkdownExporter(exclude_input_prompt=True).from_notebook_node(book)
text = re.sub(r"```\w*\n\s*```\n", "", text)  # what is left of a cell whose code is not shown
text = re.sub(r"\]\((\w+\.ipynb)", r"](nbs/\1", text)  # chapters lie beside the index, not beside the README
text = text.replace("](../reports/", "](reports/")
print("<!-- Made from nbs/index.ipynb by `make readme`. Do not edit here. -->\n")
print(re.sub(r"\n{3,}", "\n\n", text).strip())
