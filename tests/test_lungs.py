"""Lungs of films that have no mask: found, doubted, refused, versioned, switched off, and made again."""
import json
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lazyseg import cli, data
from lazyseg import lungs as L
from lazyseg.core import LazysegError
from lazyseg.data import get_films, get_source, lung_counts
from lazyseg.phantom import DISEASES, render
from test_segmenter import model  # noqa: F401  (a fixture)

FILMS = [render((None, *DISEASES)[i % 5], size=64, seed=f"lungs {i}")["film"] for i in range(10)]
NOISE = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)


def bright(film): return film / np.float32(255)


@pytest.fixture
def listed(tmp_path, monkeypatch):
    "Ten phantom films on disk, with masks for the first four."
    monkeypatch.setenv("LAZYSEG_CACHE", str(tmp_path / "cache"))
    for i, film in enumerate(FILMS):
        Image.fromarray(film).save(tmp_path / f"{i}.png")
        if i < 4: Image.fromarray(L.find_lungs(bright(film)).astype(np.uint8) * 255).save(tmp_path / f"mask{i}.png")
    return pd.DataFrame(dict(path=[f"{i}.png" for i in range(10)], patient=[f"p{i}" for i in range(10)], labels=["No Finding", "Pneumonia"] * 5,
                             lungs=[f"mask{i}.png" if i < 4 else "" for i in range(10)])), tmp_path


# finding

def test_the_network_is_the_one_that_was_measured():
    about, file = L.about_lungs(), L.here("lungs.safetensors")
    assert file.stat().st_size < 1_500_000 and L.lungs_version() == about["sha256"][:12]
    assert L.lung_net() is L.lung_net() and not L.lung_net().training
    assert about["network"] == f"Outliner({L.WIDTH}, {L.BLOCKS})" and about["size"] == L.SIZE


@pytest.mark.parametrize("i", range(5))
def test_lungs_of_the_phantom_are_found_in_every_disease(i):
    school = L.school_film(50_000 + i)
    assert L.overlap(L.find_lungs(bright(school["film"])), school["lungs"] > 0) > .85


def test_the_outline_does_not_depend_on_the_size_or_the_exposure_of_the_file():
    film = render("pneumonia", size=128, seed="large")["film"]
    found = L.find_lungs(bright(film))
    twice = np.repeat(np.repeat(film, 2, 0), 3, 1)
    assert L.overlap(L.find_lungs(bright(twice)), np.repeat(np.repeat(found, 2, 0), 3, 1)) > .97
    assert L.overlap(L.find_lungs(bright(film) * .3 + .4), found) > .98
    assert L.overlap(L.find_lungs(bright(film[:, ::-1]))[:, ::-1], found) > .999 # mirrored films are averaged in


@pytest.mark.parametrize("film", [np.zeros((64, 80)), np.ones((300, 40)), bright(NOISE), np.linspace(0, 1, 6400).reshape(80, 80)], ids=["black", "white", "noise", "ramp"])
def test_what_has_no_lungs_is_refused(film):
    with pytest.raises(LazysegError, match="found no lungs.*Give a lung mask"): L.find_lungs(film.astype(np.float32))


def test_a_damaged_or_missing_network_is_named(tmp_path):
    L.keep_net(L.Outliner(L.WIDTH, L.BLOCKS), dict(), tmp_path)
    L.lung_net(tmp_path), L.lung_net.cache_clear()
    raw = bytearray((tmp_path / "lungs.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "lungs.safetensors").write_bytes(raw)
    with pytest.raises(LazysegError, match="damaged"): L.lung_net(tmp_path)
    (tmp_path / "lungs.safetensors").unlink()
    with pytest.raises(LazysegError, match="is missing"): L.lung_net(tmp_path)


# films in tables

@pytest.mark.parametrize("view", ["lungs", "aligned", "crop"])
def test_films_without_a_mask_get_the_networks(listed, view):
    table, root = listed
    with pytest.warns(UserWarning, match="6 of 10 films have no lung mask"): films = get_films(get_source("table", table, root=root), 32, view=view)
    assert films.table.lungs_from.tolist() == ["mask"] * 4 + ["network"] * 6
    assert lung_counts(films) == dict(mask=4, network=6, version=L.lungs_version())
    assert films.lungs[:].any((1, 2)).all()
    # the masks are what the network finds, so with or without them the film is the same
    with pytest.warns(UserWarning, match="10 of 10"): bare = get_films(get_source("table", table.drop(columns="lungs"), root=root), 32, view=view)
    assert np.abs(bare.film[:].astype(int) - films.film[:]).mean() < 2 and (bare.table.lungs_from == "network").all()


def test_masks_alone_need_no_network(listed):
    table, root = listed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        films = get_films(get_source("table", table[:4], root=root), 32, view="lungs")
        assert lung_counts(films) == dict(mask=4) and (films.table.lungs_from == "mask").all()
        plain = get_films(get_source("table", table, root=root), 32)
    assert plain.table.lungs_from.tolist() == ["mask"] * 4 + [""] * 6 and not plain.lungs[4:].any()
    with pytest.warns(UserWarning, match="6 of 10"): everywhere = get_films(get_source("table", table, root=root), 32, lung_masks="all")
    assert everywhere.lungs[:].any((1, 2)).all() and (everywhere.film[:] == plain.film[:]).all()


def test_the_network_can_be_switched_off(listed):
    table, root = listed
    with pytest.raises(LazysegError, match=r"6 of 10 films have none \(the first: 4.png\).*lung_masks='auto'"):
        get_films(get_source("table", table, root=root), 32, view="lungs", lung_masks="given")
    with pytest.raises(LazysegError, match="auto, given, all"): get_films(get_source("table", table, root=root), 32, lung_masks="none")


def test_a_film_without_lungs_is_named_or_left_out(listed):
    table, root = listed
    Image.fromarray(NOISE).save(root / "7.png")
    source = get_source("table", table, root=root)
    with pytest.raises(LazysegError, match=r"7\.png: The network found no lungs"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_films(source, 32, view="lungs")
    with pytest.warns(UserWarning, match=r"1 of 10 films are left out.*7\.png"): films = get_films(source, 32, view="lungs", bad="skip")
    assert len(films) == 9 and lung_counts(films)["network"] == 5


def test_another_network_means_other_cached_films(listed, monkeypatch):
    table, root = listed
    source, folders = get_source("table", table, root=root), lambda: len(list((root / "cache" / "films").iterdir()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2): get_films(source, 32, view="lungs")
        assert folders() == 1
        monkeypatch.setattr(data, "lungs_version", lambda: "another")
        get_films(source, 32, view="lungs")
    assert folders() == 2


# films one by one

@pytest.mark.parametrize("view", ["lungs", "aligned", "crop"])
def test_a_model_of_the_lungs_needs_no_mask(model, view):  # noqa: F811
    sees = replace(model, about=model.about | dict(view=view), known=None)
    film, lungs = FILMS[1], L.find_lungs(bright(FILMS[1]))
    found, given = sees.segment(film), sees.segment(film, lungs)
    assert (found.place.lungs_from, given.place.lungs_from) == ("network", "mask") and found.mask.shape == film.shape
    assert (found.scores == given.scores).all() and model.segment(film).place.lungs_from == ""
    if view == "lungs": assert found.map[~lungs].sum() < .1 * found.map.sum() # the edges that lungs are bent by are smoother than a mask
    with pytest.raises(LazysegError, match="needs a lung mask"): replace(sees, own_lungs=True).segment(film)
    with pytest.raises(LazysegError, match="found no lungs"): sees.segment(NOISE)


def test_odd_lungs_are_said(model, monkeypatch):  # noqa: F811
    sees = replace(model, about=model.about | dict(view="crop"), known=None)
    lopsided = np.zeros((64, 64), bool)
    lopsided[10:50, 8:28] = lopsided[30:40, 36:56] = True
    monkeypatch.setattr("lazyseg.segmenter.find_lungs", lambda film: lopsided)
    assert sees.segment(FILMS[0]).warnings == ["the picture shows lungs that look odd: one lung is much smaller than the other"]


def test_the_command_needs_no_masks(model, tmp_path, capsys):  # noqa: F811
    kept = replace(model, about=model.about | dict(view="lungs"), known=None).save(tmp_path / "model")
    (tmp_path / "films").mkdir(), (tmp_path / "masks").mkdir()
    for i, film in enumerate([*FILMS[:2], NOISE]): Image.fromarray(film).save(tmp_path / "films" / f"{i}.png")
    Image.fromarray(L.find_lungs(bright(FILMS[0])).astype(np.uint8) * 255).save(tmp_path / "masks" / "0.png")
    call = ["segment", str(tmp_path / "films"), "-m", str(kept), "-o", str(tmp_path / "out"), "--names", "--json"]
    assert cli.main([*call, "--lungs", str(tmp_path / "masks")]) == 3
    said = capsys.readouterr()
    rows = json.loads(said.out)["rows"]
    assert [r.get("lungs") for r in rows] == ["mask", "network", None] and "found no lungs" in rows[2]["fault"]
    assert said.err.count("a network that learned from the phantom") == 1
    assert cli.main([*call, "--own-lungs"]) == 1 and "--lungs" in capsys.readouterr().err
    assert cli.main([*call, "--lungs", str(tmp_path / "masks"), "--own-lungs"]) == 3
    assert [bool(r["fault"]) for r in json.loads(capsys.readouterr().out)["rows"]] == [False, True, True]
    assert cli.main([*call, "--lungs", str(tmp_path / "nowhere")]) == 1 and "no folder of lung masks" in capsys.readouterr().err


# making it again

def test_a_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    films = {k: np.stack([L.school_film(i)[k] for i in range(4)]) for k in ("film", "lungs")}
    whole, costs = L.train_lungs(films, steps=200, batch=1, seed=3)
    step = L.train_step
    def stopped(*args):
        if args[3] == 150: raise KeyboardInterrupt
        return step(*args)
    monkeypatch.setattr(L, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt): L.train_lungs(films, steps=200, batch=1, seed=3, folder=tmp_path)
    monkeypatch.setattr(L, "train_step", step)
    again, same = L.train_lungs(films, steps=200, batch=1, seed=3, folder=tmp_path)
    assert same == costs and all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    other = L.train_lungs(films, steps=100, batch=1, seed=4)[0]
    assert not torch.equal(other.head.conv.weight, whole.head.conv.weight)


def test_dense_lungs_stay_lungs_in_the_school():
    "What the augmentation lays over the lungs never changes where they are; what moves the film moves them alike."
    rng = lambda: torch.Generator().manual_seed(1)
    film, lungs = torch.rand(6, 1, L.SIZE, L.SIZE), torch.zeros(6, 1, L.SIZE, L.SIZE)
    lungs[..., 20:44, 10:28] = lungs[..., 20:44, 36:54] = 1
    moved, where = L.move(lungs.clone(), lungs, rng())
    inside = where > .5
    assert ((moved > .5) == inside).float().mean() > .97 # the film here is its own mask (beyond the edge a film may be repeated, a lung is not)
    dense = L.clutter(film, lungs, rng())
    assert dense.shape == film.shape and (dense[lungs > 0] - film[lungs > 0]).mean() > .02
    left = L.bars(film, torch.ones_like(film), rng())[1]
    assert .7 < left.mean() < 1 and ((left == 0) | (left == 1)).all() # what a bar hides is lung no more
