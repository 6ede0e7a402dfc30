"""The phantom's sliders in a real JupyterLab, in a real headless Chromium: moved by the mouse, read from the page."""
import re
import time

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


@pytest.mark.slow # waits for minutes where JupyterLab does not show the sliders: not settled yet
def test_a_slider_changes_the_film(lab, lab_folder, page, pictures):
    import nbformat
    kernel = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=kernel), lab_folder / "play.ipynb")
    page.call("Page.navigate", url=f"{lab}lab/tree/play.ipynb")
    wait_for(lambda: page.js("!!document.querySelector('.jp-Notebook .jp-CodeCell')"), 180, "the notebook")
    wait_for(lambda: page.js("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status") == "idle", 180, "the kernel")
    page.click(".jp-Notebook .jp-CodeCell .cm-content")
    said = "[...document.querySelectorAll('.widget-html-content')].map(e => e.innerText).join(' ')"
    pressed = [0.]
    def film_there():  # a page that is still loading swallows a click on the run button: press again where the cell has not started
        if time.monotonic() - pressed[0] > 10 and page.js("document.querySelector('.jp-InputPrompt').innerText").split() == ["[", "]:"]:
            page.click('jp-button[data-command^="notebook:run-cell"], [data-command^="notebook:run-cell"]')
            pressed[0] = time.monotonic()
        return "greys" in (page.js(said) or "") and page.js(SPREAD) > 20 and page.js(said)
    first = wait_for(film_there, 400, "the film")
    page.screenshot(pictures / "play-before.png")
    labels = page.js("[...document.querySelectorAll('.widget-slider .widget-label')].map(e => e.innerText)")
    assert labels == ["severity", "density", "size", "fissures", "bronchograms", "seed"]

    shown = page.js("document.querySelector('.widget-image').src")
    page.drag(".widget-slider:nth-of-type(1) .noUi-handle", -400)  # severity, all the way down: nobody sees this one
    moved = wait_for(lambda: page.js(said) != first and page.js(said), 90, "another film")
    wait_for(lambda: page.js("document.querySelector('.widget-image').src") != shown and page.js(SPREAD) > 20, 60, "another picture")
    page.screenshot(pictures / "play-after.png")
    differ = [float(re.search(r"by ([\d.]+) of 255", text)[1]) for text in (first, moved)]
    assert differ[0] > 10 and differ[1] == 0, (first, moved)
