"""The threshold slider in a real JupyterLab, in a real headless Chromium: dragged by the mouse, read from the page."""
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

pytestmark = pytest.mark.dev
for module in ('jupyterlab', 'ipywidgets', 'jupyterlab_widgets', 'websocket', 'nbformat'): pytest.importorskip(module)
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
if not CHROMIUM: pytest.skip('no Chromium or Chrome on this machine (apt-get install chromium)', allow_module_level=True)

PICTURES = Path(os.environ['LAZYSEG_SCREENSHOTS']) if os.environ.get('LAZYSEG_SCREENSHOTS') else None
CELL = '''
import numpy as np
from scipy import ndimage
from lazyseg.thresholding import OperatingPoint, threshold_slider
rng = np.random.default_rng(0)
truth = np.zeros((3, 64, 64), bool)
for t, (r, c) in zip(truth, ((20, 40), (35, 18), (44, 44))): t[r-7:r+7, c-6:c+6] = True
map = np.clip(.08*rng.random(truth.shape)+.4*ndimage.gaussian_filter(truth.astype(float), (0, 3, 3)), 0, 1)
film = np.clip(.4+.15*ndimage.gaussian_filter(truth.astype(float), (0, 2, 2))+.03*rng.normal(size=truth.shape), 0, 1)
threshold_slider(film, map, truth, OperatingPoint(.05, smoothing=1.))
'''


def wait_for(look, seconds, what):
    "Ask `look` until it answers."
    end = time.monotonic()+seconds
    while time.monotonic() < end:
        answer = look()
        if answer: return answer
        time.sleep(.3)
    raise TimeoutError(f'{what} did not come within {seconds} seconds')


class Chromium:
    "A page of a headless Chromium, driven by its own debugging protocol."

    def __init__(self, folder):
        import websocket
        self.process = subprocess.Popen([CHROMIUM, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
            '--remote-debugging-port=0', '--remote-allow-origins=*', '--window-size=1200,900', f'--user-data-dir={folder}', 'about:blank'],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        file = Path(folder)/'DevToolsActivePort'
        port = wait_for(lambda: file.is_file() and file.read_text().split()[:1], 60, 'Chromium')[0]
        pages = json.load(urllib.request.urlopen(f'http://127.0.0.1:{port}/json', timeout=20))
        self.socket = websocket.create_connection(next(p for p in pages if p['type'] == 'page')['webSocketDebuggerUrl'], timeout=120)
        self.count = 0

    def call(self, method, **params):
        self.count += 1
        self.socket.send(json.dumps(dict(id=self.count, method=method, params=params)))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get('id') == self.count:
                assert 'error' not in answer, answer
                return answer['result']

    def js(self, code):
        return self.call('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True)['result'].get('value')

    def mouse(self, kind, x, y):
        self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', buttons=0 if kind == 'mouseReleased' else 1, clickCount=1)

    def middle(self, selector):
        return self.js(f"(()=>{{const b = document.querySelector('{selector}').getBoundingClientRect(); return [b.x+b.width/2, b.y+b.height/2]}})()")

    def click(self, selector):
        for kind in ('mousePressed', 'mouseReleased'): self.mouse(kind, *self.middle(selector))

    def drag(self, selector, by): # pixels to the right
        x, y = self.middle(selector)
        self.mouse('mousePressed', x, y)
        for part in (.25, .5, .75, 1): self.mouse('mouseMoved', x+by*part, y)
        self.mouse('mouseReleased', x+by, y)

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def lab(tmp_path):
    "A JupyterLab that shows one notebook with the slider; gives its address."
    import nbformat
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    work = tmp_path/'work'
    work.mkdir()
    nbformat.write(notebook, work/'slider.ipynb')
    places = {f'JUPYTER_{k}_DIR': str(tmp_path/k.lower()) for k in ('RUNTIME', 'CONFIG', 'DATA')} | dict(JUPYTERLAB_WORKSPACES_DIR=str(tmp_path/'workspaces'))
    root = str(Path(__file__).resolve().parent.parent)
    env = os.environ | places | dict(PYTHONPATH=os.pathsep.join([root, os.environ.get('PYTHONPATH', '')]), MPLBACKEND='agg')
    server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ServerApp.port=0',
        '--IdentityProvider.token=', '--ServerApp.password=', '--LabApp.news_url=', f'--ServerApp.root_dir={work}'],
        env=env, stdout=(tmp_path/'lab.log').open('w'), stderr=subprocess.STDOUT)
    try:
        found = lambda: re.search(r'http://(?:127\.0\.0\.1|localhost):\d+/', (tmp_path/'lab.log').read_text())
        def address():
            assert server.poll() is None, (tmp_path/'lab.log').read_text()[-2000:]
            return found()
        yield wait_for(address, 240, 'JupyterLab')[0]
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture
def page(tmp_path):
    "A browser page. Whatever the test ends with, its last picture is kept."
    chromium = Chromium(tmp_path/'chromium')
    try:
        yield chromium
        chromium.screenshot(PICTURES/'slider-last.png' if PICTURES else tmp_path/'slider-last.png')
    finally: chromium.close()


def test_slider_moves_mask_and_dice(lab, page, tmp_path):
    pictures = PICTURES or tmp_path
    page.call('Page.navigate', url=f'{lab}lab/tree/slider.ipynb')
    wait_for(lambda: page.js("!!document.querySelector('.jp-Notebook .jp-CodeCell')"), 180, 'the notebook')
    # before its kernel answers, running a cell opens a dialog that asks for a kernel
    wait_for(lambda: page.js("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status") == 'idle', 180, 'the kernel')
    page.click('.jp-Notebook .jp-CodeCell .cm-content')
    def run(): # press the run button until the cell's prompt is no longer empty: a page that is still loading swallows a click
        page.click('jp-button[data-command^="notebook:run-cell"], [data-command^="notebook:run-cell"]')
        time.sleep(1)
        return page.js("document.querySelector('.jp-InputPrompt').innerText") != '[ ]:'
    wait_for(run, 60, 'a running cell')
    said = "[...document.querySelectorAll('.widget-html-content')].map(e => e.innerText).join(' ')"
    shown = "document.querySelector('.widget-image')?.src"
    first = wait_for(lambda: 'Dice' in (page.js(said) or '') and page.js(said), 240, 'the slider')
    picture = page.js(shown)
    page.screenshot(pictures/'slider-before.png')

    page.drag('.widget-slider .noUi-handle', 120)
    moved = wait_for(lambda: page.js(said) != first and page.js(said), 90, 'another Dice')
    wait_for(lambda: page.js(shown) != picture, 60, 'another picture')
    time.sleep(2) # the last of several moves
    moved = page.js(said)
    page.screenshot(pictures/'slider-after.png')

    numbers = [[float(x) for x in re.findall(r'\d+\.\d+', text)] for text in (first, moved)] # Dice, marked, truth
    assert numbers[0][0] != numbers[1][0] and 0 <= numbers[1][0] <= 1
    assert numbers[1][1] < numbers[0][1], 'a higher threshold marks less'
    assert numbers[1][2] == numbers[0][2], 'the truth does not move'

    page.drag('.widget-slider:nth-of-type(2) .noUi-handle', 200) # the other slider leafs through the films
    wait_for(lambda: page.js(said) != moved, 90, 'another film')
