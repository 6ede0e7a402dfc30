"""The phantom's sliders in a real JupyterLab, in a real headless Chromium: moved by the mouse, read from the page."""
import re

import pytest

from conftest import wait_for

pytestmark = pytest.mark.dev
CELL = """from lazyseg.phantom import play
play('pneumonia', size=128, seed=4)"""
# the greys of the picture's left half: how far from one flat colour they are
SPREAD = """(() => {
    const i = document.querySelector('.widget-image');
    if (!i || !i.naturalWidth) return 0;
    const c = Object.assign(document.createElement('canvas'), {width: i.naturalWidth, height: i.naturalHeight}), x = c.getContext('2d');
    x.drawImage(i, 0, 0);
    const g = [...x.getImageData(0, 0, c.width/2, c.height).data].filter((_, k) => k % 4 == 0), m = g.reduce((a, b) => a + b)/g.length;
    return Math.sqrt(g.reduce((a, b) => a + (b - m)**2, 0)/g.length)})()"""


def test_a_slider_changes_the_film(shown_in_lab, page, pictures):
    said = shown_in_lab(CELL, until="greys")
    first, picture = said(), "document.querySelector('.widget-image')?.src"
    wait_for(lambda: page.js(SPREAD) > 20, 60, "the film")
    page.screenshot(pictures / "play-before.png")
    labels = page.js("[...document.querySelectorAll('.widget-slider .widget-label')].map(e => e.innerText)")
    assert labels == ["severity", "density", "size", "fissures", "bronchograms", "seed"]

    shown = page.js(picture)
    page.drag(".widget-slider:nth-of-type(1) .noUi-handle", -400)  # severity, all the way down: nobody sees this one
    moved = wait_for(lambda: said() != first and said(), 90, "another film")
    wait_for(lambda: page.js(picture) != shown and page.js(SPREAD) > 20, 60, "another picture")
    page.screenshot(pictures / "play-after.png")
    differ = [float(re.search(r"by ([\d.]+) of 255", text)[1]) for text in (first, moved)]
    assert differ[0] > 10 and differ[1] == 0, (first, moved)
