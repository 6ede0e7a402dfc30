"""The phantom's sliders in a real JupyterLab, in a real headless Chromium: moved by the mouse, read from the page."""
import time

import pytest

from conftest import wait_for

pytestmark = pytest.mark.dev
CELL = """from lazyseg.phantom import play
play('emphysema', size=96)"""


def test_a_slider_changes_the_film(lab, lab_folder, page, pictures):
    import nbformat
    kernel = dict(name="python3", display_name="python3", language="python")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=dict(kernelspec=kernel)), lab_folder / "play.ipynb")
    page.call("Page.navigate", url=f"{lab}lab/tree/play.ipynb")
    wait_for(lambda: page.js("!!document.querySelector('.jp-Notebook .jp-CodeCell')"), 180, "the notebook")
    wait_for(lambda: page.js("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status") == "idle", 180, "the kernel")
    page.click(".jp-Notebook .jp-CodeCell .cm-content")
    shown = "document.querySelector('.jp-OutputArea .jp-RenderedImage img')?.src"
    pressed = [0.]
    def picture_there():  # a page that is still loading swallows a click on the run button: press again where the cell has not started
        if time.monotonic() - pressed[0] > 10 and page.js("document.querySelector('.jp-InputPrompt').innerText").split() == ["[", "]:"]:
            page.click('jp-button[data-command^="notebook:run-cell"], [data-command^="notebook:run-cell"]')
            pressed[0] = time.monotonic()
        return page.js(shown)
    first = wait_for(picture_there, 400, "the film")
    page.screenshot(pictures / "play-before.png")
    labels = page.js("[...document.querySelectorAll('.widget-slider .widget-label')].map(e => e.innerText)")
    assert "severity" in labels and len(labels) > 3, labels # and one for each sign
    page.drag(".widget-slider:nth-of-type(1) .noUi-handle", -80) # less severe
    wait_for(lambda: page.js(shown) not in (None, first) and page.js(shown), 90, "another film")
    page.screenshot(pictures / "play-after.png")
