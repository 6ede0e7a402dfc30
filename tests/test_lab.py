"""The course in JupyterLab: every notebook is opened in a real browser; and, when asked for, run from top to bottom."""
import json
import os
import shutil

import pytest
from conftest import ROOT, wait_for

pytestmark = pytest.mark.dev
nbformat = pytest.importorskip("nbformat")
yaml = pytest.importorskip("yaml")


def course():
    "The chapters, in the order of the sidebar, and the answers."
    contents = yaml.safe_load((ROOT / "nbs" / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    chapters = next(c["contents"] for c in contents if isinstance(c, dict) and c["section"] == "Course")
    return ["index.ipynb", *chapters, *sorted(str(p.relative_to(ROOT / "nbs")) for p in (ROOT / "nbs" / "solutions").glob("*.ipynb"))]


def test_every_chapter_opens_in_jupyterlab(lab, lab_folder, page, pictures, request):
    books = course() + ["train.ipynb"]
    shutil.copytree(ROOT / "nbs", lab_folder / "nbs", ignore=shutil.ignore_patterns(".*"))
    page.resize(1280)
    page.call("Page.navigate", url=f"{lab}lab")
    wait_for(lambda: page.js("!!window.jupyterapp?.commands && document.querySelector('#jp-main-dock-panel') !== null"), 180, "JupyterLab")
    page.js("window.jupyterapp.restored.then(() => true)")
    faults = []
    for name in books:
        preference = "kernelPreference: {shouldStart: false, canStart: false, autoStartDefault: false}"
        page.js(f"window.jupyterapp.commands.execute('docmanager:open', {{path: {json.dumps('nbs/' + name)}, factory: 'Notebook', {preference}}}).then(() => true)")
        title = next(c.source.splitlines()[0] for c in nbformat.read(ROOT / "nbs" / name, 4).cells if c.cell_type == "markdown" and c.source.startswith("# "))[2:]
        shown = "[...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-RenderedMarkdown h1')].map(h => h.innerText.replace('¶', '').trim())"
        try: wait_for(lambda: title.replace("`", "") in (page.js(shown) or []), 60, f"the title of {name}")
        except TimeoutError as e: faults.append(str(e))
        cells = "document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-Cell').length >= 4"
        try: wait_for(lambda: page.js(cells), 60, f"the first cells of {name}")
        except TimeoutError as e: faults.append(str(e))
        broken = page.js("[...document.querySelectorAll('.jp-NotebookPanel:not(.lm-mod-hidden) img')].filter(i => i.complete && !i.naturalWidth).length")
        if broken: faults.append(f"{name}: {broken} pictures do not show")
        if request.config.getoption("screenshots"): page.screenshot(pictures / "lab" / f"{name.replace('/', '-')[:-6]}.png")
        page.js("window.jupyterapp.shell.currentWidget.dispose()")
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("name", course())
def test_a_chapter_runs_from_top_to_bottom(name):
    "Every cell, in order, by nbclient: those too that nbdev_test leaves out as slow or as needing a browser."
    nbclient = pytest.importorskip("nbclient")
    book = nbformat.read(ROOT / "nbs" / name, 4)
    env = os.environ | dict(MPLBACKEND="module://matplotlib_inline.backend_inline")
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=dict(metadata=dict(path=str((ROOT / "nbs" / name).parent)))).execute(env=env)
