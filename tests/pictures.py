"""Fewer colours for the pictures of executed notebooks: `python tests/pictures.py` takes all of them, `python tests/pictures.py nbs/04_thresholding.ipynb` one."""
import sys
from pathlib import Path

from lazyseg.core import smaller_pictures

ROOT = Path(__file__).resolve().parent.parent


def main(given):
    for book in map(Path, given) if given else sorted([*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("reports/**/*.ipynb")]):
        before = book.stat().st_size
        smaller_pictures(book)
        if book.stat().st_size < before: print(f"{book}: {before / 1e6:.2f} to {book.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__": main(sys.argv[1:])
