"""Tests that would notice a wrong number: tests/mutations.py puts in the fault that each is for and shows that it fails."""
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lazyseg import data
from lazyseg.core import LazysegError
from lazyseg.data import Films, draw_shapes, get_films, get_source, make_view, query_labels, read_film, siim_runs, split_patients, template_region, unpaired_loaders
from lazyseg.evaluation import evaluate, image_score
from lazyseg.thresholding import OperatingPoint, threshold_from_labels
from test_data import own_cache, picture, table_of  # noqa: F401


def corner_film(height=80, width=80):
    "A film that is bright in its upper left quarter alone, and the mask of that."
    mask = np.zeros((height, width), bool)
    mask[:height//2, :width//2] = True
    return mask*np.float32(.8) + np.float32(.1), mask


@pytest.mark.parametrize('view', ['film', 'crop', 'aligned', 'lungs'])
def test_masks_lie_where_the_film_shows_them(view):
    film, mask = corner_film()
    lungs = np.zeros_like(mask)
    lungs[8:72, 6:36] = lungs[8:72, 44:74] = True
    seen = make_view(dict(film=film, truth=mask, lungs=lungs), 48, 40, view)
    shown = template_region(48, 40) if view in ('aligned', 'lungs') else np.ones((48, 40), bool)
    bright = seen['film'] > 128
    assert (bright == (seen['truth'] > 0))[shown].mean() > .97 and .1 < bright[shown].mean() < .4


def test_shapes_lie_where_they_were_drawn():
    "Wide, high up and to the left, in a film that is not square."
    wide = np.zeros((40, 100), bool)
    wide[4:10, 8:60] = True
    runs = np.flatnonzero(np.diff(np.r_[0, wide.T.ravel().astype(int), 0])).reshape(-1, 2)
    for shape in (dict(box=[8, 4, 52, 6]), dict(box=[80, 40, 520, 60], size=[400, 1000]), dict(polygon=[[8, 4], [60, 4], [60, 10], [8, 10]]), dict(runs=np.stack([runs[:, 0], runs[:, 1] - runs[:, 0]], 1).ravel().tolist())):
        assert (draw_shapes(json.dumps([shape]), 40, 100) == wide).all(), shape


def test_siim_counts_from_the_last_run(): assert siim_runs('10 3 5 2 100 1') == [10, 3, 18, 2, 120, 1]


def test_every_film_has_its_own_mask(tmp_path):
    for i in range(8):
        film = np.full((40, 32), 40, np.uint8)
        film[4*i:4*i + 8, 5:20] = 220
        for o, image in (('films', film), ('masks', (film > 128).astype(np.uint8)*255)):
            (tmp_path/o).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path/o/f'{i}.png')
    table = pd.DataFrame(dict(path=[f'{i}.png' for i in range(8)], patient=range(8), labels=['No Finding', 'Pneumonia']*4))
    films = get_films(get_source('table', table, root=tmp_path/'films', truth=('masks', tmp_path/'masks')), 40, aspect=.8)
    for film, truth in zip(films.film, films.truth): assert ((film > 128) == (truth > 0)).all() and truth.any()


def test_sixteen_bits_are_sixteen_bits(tmp_path):
    for bits in (10, 12, 14, 16):
        ramp = np.linspace(0, 2**bits - 1, 32*32).reshape(32, 32).astype(np.uint16)
        Image.fromarray(ramp).save(tmp_path/'a.png')
        assert np.abs(read_film(tmp_path/'a.png') - ramp/(2**bits - 1)).max() < 1e-6


def test_the_view_hides_all_but_the_lungs():
    film, _ = corner_film()
    lungs = np.zeros(film.shape, bool)
    lungs[8:72, 6:36] = lungs[8:72, 44:74] = True
    for view in ('aligned', 'lungs'): assert (make_view(dict(film=film, lungs=lungs), 48, 40, view)['film'][~template_region(48, 40)] == 0).all()


def small_films(n=40):
    "Films whose grey value is their row; even rows healthy."
    table = pd.DataFrame(dict(path=[str(i) for i in range(n)], patient=[f'p{i//2}' for i in range(n)], diseased=np.arange(n) % 2 == 1, split=np.array(['train', 'train', 'valid', 'test'])[np.arange(n)//2 % 4]))
    return Films(np.arange(n, dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2), table)


def rows_of(batch): return (batch[:, 0, 0, 0]*255).round().int().tolist()


def test_a_batch_is_healthy_then_diseased():
    for part in ('train', 'valid'):
        for healthy, diseased in getattr(unpaired_loaders(small_films(), 4, augment='none', device='cpu'), part):
            assert all(i % 2 == 0 for i in rows_of(healthy)) and all(i % 2 == 1 for i in rows_of(diseased))


def test_loaders_keep_to_their_part():
    films = small_films()
    dls = unpaired_loaders(films, 4, augment='none', device='cpu')
    for part in ('train', 'valid'):
        dealt = {i for batch in getattr(dls, part) for domain in batch for i in rows_of(domain)}
        assert dealt and {films.table.split[i] for i in dealt} == {part}


def test_the_diseased_are_diseased(tmp_path):
    "Of three sick films among nine, by their name and by their pixels."
    for i in range(9): picture(tmp_path/f'{i}.png', i); Image.fromarray(np.full((40, 32), 200 if i < 3 else 60, np.uint8)).save(tmp_path/f'{i}.png')
    table = pd.DataFrame(dict(path=[f'{i}.png' for i in range(9)], patient=range(9), labels=['Edema']*3 + ['No Finding']*6))
    films = get_films(get_source('table', table, 'Edema', root=tmp_path), 16)
    assert films.table.labels[films.table.diseased].tolist() == ['Edema']*3
    assert (films.diseased.film == 200).all() and (films.healthy.film == 60).all() and len(films.healthy) == 6


def test_resizing_averages_all_that_it_covers():
    rng = np.random.default_rng(0)
    image = rng.random((256, 256)).astype(np.float32)
    small = data.resize(image, 16, 16)
    assert small.std() < 2*image.std()/16 # 256 pixels and more go into each: their noise goes down by 16
    assert np.abs(data.resize(np.tile([0., 1.], (128, 64)), 32, 32)[4:-4, 4:-4] - .5).max() < .02


def test_without_means_without():
    labels = pd.Series(['Edema', 'Edema|Effusion', 'No Finding', 'Effusion'])
    assert query_labels(labels, 'Edema without Effusion').tolist() == [True, False, False, False]
    assert query_labels(labels, 'without Effusion').tolist() == [True, False, True, False]


def test_no_patient_is_in_two_parts():
    table = pd.DataFrame(dict(patient=[f'p{i//5}' for i in range(300)], labels=['No Finding']*200 + ['Edema']*100)).assign(diseased=lambda t: t.labels == 'Edema')
    for seed in range(5):
        split = split_patients(table, seed=seed)
        assert split.groupby(table.patient).nunique().max() == 1 and set(split) == {'train', 'valid', 'test'}


# -- thresholds, maps, metrics: see also test_evaluation.py and test_thresholding.py ----------------------------------------

def test_the_headline_rule_keeps_healthy_films_quiet():
    rng = np.random.default_rng(0)
    healthy, diseased = rng.gamma(1., .1, (2, 40, 24, 24)).astype(np.float32)
    diseased[:, 4:14, 4:14] += .1 # faint and large: the best estimated Dice would mark far more than half a percent of a healthy film
    for area in (.001, .005, .02):
        point = threshold_from_labels(healthy, diseased, area=area)
        assert point.mask(healthy).mean() <= area + 1e-9, area


def test_a_map_follows_its_film():
    from lazyseg.training import GeneratorScorer, Translator, method
    torch.manual_seed(0)
    films = torch.rand(2, 1, 32, 32)
    for name in ('lazyseg', 'cyclegan', 'paper'):
        m = method(name, width=8, blocks=1, critic_width=8, critic_steps=2)
        scorer = GeneratorScorer(Translator(m).generator, m.map, name)
        if m.map == 'difference': # where counterpart and film differ, and by as much
            expected = (films - scorer.counterpart(films).film).abs()[:, 0]
            assert torch.allclose(scorer(films), expected) and expected.std() > 0
        assert not torch.equal(scorer(films)[0], scorer(films)[1])


def test_training_turns_the_diseased_films():
    "What the generator from diseased to healthy is given, and what its critic takes for real."
    from lazyseg.training import Translator, method
    translator = Translator(method('lazyseg', width=8, blocks=1, critic_width=8, critic_steps=2, haze=0.)) # without noise, films can be told
    given_films, judged = [], []
    translator.there.generator.register_forward_pre_hook(lambda module, films: given_films.append(films[0].detach()))
    translator.there.critic.register_forward_pre_hook(lambda module, films: judged.append(films[0].detach()))
    healthy, sick = torch.full((2, 1, 32, 32), .2), torch.full((2, 1, 32, 32), .7)
    translator(healthy, sick)
    assert torch.equal(given_films[0][:2], sick) and torch.equal(judged[0][:2], healthy)


def test_scores_of_another_size_are_refused():
    scores, truth = np.random.default_rng(0).random((8, 16, 16)), np.zeros((8, 8, 8), bool)
    diseased, patients = np.arange(8) % 2 == 1, np.arange(8)
    truth[diseased, 2:4, 2:4] = True
    with pytest.raises(LazysegError, match=r'has shape \(8, 8, 8\)'): evaluate(scores, truth, diseased, patients, OperatingPoint(.5), n_boot=5)
    with pytest.raises(LazysegError, match='lungs has shape'): evaluate(scores, None, diseased, patients, OperatingPoint(.5), lungs=np.ones((8, 8, 8), bool), n_boot=5)


def test_false_alarms_are_those_on_healthy_films():
    scores = np.zeros((8, 10, 10)); diseased = np.arange(8) % 2 == 1
    truth = np.zeros(scores.shape, bool); truth[diseased, :5, :5] = True
    scores[diseased, :5, :5], scores[~diseased, 0, :3] = 1, 1
    found = evaluate(scores, truth, diseased, np.arange(8), OperatingPoint(.5), n_boot=5)
    assert found['marked_healthy']['value'] == pytest.approx(.03) and found['marked_diseased']['value'] == pytest.approx(.25) and found['dice']['value'] == 1


def test_a_small_lesion_makes_a_high_film_score():
    maps = np.full((2, 20, 20), .3)
    maps[1], maps[1, 3:5, 3:5] = .1, 1. # darker on the whole, with one bright percent
    assert image_score(maps)[1] == pytest.approx(1) and image_score(maps)[0] == pytest.approx(.3)
