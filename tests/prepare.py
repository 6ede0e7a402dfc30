"""Render the phantom that several notebooks and tests use, once, before they start side by side."""
from lazyseg.phantom import fetch_ct

fetch_ct()
