"""What is shown to others: saved outputs of notebooks name nobody's disk and hold no errors."""
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BOOKS = sorted([*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("reports/**/*.ipynb")])
BOOKS = [b for b in BOOKS if ".ipynb_checkpoints" not in b.parts]


@pytest.mark.parametrize("book", BOOKS, ids=lambda b: str(b.relative_to(ROOT)))
def test_outputs_name_no_place_and_no_fault(book):
    for cell in json.loads(book.read_text(encoding="utf-8"))["cells"]:
        for out in cell.get("outputs", []):
            said = "".join(out.get("text", "")) + json.dumps({k: v for k, v in out.get("data", {}).items() if not k.startswith("image/")})
            assert out["output_type"] != "error", f"{book.name} was saved with an error: {out.get('evalue')}"
            for place in ("site-packages", "/home/", "/root/", "/tmp/", str(ROOT)):
                assert place not in said, f"{book.name} shows {place!r} in the output of:\n{''.join(cell['source'])[:200]}"
