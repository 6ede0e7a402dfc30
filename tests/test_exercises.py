"""The exercise book: what is pasted, what is healthy, what was found, and where the outlines lie."""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import label

from lazyseg.core import LazysegError
from lazyseg.data import Films
from lazyseg.exercises import BOOK_VERSION, Exercises, correct, elsewhere, lesions_of, outlined_films, paint, scatter, teach, usual_place
from lazyseg.models import MAPS, Counterpart


def test_what_is_pasted_lies_under_its_outline():
    "Flat films; each diseased one has a bright square of its own, which the generator found."
    n, size = 16, 32
    film, changes = np.full((2 * n, size, size), 80, np.uint8), np.zeros((n, size, size), np.float16)
    for i in range(n):
        r, c = 4 + i, 3 + (5 * i) % 18
        film[n + i, r:r + 8, c:c + 9] += 100
        changes[i, r:r + 8, c:c + 9] = 100 / 255
    table = pd.DataFrame(dict(path=[str(i) for i in range(2 * n)], patient=[str(i) for i in range(2 * n)], diseased=np.arange(2 * n) >= n, split="train"))
    book = Exercises(Films(film=film, table=table), changes, changes > 0, batches=2, bs=16, seed=3, device="cpu")
    for x, y in book:
        assert x.shape == y.shape == (16, 1, size, size) and set(y.unique().tolist()) == {0., 1.}
        x = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False) # each page has its own greys and noise
        usual = x.flatten(1).median(1).values[:, None, None, None]
        highest = x.flatten(1).quantile(.97, 1) - usual.flatten()
        assert not y[8:12].any() and (highest[8:12] < .08).all(), "the healthy quarter"
        for part in (slice(8), slice(12, 16)): # pasted; as found
            area = y[part].mean((1, 2, 3))
            bright = x[part] > usual[part] + (highest[part] / 2)[:, None, None, None]
            wrong = (bright != (y[part] > .5)).float().mean((1, 2, 3))
            assert (area > .03).all() and (highest[part] > .1).all() and (wrong < .35 * area).all(), (area, wrong, highest[part])
    assert not torch.equal(y[0], y[1]), "each lesion lies somewhere else"


def test_what_is_painted_stays_on_its_film_and_near_the_outline():
    "Every healthy film has a grey of its own; the way back lightens all of it, and more where it is told."
    n, size = 12, 32
    film = np.repeat(np.arange(2 * n, dtype=np.uint8) * 5, size * size).reshape(2 * n, size, size)
    where = np.zeros((n, size, size), bool)
    for i in range(1, n): where[i, 6:14, 2 + i:12 + i] = True # on the first diseased film nothing was found: it lends to nobody
    table = pd.DataFrame(dict(path=range(2 * n), patient=range(2 * n), diseased=np.arange(2 * n) >= n, split="train"))
    films = Films(film=film, table=table)
    class Back(torch.nn.Module):
        def __init__(self): super().__init__(); self.own = torch.nn.Parameter(torch.tensor(.1))
        def forward(self, x, mask): return Counterpart(x + self.own + .3 * mask + x) # another change on every film
    class Teacher: # which finds what is there: the masks of diseased films are told apart by their grey
        def counterpart(self, x):
            rows = (x[:, 0, 0, 0] * 255 / 5).round().long() - n
            return Counterpart(x, mask=torch.from_numpy(where)[rows][:, None].float())
    changes, lent = paint(Back(), Teacher(), films, where, near=1 / 16)
    assert changes.shape == lent.shape == (n, size, size) and lent.any((1, 2)).all()
    for i in range(n): assert np.allclose(changes[i][lent[i]], .4 + i * 5 / 255, atol=2e-3), "on its film, by the lender's mask"
    assert not changes[:, 28:].any(), "nothing far off"
    assert np.array_equal(paint(Back(), Teacher(), films, where, seed=0)[1], lent) and not np.array_equal(paint(Back(), Teacher(), films, where, seed=1)[1], lent)
    book = Exercises(films, np.ones_like(changes), where, batches=1, seed=2, device="cpu", painted=(changes, lent))
    book.before_iter()
    pages, lesions = book.do_batch(range(16))
    rows = (pages[:8, 0, 0, 0] // 5).long().numpy()
    assert len(set(rows)) > 3 and np.array_equal(lesions[:8, 0].numpy(), changes[rows].astype(np.float32)) and np.array_equal(lesions[:8, 1].numpy(), lent[rows])
    found = (pages[12:, 0, 0, 0] // 5).long().numpy() - n
    assert np.array_equal(lesions[8:, 1].numpy(), where[found]), "diseased films keep what was found on them"
    flat = replace(films, film=np.full_like(film, 60))
    x, y = next(iter(Exercises(flat, changes, where, batches=1, seed=2, device="cpu", painted=(np.ones_like(changes), np.broadcast_to(np.arange(size) < 16, lent.shape)))))
    left, right = y[:8, 0, 8:24, :10].mean(), y[:8, 0, 8:24, 22:].mean()
    assert left > .8 and right < .05, "no page is mirrored or moved away"


class Knows:
    "A teacher that takes away whatever is brighter than 120."
    name, generator = "knows", None
    def counterpart(self, x): return SimpleNamespace(film=x.clamp(max=120 / 255))
    def __call__(self, x): return (x - 120 / 255).clamp(min=0)[:, 0]


#: The mean scores after five pages, and after five more with outlines, by BOOK_VERSION and by whether the usual place counts: whoever
#: changes how a pupil is taught raises the version and writes down the scores.
LEARNED = {3: {1.: (.4618, .4475), 0.: (.4616, .4353)}}


def squares(outlined=()):
    "Sixteen healthy and sixteen diseased films; a square is the disease, and some films have its outline."
    rng = np.random.default_rng(0)
    film, truth = rng.integers(60, 100, (32, 32, 32)).astype(np.uint8), np.zeros((32, 32, 32), np.uint8)
    for i in range(16):
        film[16 + i, 4 + i:12 + i, 8:18] += 90
        if 16 + i in outlined: truth[16 + i, 4 + i:12 + i, 8:18] = 1
    table = pd.DataFrame(dict(path=[str(i) for i in range(32)], patient=[str(i) for i in range(32)], diseased=np.arange(32) >= 16, split="train"))
    return Films(film=film, table=table, truth=truth if len(outlined) else None)


@pytest.mark.parametrize("place", [1., 0.])
def test_another_way_to_teach_has_another_version(place):
    films = squares(outlined=range(20, 26))
    pupil = teach(Knows(), films, steps=5, width=8, seed=1, share=.6, near=1/32, blur=1/32, place=place)
    kept = [v.clone() for v in pupil.pupil.state_dict().values()]
    better = correct(pupil, films, outlined_films(films), steps=5, seed=1, place=place)
    found = [float(p(torch.from_numpy(films.film)[:, None].float() / 255).mean()) for p in (pupil, better)]
    assert np.abs(np.subtract(found, LEARNED[BOOK_VERSION][place])).max() < .0005, found
    assert all(torch.equal(v, w) for v, w in zip(kept, pupil.pupil.state_dict().values())), "who is corrected stays as it is"


def test_outlines_are_those_of_ill_training_films_and_of_no_other():
    films = squares(outlined=(3, 17, 20, 21, 30))
    films.table.loc[20, "split"] = "valid"
    assert films.truth[3].sum() == 0 # a healthy film has none anyway
    films.truth[3, 5:9, 5:9] = 1     # and one that has is no example of disease
    assert sorted(outlined_films(films).table.path) == ["17", "21", "30"]
    assert len(outlined_films(films, 2)) == 2 and {p for s in range(9) for p in outlined_films(films, 1, s).table.path} == {"17", "21", "30"}
    for none in (squares(), films[np.array([0, 1, 16, 18])]):
        with pytest.raises(LazysegError, match="None of the diseased training films has an outline.*such as lazyseg"): outlined_films(none)


def test_a_box_is_no_outline():
    films = squares(outlined=range(16, 24))
    films.table["shapes"] = ['[{"polygon": [[1, 1], [9, 1], [9, 9]]}]']*32
    assert len(outlined_films(films)) == 8
    films.table.loc[18, "shapes"] = '[{"box": [1, 2, 8, 9]}]'
    with pytest.raises(LazysegError, match="would learn to draw boxes"): outlined_films(films)


@pytest.mark.parametrize("found", [True, False])
def test_a_quarter_of_the_pages_are_drawn_or_a_half_where_nothing_was_found(found):
    films = squares(outlined=(16, 31))
    changes = np.zeros((16, 32, 32), np.float16)
    where = np.zeros((16, 32, 32), bool)
    where[:, :2] = True # nothing that was drawn lies there
    book = Exercises(films, *((changes, where) if found else (None, None)), batches=3, seed=2, drawn=outlined_films(films))
    drawn = 4 if found else 8
    for x, y in book:
        assert x.shape == y.shape == (16, 1, 32, 32) and (y[-drawn:].mean((1, 2, 3)) > .03).all()
        healthy = y[6:10] if found else y[:8]
        assert not healthy.any()
        bright, inside = torch.nn.functional.avg_pool2d(x[-drawn:], 3, 1, 1, count_include_pad=False), y[-drawn:] > .5
        mean = lambda part: (bright * part).sum((1, 2, 3)) / part.sum((1, 2, 3))
        assert (mean(inside) > mean(~inside) + .15).all(), "outlines lie on what is bright"


def test_many_outlines_take_the_place_of_what_was_found():
    films = squares(outlined=range(16, 32))
    changes, where = np.zeros((16, 32, 32), np.float16), np.ones((16, 32, 32), bool) # what was found is everything: nobody could miss it
    for n, found in ((49, 2), (50, 0)):
        drawn = outlined_films(films)[np.arange(n) % 16]
        x, y = next(iter(Exercises(films, changes, where, batches=1, drawn=drawn)))
        area = y.mean((1, 2, 3))
        assert (area[10:] > .4).sum() == found and (area[10 if found else 8:] > .02).all() and not area[6 if found else 4:10 if found else 8].any()


def test_one_who_found_nothing_is_corrected_all_the_same():
    films = squares(outlined=range(16, 24))
    pupil = teach(Knows(), films, steps=5, width=8)
    nothing = type("Nothing", (type(pupil),), dict(__call__=lambda self, x: torch.zeros(len(x), *x.shape[2:])))(pupil.pupil, pupil.teacher)
    nothing.pupil.requires_grad_(False) # as a kept model's is
    better = correct(nothing, films, outlined_films(films), steps=60)
    maps = better(torch.from_numpy(films.film[16:])[:, None].float() / 255)
    inside = torch.from_numpy(films.film[16:] > 130)
    assert maps[inside].mean() > maps[~inside].mean() + .3


@pytest.mark.parametrize("move", [scatter, elsewhere])
def test_a_round_lesion_stays_round_on_a_film_that_is_not_square(move):
    ys, xs = np.mgrid[:64, :128]
    disc = torch.from_numpy((np.hypot(ys - 32, xs - 64) < 14).astype(np.float32)).expand(60, 2, -1, -1)
    for seen in move(disc, torch.Generator().manual_seed(0))[:, 0].numpy():
        spread = np.linalg.eigvalsh(np.cov(np.argwhere(seen > .5).T)) ** .5
        assert spread[1] / spread[0] < 1.17, "turned as the eye would turn it" # `elsewhere` stretches on purpose, by up to 13%


def test_a_lesion_ends_at_a_share_of_its_peak_and_brings_nothing_from_far():
    film = np.full((8, 64, 64), 80, np.uint8)
    film[4:, 20:40, 20:40] = 120 + np.minimum(np.arange(20), np.arange(20)[::-1])[:, None]*10 # brightest along its middle
    film[4:, 58] = 140 # far below, faint
    films = Films(film=film, table=pd.DataFrame(dict(path=[str(i) for i in range(8)], patient=[str(i) for i in range(8)], diseased=np.arange(8) >= 4, split="train")))
    added, wide, _ = lesions_of(Knows(), films, share=.3, near=1/32, place=1.)
    everything, narrow, _ = lesions_of(Knows(), films, share=.8, near=0., place=1.)
    assert (wide | ~narrow).all() and narrow.sum() < .6*wide.sum()
    assert np.allclose(added[wide], everything[wide]) and (everything[:, 58] > .07).all() and not added[:, 58].any()


def test_outlines_keep_to_the_place_of_a_disease_that_has_one():
    "Every film has its disease in one place, and something of its own elsewhere that the teacher takes for more disease."
    rng, n = np.random.default_rng(0), 24
    film, place = np.full((2*n, 64, 64), 80, np.uint8), np.zeros((64, 64), bool)
    place[24:40, 20:36] = True
    film[n:, place] = 160
    for f in film[n:]:
        top, left = rng.choice([2, 48]), rng.integers(2, 50)
        f[top:top + 10, left:left + 10] = 170
    films = Films(film=film, table=pd.DataFrame(dict(path=range(2*n), patient=range(2*n), diseased=np.arange(2*n) >= n, split="train")))
    overlap = lambda where: float(np.mean(2*(where & place).sum((1, 2))/(where.sum((1, 2)) + place.sum())))
    (_, free, far), (_, kept, near) = (lesions_of(Knows(), films, blur=1/64, place=p) for p in (1., .47))
    assert near == far == usual_place(films, free)[1] > .47 and overlap(free) < .85 < .93 < overlap(kept)
    scattered = films.film.copy()
    for i, f in enumerate(scattered[n:]): f[:] = np.roll(f, (rng.integers(-20, 20), rng.integers(-16, 24)), (0, 1))
    anywhere = replace(films, film=scattered)
    (_, free, far), (_, kept, near) = (lesions_of(Knows(), anywhere, blur=1/64, place=p) for p in (1., .47))
    assert near == far == usual_place(anywhere, free)[1] < .4 and (free == kept).all(), "one without a place is outlined as before"


def test_what_has_its_place_is_pasted_there():
    half = torch.zeros(400, 2, 40, 40)
    half[:, :, 10:30, 4:16] = 1. # on one side
    there, anywhere = (scatter(half, torch.Generator().manual_seed(0), stays)[:, 0] for stays in (True, False))
    side = lambda seen: ((seen*torch.arange(40.)).sum((1, 2))/seen.sum((1, 2)) < 19.5).float().mean()
    assert side(there) == 1. and .4 < side(anywhere) < .6
    where, films = np.zeros((16, 32, 32), bool), squares()
    where[:, 8:20, 2:9] = True
    for stays in (True, False):
        y = next(iter(Exercises(films, np.zeros((16, 32, 32), np.float16), where, batches=1, stays=stays)))[1][:8, 0]
        assert ((y*torch.arange(32.)).sum((1, 2))/y.sum((1, 2)) < 15.5).all() == stays


def spotted(places):
    "Four healthy films of 64 pixels and as many diseased ones: bright squares at `places`, none in the last film."
    film = np.full((8, 64, 64), 80, np.uint8)
    for top, left in places: film[4:7, top:top + 6, left:left + 6] = 200
    return Films(film=film, table=pd.DataFrame(dict(path=[str(i) for i in range(8)], patient=[str(i) for i in range(8)], diseased=np.arange(8) >= 4, split="train")))


def test_the_more_a_map_is_blurred_the_rounder_is_the_outline():
    near_by = spotted([(20, 20), (20, 30)]) # four pixels apart
    pieces = {blur: label(lesions_of(Knows(), near_by, blur=blur)[1][0])[1] for blur in (1/64, 4/64)}
    assert pieces == {1/64: 2, 4/64: 1}


@pytest.mark.parametrize('height', [64, 128])
def test_what_only_moved_hardly_counts_and_a_mass_keeps_its_rim(height):
    rows = (torch.arange(height) + .5)[:, None].expand(height, height)/height*64
    mass = .5*((rows - 20)**2 + (rows.T - 40)**2 < 49)
    film, healthy = (.2 + .5*torch.sigmoid(rows - edge) for edge in (44, 42)) # a diaphragm, two pixels of 64 lower on the film
    film = film + mass
    change = (healthy - film)[None, None]
    share = (MAPS['unmoved'](film[None, None], Counterpart(healthy[None, None], delta=change))/change.abs()[:, 0].clamp(min=1e-6))[0]
    rim = (mass > 0) & ((rows - 20)**2 + (rows.T - 40)**2 > 25)
    assert share[(change[0, 0].abs() > .1) & (rows > 36)].max() < .3
    assert share[mass > 0].min() > .8 and share[rim].min() > .8
    still = MAPS['unmoved'](film[None, None], Counterpart(film[None, None], delta=torch.zeros_like(change)))
    assert not still.any()


def test_movement_is_asked_near_by_and_not_pixel_by_pixel():
    rows = (torch.arange(64) + .5)[:, None].expand(64, 64)
    lump = .3*torch.sigmoid((9 - ((rows - 36)**2 + (rows.T - 30)**2).sqrt())/1.5) # it sits on the diaphragm, and flow can stretch its rim
    film, healthy = .2 + .5*torch.sigmoid(rows - 44) + lump, .2 + .5*torch.sigmoid(rows - 42)
    change = (healthy - film)[None, None]
    share = (MAPS['unmoved'](film[None, None], Counterpart(healthy[None, None], delta=change))/change.abs()[:, 0].clamp(min=1e-6))[0]
    seen = change[0, 0].abs() > .02
    for axis in (0, 1): # next to each other, pixels have nearly the same share
        first, second = (slice(None), )*axis + (slice(1, None),), (slice(None), )*axis + (slice(None, -1),)
        assert (share.diff(dim=axis).abs()*(seen[first] & seen[second])).max() < .1
    assert share[seen & (lump > .2)].min() > .4 > .2 > share[seen & ((rows.T < 10) | (rows.T > 52))].max()
