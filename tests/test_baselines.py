"Peers and ceilings: shapes, faults, determinism, and a benchmark that resumes."
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from lazyseg import baselines as b
from lazyseg.core import LazysegError, TrainingFailed
from lazyseg.data import Films
from lazyseg.evaluation import image_auroc, pixel_average_precision
from lazyseg.thresholding import score_films


def blobs(n=60, height=32, width=32, seed=0, contrast=80) -> Films:
    "Noise; in the odd films a bright square, whose place is the truth."
    rng = np.random.default_rng(seed)
    film = rng.normal(100, 12, (n, height, width))
    truth, sick = np.zeros(film.shape, np.uint8), np.arange(n) % 2 == 1
    for i in np.flatnonzero(sick):
        y, x = rng.integers(2, height - 10), rng.integers(2, width - 10)
        truth[i, y:y+8, x:x+8] = 1
    film = (film + float(contrast)*truth).clip(0, 255).astype(np.uint8)
    split = np.array(['train', 'train', 'valid', 'test'])[np.arange(n)//2 % 4]
    table = pd.DataFrame(dict(path='', patient=[f'p{i}' for i in range(n)], labels='', diseased=sick, split=split))
    return Films(film, table, truth=truth, lungs=np.ones_like(truth), credit='noise')


@pytest.mark.parametrize('name', list(b.BASELINES))
@pytest.mark.parametrize('shape', [(32, 32), (32, 48)])
def test_every_baseline_is_a_scorer(name, shape):
    films = blobs(32, *shape)
    scorer = b.BASELINES[name](films, **b.SMOKE.get(name, {}))
    maps = b.maps_of(scorer, films)
    assert maps.shape == films.film.shape and np.isfinite(maps).all() and maps.min() >= 0
    assert scorer.name == name and scorer.trained_seconds >= 0 and scorer.processor_seconds >= 0
    if name != 'lung mask': # one film at a time gives what a batch gives: no method leaks from film to film
        loose = 5e-3 if name == 'PatchCore' else 1e-4 # distances come from a matrix product, whose rounding depends on its shape
        np.testing.assert_allclose(score_films(scorer, films[:3], batch_size=1), maps[:3], rtol=1e-3, atol=loose)


@pytest.mark.parametrize('fit', [b.fit_activation, b.fit_place, b.fit_gradcam, b.fit_autoencoder, b.fit_patchcore, b.fit_unet])
def test_the_same_seed_gives_the_same_maps(fit):
    films = blobs(80) # more than a batch: their order is a draw as well
    settings = b.SMOKE[fit(films, **b.SMOKE[next(n for n, f in b.BASELINES.items() if f is fit)]).name]
    one, two, other = (score_films(fit(films, seed=s, **settings), films[:4]) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_training_leaves_the_callers_random_numbers_alone():
    films = blobs(32)
    torch.manual_seed(3), np.random.seed(3)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(3), np.random.seed(3)
    b.fit_activation(films, epochs=1, width=4)
    torch.testing.assert_close(torch.rand(2), expected[0])
    np.testing.assert_array_equal(np.random.rand(2), expected[1])


def test_a_classifier_learns_and_its_map_points_at_the_square():
    films = blobs(400)
    train, test = films.split('train'), films.split('test')
    model = b.fit_classifier(train.film, train.table.diseased, epochs=8, make_model=partial(b.FilmClassifier, width=8))
    sick = test.table.diseased.to_numpy(bool)
    assert ((b.predict(model, test.film) > .5) == sick).mean() > .9
    maps = score_films(b.Scorer(b.activation_map(model)), test)
    assert pixel_average_precision(maps[sick], test.truth[sick]) > .12 # twice what chance gives


def test_the_usual_place_is_the_same_on_every_film_and_only_as_loud_as_the_film_is_ill():
    films = blobs(160)
    for i in np.flatnonzero(films.table.diseased): # all squares in one place
        films.film[i] = np.where(films.truth[i] > 0, films.film[0], films.film[i])
        films.film[i, 6:14, 16:24] = np.minimum(films.film[i, 6:14, 16:24] + 80., 255).astype(np.uint8)
    scorer = b.fit_place(films, epochs=8, width=8, stride=2)
    maps, sick = score_films(scorer, films), films.table.diseased.to_numpy(bool)
    loud = maps.max((1, 2))
    shape = maps/loud[:, None, None]
    np.testing.assert_allclose(shape, shape[:1].repeat(len(maps), 0), atol=1e-4)
    assert shape[0, 8:12, 18:22].min() > .7 and shape[0, 20:].max() < .3
    assert image_auroc(maps, sick) > .9 and np.median(loud[sick]) > 1.3*np.median(loud[~sick])


def test_the_unet_finds_the_square():
    films = blobs(160)
    maps = score_films(b.fit_unet(films, epochs=8, width=4), films.split('test'))
    assert pixel_average_precision(maps, films.split('test').truth) > .8


def test_validation_chooses_the_sign():
    bright, dark = blobs(80), blobs(80, contrast=-80)
    assert b.fit_intensity(bright).choice.startswith('bright') and b.fit_intensity(dark).choice.startswith('dark')
    assert b.fit_mean_difference(dark).choice.startswith(('darker', 'different'))


def test_grad_cam_of_the_last_layer_is_the_class_activation_map():
    "Where the verdict is the mean of a map, the gradient is the head's weights over the number of places."
    model = b.FilmClassifier(width=4, stride=4).eval()
    films = torch.rand(3, 1, 32, 32)
    evidence = model.evidence(films) - model.head.bias
    expected = b.upsample((evidence/evidence[0].numel()).clamp(min=0), films)
    torch.testing.assert_close(b.grad_cam(model, model.body, films), expected.detach())


def test_grad_cam_is_captums():
    "An independent implementation gives the same maps, at every layer that we choose from."
    attr = pytest.importorskip('captum.attr')
    torch.manual_seed(1)
    model, films, most = b.make_resnet(.25).eval(), torch.rand(3, 1, 48, 32), []
    for stage in (1, 2, 3):
        layer = model[0][3 + stage]
        theirs = attr.LayerGradCam(lambda x: model(x)[:, None], layer).attribute(films, target=0).clamp(min=0)
        theirs = torch.nn.functional.interpolate(theirs, films.shape[2:], mode='bilinear')[:, 0] # where captum leaves off, each place is the middle of what it looks at
        ours = b.grad_cam(model, layer, films)
        torch.testing.assert_close(ours, theirs.detach())
        most.append(float(ours.max()))
    assert max(most) > 0 # not empty maps


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_grad_cam_works_where_gradients_are_off(mode):
    model = b.FilmClassifier(width=4).eval()
    with mode(): maps = b.grad_cam(model, model.body, torch.rand(2, 1, 32, 32))
    assert maps.shape == (2, 32, 32) and not maps.requires_grad


def test_maps_are_not_shifted():
    "The evidence of one place answers to the films' pixels around its middle: no half-pixel drift in the down-sampling."
    model = b.FilmClassifier(width=4, stride=4).eval()
    film = torch.rand(1, 1, 64, 64, requires_grad=True)
    seen = sum(torch.autograd.grad(model.evidence(film)[0, 8, 8], film)[0][0, 0].abs()
               for model in (b.FilmClassifier(width=4, stride=4).eval() for _ in range(30)))
    at = torch.arange(64.)
    centre = float((seen.sum(1)*at).sum()/seen.sum())
    assert abs(centre - (8*4 + 1.5)) < .75


def test_a_place_of_the_classifier_is_drawn_where_it_looks():
    "Grad-CAM: the middle of the film's pixels that a place answers to is the middle of the pixels that it is drawn on."
    torch.manual_seed(0)
    for stage in (1, 2, 3):
        film = torch.rand(1, 1, 64, 64, requires_grad=True)
        features = b.make_resnet(.25)[0].eval()[:4 + stage](film)
        place = features.shape[-1]*3//4
        seen = sum(torch.autograd.grad(features[0, c, place, place], film, retain_graph=True)[0][0, 0].abs() for c in range(features.shape[1]))
        spot = torch.zeros(1, *features.shape[2:])
        spot[0, place, place] = 1
        middle = lambda heat: float((heat.sum(1)*torch.arange(64.)).sum()/heat.sum())
        assert abs(middle(seen) - middle(b.upsample(spot, film)[0])) < 1., stage


def test_the_unet_learns_nothing_from_films_that_nobody_outlined(monkeypatch):
    "A film without an outline is not a film without disease."
    films, asked = blobs(32), []
    first = films.table.groupby('split').diseased.transform(lambda sick: sick & (sick.cumsum() == 1)) # one outlined film in each part
    films = Films(films.film, films.table.assign(has_truth=~films.table.diseased | first), truth=films.truth)
    monkeypatch.setattr(b, 'train', lambda net, loader, *a, **k: asked.append(loader) or net())
    monkeypatch.setattr(b, 'ArrayLoader', lambda film, truth, **k: asked.append(truth) or truth)
    monkeypatch.setattr(b.KeepBest, 'said', lambda self: '')
    b.fit_unet(films, width=4)
    assert [int(t.any((1, 2)).sum()) for t in asked[:2]] == [1, 1] and [len(t) for t in asked[:2]] == [9, 5]


def test_faults_say_what_is_missing():
    films = blobs(32)
    bare = Films(films.film, films.table)
    with pytest.raises(LazysegError, match='without outlines'): b.fit_unet(bare)
    nobody = Films(films.film, films.table.assign(has_truth=~films.table.diseased), truth=films.truth)
    with pytest.raises(LazysegError, match="'train' has an outline"): b.fit_unet(nobody)
    with pytest.raises(LazysegError, match='lung masks'): b.fit_lungs(bare)
    with pytest.raises(LazysegError, match='lung masks'): b.maps_of(b.fit_lungs(films), bare)
    with pytest.raises(LazysegError, match="'valid' holds no healthy film"):
        b.fit_intensity(films[(films.table.split != 'valid') | films.table.diseased])
    with pytest.raises(LazysegError, match="'train' holds no diseased film"):
        b.fit_activation(films[(films.table.split != 'train') | ~films.table.diseased])
    with pytest.raises(LazysegError, match='pool'): b.FilmClassifier(pool='max')
    with pytest.raises(LazysegError, match='stride'): b.FilmClassifier(stride=3)
    with pytest.raises(LazysegError, match='method'): b.fit_any('magic', films)
    with pytest.raises(LazysegError, match='divisible by 8'): b.benchmark_settings('smoke', size=30)


def run(tmp_path, monkeypatch, names=('empty mask', 'mean-healthy difference')):
    films, settings = blobs(64), b.benchmark_settings('smoke')
    monkeypatch.setenv('LAZYSEG_CACHE', str(tmp_path/'cache'))
    return {'pneumonia': {n: b.run_one(n, 'pneumonia', lambda: films, tmp_path, settings) for n in names}}


def test_a_benchmark_resumes_and_mends_what_is_broken(tmp_path, monkeypatch):
    first = run(tmp_path, monkeypatch)
    file = tmp_path/'pneumonia'/'mean-healthy-difference'/'metrics.json'
    written = file.stat().st_mtime_ns
    assert run(tmp_path, monkeypatch) == first and file.stat().st_mtime_ns == written
    file.write_text(file.read_text()[:100]) # a disk that filled up
    again = run(tmp_path, monkeypatch)
    assert again['pneumonia']['mean-healthy difference']['results'] == first['pneumonia']['mean-healthy difference']['results']
    monkeypatch.setitem(b.BASELINES, 'mean-healthy difference', lambda *a, **k: pytest.fail('trained again'))
    run(tmp_path, monkeypatch)
    written = file.read_text()
    for setting, other in dict(seed=7, phantom=3).items(): # 3: the phantom drew other films then
        changed = json.loads(written)
        assert changed['settings'][setting] != other
        changed['settings'][setting] = other
        file.write_text(json.dumps(changed))
        with pytest.raises(pytest.fail.Exception): run(tmp_path, monkeypatch)


def test_a_method_that_diverges_is_a_row_of_the_table(tmp_path, monkeypatch):
    def diverge(films, **settings): raise TrainingFailed('Training diverged at step 7.')
    def full(films, **settings): raise LazysegError('The disk is full.')
    monkeypatch.setitem(b.BASELINES, 'autoencoder', full)
    with pytest.raises(LazysegError, match='disk is full'): run(tmp_path, monkeypatch, ('empty mask', 'autoencoder')) # and is tried again
    monkeypatch.setitem(b.BASELINES, 'autoencoder', diverge)
    found = run(tmp_path, monkeypatch, ('empty mask', 'autoencoder', 'mean-healthy difference'))
    assert b.wide_table(found).loc['autoencoder', 'pneumonia'] == 'did not train'
    text = b.write_tables(found, tmp_path).read_text()
    assert 'diverged at step 7' in text and 'empty mask' in text and 'noise' in text
    rows = pd.read_csv(tmp_path/'results.csv')
    assert set(rows.method) == {'empty mask', 'mean-healthy difference'}
    pd.testing.assert_frame_equal(pd.read_json(tmp_path/'results.json', orient='split'), rows, check_dtype=False)


def test_thresholds_come_from_validation_films(tmp_path, monkeypatch):
    films = blobs(64)
    seen = []
    import lazyseg.thresholding as t
    for rule in ('threshold_from_labels', 'threshold_for_dice'):
        monkeypatch.setattr(t, rule, lambda *a, rule=getattr(t, rule), **k: seen.append(rule(*a, **k)) or seen[-1])
    b.measure_method(b.fit_intensity(films), films)
    valid = set(films.split('valid').table.patient)
    assert len(seen) == 2 and all(p.chosen_on and p.chosen_on <= valid for p in seen) and seen[0].chosen_on == valid


def test_a_kept_row_of_another_rule_is_measured_anew(tmp_path):
    from lazyseg.runs import read_metrics, write_metrics
    films, settings = blobs(64), b.benchmark_settings('smoke', films=60)
    ask = lambda: b.run_one('supervised U-Net', 'pneumonia', lambda: films, tmp_path, settings)['results']['label-only']['about']['operating_point']
    assert ask()['share'] is not None
    folder = tmp_path/'pneumonia'/'supervised-u-net'
    old = read_metrics(folder)
    for result in old['results'].values(): result['about']['operating_point'] |= dict(share=None, rule='marks at most 0.5% of the mean healthy film')
    write_metrics(folder, old)
    assert ask()['share'] is not None, 'one threshold for all films was believed'


def test_the_floors_do_what_they_say():
    films = blobs(64)
    empty, lungs = (b.measure_method(fit(films), films)[0]['label-only'] for fit in (b.fit_empty, b.fit_lungs))
    assert empty['dice']['value'] == 0 and empty['marked_healthy']['value'] == 0
    assert lungs['marked_healthy']['value'] == 1
    assert image_auroc(b.maps_of(b.fit_empty(films), films), films.table.diseased) == .5


def test_floors_alone_have_a_table_and_pictures(tmp_path, monkeypatch):
    found = run(tmp_path, monkeypatch, b.FLOORS[:1])
    assert 'empty mask' in b.write_tables(found, tmp_path).read_text()
