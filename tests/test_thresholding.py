"""Thresholding: promises that must hold on any scores, and faults that must be named."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.filters import apply_hysteresis_threshold, gaussian
from skimage.measure import label

from lazyseg.core import LazysegError
from lazyseg.thresholding import (PAPER_BAND, OperatingPoint, calibrate, count_above, dice_from_areas, estimate_dice, few_films, film_scores,
                                  image_score, paper_band, paper_map, point_for_dice, point_from_labels, score_films, threshold_figure, threshold_for_dice,
                                  threshold_for_estimated_dice, threshold_for_marked_area, threshold_from_labels, threshold_otsu_above_healthy)


def lesions(n=40, size=24, strength=1., seed=0):
    "Healthy and diseased scores and the truth of the diseased: a square of higher scores."
    rng = np.random.default_rng(seed)
    healthy, diseased = rng.gamma(1., .1, (2, n, size, size)).astype(np.float32)
    truth = np.zeros(diseased.shape, bool)
    for t in truth:
        r, c, side = rng.integers(0, size-8), rng.integers(0, size-8), rng.integers(3, 8)
        t[r:r+side, c:c+side] = True
    return healthy, diseased+strength*truth, truth


def mean_dice(mask, truth):
    return np.mean(dice_from_areas((mask & truth).sum((1, 2)), mask.sum((1, 2)), truth.sum((1, 2))))


class TestFilmScores:
    films = SimpleNamespace(film=np.random.default_rng(0).integers(0, 256, (13, 8, 6), dtype=np.uint8))

    def test_without_a_verdict_the_map_speaks(self):
        maps = self.films.film/255
        assert np.array_equal(film_scores(lambda x: x[:, 0], self.films, maps), image_score(maps))
        assert np.array_equal(film_scores(SimpleNamespace(verdict=None), self.films, maps), image_score(maps))

    def test_films_and_maps_come_together_in_any_batch(self):
        maps = np.arange(13, dtype=np.float32)[:, None, None]*np.ones((8, 6), np.float32)
        says = SimpleNamespace(verdict=lambda films, maps: films.mean((1, 2, 3)) + maps[:, 0, 0])
        whole = film_scores(says, self.films, maps)
        np.testing.assert_allclose(whole, self.films.film.mean((1, 2))/255 + np.arange(13), rtol=1e-5)
        assert np.array_equal(whole, film_scores(says, self.films, maps, 4)) and whole.dtype == np.float32

    @pytest.mark.parametrize('word', [-1., float('nan')])
    def test_a_bad_verdict_is_named(self, word):
        says = SimpleNamespace(name='oracle', verdict=lambda films, maps: torch.full((len(films),), word))
        with pytest.raises(LazysegError, match='oracle gave a verdict'): film_scores(says, self.films, self.films.film/255)

    def test_no_film(self):
        says = SimpleNamespace(verdict=lambda films, maps: maps.mean((1, 2)))
        assert film_scores(says, SimpleNamespace(film=np.zeros((0, 8, 8), np.uint8)), np.zeros((0, 8, 8))).shape == (0,)


class TestScoreFilms:
    def test_batches_do_not_matter(self):
        films = SimpleNamespace(film=np.random.default_rng(0).integers(0, 256, (13, 8, 6), dtype=np.uint8))
        scorer = lambda x: x[:, 0]**2
        whole = score_films(scorer, films, 100)
        assert np.array_equal(whole, score_films(scorer, films, 3))
        np.testing.assert_allclose(whole, (films.film/255)**2, rtol=1e-5)
        assert whole.dtype == np.float32

    def test_flip_mirrors_there_and_back(self):
        films = SimpleNamespace(film=np.random.default_rng(0).integers(0, 256, (3, 8, 6), dtype=np.uint8))
        ramp = torch.linspace(0, 1, 6)
        where = lambda x: x[:, 0]*ramp # a scorer that looks to the right
        assert np.allclose(score_films(where, films, flip=True), films.film/255*ramp.flip(0).numpy())

    def test_no_film(self):
        assert score_films(lambda x: x[:, 0], SimpleNamespace(film=np.zeros((0, 8, 8), np.uint8))).shape == (0, 8, 8)

    def test_memory_map_is_read(self, tmp_path):
        films = np.lib.format.open_memmap(tmp_path/'film.npy', 'w+', np.uint8, (5, 4, 4))
        films[:] = 51
        films.flush()
        got = score_films(lambda x: x[:, 0], SimpleNamespace(film=np.load(tmp_path/'film.npy', mmap_mode='r')), 2)
        np.testing.assert_allclose(got, .2, rtol=1e-6)

    @pytest.mark.parametrize('scorer, says', [(lambda x: x, 'films, height, width'), (lambda x: x[:, 0]-1, 'negative'),
                                              (lambda x: x[:, 0]*float('nan'), 'not finite'), (lambda x: x[:1, 0], 'shape')])
    def test_bad_scorers_are_named(self, scorer, says):
        with pytest.raises(LazysegError, match=says): score_films(scorer, SimpleNamespace(film=np.zeros((3, 4, 4), np.uint8)))


class TestPaper:
    def test_formula(self):
        film, counterpart = np.random.default_rng(0).random((2, 5, 9, 9))
        d = film-counterpart
        expected = np.clip(np.abs(d)/d.max((1, 2), keepdims=True), 0, 1)
        np.testing.assert_allclose(paper_map(film, counterpart), expected)
        stretched = np.abs(d)/np.abs(d).max((1, 2), keepdims=True)
        np.testing.assert_allclose(paper_map(film, counterpart, 'stretch'), stretched)

    def test_films_are_apart(self):
        film, counterpart = np.random.default_rng(0).random((2, 4, 9, 9))
        np.testing.assert_array_equal(paper_map(film, counterpart)[2], paper_map(film[2], counterpart[2]))

    def test_tensor_in_tensor_out(self):
        film, counterpart = torch.rand(2, 3, 1, 8, 8)
        got = paper_map(film, counterpart)
        assert isinstance(got, torch.Tensor) and got.shape == film.shape
        np.testing.assert_allclose(got.numpy(), paper_map(film.numpy(), counterpart.numpy()))

    @pytest.mark.parametrize('scale', ['clip', 'stretch'])
    def test_always_finite_and_in_range(self, scale):
        film = np.stack([np.zeros((4, 4)), np.ones((4, 4)), np.eye(4), np.eye(4)])
        counterpart = np.stack([np.zeros((4, 4)), np.zeros((4, 4)), np.ones((4, 4)), np.zeros((4, 4))])
        got = paper_map(film, counterpart, scale)
        assert np.isfinite(got).all() and got.min() >= 0 and got.max() <= 1
        assert not got[0].any(), 'nothing changed, nothing shown'

    def test_darker_than_health_is_thrown_away(self):
        healthy, sick = np.full((1, 8, 8), .5), np.full((1, 8, 8), .5)
        sick[0, 2:5, 2:5] = .2
        sick[0, 7, 7] += .01 # something, somewhere, is a little brighter
        assert not paper_band(paper_map(sick, healthy))[0, 2:5, 2:5].any()
        assert paper_map(sick, healthy)[0, 3, 3] == 1

    def test_band_is_strict(self):
        assert paper_band(np.array([.3, .30001, .79999, .8])).tolist() == [False, True, True, False]
        assert np.array_equal(PAPER_BAND.mask(np.array([[.3, .30001, .79999, .8]])), [[False, True, True, False]])


class TestOperatingPoint:
    def test_json_round_trip_without_patients(self):
        p = OperatingPoint(.25, 1., 8, high=.9, share=.3, mode='few outlined films', rule='by hand', films=3, chosen_on=frozenset(['Jane Doe']))
        text = json.dumps(p.to_dict())
        assert 'Jane' not in text and OperatingPoint.from_dict(json.loads(text)) == p

    def test_mode_is_named(self):
        with pytest.raises(LazysegError, match='few outlined films'): OperatingPoint(.5, mode='best on test')

    @pytest.mark.parametrize('seed', range(20))
    def test_higher_threshold_marks_less(self, seed):
        rng = np.random.default_rng(seed)
        scores, t, min_area = rng.random((3, 10, 10)).astype(np.float32), rng.uniform(.3, .7), rng.integers(0, 12)
        low, high = (OperatingPoint(x, 1., min_area).mask(scores) for x in (t*.9, t))
        assert not (high & ~low).any()

    def test_against_scikit_image_film_by_film(self):
        scores = np.random.default_rng(1).random((6, 20, 20)).astype(np.float32)
        p = OperatingPoint(.55, 1., 5, low=.5)
        for got, film in zip(p.mask(scores), scores):
            smooth = gaussian(film, 1., mode='reflect', truncate=4., preserve_range=True)
            grown = apply_hysteresis_threshold(smooth, .5, .55)
            parts = label(grown, connectivity=1)
            expected = np.isin(parts, [i for i in range(1, parts.max()+1) if (parts == i).sum() >= 5])
            assert (got != expected).mean() < .005 # smoothing rounds differently in the last digit

    def test_films_never_touch(self):
        scores = np.zeros((3, 5, 5), np.float32)
        scores[0, 2, 2], scores[1, 2, 2], scores[1, 0, 0] = 1, .6, 1
        assert OperatingPoint(.9, low=.5).mask(scores)[1].sum() == 1, 'a seed in one film must not grow in the next'
        scores[:, 2, 2] = 1
        assert not OperatingPoint(.5, min_area=2).mask(scores)[:, 2, 2].any(), 'three films with one pixel each are not a mark of three'

    def test_region_and_single_map(self):
        scores, region = np.ones((2, 6, 6)), np.zeros((2, 6, 6), bool)
        region[:, 2:4] = True
        p = OperatingPoint(.5)
        assert np.array_equal(p.mask(scores, region), region)
        assert np.array_equal(p.mask(scores[0], region[0]), region[0])

    def test_a_share_is_of_each_films_own_peak(self):
        scores = np.random.default_rng(2).random((5, 9, 9)).astype(np.float32)*np.array([.1, .4, .5, 2, 0], np.float32)[:, None, None]
        p = OperatingPoint(.3, smoothing=1., share=.8)
        for got, film in zip(p.mask(scores), p.smooth(scores)):
            assert np.array_equal(got, film > .8*film.max() if film.max() > .3 else np.zeros(film.shape, bool))
        assert np.isinf(p.levels(p.smooth(scores))[[0, 4]]).all() and p.mask(scores)[3].any() and not p.mask(scores)[4].any()
        assert np.array_equal(p.mask(scores[3]), p.mask(scores)[3])
        with pytest.raises(LazysegError, match='how far'): OperatingPoint(.3, share=.5, low=.1)
        for wrong in (1.1, -.1):
            with pytest.raises(LazysegError, match="film's peak"): OperatingPoint(.3, share=wrong)


class TestThresholds:
    @pytest.mark.parametrize('seed', range(30))
    def test_both_promises_of_the_headline_rule_are_kept(self, seed):
        rng = np.random.default_rng(seed)
        films, area, digits, smoothing = rng.random()*.9, rng.choice([0, rng.random()/4]), rng.integers(1, 5), rng.choice([0., 1.])
        healthy, sick = (np.round(rng.gamma(1, .3, (rng.integers(1, 9), 9, 9)), digits).astype(np.float32) for _ in range(2))
        p = point_from_labels(healthy, sick, smoothing, films, area)
        marked = p.mask(healthy)
        assert marked.mean() <= area and marked.any((1, 2)).mean() <= films and p.mode == 'label-only'

    def test_the_headline_rule_asks_for_no_scale(self):
        healthy, diseased, _ = lesions()
        one, thousand, faint = (point_from_labels(k*healthy, k*diseased).mask(k*diseased) for k in map(np.float32, (1, 1024, 2.**-50)))
        assert np.array_equal(one, thousand) and np.array_equal(one, faint) and one.any()

    def test_faint_healthy_films_are_counted_too(self):
        rng = np.random.default_rng(0)
        healthy = (1/(1 + np.exp(-rng.normal(-38, 1.5, (20, 16, 16))))).astype(np.float32)
        p = point_from_labels(healthy, healthy + (np.arange(16) < 4)*np.float32(.99))
        assert p.mask(healthy).mean() <= .0075

    def test_few_outlines_leave_most_of_healthy_films_alone(self):
        healthy, diseased, truth = lesions(n=40)
        spread = np.ones_like(truth) # outlines that cover all: the lowest share would be best
        p = point_for_dice(healthy, diseased, spread, films=.5)
        assert p.mask(healthy).mean() <= .02 < OperatingPoint(p.threshold, p.smoothing, share=.005).mask(healthy).mean()

    def test_faint_lesions_gain_from_their_own_peak(self):
        healthy, diseased, truth = lesions(n=60, strength=.6)
        rng = np.random.default_rng(0)
        faint = (diseased*rng.uniform(.2, 1, (60, 1, 1))).astype(np.float32)
        one, own = threshold_from_labels(healthy*.2, faint), point_from_labels(healthy*.2, faint)
        assert mean_dice(own.mask(faint), truth) > mean_dice(one.mask(faint), truth)
        few = point_for_dice(healthy*.2, faint, truth, n=60, smoothing=0.)
        assert mean_dice(few.mask(faint), truth) >= mean_dice(OperatingPoint(few.threshold, share=own.share).mask(faint), truth) - .005
        assert few.mask(healthy*.2).any((1, 2)).mean() <= .4

    def test_only_the_few_films_choose_the_share(self):
        healthy, diseased, truth = lesions()
        p = point_for_dice(healthy, diseased, truth, n=5, healthy_patients=['h'])
        rest = np.setdiff1d(np.arange(len(diseased)), few_films(np.arange(len(diseased)), 5))
        spoiled = diseased.copy()
        spoiled[rest] = 99
        assert point_for_dice(healthy, spoiled, truth, n=5) == p and len(p.chosen_on) == 6 and 'h' in p.chosen_on

    @pytest.mark.parametrize('statistic', ['mean', 'median'])
    @pytest.mark.parametrize('seed', range(30))
    def test_promise_is_kept(self, seed, statistic):
        rng = np.random.default_rng(seed)
        area, digits, smoothing, min_area = rng.choice([0, rng.random()/2]), rng.integers(1, 5), rng.choice([0., 1.]), rng.integers(0, 6)
        scores = np.round(rng.gamma(1, .3, (rng.integers(1, 7), 9, 9)), digits).astype(np.float32)
        p = threshold_for_marked_area(scores, area, statistic, smoothing, min_area)
        marked = p.mask(scores).mean((1, 2))
        assert getattr(np, statistic)(marked) <= area+1e-9
        assert p.mode == 'label-only'

    def test_it_is_the_lowest(self):
        scores = np.random.default_rng(0).random((10, 20, 20)).astype(np.float32)
        p = threshold_for_marked_area(scores, .01)
        assert abs(p.mask(scores).mean()-.01) < 1e-3
        assert (scores > np.nextafter(np.float32(p.threshold), np.float32(-1))).mean() > .01-1e-9

    def test_few_films_are_the_same_and_of_other_patients(self):
        patients = np.repeat([f'p{i}' for i in range(30)], 3)
        first = few_films(patients, 20)
        assert np.array_equal(first, few_films(patients, 20)) and len(set(patients[first])) == 20
        assert not np.array_equal(first, few_films(patients, 20, seed=1))
        assert len(few_films(patients[:6], 20)) == 6

    def test_dice_threshold_is_the_best_of_a_fine_grid(self):
        _, diseased, truth = lesions(strength=.5)
        p = threshold_for_dice(diseased, truth, n=20, smoothing=0, min_area=0)
        use = few_films(np.arange(len(diseased)), 20)
        grid = max(mean_dice(diseased[use] > t, truth[use]) for t in np.linspace(0, 1, 400))
        assert mean_dice(p.mask(diseased[use]), truth[use]) > grid-.01
        assert p.mode == 'few outlined films' and p.films == 20

    def test_only_the_few_films_are_used(self):
        _, diseased, truth = lesions()
        p = threshold_for_dice(diseased, truth, n=5)
        rest = np.setdiff1d(np.arange(len(diseased)), few_films(np.arange(len(diseased)), 5))
        spoiled = diseased.copy()
        spoiled[rest] = 99
        assert threshold_for_dice(spoiled, truth, n=5) == p and len(p.chosen_on) == 5

    def test_label_only_thresholds_see_no_truth_and_work(self):
        healthy, diseased, truth = lesions()
        best = max(mean_dice(diseased > t, truth) for t in np.linspace(0, 2, 200))
        for p in (threshold_otsu_above_healthy(healthy, diseased), threshold_for_estimated_dice(healthy, diseased)):
            assert p.mode == 'label-only' and mean_dice(p.mask(diseased), truth) > best-.1

    def test_estimated_dice_against_measured(self):
        healthy, diseased, truth = lesions(n=200, strength=.6)
        steps, guess, share = estimate_dice(healthy, diseased)
        true, other = count_above(diseased, truth, steps)
        measured = dice_from_areas(true.sum(0), (true+other).sum(0), truth.sum())
        assert abs(share-truth.mean()) < .01
        assert np.abs(guess-measured)[steps > .2].max() < .1

    def test_nothing_to_see(self):
        flat = np.zeros((4, 8, 8))
        for p in (threshold_for_marked_area(flat), threshold_otsu_above_healthy(flat, flat), threshold_for_estimated_dice(flat, flat)):
            assert not p.mask(flat).any()
        with pytest.raises(LazysegError, match='No healthy films'): threshold_for_marked_area(flat[:0])
        with pytest.raises(LazysegError, match='every truth is empty'): threshold_for_dice(flat, flat)
        with pytest.raises(LazysegError, match='share of a film'): threshold_for_marked_area(flat, 50)
        with pytest.raises(LazysegError, match='mean, median'): threshold_for_marked_area(flat, statistic='mode')

    def test_count_above_by_hand(self):
        scores, truth = np.random.default_rng(0).integers(0, 5, (4, 6, 6))/4, np.random.default_rng(1).random((4, 6, 6)) > .5
        steps = [-1, 0, .25, .3, .75, 1, 2]
        true, other = count_above(scores, truth, steps)
        for k, t in enumerate(steps):
            assert np.array_equal(true[:, k], ((scores > t) & truth).sum((1, 2)))
            assert np.array_equal(other[:, k], ((scores > t) & ~truth).sum((1, 2)))


def test_calibration_is_a_z_score():
    rng = np.random.default_rng(0)
    mean, spread = rng.random((8, 8)), rng.random((8, 8))+.5
    healthy = np.clip(mean+spread*rng.normal(size=(4000, 8, 8)), None, None)
    c = calibrate(healthy, blur=0)
    np.testing.assert_allclose(c.mean, mean, atol=.1)
    np.testing.assert_allclose(c.spread, spread, rtol=.1)
    assert c(healthy).min() == 0
    with pytest.raises(LazysegError, match='at least two'): calibrate(healthy[:1])


def test_figure_draws_and_needs_no_truth():
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    map = np.random.default_rng(0).random((12, 12))
    for truth in (None, np.zeros((12, 12)), map > .5):
        fig = threshold_figure((map*255).astype(np.uint8), map, truth, OperatingPoint(.4))
        assert len(fig.axes) == 5
        plt.close(fig)


def test_slider_moves_without_a_browser():
    pytest.importorskip('ipywidgets')
    from lazyseg.thresholding import threshold_slider
    map = np.random.default_rng(0).random((3, 12, 12)).astype(np.float32)
    box = threshold_slider(map, map, map > .5, OperatingPoint(.9, min_area=2))
    threshold, film, text, picture = box.children
    first = bytes(picture.value)
    threshold.value = .5
    assert text.value.startswith('Dice') and bytes(picture.value) != first
    assert box.point.min_area == 2 and abs(box.point.threshold-.5) < 1e-6
    said = text.value
    film.value = 2
    assert text.value != said
