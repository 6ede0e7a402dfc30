"""The threshold slider in a real JupyterLab, in a real headless Chromium: dragged by the mouse, read from the page."""
import re
import time

import pytest
from conftest import wait_for

pytestmark = pytest.mark.dev
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


def test_slider_moves_mask_and_dice(shown_in_lab, page, pictures):
    page.resize(1200)
    said = shown_in_lab(CELL, until='Dice')
    first, shown = said(), "document.querySelector('.widget-image')?.src"
    picture = page.js(shown)
    page.screenshot(pictures/'slider-before.png')

    page.drag('.widget-slider .noUi-handle', 120)
    moved = wait_for(lambda: said() != first and said(), 90, 'another Dice')
    wait_for(lambda: page.js(shown) != picture, 60, 'another picture')
    time.sleep(2) # the last of several moves
    moved = said()
    page.screenshot(pictures/'slider-after.png')

    numbers = [[float(x) for x in re.findall(r'\d+\.\d+', text)] for text in (first, moved)] # Dice, marked, truth
    assert numbers[0][0] != numbers[1][0] and 0 <= numbers[1][0] <= 1
    assert numbers[1][1] < numbers[0][1], 'a higher threshold marks less'
    assert numbers[1][2] == numbers[0][2], 'the truth does not move'

    page.drag('.widget-slider:nth-of-type(2) .noUi-handle', 200) # the other slider leafs through the films
    wait_for(lambda: said() != moved, 90, 'another film')
