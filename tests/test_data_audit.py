"""The audit sees what is planted: a bar, a double, a broken file, a patient on two sides."""
import sys

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lazyseg.audit import audit, film_hashes, near_duplicates, shortcut_auroc
from lazyseg.core import LazysegError
from lazyseg.data import Source, get_films, get_source, resize


@pytest.fixture
def films(tmp_path, monkeypatch):
    "Eighty films: the sick have a dark bar on the left; two are the same; one is broken; one patient is on both sides."
    monkeypatch.setenv('LAZYSEG_CACHE', str(tmp_path/'cache'))
    rng, last = np.random.default_rng(0), None
    for i in range(80):
        image = resize(rng.uniform(60, 255, (8, 8)), 64, 64).copy()
        if i % 2: image[:, :6] = 20
        if i == 63: image = last[21]*.95
        last = (last or []) + [image]
        Image.fromarray(image.astype(np.uint8)).save(tmp_path/f'{i}.png')
    (tmp_path/'5.png').write_bytes(b'')
    table = pd.DataFrame(dict(path=[f'{i}.png' for i in range(80)], patient=[f'p{i}' for i in range(80)], labels=['No Finding', 'Pneumonia']*40))
    source = get_source('table', table, root=tmp_path)
    source.table['split'] = np.where(source.table.index < 40, 'train', 'test')
    source.table.loc[60, 'patient'] = 'p0'
    return source


def test_audit_finds_what_was_planted(films):
    found = audit(films)
    assert found['shortcuts']['border'] > .9 and found['shortcuts']['all'] > .9
    text = ' '.join(found['faults'])
    assert "1 of 80 films opened can't be read" in text and '5.png' in text and '1 of 79 patients are in more than one part' in text and '1 pairs of films look the same; 1 lie across the split' in text
    assert found['counts'].to_numpy().sum() == 80


def test_doubles_need_imagehash_and_say_so(films, monkeypatch):
    monkeypatch.setitem(sys.modules, 'imagehash', None)
    with pytest.raises(LazysegError, match=r'lazyseg\[audit\]'): film_hashes(np.zeros((2, 64, 64), np.uint8))
    assert 'imagehash is not there' in ' '.join(audit(films, draw=False)['faults'])


def test_bits_are_counted_alike_without_numpy_2(films, monkeypatch):
    few = Source('few', films.table[films.table.path != '5.png'].reset_index(drop=True), load=films.load, root=films.root)
    pairs = near_duplicates(get_films(few, 64), 40)
    monkeypatch.delattr(np, 'bitwise_count', raising=False)
    assert len(pairs) and near_duplicates(get_films(few, 64), 40).equals(pairs)


def test_shortcuts_do_not_come_from_the_patients():
    "Films of one patient look alike; with every patient in one fold that must not help."
    rng = np.random.default_rng(0)
    patients = rng.permutation(np.repeat(np.arange(40), 5)) # in no order: folds of neighbours would keep patients together by luck
    films = rng.normal(size=(40, 16, 16))[patients] + .1*rng.normal(size=(200, 16, 16))
    assert shortcut_auroc(films, (patients % 2).astype(bool), patients) < .7 # 1.0 if a film of the same patient could be learnt from
    with pytest.raises(LazysegError, match='two patients'): shortcut_auroc(films[:10], np.arange(10) < 5, np.repeat([0, 1], 5))


def test_nothing_is_read_from_noise_however_the_table_is_ordered():
    "A table may list healthy and diseased in turn: parts of one class each would answer the wrong way round, far below one half."
    noise = np.random.default_rng(0).normal(size=(400, 16, 16))
    for order in (np.arange(400) % 2 == 1, np.arange(400) >= 200): assert .35 < shortcut_auroc(noise, order, np.arange(400)) < .65


def test_missing_films_are_counted_even_where_few_are_opened(films):
    for i in (10, 11, 12): (films.root/f'{i}.png').unlink()
    found = audit(films, most=20, draw=False)
    assert '3 of 80 films are missing' in ' '.join(found['faults']) and found['labels'].sum().sum() == 80
    assert found['labels'].loc['no finding'].tolist() == [20, 0, 20]


def test_films_that_lie_in_no_files(films):
    "As the phantom's, which come as arrays."
    whole = get_films(Source('few', films.table[films.table.path != '5.png'].reset_index(drop=True), load=films.load, root=films.root), 64)
    source = Source('arrays', whole.table, read=lambda *a: None, arrays=lambda height, aspect: dict(film=whole.film))
    found = audit(source, draw=False)
    assert found['shortcuts']['border'] > .9 and len(found['pairs']) == 1


def test_nothing_to_look_at(films):
    for p in films.root.glob('*.png'): p.write_bytes(b'')
    with pytest.raises(LazysegError, match='Not one of 80'): audit(films)


def test_a_few_ill_films_among_many_are_looked_at(tmp_path):
    from lazyseg.audit import _look_at_files, _spread
    for kind, n in (("healthy", 40), ("diseased", 2)):
        (tmp_path/kind).mkdir()
        for i in range(n): Image.fromarray(np.full((20, 20), 9*i % 250, np.uint8)).save(tmp_path/kind/f"{kind[0]}{i}.png")
    source = get_source("folder", data=tmp_path)
    looked = source.table.iloc[_look_at_files(source, 6).row]
    assert looked.diseased.sum() == 2 and len(looked) == 6
    ill = np.arange(5000) % 1250 == 7
    assert ill[_spread(ill, 100)].sum() == 4 and len(_spread(ill, 100)) == 100 and len(_spread(ill, 9999)) == 5000
    assert ill[_spread(ill, 2)].sum() == 1
    assert len(_spread(ill, 1)) == 1 and len(_spread(ill[:0], 5)) == 0 and len(_spread(np.zeros(3, bool), 2)) == 2
    assert np.diff(_spread(np.arange(1000) % 2 == 0, 10)).max() < 250, "evenly over the table, where classes are as many"


def test_all_films_that_can_not_be_read_are_told_and_why(films):
    for i in range(7, 14): (films.root/f'{i}.png').write_bytes(b'no film' if i % 2 else b'')
    found = audit(films)
    line = found['faults'][0]
    assert line.startswith("8 of 80 films opened can't be read") and line.endswith('And 3 more.')
    assert all(f'{i}.png' in line for i in (5, 7, 8, 9, 10)) and 'can' in line and '11.png' not in line
    assert list(found['unread']) == ['5.png', *(f'{i}.png' for i in range(7, 14))] and all(o in why for o, why in found['unread'].items())
    page = plt.gcf() # and nothing is written below its edge
    assert min(t.get_window_extent().y0 for t in page.texts) > 0 and page.get_size_inches()[1] > 6
    for i in (20, 21): (films.root/f'{i}.png').unlink()
    assert all(f'{i}.png' in audit(films, draw=False)['faults'][0] for i in (20, 21))


def test_a_patient_who_fell_ill_is_no_fault(films):
    films.table.loc[1, 'patient'] = 'p0'
    films.table.loc[60, 'patient'] = 'p60'
    found = audit(films, draw=False)
    assert found['notes'] == ['1 of 79 patients have healthy and diseased films.'] and 'healthy and diseased' not in ' '.join(found['faults'])


def test_who_is_left_out_is_on_the_page(films):
    table = films.table[['path', 'patient', 'labels']].assign(labels=['No Finding', 'Pneumonia', 'Mass|Nodule', 'Mass']*20)
    source = get_source('table', table[table.path != '5.png'], root=films.root)
    found = audit(source)
    note = "40 of 79 films are neither 'pneumonia' nor 'No Finding' and are left out. Labels of theirs: mass (40), nodule (20)."
    assert found['notes'] == [note] and note[:60] in plt.gcf().texts[-1].get_text()


def test_lung_masks_of_some_films_tell_nothing_of_a_shortcut():
    from dataclasses import replace
    from lazyseg.audit import shortcut_table
    films = get_films(get_source('phantom', disease='pneumonia', n=20, size=32), 32)
    assert 'outline of the lungs' in shortcut_table(films)
    lungs = np.array(films.lungs)
    lungs[~films.table.diseased.to_numpy(bool)] = 0 # nobody outlined them
    assert 'outline of the lungs' not in shortcut_table(replace(films, lungs=lungs))
