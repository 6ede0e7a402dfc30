"""`explore` in a real JupyterLab, in a real headless Chromium: moved by the mouse, read from the page."""
import re
import time
from pathlib import Path

import pytest

from conftest import wait_for

pytestmark = pytest.mark.dev
CELL = """
import numpy as np
from test_segmenter import lungs_like, KnownFilms, Segmenter, GeneratorScorer, OperatingPoint, Translator, method
from lazyseg.segmenter import explore
import torch; torch.manual_seed(0)
m = method('lazyseg', width=8, blocks=1, critic_width=8, average=0., head='mask', map='difference') # untrained, its values are spread wider
about = dict(choices=m.__dict__, name='lazyseg', size=128, width=128, view='film', disease='pneumonia', source='phantom', seed=0)
films = lungs_like(40, 128)
films[1] = 255 - films[1]
segmenter = Segmenter(GeneratorScorer(Translator(m).there.generator, m.map), OperatingPoint(.05, smoothing=1.), about, KnownFilms.of(films[10:30], films[30:]))
box = explore(segmenter, list(films[:4]))
box.children[1].value = .4*box.children[1].max
from ipywidgets import HTML, VBox
clock = HTML()
box.children[1].observe(lambda _: setattr(clock, 'value', clock.value + f' update {box.milliseconds:.0f}'), 'value')
VBox([box, clock])
"""


def test_explore_follows_the_mouse(shown_in_lab, page, pictures):
    said = shown_in_lab(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})" + CELL, until="image score")
    first, shown = said(), "document.querySelector('.widget-image')?.src"
    picture = page.js(shown)
    page.screenshot(pictures / "explore-before.png")
    for width in (1280, 800): # nothing is cut off, and nothing has to be scrolled sideways
        page.resize(width)
        wait_for(lambda: page.js("[...document.querySelectorAll('.jp-OutputArea-output')].every(e => e.scrollWidth <= e.clientWidth)"), 20, f"a page {width} wide that fits")
    page.resize(1280)

    page.drag(".widget-slider:nth-of-type(2) .noUi-handle", 160) # threshold
    moved = wait_for(lambda: said() != first and said(), 90, "another mask")
    wait_for(lambda: page.js(shown) != picture, 60, "another picture")
    marked = [float(re.search(r"marked ([\d.]+)%", text)[1]) for text in (first, moved)]
    assert marked[1] < marked[0], "a higher threshold marks less"
    page.drag(".widget-slider:nth-of-type(1) .noUi-handle", 160) # film
    wait_for(lambda: "film 1 of 4" not in said(), 90, "another film")
    page.screenshot(pictures / "explore-after.png")
    updates = [int(n) for n in re.findall(r"update (\d+)", said())]
    assert updates # how long they take is measured in benchmarks/segmenter.py


PANEL = """
from lazyseg.segmenter import explore
from lazyseg.panel import Panel
from lazyseg.phantom import several_arrays
table, arrays = several_arrays(12, 64, seed=5)
explore(Panel.load('FOLDER'), list(arrays['film']))
"""


def test_a_panel_is_explored_disease_by_disease(shown_in_lab, page, pictures):
    "The panel that is kept: the diagnosis above, and the buttons choose whose marks are shown."
    folder = Path(__file__).parent.parent / "reports/panel/phantom-64/model"
    said = shown_in_lab(PANEL.replace("FOLDER", folder.as_posix()), until="image score")
    first, shown = said(), "document.querySelector('.widget-image')?.src"
    assert all(d in first for d in ("pneumonia", "edema", "emphysema", "hernia")) and "film 1 of 12" in first
    picture = page.js(shown)
    page.screenshot(pictures / "explore-panel-before.png")
    page.click(".widget-toggle-button:nth-of-type(4)") # hernia
    wait_for(lambda: page.js(shown) != picture, 90, "the marks of another disease")
    assert page.js("document.querySelector('.widget-toggle-button.mod-active').innerText") == "hernia"
    told = said()
    page.drag(".widget-slider:nth-of-type(1) .noUi-handle", 160) # film
    wait_for(lambda: "film 1 of 12" not in said() and said() != told, 90, "another film and its diagnosis")
    time.sleep(2) # the last of several moves
    turned = re.search(r"film (\d+) of 12", said())[1]
    page.screenshot(pictures / "explore-panel-after.png")
    page.click(".widget-toggle-button:nth-of-type(2)") # the film stays when the disease changes
    wait_for(lambda: page.js("document.querySelector('.widget-toggle-button.mod-active').innerText") == "edema" and f"film {turned} of 12" in said(), 90, "the same film, edema")
