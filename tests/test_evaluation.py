"""Evaluation: against independent implementations, at the corners, and against mistakes that somebody will make."""
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, roc_auc_score

from lazyseg.core import LazysegError
from lazyseg.evaluation import (COLUMNS, as_text, ap_from_counts, auroc_from_counts, best_dice, boxes_to_masks, compare, curves_figure, dice, energy_in_box,
                                evaluate, image_auroc, image_score, iou, label_only_criteria, lung_zones, marked_area, measure, metric_draws,
                                paper_accuracy, patient_draws, pick_cases, pixel_auroc, pixel_average_precision, pointing_game, precision_recall,
                                repeatability, results_table, sensitivity_by_marked_area, share_inside, summarise, zones_to_masks)
from lazyseg.thresholding import OperatingPoint, count_above, threshold_for_dice, threshold_for_marked_area

POINT = OperatingPoint(.6)


def study(n=40, size=16, strength=.5, seed=0, per_patient=2):
    "2n films: scores, truth, diseased, patients. Diseased films hold a square that scores higher."
    rng = np.random.default_rng(seed)
    scores = rng.random((2*n, size, size)).astype(np.float32)
    diseased = np.arange(2*n) // per_patient % 2 == 1
    truth = np.zeros(scores.shape, bool)
    for i in np.flatnonzero(diseased):
        r, c = rng.integers(0, size-6, 2)
        truth[i, r:r+rng.integers(2, 6), c:c+rng.integers(2, 6)] = True
    return np.clip(scores+strength*truth, 0, None), truth, diseased, np.array([f'p{i//per_patient}' for i in range(2*n)])


class TestAgainstScikitLearn:
    @pytest.mark.parametrize('seed', range(8))
    def test_masks(self, seed):
        rng = np.random.default_rng(seed)
        mask, truth = rng.random((2, 6, 9, 7)) < rng.random((2, 6, 1, 1))
        for i in range(6):
            m, t = mask[i].ravel(), truth[i].ravel()
            if not t.any(): assert np.isnan(dice(mask, truth)[i]); continue
            assert dice(mask, truth)[i] == pytest.approx(f1_score(t, m, zero_division=0))
            assert iou(mask, truth)[i] == pytest.approx(jaccard_score(t, m, zero_division=0))

    @pytest.mark.parametrize('seed', range(6))
    @pytest.mark.parametrize('digits', [1, 6]) # many ties, hardly any
    def test_rankings(self, seed, digits):
        rng = np.random.default_rng(seed)
        truth = rng.random((5, 20, 20)) < .08
        scores = np.round(rng.random(truth.shape)+.5*truth, digits).astype(np.float32)
        assert pixel_average_precision(scores, truth) == pytest.approx(average_precision_score(truth.ravel(), scores.ravel()))
        assert pixel_auroc(scores, truth) == pytest.approx(roc_auc_score(truth.ravel(), scores.ravel()))

    @pytest.mark.parametrize('seed', range(4))
    def test_rounded_rankings_are_exact_where_every_score_is_a_step(self, seed):
        rng = np.random.default_rng(seed)
        truth = rng.random((5, 12, 12)) < .1
        scores = np.round(rng.random(truth.shape)+.3*truth, 2).astype(np.float32)
        true, other = count_above(scores, truth, np.concatenate([[-1], np.unique(scores)]))
        assert ap_from_counts(true.sum(0), other.sum(0)) == pytest.approx(average_precision_score(truth.ravel(), scores.ravel()))
        assert auroc_from_counts(true.sum(0), other.sum(0)) == pytest.approx(roc_auc_score(truth.ravel(), scores.ravel()))

    @pytest.mark.parametrize('strength', [0, .2, 1.])
    def test_rounding_error_is_small(self, strength):
        m = measure(*study(strength=strength), POINT)
        sick = m.table.diseased.values
        true, other = m.true[sick].sum(0), m.other[sick].sum(0)
        assert ap_from_counts(true, other) == pytest.approx(m.exact['pixel_ap'], abs=2e-3)
        assert auroc_from_counts(true, other) == pytest.approx(m.exact['pixel_auroc'], abs=1e-3)

    def test_image_auroc_on_draws(self):
        scores, truth, diseased, patients = study(strength=.2)
        m = measure(scores, truth, diseased, patients, POINT)
        weights = patient_draws(patients, 5)
        got = metric_draws(m, weights)['image_auroc'][0]
        expected = [roc_auc_score(diseased, image_score(scores), sample_weight=w) for w in weights]
        np.testing.assert_allclose(got, expected)
        assert image_auroc(scores, diseased) == pytest.approx(roc_auc_score(diseased, image_score(scores)))

    def test_pixel_metrics_on_draws(self):
        scores, truth, diseased, patients = study()
        scores = np.round(scores, 2)
        weights = patient_draws(patients, 4)
        got = metric_draws(measure(scores, truth, diseased, patients, POINT), weights)
        for k, w in enumerate(weights):
            pixels = np.repeat(w[diseased], scores[0].size)
            args = truth[diseased].ravel(), scores[diseased].ravel()
            assert got['pixel_ap'][0][k] == pytest.approx(average_precision_score(*args, sample_weight=pixels), abs=1e-6)
            assert got['pixel_auroc'][0][k] == pytest.approx(roc_auc_score(*args, sample_weight=pixels), abs=1e-6)


class TestAgainstTorchmetrics:
    def test_masks_and_rankings(self):
        torchmetrics = pytest.importorskip('torchmetrics')
        import torch
        f = torchmetrics.functional.classification
        rng = np.random.default_rng(0)
        truth, scores = rng.random((6, 10, 10)) < .2, rng.random((6, 10, 10)).astype(np.float32)
        mask = scores > .5
        tm, tt, ts = (torch.as_tensor(a) for a in (mask, truth.astype(int), scores))
        for i in range(6):
            assert dice(mask, truth)[i] == pytest.approx(float(f.binary_f1_score(tm[i].int(), tt[i])), abs=1e-6)
            assert iou(mask, truth)[i] == pytest.approx(float(f.binary_jaccard_index(tm[i].int(), tt[i])), abs=1e-6)
        assert pixel_average_precision(scores, truth) == pytest.approx(float(f.binary_average_precision(ts, tt)), abs=1e-5)
        assert pixel_auroc(scores, truth) == pytest.approx(float(f.binary_auroc(ts, tt)), abs=1e-5)


class TestCorners:
    T = np.zeros((1, 6, 6), bool)

    def test_empty_truth_is_not_defined(self):
        some = np.ones((1, 6, 6), bool)
        assert np.isnan([dice(some, self.T), iou(some, self.T), pointing_game(some, self.T), share_inside(some, self.T)]).all()
        assert np.isnan([pixel_average_precision(some, self.T), pixel_auroc(some, self.T)]).all()
        assert marked_area(some) == 1

    def test_empty_mask_is_zero(self):
        truth = self.T.copy()
        truth[0, 2, 2] = True
        assert dice(self.T, truth) == iou(self.T, truth) == pointing_game(self.T*0., truth) == 0
        assert np.isnan(share_inside(self.T, truth))
        assert paper_accuracy(self.T, truth) == pytest.approx(100*(1-1/36))

    def test_all_ones(self):
        truth = self.T.copy()
        truth[0, :3] = True
        ones = np.ones((1, 6, 6), bool)
        assert dice(ones, truth) == pytest.approx(2/3) and iou(ones, truth) == pytest.approx(.5)
        assert pixel_auroc(ones, truth) == .5 and pixel_average_precision(ones, truth) == .5
        assert dice(ones, ones) == iou(ones, ones) == 1 and np.isnan(pixel_auroc(ones, ones))

    def test_one_pixel_film(self):
        one = np.ones((1, 1, 1))
        assert dice(one, one) == 1 and image_score(one) == 1 and pointing_game(one, one) == 1

    def test_one_film_has_no_interval(self):
        scores, truth, diseased, patients = study(n=1, per_patient=1)
        r = evaluate(scores[1:], truth[1:], diseased[1:], patients[1:], POINT, n_boot=20)
        assert r['dice']['low'] is None and r['dice']['value'] is not None and r['image_auroc']['value'] is None
        json.dumps(r, allow_nan=False)

    def test_one_class_only(self):
        scores, truth, diseased, patients = study()
        for keep in (diseased, ~diseased):
            r = evaluate(scores[keep], truth[keep], diseased[keep], patients[keep], POINT, n_boot=20)
            assert r['image_auroc']['value'] is None
            assert (r['dice']['value'] is None) == (not diseased[keep].any())
            assert (r['marked_healthy']['value'] is None) == diseased[keep].all()
            json.dumps(r, allow_nan=False)

    def test_constant_scores_are_chance(self):
        _, truth, diseased, patients = study()
        r = evaluate(np.ones(truth.shape), truth, diseased, patients, POINT, n_boot=50)
        assert r['pixel_ap']['value'] == pytest.approx(truth[diseased].mean()) and r['image_auroc']['value'] == .5
        r = evaluate(np.zeros(truth.shape), truth, diseased, patients, POINT, n_boot=50)
        assert r['dice']['value'] == 0 and r['marked_healthy']['value'] == 0

    def test_diseased_film_without_truth_is_counted_not_averaged(self):
        scores, truth, diseased, patients = study()
        first = np.flatnonzero(diseased)[0]
        before = evaluate(scores, truth, diseased, patients, POINT, n_boot=5)
        truth = truth.copy()
        truth[first] = False
        after = evaluate(scores, truth, diseased, patients, POINT, n_boot=5)
        assert after['about']['diseased_without_truth'] == 1 and after['dice']['films'] == before['dice']['films']-1
        left = diseased & truth.any((1, 2))
        assert after['dice']['value'] == pytest.approx(np.mean([f1_score(t.ravel(), s.ravel() > .6) for s, t in zip(scores[left], truth[left])]))

    def test_no_truth_at_all(self):
        scores, _, diseased, patients = study()
        r = evaluate(scores, None, diseased, patients, POINT, lungs=np.ones(scores.shape, bool), n_boot=20)
        assert 'dice' not in r and r['share_in_lungs']['value'] == 1 and r['image_auroc']['value'] is not None
        assert results_table({'m': r}).loc['m', 'image AUROC'].count('(') == 1
        m = measure(scores, None, diseased, patients, POINT)
        with pytest.raises(LazysegError, match='without outlines'): curves_figure({'m': m})
        with pytest.raises(LazysegError, match='without outlines'): pick_cases(m.table)

    def test_no_film(self):
        with pytest.raises(LazysegError, match='one film at least'): evaluate(np.zeros((0, 4, 4)), None, [], [], POINT)


class TestInterval:
    def test_against_scipy_with_one_film_a_patient(self):
        scores, truth, diseased, _ = study(n=60, per_patient=1)
        patients = np.arange(len(scores))
        r = evaluate(scores[diseased], truth[diseased], diseased[diseased], patients[diseased], POINT, n_boot=4000)['dice']
        d = dice(scores[diseased] > .6, truth[diseased])
        reference = bootstrap((d,), np.mean, n_resamples=4000, method='percentile', rng=np.random.default_rng(1)).confidence_interval
        assert (r['low'], r['high']) == pytest.approx((reference.low, reference.high), abs=.1*(reference.high-reference.low))

    def test_patients_are_the_unit(self):
        "Ten films of one patient that are all alike are one piece of evidence: the interval is that of one film each."
        scores, truth, diseased, patients = study(n=20, per_patient=1)
        width = lambda *a: np.diff([evaluate(*a, POINT, n_boot=2000)['dice'][k] for k in ('low', 'high')])[0]
        once = width(scores, truth, diseased, patients)
        tenfold = [np.repeat(a, 10, axis=0) for a in (scores, truth, diseased, patients)]
        assert width(*tenfold) == pytest.approx(once, rel=.05)
        as_films = width(*tenfold[:3], np.arange(len(tenfold[0])))
        assert as_films < .5*once

    def test_coverage(self):
        "Some 95 of 100 studies have the true value in their interval."
        rng = np.random.default_rng(0)
        hits = 0
        for _ in range(200):
            values = rng.random(40) # true mean .5
            w = patient_draws(np.arange(40), 400, seed=int(rng.integers(1e6)))
            low, high = np.quantile(w@values/w.sum(1), [.025, .975])
            hits += low <= .5 <= high
        assert 175 <= hits <= 199

    def test_seed_and_row_order(self):
        a = study()
        first = evaluate(*a, POINT, n_boot=50)
        assert first == evaluate(*a, POINT, n_boot=50)
        assert first['dice']['low'] != evaluate(*a, POINT, n_boot=50, seed=1)['dice']['low']
        order = np.random.default_rng(0).permutation(len(a[0]))
        other = evaluate(*(x[order] for x in a), POINT, n_boot=50)
        for name in ('dice', 'pixel_ap', 'image_auroc', 'marked_healthy'):
            assert [other[name][k] for k in ('value', 'low', 'high')] == pytest.approx([first[name][k] for k in ('value', 'low', 'high')], abs=1e-9)

    def test_value_lies_inside(self):
        r = evaluate(*study(), POINT, n_boot=300)
        for name, x in r.items():
            if name not in ('about', 'best_dice'): assert x['low'] <= x['value'] <= x['high'], name


class TestCompare:
    def test_pairing_sees_what_single_intervals_cannot(self):
        scores, truth, diseased, patients = study(n=60, strength=.35)
        slightly = scores+.04*truth # better on nearly every film
        a, b = measure(slightly, truth, diseased, patients, POINT), measure(scores, truth, diseased, patients, POINT)
        ra, rb = summarise(a)['dice'], summarise(b)['dice']
        assert ra['low'] < rb['high'], 'the two intervals overlap'
        row = compare(a, b).loc['dice']
        assert row.differs and row.low > 0 and row.difference == pytest.approx(ra['value']-rb['value'])

    def test_it_is_symmetric(self):
        a, b = (measure(*study(strength=s), POINT) for s in (.5, .3))
        ab, ba = compare(a, b, 200), compare(b, a, 200)
        np.testing.assert_allclose(ab.difference.astype(float), -ba.difference.astype(float))
        np.testing.assert_allclose(ab.low.astype(float), -ba.high.astype(float), atol=1e-9)

    def test_other_films_are_refused(self):
        s = study()
        with pytest.raises(LazysegError, match='same films'): compare(measure(*s, POINT), measure(*(x[::-1] for x in s), POINT))

    def test_one_patient_differs_from_nobody(self):
        rng = np.random.default_rng(0)
        truth = np.zeros((6, 16, 16), bool)
        truth[3:, 4:8, 4:8] = True
        scores, ill = truth*.9 + rng.random(truth.shape)*.3, np.arange(6) > 2
        for patients, sure in ((['a']*6, False), (list('abcdef'), True)):
            row = compare(*(measure(x, truth, ill, patients, OperatingPoint(.5)) for x in (scores, scores*.4)), 50).loc['dice']
            assert row.difference == 1 and row.differs == sure and np.isnan(row.low) != sure


class TestMistakes:
    "What somebody will do by accident must be refused, or must show in the numbers."

    def test_threshold_from_test_films_is_refused(self):
        scores, truth, diseased, patients = study()
        chosen = threshold_for_dice(scores[diseased], truth[diseased], patients[diseased])
        with pytest.raises(LazysegError, match='patients it is tested on'): evaluate(scores, truth, diseased, patients, chosen)
        calibrated = threshold_for_marked_area(scores[~diseased], patients=patients[~diseased])
        with pytest.raises(LazysegError, match='Choose it on validation'): evaluate(scores, truth, diseased, patients, calibrated)
        evaluate(scores, truth, diseased, np.char.add('other ', patients), chosen, n_boot=5)

    def test_swapped_domains_are_refused(self):
        scores, truth, diseased, patients = study()
        with pytest.raises(LazysegError, match='swapped'): evaluate(scores, truth, ~diseased, patients, POINT)

    def test_a_few_wrong_labels_are_not_refused(self):
        scores, truth, diseased, patients = study()
        noisy = diseased.copy()
        noisy[np.random.default_rng(0).choice(len(noisy), 4, replace=False)] ^= True
        assert evaluate(scores, truth, noisy, patients, POINT, n_boot=5)['dice']['value'] > 0

    def test_inverted_truth_is_refused(self):
        scores, truth, diseased, patients = study()
        with pytest.raises(LazysegError, match='inside out'): evaluate(scores, ~truth & diseased[:, None, None], diseased, patients, POINT)

    @pytest.mark.parametrize('mistake', [lambda t: t[..., ::-1], lambda t: t[:, ::-1], lambda t: np.roll(t, 1, 0), lambda t: t.transpose(0, 2, 1)],
                             ids=['mirrored', 'upside down', 'next film', 'transposed'])
    def test_misplaced_truth_shows(self, mistake):
        scores, truth, diseased, patients = study()
        right, wrong = (evaluate(scores[diseased], t, diseased[diseased], patients[diseased], POINT, n_boot=5) for t in (truth[diseased], mistake(truth[diseased])))
        for name in ('dice', 'pixel_ap', 'pointing_game', 'best_dice'): assert wrong[name]['value'] < .7*right[name]['value'], name

    def test_negated_scores_show(self):
        scores, truth, diseased, patients = study()
        r = evaluate(scores.max()-scores, truth, diseased, patients, POINT, n_boot=5)
        assert r['pixel_auroc']['value'] < .3 and r['image_auroc']['value'] < .55

    def test_arrays_that_do_not_fit_are_refused(self):
        s = study()
        for bad in ((s[0][:9], *s[1:]), (s[0], s[1][:, :8], *s[2:]), (*s[:3], s[3][:-1])):
            with pytest.raises(LazysegError): evaluate(*bad, POINT)
        spoiled = s[0].copy()
        spoiled[3, 0, 0] = np.nan
        with pytest.raises(LazysegError, match='not finite'): evaluate(spoiled, *s[1:], POINT)
        with pytest.raises(LazysegError, match='differ in shape'): dice(s[0] > .5, s[1][:3])

    def test_missing_patient_is_refused(self):
        s = study()
        patients = s[3].astype(object)
        patients[2] = None
        with pytest.raises(LazysegError, match='no patient'): evaluate(*s[:3], patients, POINT)


class TestCoarseTruth:
    def test_boxes_by_hand(self):
        masks = boxes_to_masks([[(1, 2, 3, 1)], [], [(-2, 0, 4, 99), (4, 4, 1, 1)]], (6, 6))
        assert masks[0].sum() == 3 and masks[0, 2, 1:4].all() and not masks[1].any()
        assert masks[2].sum() == 6*2+1, 'what lies outside the film is cut off'
        maps = np.zeros((1, 6, 6))
        maps[0, 2, 1], maps[0, 5, 5] = 3, 1
        assert energy_in_box(maps, [[(1, 2, 3, 1)]])[0] == .75

    def test_evaluate_takes_boxes_or_masks(self):
        scores, truth, diseased, patients = study()
        boxes = [[(int(c.min()), int(r.min()), int(np.ptp(c))+1, int(np.ptp(r))+1)] if len(r) else [] for r, c in (np.nonzero(t) for t in truth)]
        a = evaluate(scores, None, diseased, patients, POINT, boxes=boxes, n_boot=20)
        b = evaluate(scores, None, diseased, patients, POINT, boxes=truth, n_boot=20) # the truth here is its own box
        assert a == b and a['energy_in_box']['films'] == diseased.sum() and 'energy in box' in results_table({'a': a})

    def test_zones(self):
        lungs = np.zeros((1, 12, 12), bool)
        lungs[0, 0:9, 1:5] = lungs[0, 3:12, 7:11] = True # one lung hangs lower
        zones = lung_zones(lungs)[0]
        assert [zones[r, 2] for r in (0, 3, 6)] == [1, 2, 3] and [zones[r, 8] for r in (3, 6, 9)] == [4, 5, 6]
        assert zones_to_masks([['left lower']], lungs).sum() == 12
        assert zones_to_masks([[]], lungs).sum() == 0


class TestTableAndCurves:
    def test_table(self):
        s = study()
        results = {'ours': evaluate(*s, POINT, n_boot=50), 'supervised U-Net': evaluate(s[1]*1., *s[1:], POINT, n_boot=50),
                   'empty mask': evaluate(s[0]*0, *s[1:], POINT, n_boot=50)}
        table = results_table(results)
        assert list(table.index) == ['empty mask', 'ours', 'supervised U-Net']
        assert table.loc['supervised U-Net', 'Dice'] == '1.00 (1.00 to 1.00)' and (table.threshold == 'fixed').all()
        chosen = evaluate(*s, replace(POINT, films=9), n_boot=50)
        assert results_table({'ours': chosen}).threshold.tolist() == ['label-only']
        assert as_text(dict(value=None, low=None, high=None)) == 'not defined'
        with pytest.raises(LazysegError, match='pixel_ap'): results_table(results, ['accuracy'])
        assert set(results_table(results, ['dice']).columns) == {COLUMNS['dice'], 'threshold'}

    def test_curves_are_monotone_and_end_right(self):
        s = study()
        m = measure(*s, POINT)
        pr, sens = precision_recall(m), sensitivity_by_marked_area(m)
        assert (np.diff(pr.recall) <= 0).all() and pr.recall.iloc[0] == 1 and pr.precision.iloc[0] == pytest.approx(s[1][s[2]].mean())
        assert (np.diff(sens.sensitivity) <= 0).all() and sens.marked_healthy.iloc[0] == 1

    def test_best_dice_is_a_limit(self):
        scores, truth, diseased, patients = study(strength=.3)
        best, at = best_dice(scores[diseased], truth[diseased])
        grid = max(np.nanmean(dice(scores[diseased] > t, truth[diseased])) for t in np.linspace(0, 1.3, 300))
        assert best == pytest.approx(grid, abs=5e-3)
        assert np.nanmean(dice(scores[diseased] > np.float32(at), truth[diseased])) == pytest.approx(best)
        for p in (POINT, OperatingPoint(.55, 1., 6), OperatingPoint(.8, 0, 0, .6)):
            r = evaluate(scores, truth, diseased, patients, p, n_boot=5)
            assert r['best_dice']['value'] >= r['dice']['value']

    def test_cases_follow_the_rule(self):
        table = measure(*study(), POINT).table
        cases = pick_cases(table, 4)
        ranked = table[table.diseased].dice.sort_values()
        assert table.dice.iloc[cases['worst']].max() <= ranked.iloc[3] and table.dice.iloc[cases['best']].min() >= ranked.iloc[-4]
        assert np.median(table.dice.iloc[cases['median']]) == pytest.approx(ranked.median(), abs=.05)


class TestLabelOnly:
    def test_criteria_rise_with_quality(self):
        rows = []
        for strength in (0, .2, .5, 1):
            scores, _, diseased, _ = study(n=60, strength=strength)
            again = scores+.1*np.random.default_rng(9).random(scores.shape)
            rows.append(label_only_criteria(scores[~diseased], scores[diseased], again[diseased]))
        for name in ('image_auroc', 'marked_diseased', 'contrast', 'pixel_contrast', 'estimated_dice', 'repeatability'):
            values = [r[name] for r in rows]
            assert values[-1] > values[0], name
        assert all(isinstance(v, float) for r in rows for v in r.values()) and json.dumps(rows)

    def test_repeatability(self):
        maps = np.random.default_rng(0).random((4, 8, 8))
        assert repeatability(maps, maps) == pytest.approx(1) and repeatability(maps, -maps) == pytest.approx(-1)
        assert repeatability(maps, maps*0) == 0
