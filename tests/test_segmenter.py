"""A model's folder, films of every kind, DICOM out, and the hand in the browser."""
import io
import json
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lazyseg import segmenter as S
from lazyseg.core import LazysegError
from lazyseg.film import make_view
from lazyseg.models import Outliner, PupilScorer
from lazyseg.segmenter import KnownFilms, Place, Segmenter
from lazyseg.thresholding import OperatingPoint, film_scores, image_score
from lazyseg.training import GeneratorScorer, Translator, method


def lungs_like(n, size=32, seed=0):
    "Pictures that have something in common: two dark fields in a grey body, a little different each time; bright at the bottom."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    films = []
    for _ in range(n):
        dx, dy, grey = rng.normal(0, .02, 3)
        body = .45 + grey + .3 * (y > .8 + dy)
        for c in (.3, .7): body = body - .3 * np.exp(-((x - c - dx) ** 2 / .015 + (y - .45 - dy) ** 2 / .06))
        body = body + .25 * np.exp(-((x - .58 - dx) ** 2 / .01 + (y - .6) ** 2 / .03))
        films.append(((body + rng.normal(0, .01 * size / 32, body.shape)).clip(0, 1) * 255).astype(np.uint8))
    return np.stack(films)


def views(n, seed): return np.stack([make_view(dict(film=f / np.float32(255)), 32, 32)["film"] for f in lungs_like(n, 64, seed)])


@pytest.fixture(scope="module")
def model():
    "A small untrained segmenter: what is tested here does not need it to be good."
    torch.manual_seed(0)
    m = method("lazyseg", width=8, blocks=1, critic_width=8, average=0., map="intensity")  # no pupil, and no film that flow could explain
    scorer = GeneratorScorer(Translator(m).there.generator, m.map)
    about = dict(choices=m.__dict__, name="lazyseg", size=32, width=32, view="film", disease="pneumonia", source="phantom", seed=0, credit="",
                 films=dict(healthy=dict(films=3, patients=3)))
    return Segmenter(scorer, OperatingPoint(.05, smoothing=1.), about, KnownFilms.of(views(200, 0), views(100, 1)))


@pytest.fixture
def folder(model, tmp_path): return model.save(tmp_path / "model")


FILM = lungs_like(1, 64, seed=5)[0]


def test_a_card_says_whether_outlines_were_seen(model, tmp_path):
    card = lambda seen: (seen.save(tmp_path / "seen") / "README.md").read_text().replace("\n", " ")
    assert "nobody outlined anything for it" in card(model)
    about = model.about | dict(choices=model.about["choices"] | dict(outlined=20))
    of_run = dict(results=dict(ours=dict(about=dict(films=2, patients=2, interval=""), dice=None)))
    for metrics, n in ((None, 20), (of_run | dict(outlined=7), 7)):
        said = card(replace(model, about=about, metrics=metrics))
        assert f"corrected with outlines of {n} films" in said and "nobody" not in said.partition("## Data")[0]


def test_a_film_is_judged_as_the_evaluation_judges_it(model):
    "By the pupil and the generator together where there are both, and from the same numbers one film at a time."
    scorer = PupilScorer(Outliner(8), model.scorer)
    both, seen = replace(model, scorer=scorer), SimpleNamespace(film=views(5, 3))
    maps, _, whole = both.score(seen.film)
    np.testing.assert_allclose(whole, film_scores(scorer, seen, maps), rtol=1e-4)
    assert not np.allclose(whole, image_score(maps)) and both.judge([both.prepare(FILM)])[0].image_score != model.segment(FILM).image_score
    assert np.array_equal(model.score(seen.film)[2], image_score(model.score(seen.film)[0]))  # no pupil: its map alone


# the folder

def test_what_is_saved_comes_back_to_the_bit(model, folder):
    again = Segmenter.load(folder)
    a, b = model.segment(FILM), again.segment(FILM)
    assert (a.scores == b.scores).all() and (a.marks == b.marks).all() and a.distance == b.distance and a.image_score == b.image_score
    assert again.about == model.about and again.point == model.point
    assert (again.save(folder.parent / "again") / "weights.safetensors").read_bytes() == (folder / "weights.safetensors").read_bytes()


def test_a_model_that_looks_at_smaller_films_still_does_when_it_comes_back(model, tmp_path):
    m = method("lazyseg", width=8, blocks=1, critic_width=8, average=0., height=16)
    small = replace(model, scorer=GeneratorScorer(Translator(m).there.generator, m.map), about=model.about | dict(choices=m.__dict__))
    again = Segmenter.load(small.save(tmp_path / "small"))
    film = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert again.scorer.generator.features(film).shape[-2:] == (16, 16)
    assert (small.scorer.counterpart(film).film == again.scorer.counterpart(film).film).all()


def test_metrics_are_kept(model, tmp_path):
    metrics = dict(results={"lazyseg": dict(about=dict(films=4, patients=4, interval="95%"), dice=dict(value=.5, low=.4, high=.6))})
    kept = replace(model, metrics=metrics)
    again = Segmenter.load(kept.save(tmp_path / "m"))
    assert (again.segment(FILM).scores == kept.segment(FILM).scores).all()
    card = (tmp_path / "m/README.md").read_text()
    assert "0.500 (0.400 to 0.600)" in card and "Not a medical device" in card and "rendered from one CT" in card


def spoil_json(**changes):
    def spoil(folder):
        file = folder / "settings.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return spoil


@pytest.mark.parametrize("spoil, said", [
    (lambda f: (f / "settings.json").unlink(), "settings.json is missing"),
    (lambda f: (f / "weights.safetensors").unlink(), "weights.safetensors is missing"),
    (lambda f: (f / "known.safetensors").unlink(), "known.safetensors is missing"),
    (lambda f: (f / "settings.json").write_text("{"), "not JSON"),
    (lambda f: (f / "settings.json").write_text("[1]"), "format"),
    (lambda f: (f / "weights.safetensors").write_bytes((f / "weights.safetensors").read_bytes()[:-1]), "sha256"),
    (lambda f: (f / "known.safetensors").write_bytes(b"\x80\x04N."), "known.safetensors.*sha256"),
    (spoil_json(format=3, version="9.0"), "format 3, written by lazyseg 9.0"),
    (spoil_json(format=None), "format"),
    (spoil_json(size=40.5), "size is 40.5"),
    (spoil_json(size=20), "multiple of 8"), (spoil_json(size=2**20), "multiple of 8"),
    (spoil_json(view="knee"), "film, crop"),
    (spoil_json(choices=dict(head="mask", magic=1)), "choices"),
    (spoil_json(operating_point=dict(threshold=1, magic=2)), "does not fit"),
    (spoil_json(files={"../../etc/passwd": "0"}), "files"),
    (spoil_json(files={}), "no weights"),
])
def test_whatever_is_wrong_with_a_folder_is_named(folder, spoil, said):
    spoil(folder)
    with pytest.raises(LazysegError, match=said): Segmenter.load(folder)


def test_weights_that_do_not_fit_are_named_with_both_shapes(folder):
    about = json.loads((folder / "settings.json").read_text())
    about["choices"]["width"] = 16
    (folder / "settings.json").write_text(json.dumps(about))
    with pytest.raises(LazysegError, match=r"generator\.\S+ has shape \(8, .* asks for \(16"): Segmenter.load(folder)


def test_no_folder(tmp_path):
    with pytest.raises(LazysegError, match="no model folder"): Segmenter.load(tmp_path / "nothing")


def test_a_failed_save_leaves_the_old_model(model, folder, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(S, "as_safetensors", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError): replace(model, point=OperatingPoint(.9)).save(folder)
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_model_keeps_how_far_its_marks_reach(model, tmp_path, capsys):
    from lazyseg import cli
    kept = replace(model, point=OperatingPoint(1e-9, smoothing=1., share=.4)).save(tmp_path / "kept")
    again = Segmenter.load(kept)
    assert again.point == OperatingPoint(1e-9, smoothing=1., share=.4) and "reaches to 0.40 of that peak" in (kept / "README.md").read_text()
    found = again.segment(FILM)
    smooth = again.point.smooth(found.scores[None])[0]
    assert np.array_equal(found.marks, smooth > .4*smooth.max()) and found.marks.any()
    assert cli._load_model(kept, "settings.json", .2, None, False).point.share is None, "a threshold given by hand is one for all films"
    about = json.loads((kept / "settings.json").read_text())
    for wrong in (7, "far"):
        (kept / "settings.json").write_text(json.dumps(about | dict(operating_point=about["operating_point"] | dict(share=wrong))))
        with pytest.raises(LazysegError, match="share|does not fit"): Segmenter.load(kept)


def test_others_may_read_what_is_saved(folder):
    "Every file has the rights that the user's own files get, weights too."
    (folder / "mine").touch()
    assert {f.stat().st_mode for f in folder.iterdir()} == {(folder / "mine").stat().st_mode}


def test_the_committed_models_load_and_mark():
    from lazyseg.core import project_root
    from lazyseg.panel import load_model
    kept = sorted({f.parent for name in ("settings.json", "panel.json") for f in (project_root() / "reports").rglob(f"model/{name}")})
    if not kept: pytest.skip("not a checkout with its reports")
    with np.load(project_root() / "reports/phantom/pneumonia/lazyseg-64/examples.npz") as examples: film = examples["film"][0]
    for where in kept:
        model = load_model(where)
        assert model.segment(film).mask.shape == film.shape and model.segment(255 - film).warnings, where


# films

@pytest.mark.parametrize("shape", [(64, 64), (90, 60), (60, 90), (16, 200), (501, 333), (20, 20)])
def test_any_size_comes_back_at_its_own_pixels(model, shape):
    film = np.asarray(Image.fromarray(FILM).resize(shape[::-1]))
    found = model.segment(film)
    assert found.mask.shape == found.map.shape == shape and found.mask.dtype == bool and found.scores.shape == (32, 32)
    assert found.counterpart.shape == (32, 32) and np.isfinite(found.map).all()
    assert model.segment(film.astype(np.float32) / 255).image_score == pytest.approx(found.image_score, abs=1e-3)


def test_a_film_of_the_models_size_is_not_changed(model):
    film = lungs_like(1)[0]
    found = model.segment(film)
    corner = np.arange(32) < np.arange(5, 37)[:, None] // 4 # no mirror image of itself
    assert (replace(found, marks=corner).mask == corner).all() and (found.mask == found.marks).all() and np.allclose(found.map, found.scores, atol=1e-6) and (found.seen * 255).round().astype(np.uint8).tolist() == film.tolist()


def test_a_mask_lies_where_the_disease_is():
    place, film = Place.of(np.zeros((300, 200)), 64, 64), np.zeros((300, 200), bool)
    view = np.zeros((64, 64), np.float32)
    view[16:32, 32:48] = 1
    film[50 + 50:50 + 100, 100:150] = True # the view is the middle 200 rows
    assert ((place.back(view) >= .5) == film).mean() > .998


def test_many_ways_to_name_films(model, tmp_path):
    Image.fromarray(FILM).save(tmp_path / "b.png")
    Image.fromarray(FILM[::-1]).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("not a film")
    (tmp_path / ".hidden.png").write_bytes(b"")
    one = model.segment(tmp_path / "b.png")
    assert not isinstance(one, list) and (model.segment(FILM).scores == one.scores).all()
    for films in (tmp_path, str(tmp_path), [tmp_path / "a.png", FILM], np.stack([FILM[::-1], FILM]), [FILM[::-1], torch.from_numpy(FILM.copy())]):
        found = model.segment(films)
        assert len(found) == 2 and np.allclose(found[1].scores, one.scores, atol=1e-5)


def test_batches_do_not_change_results(model):
    films = list(lungs_like(7, 64))
    whole, single = model.segment(films, batch_size=7), model.segment(films, batch_size=2)
    assert all(np.allclose(a.scores, b.scores, atol=1e-5) for a, b in zip(whole, single))


@pytest.mark.parametrize("film, said", [(np.zeros((64, 64), bool), "bool"), (np.zeros((5, 5)), "16 pixels"), (np.full((32, 32), np.nan), "not finite"),
                                        (np.full((32, 32), -1), "darkest"), (np.full((32, 32), 200.), "0..1"), (np.zeros((2, 2, 32, 32)), "as a list"), (np.array(["a"]), "holds")])
def test_what_is_not_a_film_is_refused(model, film, said):
    with pytest.raises(LazysegError, match=said): model.segment([film])


def test_a_bad_file_stops_or_is_given_in_its_place(model, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.fromarray(FILM).save(tmp_path / "good.png")
    with pytest.raises(LazysegError, match="bad.png"): model.segment(tmp_path)
    bad, good = model.segment_each(tmp_path, bad="give")
    assert isinstance(bad, LazysegError) and good.scores.shape == (32, 32)
    with pytest.raises(LazysegError, match="holds no film"): (tmp_path / "empty").mkdir(); model.segment(tmp_path / "empty")


def test_a_view_needs_its_lungs(model):
    lungs = np.zeros((64, 64), bool)
    lungs[15:45, 8:26] = lungs[15:45, 38:56] = True
    for view in ("crop", "aligned", "lungs"):
        sees = replace(model, about=model.about | dict(view=view))
        with pytest.raises(LazysegError, match="lung mask"): replace(sees, own_lungs=True).segment(FILM)
        found = sees.segment(FILM, lungs)
        assert found.mask.shape == (64, 64)
        if view == "lungs": assert not found.map[~lungs].any()
        with pytest.raises(LazysegError, match="have to agree"): sees.segment(FILM, lungs[:50])


# how far a film is

def test_ordinary_films_get_no_warning_and_others_do(model):
    ordinary = [r.warnings for r in model.segment(list(lungs_like(100, 64, seed=9)))]
    assert sum(map(bool, ordinary)) <= 3
    others = dict(inverted=255 - FILM, flat=np.zeros_like(FILM), noise=np.random.default_rng(0).integers(0, 256, (64, 64)), side=np.rot90(FILM), down=FILM[::-1])
    found = {k: model.segment(np.ascontiguousarray(v)) for k, v in others.items()}
    assert all(r.warnings and r.distance > 1.2 for r in found.values()), {k: r.distance for k, r in found.items()}
    assert "black and white" in found["inverted"].warnings[0] and "upside down" in found["down"].warnings[0] and "on its side" in found["side"].warnings[0]


def test_a_turned_film_is_found_though_it_is_near(tmp_path):
    "Films of many kinds lie far apart; what tells a negative is that the film itself would be nearer."
    rng, films = np.random.default_rng(0), lungs_like(240, 64, seed=4).astype(float)
    loud = 40*rng.standard_normal((240, 1, 8, 8)).repeat(8, 2).repeat(8, 3)[:, 0] # large differences between films that are all ordinary
    films = (films*rng.uniform(.5, 1, (240, 1, 1)) + loud).clip(0, 255).astype(np.uint8)
    known = S.KnownFilms.of(films[:120], films[120:180])
    ordinary, asked = S.odd_about(known, films[180:])[1], films[180:]
    assert sum(map(bool, ordinary)) <= 4
    for turned, reason in ((255 - asked, "black and white"), (asked[:, ::-1], "upside down"), (np.rot90(asked, 1, (1, 2)), "on its side")):
        far, odd = S.odd_about(known, np.ascontiguousarray(turned))
        found = [bool(o) and reason in o[0] for o in odd]
        assert np.mean(found) > np.mean(far > S.FAR) - .02 and np.mean(found) > .9, (reason, np.mean(found), np.mean(far > S.FAR))


def test_many_films_are_described_as_few_are_and_in_pieces(monkeypatch):
    "To the bit, and with memory that does not grow with their number."
    films, sizes, piece = np.random.default_rng(0).integers(0, 256, (2500, 32, 32), dtype=np.uint8), [], S._describe
    monkeypatch.setattr(S, "_describe", lambda f: sizes.append(len(f)) or piece(f))
    assert np.array_equal(S.describe_films(films), piece(films)) and np.array_equal(S.describe_films(films[:1025]), piece(films[:1025]))
    assert np.array_equal(S.describe_films(films[:1]), piece(films[:1])) and max(sizes) <= 1024


@pytest.mark.parametrize("shape, said", [((20, 18), "has 18 x 20 pixels, fewer than the 32 x 32"), ((40, 120), "3.0 times as wide as high"), ((200, 90), "2.2 times as high as wide"), ((40, 70), ""), ((64, 64), "")])
def test_a_film_that_the_model_hardly_sees_is_named(model, shape, said):
    notes = model.prepare(np.resize(FILM, shape))[2]
    assert len(notes) == bool(said) and said in "".join(notes)


def test_a_part_of_a_film_is_named_as_one(model):
    wide = replace(model, about=model.about | dict(size=16, width=32))
    assert wide.prepare(np.resize(FILM, (90, 64)))[2] == ["is not seen whole: the model looks at 36% of its height"] and not wide.prepare(FILM)[2]


def test_one_bad_film_does_not_cost_the_others(model, tmp_path):
    for i in range(3): Image.fromarray(np.roll(FILM, i)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(LazysegError, match="1.png"): model.segment(tmp_path)
    with pytest.warns(UserWarning, match="left out: .*1.png"): assert len(model.segment(tmp_path, bad="skip")) == 2
    assert [isinstance(r, LazysegError) for r in model.segment(tmp_path, bad="give")] == [False, True, False]
    with pytest.raises(LazysegError, match="1.png"): model.segment(tmp_path / "1.png", bad="skip") # alone, it can't be left out


def test_a_model_notes_how_its_films_were_asked_for(model):
    import pandas as pd
    from lazyseg.data import Films
    films = Films(lungs_like(4, 32), pd.DataFrame(dict(path=list("abcd"), patient=list("abcd"), labels="", diseased=[False, True] * 2, split=["train", "train", "valid", "valid"])))
    scorer = GeneratorScorer(model.scorer.generator, model.scorer.map)
    scorer.learn = SimpleNamespace(model=SimpleNamespace(m=method("lazyseg")))
    settings = SimpleNamespace(view="film", disease="Mass", source="table", seed=3, data="", where="a == 1", healthy="Normal", columns="path=img")
    assert Segmenter.of_run(scorer, model.point, settings, films).about["trained_on"] == dict(data="", where="a == 1", seed=3, healthy="Normal", columns="path=img")


def test_a_negative_of_another_kind_of_film_is_far_and_named():
    films = lungs_like(200, 64, seed=4)
    known = S.KnownFilms.of(films[:120], films[120:180])
    others = (films[180:]*.8 + np.linspace(0, 50, 64)[:, None]).astype(np.uint8) # softer, and brighter below: no film of the training is
    for asked, named in ((others, 0), (255 - others, 1)):
        far, odd = S.odd_about(known, asked)
        assert far.min() > S.FAR and all(any("times as far" in o for o in said) for said in odd)
        assert np.mean([any("black and white" in o for o in said) for said in odd]) == named, far
    assert not any("upside" in o or "side" in o for said in S.odd_about(known, others)[1] for o in said)


def test_descriptions_are_turned_without_describing_anew():
    films = np.stack([FILM, lungs_like(1, 64, seed=2)[0]])
    turned = S.turnings(S.describe_films(films))
    for reason, n, real in (("its black and white seem swapped", 0, 255 - films), ("its left and right seem swapped", 0, films[:, :, ::-1]), ("it seems upside down", 0, films[:, ::-1]),
                            ("it seems upside down", 1, films[:, ::-1, ::-1]), ("it seems to lie on its side", 0, np.rot90(films, 1, (1, 2))), ("it seems to lie on its side", 1, np.rot90(films, 3, (1, 2)))):
        assert np.abs(turned[reason][n] - S.describe_films(real)).max() < 1e-4, reason


def test_colour_photos_are_named(model, tmp_path):
    photo = np.stack([FILM, FILM // 2, 255 - FILM], -1)
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    Image.fromarray(np.repeat(FILM[..., None], 3, 2)).save(tmp_path / "grey.png")
    assert "colour" in model.segment(photo).warnings[0] and "colour" in model.segment(tmp_path / "photo.jpg").warnings[0]
    assert not model.segment(tmp_path / "grey.png").warnings


# DICOM

def write_dicom(path, film=FILM, **header):
    pydicom = pytest.importorskip("pydicom")
    data, uid = pydicom.Dataset(), pydicom.uid.generate_uid
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    known = dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", SOPInstanceUID=uid(), StudyInstanceUID=uid(), SeriesInstanceUID=uid(), Modality="DX",
                 PatientName="Quixote^Dulcinea", PatientID="PLANTED-4711", PatientBirthDate="19230517", StudyDate="20210304", StudyTime="101112",
                 StudyID="S1", PixelSpacing=[.2, .2], Rows=film.shape[0], Columns=film.shape[1], SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
                 BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0)
    for name, value in (known | header).items():
        if value is not None: setattr(data, name, value)
    data.PixelData = film.astype(np.uint8).tobytes() + b"\0" * (film.size % 2)
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("header, said", [(dict(Modality="CT"), "is CT by its header"), (dict(ViewPosition="LL"), "lateral"), (dict(BurnedInAnnotation="YES"), "burnt"), ({}, None)])
def test_a_header_is_asked_for_what_matters(tmp_path, header, said):
    notes = S.file_notes(write_dicom(tmp_path / "a.dcm", **header))
    assert notes == [] if said is None else said in notes[0]


@pytest.mark.parametrize("header", [{}, dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.1", Modality="CR"), dict(PatientName=None, StudyID=None, PixelSpacing=None, StudyDate=None)])
@pytest.mark.parametrize("empty", [False, True])
def test_dicom_seg_refers_to_its_film_and_validates(tmp_path, header, empty):
    hd = pytest.importorskip("highdicom")
    import pydicom
    film, mask = np.pad(FILM, ((0, 1), (0, 37))), np.zeros((65, 101), bool)
    if not empty: mask[20:40, 50:90] = True
    source = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", film, **header))
    S.save_dicom_seg(tmp_path / "a.dcm", mask, dict(disease="pneumonia"), tmp_path / "seg.dcm")
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert (seg.pixel_array.reshape(mask.shape).astype(bool) == mask).all()
    assert seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert seg.PatientName == source.get("PatientName", "") and seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Pneumonia"
    if not shutil.which("dciodvfy"): pytest.skip("no dciodvfy on this machine (apt-get install dicom3tools)")
    said = subprocess.run(["dciodvfy", tmp_path / "seg.dcm"], capture_output=True, text=True)
    assert "Segmentation" in said.stderr + said.stdout and "Error" not in said.stderr + said.stdout, said.stderr


def test_a_film_without_the_mark_of_dicom_and_a_picture_called_dcm_are_marked_all_the_same(model, tmp_path):
    hd = pytest.importorskip("highdicom")
    whole = write_dicom(tmp_path / "a.dcm").read_bytes()
    (tmp_path / "bare.dcm").write_bytes(whole[132:]) # as some devices write it
    Image.fromarray(FILM).save(tmp_path / "picture.png")
    (tmp_path / "picture.dcm").write_bytes((tmp_path / "picture.png").read_bytes())
    usual, *others = (model.segment(tmp_path / name) for name in ("a.dcm", "bare.dcm", "picture.dcm"))
    assert all((o.map == usual.map).all() and o.warnings == usual.warnings for o in others)
    S.save_dicom_seg(tmp_path / "bare.dcm", usual.mask, dict(disease="pneumonia"), tmp_path / "seg.dcm")
    assert (hd.seg.segread(tmp_path / "seg.dcm").pixel_array.reshape(usual.mask.shape).astype(bool) == usual.mask).all()


def test_a_seg_needs_its_films_pixels_and_identity(tmp_path):
    pytest.importorskip("highdicom")
    film = write_dicom(tmp_path / "a.dcm")
    with pytest.raises(LazysegError, match="own pixels"): S.save_dicom_seg(film, np.zeros((3, 3), bool), dict(disease="x"), tmp_path / "s.dcm")
    with pytest.raises(LazysegError, match="StudyInstanceUID"):
        S.save_dicom_seg(write_dicom(tmp_path / "b.dcm", StudyInstanceUID=None), np.zeros((64, 64), bool), dict(disease="x"), tmp_path / "s.dcm")


# the Hub, offline

def test_a_hub_folder_is_a_model_folder(model, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shared = S.hub_class()(**vars(model))
    shared.save_pretrained(tmp_path / "m")
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"README.md", "settings.json", "weights.safetensors", "known.safetensors"}
    for kept in (Segmenter.from_pretrained(tmp_path / "m"), S.hub_class().from_pretrained(tmp_path / "m")):
        assert (kept.segment(FILM).scores == model.segment(FILM).scores).all()
    (tmp_path / "m/weights.safetensors").write_bytes(b"no")
    with pytest.raises(LazysegError, match="sha256"): Segmenter.from_pretrained(tmp_path / "m")


def test_push_hands_the_folder_to_the_hub(model, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    sent = {}
    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, repo_id, **kw: type("R", (), dict(repo_id=repo_id)))
    monkeypatch.setattr(hub.HfApi, "upload_folder", lambda self, folder_path, **kw: sent.update({p.name: p.stat().st_size for p in folder_path.iterdir()}))
    model.push("somebody/model")
    assert {"README.md", "settings.json", "weights.safetensors", "known.safetensors"} == set(sent)


# a picture travels without its table

def framed(picture, shape): # the frame of `warn_on`, at whatever width
    return set(map(tuple, picture[0])) | set(map(tuple, picture[:, -1])) == set(S.STRIPES) and picture.shape == (*shape, 3)


def test_an_overlay_shows_that_its_film_is_not_to_be_trusted(model):
    fine, odd = model.segment([FILM, 255 - FILM])
    assert not fine.warnings and odd.warnings
    assert framed(odd.overlay(255 - FILM), FILM.shape) and not framed(fine.overlay(FILM), FILM.shape)
    assert (odd.overlay(255 - FILM)[2:-2, 2:-2] == S.draw_mask(1 - FILM / np.float32(255), odd.mask)[2:-2, 2:-2]).all()


def test_a_large_overlay_says_why_at_its_foot():
    picture = np.full((480, 480, 3), 99, np.uint8)
    said = S.warn_on(picture, ["its black and white seem swapped: set right, it would be nearer", "another"])
    assert (said[12:-40, 12:-12] == 99).all() and not said[-14:-8, -40:-8].any(), "a black strip, after the words too"
    letters = (said[-30:-6, 6:-6] == S.STRIPES[0]).all(-1)
    assert letters.any() and not letters[:, -100:].any() and letters.any(0).argmax() < 30, "from the left, and within the picture"
    assert (S.warn_on(picture, ["x"], words=False)[6:-6, 6:-6] == 99).all() and S.warn_on(picture, []) is picture


def test_explore_frames_what_is_not_to_be_trusted(model):
    seen = S.Explorer(model, [FILM, 255 - FILM])
    marked = [np.asarray(Image.open(io.BytesIO(seen.draw(i, OperatingPoint(.1), .2)[0])))[:, -S.SHOWN:] for i in (0, 1)]
    assert [framed(m, (S.SHOWN, S.SHOWN)) for m in marked] == [False, True]


# under the hand

def test_explore_follows_its_sliders(model):
    pytest.importorskip("ipywidgets")
    box = S.explore(model, [FILM, 255 - FILM])
    film, threshold, opacity, _, picture, text = box.children
    seen = [bytes(picture.value)]
    for slider, value in ((threshold, threshold.max / 50), (film, 2), (threshold, threshold.max * .99), (opacity, 1.)):
        slider.value = value
        seen.append(bytes(picture.value))
    assert len(set(seen)) == 5 and "black and white" in text.value and box.point.threshold == threshold.value < .05
    assert Image.open(io.BytesIO(picture.value)).size[1] == S.SHOWN


def test_explore_moves_how_far_marks_reach(model):
    pytest.importorskip("ipywidgets")
    box = S.explore(replace(model, point=OperatingPoint(0., share=.5)), [FILM])
    share, picture = box.children[2], box.children[5]
    first = bytes(picture.value)
    share.value = .99
    assert bytes(picture.value) != first and (box.point.share, box.point.threshold) == (.99, 0)
