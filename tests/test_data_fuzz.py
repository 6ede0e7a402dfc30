"""A few hurt inputs of every target in tests/fuzz.py, and tables that hypothesis makes up."""
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import fuzz
from lazyseg.core import LazysegError
from lazyseg.data import check_patients, choose_domains, coco_runs, draw_shapes, film_key, finish_table, query_labels, set_split, split_patients, years

FEW = 6
quick = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv('LAZYSEG_CACHE', str(tmp_path/'cache'))
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); yield


@pytest.mark.parametrize('name', [o for o in fuzz.TARGETS if o != 'huge films'])
def test_a_few_hurt_inputs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(FEW):
        verdict, detail = fuzz.one_input(name, i, 1, tmp_path, measure=False)
        assert verdict in ('right', 'refused'), f"python tests/fuzz.py --only '{name}' --seed 1 --at {i}\n{detail}"
    assert {p.name for p in tmp_path.iterdir()} <= {'in', 'cache'}


@pytest.mark.parametrize('name, whole', [('shapes', json.dumps(fuzz.SHAPES).encode()), ('table', fuzz.TABLE.encode()), ('nih', (fuzz.NIH.encode(), fuzz.NIH_BOXES.encode())), ('rsna', fuzz.RSNA.encode()), ('vindr', fuzz.VINDR.encode()),
                                         ('siim', fuzz.SIIM.encode()), ('chestxdet', json.dumps(fuzz.DET).encode()), ('chexlocalize', json.dumps(fuzz.LOCALIZE).encode())])
def test_what_is_whole_is_read(name, whole, tmp_path): fuzz.TARGETS[name][0](whole, tmp_path) # or all "refusals" above would mean nothing


@pytest.mark.parametrize('name, kinds', [('png', ['PNG']), ('jpeg', ['JPEG']), ('tiff', ['TIFF']), ('bmp and webp', ['BMP', 'WEBP'])])
def test_whole_films_are_read(name, kinds, tmp_path):
    for film in fuzz.of_kind(*kinds): fuzz.TARGETS[name][0](film, tmp_path)


def test_whole_dicoms_are_read(tmp_path):
    pytest.importorskip('pydicom')
    for film in fuzz.dicoms(): fuzz.TARGETS['dicom'][0](film, tmp_path)


def test_the_runner_sees_what_it_should(monkeypatch, tmp_path):
    "A wrong shape, another exception, a hang and too much memory are each told from a refusal."
    def broken(data, folder):
        if data == 0: raise LazysegError('refused')
        if data == 1: raise KeyError('x')
        if data == 2: assert False, 'wrong shape'
        if data == 3:
            while True: pass
        if data == 4: np.ones(10 << 20, np.float64)
    monkeypatch.setattr(fuzz, 'SECONDS', .3); monkeypatch.setattr(fuzz, 'MEMORY', 40 << 20)
    monkeypatch.setattr(fuzz, 'TARGETS', {str(i): (broken, 1, lambda rng, i=i: i) for i in range(6)})
    assert [fuzz.one_input(str(i), 0, 0, tmp_path)[0] for i in range(6)] == ['refused', 'KeyError', 'AssertionError', 'hang', 'memory', 'right']


# -- tables made up ------------------------------------------------------------------------------------------------------

words = st.text(max_size=12) | st.sampled_from(['No Finding', 'Edema', 'Edema|Effusion', 'edema ', '|', 'p1', 'a/b\\c.png', ''])
cells = words | st.none() | st.integers(-5, 10**12) | st.floats() | st.booleans()


@quick
@given(st.lists(st.fixed_dictionaries(dict(path=cells, labels=cells, patient=cells), optional=dict(split=cells, age=cells, truth=words)), min_size=0, max_size=12))
def test_any_table_is_finished_or_refused(rows):
    try: table = finish_table(pd.DataFrame(rows), 'Edema', diseased=None)
    except LazysegError: return
    assert table.diseased.any() and not table.diseased.all() and table.path.is_unique
    assert set(table.split) <= {'train', 'valid', 'test'} and table.groupby('patient').split.nunique().max() == 1


@quick
@given(st.lists(st.tuples(st.integers(0, 15), st.sampled_from(['No Finding', 'Edema', 'Edema|Hernia'])), min_size=1, max_size=60), st.integers(0, 99), st.floats(0, .5), st.floats(0, .45))
def test_no_patient_is_ever_in_two_parts(rows, seed, valid, test):
    table = pd.DataFrame(rows, columns=['patient', 'labels']).assign(diseased=lambda t: t.labels != 'No Finding')
    split = split_patients(table, valid, test, seed)
    assert split.groupby(table.patient).nunique().max() == 1 and (split.index == table.index).all()
    mixed = table.sample(frac=1, random_state=seed)
    assert (split_patients(mixed, valid, test, seed).sort_index() == split).all()


@quick
@given(st.lists(words, min_size=1, max_size=8), st.text(max_size=40) | words)
def test_any_query_is_answered_or_refused(labels, query):
    try: got = query_labels(pd.Series(labels), query)
    except LazysegError: return
    assert got.dtype == bool and len(got) == len(labels)


numbers = st.integers(-100, 3000) | st.floats() | st.none() | st.text(max_size=3)
shapes = st.fixed_dictionaries({}, optional=dict(box=st.lists(numbers, max_size=5), polygon=st.lists(st.lists(numbers, max_size=3), max_size=5), runs=st.lists(numbers, max_size=6), size=st.lists(numbers, max_size=3)))


@quick
@given(st.lists(shapes, max_size=3))
def test_any_shape_is_drawn_or_refused(found):
    for given_as in (found, json.dumps(found)):
        try: mask = draw_shapes(given_as, 40, 32)
        except LazysegError: continue
        assert mask.shape == (40, 32) and mask.dtype == bool


@quick
@given(st.text(max_size=30) | st.text(alphabet=[chr(o) for o in range(48, 112)], max_size=30))
def test_any_packed_runs(text):
    try: runs = coco_runs(text)
    except ValueError: return
    assert len(runs) % 2 == 0 and all(isinstance(o, int) for o in runs)


@quick
@given(cells)
def test_any_age(age): assert years(age) >= 0 or years(age) != years(age)
