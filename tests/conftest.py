"""What the tests share: marks, and one way to a headless Chromium and to a JupyterLab that it looks at."""
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--screenshots", action="store_true", help="keep a picture of every page that is looked at, in $LAZYSEG_SCREENSHOTS")


def pytest_configure(config):
    config.addinivalue_line("markers", "dev: needs the development environment (papermill, nbdev, a checkout)")
    config.addinivalue_line("markers", "slow: minutes long, run only when asked for: pytest -m slow")


def pytest_collection_modifyitems(config, items):
    if "slow" in (config.option.markexpr or ""): return
    for item in items:
        if item.get_closest_marker("slow"): item.add_marker(pytest.mark.skip(reason="takes minutes: pytest -m slow"))


def wait_for(look, seconds, what):
    "Ask `look` until it answers."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = look()
        if answer: return answer
        time.sleep(.2)
    raise TimeoutError(f"{what} did not come within {seconds} seconds")


class Chromium:
    "A page of a headless Chromium, driven by its own debugging protocol."

    def __init__(self, program, folder):
        import websocket
        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
             "--remote-allow-origins=*", "--window-size=1280,900", f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            file = Path(folder) / "DevToolsActivePort"
            port = wait_for(lambda: file.is_file() and file.read_text().split()[:1], 60, "Chromium")[0]
            pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=20))
            address = next(p for p in pages if p["type"] == "page")["webSocketDebuggerUrl"]
            self.socket = websocket.create_connection(address, timeout=120)
        except BaseException:
            self.process.kill()
            raise
        self.count = 0

    def call(self, method, **params):
        self.count += 1
        self.socket.send(json.dumps(dict(id=self.count, method=method, params=params)))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def js(self, code):
        return self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)["result"].get("value")

    def go(self, url, ready="document.readyState == 'complete'"):
        "Open a page, and wait until it is there."
        self.call("Page.navigate", url=url)
        wait_for(lambda: self.js(f"location.href.startsWith({json.dumps(url)}) && {ready}"), 120, url)

    def resize(self, width, height=900, phone=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def mouse(self, kind, x, y):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=0 if kind == "mouseReleased" else 1, clickCount=1)

    def middle(self, selector):
        "Where it lies once it lies still: on a busy machine a page is laid out long after its window has changed."
        where = f"(()=>{{const b = document.querySelector('{selector}').getBoundingClientRect(); return [b.x+b.width/2, b.y+b.height/2]}})()"
        def still():
            before = self.js(where)
            self.js("new Promise(done => requestAnimationFrame(() => setTimeout(done, 300)))")
            return before == self.js(where) and before
        return wait_for(still, 60, f"a place where {selector} stays")

    def click(self, selector):
        for kind in ("mousePressed", "mouseReleased"): self.mouse(kind, *self.middle(selector))

    def drag(self, selector, by):  # pixels to the right
        x, y = self.middle(selector)
        self.mouse("mousePressed", x, y)
        for part in (.25, .5, .75, 1): self.mouse("mouseMoved", x + by * part, y)
        self.mouse("mouseReleased", x + by, y)

    def write(self, text): self.call("Input.insertText", text=text)

    def screenshot(self, path, whole=False):
        "The window, or the whole page."
        more = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            more = dict(captureBeyondViewport=True, clip=dict(x=0, y=0, width=size["width"], height=min(size["height"], 16000), scale=1))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **more)["data"]))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="session")
def chromium_program():
    "The browser on this machine; without one the test is skipped and says so."
    pytest.importorskip("websocket")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    return found or pytest.skip("no Chromium or Chrome on this machine (apt-get install chromium)")


@pytest.fixture
def pictures(tmp_path):
    "Where screenshots go: a folder that `LAZYSEG_SCREENSHOTS` names is kept."
    folder = Path(os.environ.get("LAZYSEG_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page(chromium_program, tmp_path, pictures, request):
    "A browser page. Whatever the test ends with, its last picture is kept."
    chromium = Chromium(chromium_program, tmp_path / "chromium")
    try:
        yield chromium
        chromium.screenshot(pictures / f"{request.node.name}-last.png")
    finally: chromium.close()


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory):
    "What `lab` shows: a test puts its notebooks here, so that nothing is saved over the sources."
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="session")
def lab(chromium_program, lab_folder, tmp_path_factory):
    "A JupyterLab of its own settings over `lab_folder`; gives its address."
    for module in ("jupyterlab", "ipywidgets", "jupyterlab_widgets", "nbformat"): pytest.importorskip(module)
    own = tmp_path_factory.mktemp("jupyter")
    places = {f"JUPYTER_{k}_DIR": str(own / k.lower()) for k in ("RUNTIME", "CONFIG", "DATA")} | dict(JUPYTERLAB_WORKSPACES_DIR=str(own / "workspaces"), JUPYTERLAB_SETTINGS_DIR=str(own / "settings"))
    asks = own / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings" # whether it may fetch news
    asks.parent.mkdir(parents=True)
    asks.write_text('{"fetchNews": "false"}')
    env = os.environ | places | dict(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), MPLBACKEND="agg")
    log = own / "lab.log"
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.port=0", "--IdentityProvider.token=",
        "--ServerApp.password=", "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={lab_folder}"],
        env=env, stdout=log.open("w"), stderr=subprocess.STDOUT)
    try:
        def address():
            assert server.poll() is None, log.read_text()[-2000:]
            return re.search(r"http://(?:127\.0\.0\.1|localhost):\d+/", log.read_text())
        yield wait_for(address, 240, "JupyterLab")[0]
    finally:
        server.terminate()
        server.wait(60)


# JupyterLab's own commands wait for what they need. The mouse does not: the mark beside the kernel's name says idle before there is a kernel,
# a cell that is run without one is passed over in silence, and the next click runs the empty cell below it.
OPEN_AND_RUN = """(async () => {
    const lab = window.jupyterapp; await lab.restored;
    const book = await lab.commands.execute('docmanager:open', {path: PATH, factory: 'Notebook'});
    await book.context.ready; await book.sessionContext.ready; await book.sessionContext.session.kernel.info;
    window.bookRan = await lab.commands.execute('notebook:run-all-cells') ? 'well' : 'not'})().catch(fault => { window.bookRan = String(fault) }); 0"""


@pytest.fixture
def shown_in_lab(lab, lab_folder, page, request):
    "A function: it runs a cell in JupyterLab, in a notebook of its own, and gives back a function that reads what the text widgets say."
    nbformat = pytest.importorskip("nbformat")
    say = "[...document.querySelectorAll('.widget-html-content')].map(e => e.innerText).join(' ')"
    def run(cell, until, seconds=240): # until its widgets say `until`
        path, kernel = f"{request.node.name}.ipynb", dict(name="python3", display_name="python3", language="python")
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata=dict(kernelspec=kernel)), lab_folder / path)
        page.call("Page.navigate", url=f"{lab}lab")
        wait_for(lambda: page.js("!!window.jupyterapp"), 180, "JupyterLab")
        page.js(OPEN_AND_RUN.replace("PATH", json.dumps(path)))
        ran = wait_for(lambda: page.js("window.bookRan"), seconds, "the end of the cell")
        assert ran == "well", f"{ran}: {page.js('document.querySelector(`.jp-Notebook .jp-OutputArea`)?.innerText')}"
        wait_for(lambda: until in page.js(say), 60, until)
        return lambda: page.js(say)
    yield run
    page.js("window.jupyterapp?.shell.currentWidget?.sessionContext?.shutdown()") # its kernel holds half a gigabyte
