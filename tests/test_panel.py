"""A panel's folder: what is saved comes back, and what does not belong is refused."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fuzz
from lazyseg.core import LazysegError
from lazyseg.panel import Diagnosis, Panel, diagnosis_net, load_model
from lazyseg.segmenter import sha256


@pytest.fixture(scope="module")
def panel():
    "Two models that differ, and a diagnosis that rules nothing out."
    torch.manual_seed(0)
    models = {name: fuzz.good_model() for name in ("pneumonia", "edema")}
    diagnosis = Diagnosis(diagnosis_net(2), tuple(models), np.array([1., 2.]), np.array([0., .5]), np.array([0., 0.]), np.array([.9, .1]))
    return Panel(models, diagnosis, known=fuzz.good_model().known, about=dict(way="alone"), metrics=dict(results={}))


@pytest.fixture
def folder(panel, tmp_path): return panel.save(tmp_path / "panel")


def test_what_is_saved_comes_back(panel, folder):
    "In 16 bits on disk and 32 in memory, so that numbers differ by a thousandth at most."
    found, again = panel.segment(fuzz.FILM), load_model(folder).segment(fuzz.FILM)
    assert again.diseases == ("pneumonia", "edema") and np.allclose(found.probability, again.probability, atol=2e-3) and not np.allclose(*again.probability)
    assert found.state.tolist() == again.state.tolist()
    for name in panel.diseases:
        top = found.found[name].scores.max()
        assert np.allclose(found.found[name].scores, again.found[name].scores, atol=5e-3 * top) and again.found[name].scores.dtype == np.float32
    assert load_file(folder / "diagnosis.safetensors")["net.0.0.weight"].dtype == torch.float16
    assert found.distance == pytest.approx(again.distance, rel=1e-4) and load_model(folder).metrics == dict(results={})


def test_every_disease_has_its_bit_and_its_state(panel):
    found = panel.segment(fuzz.FILM)
    p, low, high = found.probability, panel.diagnosis.low, panel.diagnosis.high
    assert found.state.tolist() == [2 if a >= h else 0 if a < l else 1 for a, l, h in zip(p, low, high)] == [1, 2]
    first, second = np.zeros((2, 32, 32), bool)
    first[4:12, 4:12] = second[8:20, 8:20] = True
    two = replace(found, marks=np.stack([first, second]))
    back = two.place.back(first.astype(np.float32)) >= .5
    assert (two.masks["pneumonia"] == back).all() and ((two.labels & 1 > 0) == back).all() and ((two.labels & 2 > 0) == two.masks["edema"]).all() and two.labels.max() == 3


def change(folder, **what):
    about = json.loads((folder / "panel.json").read_text()) | what
    (folder / "panel.json").write_text(json.dumps(about))


@pytest.mark.parametrize("what, said", [
    (dict(diseases=["../panel/pneumonia", "edema"]), "is not the name of a model"), (dict(diseases=["/etc", "edema"]), "is not the name of a model"),
    (dict(diseases=["<img src=x onerror=alert(1)>"], models={"<img src=x onerror=alert(1)>": "0"}), "is not the name of a model"),
    (dict(diseases=[]), "names 0 diseases"), (dict(diseases=["edema", "edema"]), "is not the name of a model"), (dict(rule="loudest"), "Choose one of: both"),
    (dict(diseases=["edema"]), "asks for"),
    (dict(files={}), "not the file that was saved"), (dict(models={"pneumonia": "0", "edema": "0"}), "not the file that was saved with this panel"), (dict(format=99), "another format")])
def test_a_changed_panel_is_refused(folder, what, said):
    change(folder, **what)
    with pytest.raises(LazysegError, match=said): load_model(folder)


def test_a_name_is_text_in_the_hand(panel):
    pytest.importorskip("ipywidgets")
    from lazyseg.panel import explore_panel
    names = {"a <b> & c": panel.segmenters["pneumonia"], "edema": panel.segmenters["edema"]}
    box = explore_panel(replace(panel, segmenters=names, diagnosis=replace(panel.diagnosis, diseases=tuple(names))), [fuzz.FILM])
    assert "a &lt;b&gt; &amp; c" in box.children[1].value and "<b> &" not in box.children[1].value


def test_a_handful_of_films_is_enough_to_start(monkeypatch):
    import lazyseg.panel as P
    asked = []
    monkeypatch.setattr(P, "fit_method", lambda *what, epochs, **how: asked.append(epochs) or (_ for _ in ()).throw(LazysegError("far enough")))
    films = P.several_films(40, 32)
    few = films[np.concatenate([np.flatnonzero((films.table.split == "train") & k)[:3] for k in (films.has[:, 0], ~films.has.any(1))])]
    with pytest.raises(LazysegError, match="far enough"): P.fit_one(few, "pneumonia", "healthy", "smoke")
    assert asked[0] >= 1


def test_a_calibration_error_has_no_interval_that_it_lies_outside_of():
    from lazyseg.panel import diagnosis_table, measure_diagnosis
    rng = np.random.default_rng(0)
    p = rng.random((300, 1))
    found = measure_diagnosis(["edema"], p, np.ones((300, 1), int), rng.random((300, 1)) < p, np.arange(300), n_boot=50)["edema"]
    assert found["calibration_error"]["value"] > 0 and found["calibration_error"]["low"] is None and found["auroc"]["low"] < found["auroc"]["value"]
    kept = dict(edema=found | dict(calibration_error=dict(value=.04, low=.05, high=.06))) # as older runs wrote it
    assert diagnosis_table(kept).loc["calibration error"].tolist() == ["0.04"]


def test_damaged_files_are_refused(folder):
    (folder / "metrics.json").write_text("{")
    with pytest.raises(LazysegError, match="metrics.json is not JSON"): load_model(folder)
    (folder / "metrics.json").unlink()
    (folder / "diagnosis.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n")
    change(folder, files={"diagnosis.safetensors": sha256(folder / "diagnosis.safetensors")})
    with pytest.raises(LazysegError, match="can't be read"): load_model(folder)
    (folder / "panel.json").write_text("[" * 100_000)
    with pytest.raises(LazysegError, match="is not JSON"): load_model(folder)


def test_a_sure_model_outbids_a_faint_one_whatever_their_shares():
    "How sure a pixel is counts from the threshold of its model, not from where its film happens to be cut."
    from types import SimpleNamespace
    from lazyseg.panel import Panel, marks_of
    from lazyseg.thresholding import OperatingPoint
    points = dict(hernia=OperatingPoint(.05, share=.2), edema=OperatingPoint(.48, share=.4))
    maps = dict(hernia=np.full((8, 8), .06, np.float32), edema=np.full((8, 8), .99, np.float32))
    masks, margins = marks_of({d: lambda films, d=d: np.stack([maps[d]]*len(films)) for d in points}, points, SimpleNamespace(film=np.zeros((2, 8, 8), np.uint8)))
    assert masks.all() and (margins[:, 1] > margins[:, 0]).all()
    panel = SimpleNamespace(diseases=tuple(points), segmenters={d: SimpleNamespace(point=p) for d, p in points.items()}, rule='score')
    found = {d: SimpleNamespace(scores=m, marks=np.ones((8, 8), bool)) for d, m in maps.items()}
    settled = Panel._settled(panel, np.zeros((8, 8), np.uint8), None, [], np.array([.5, .5]), np.array([2, 2]), found, 0., [])
    assert settled.marks[1].all() and not settled.marks[0].any()
