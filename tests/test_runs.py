"""One run, from settings to a folder that can be trusted. The same bits: see test_report.py; odd places and mishaps: see test_papermill.py."""
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

nbformat = pytest.importorskip("nbformat")

from lazyseg.cli import headline, main, train
from lazyseg.core import LazysegError, project_root
from lazyseg.phantom import VERSIONS
from lazyseg.runs import already_there, check_settings, data_name, get_run_source, write_metrics

pytestmark = pytest.mark.dev
NOTEBOOK = project_root() / "nbs" / "train.ipynb"


def run(folder, **kw):
    return train(progress=False, disease="pneumonia", profile="smoke", out=str(folder), **kw)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run(tmp_path_factory.mktemp("reports"))


def test_a_run_leaves_report_figures_numbers_and_model(smoke):
    names = {str(p.relative_to(smoke)) for p in smoke.rglob("*") if p.is_file()}
    assert {"train.ipynb", "metrics.json", "figures/cases.png", "figures/costs.png", "model/weights.safetensors",
            "model/settings.json"} <= names
    metrics = json.loads((smoke / "metrics.json").read_text())
    assert {"empty mask", "lung mask", "lazyseg, label-only", "lazyseg, few outlined films"} <= set(metrics["results"])
    assert metrics["results"]["empty mask"]["dice"]["value"] == 0
    assert metrics["versions"]["torch"] and metrics["seconds"] > 0 and "CC BY" in metrics["credit"]


def test_a_run_that_learned_from_outlines_says_so_everywhere(smoke, tmp_path):
    "In its numbers, its notebook, its card, and on the terminal; one that did not says nothing of it."
    corrected = run(tmp_path, method="lazyseg+20")
    assert corrected.name == "lazyseg+20-32" and "lazyseg+20, label-only" in json.loads((corrected / "metrics.json").read_text())["results"]
    for folder, n in ((smoke, 0), (corrected, 20)):
        assert json.loads((folder / "metrics.json").read_text()).get("outlined", 0) == n
        printed = [t for c in nbformat.read(folder / "train.ipynb", 4).cells for o in c.get("outputs", []) if (t := o.get("text", "")) and "learned from outlines" in t]
        assert len(printed) == bool(n) and ("learned from outlines of 20 films" in headline(folder)) == bool(n)
        assert ("corrected with outlines of 20 films" in (folder / "model" / "README.md").read_text()) == bool(n)


def test_a_kept_run_is_one_with_the_same_settings_both_ways(tmp_path):
    "What one run wrote down and the other does not, since it is usual, still tells them apart."
    usual, skips = (check_settings(profile="smoke", out=str(tmp_path), **more) for more in ({}, dict(bad="skip")))
    for there, other in ((usual, skips), (skips, usual)):
        write_metrics(there.folder, dict(settings=there.recorded(), results={}))
        assert already_there(there) and not already_there(other)


def test_a_folder_of_other_films_is_another_folder(tmp_path):
    for hospital, shade in (("a", 1), ("b", 22)):
        (tmp_path / hospital / "films").mkdir(parents=True)
        (tmp_path / hospital / "films" / "1.png").write_bytes(b"x" * shade)
    here, there = (data_name(str(tmp_path / h / "films")) for h in "ab")
    assert here != there and here.startswith("films sha256:")
    (tmp_path / "a/films/2.png").write_bytes(b"y")
    assert data_name(str(tmp_path / "a/films")) != here


def test_a_kept_run_on_films_that_the_phantom_draws_otherwise_by_now_is_made_anew(tmp_path):
    for disease, still_right in (("pneumonia", True), ("edema", False)): # runs that do not say saw the fourth version of either
        there = check_settings(disease, profile="smoke", out=str(tmp_path))
        now = there.recorded()
        assert now["phantom"] == VERSIONS[disease]
        for said, believed in ((now, True), (now | dict(phantom=3), False), ({k: v for k, v in now.items() if k != "phantom"}, still_right)):
            write_metrics(there.folder, dict(settings=said, results={}))
            assert already_there(there) == believed, (disease, said)
    assert "phantom" not in check_settings("pneumonia", "table", data=__file__).recorded() # films of others have no version


def test_a_run_that_died_before_it_kept_its_model_is_not_finished(tmp_path):
    "Nor do the numbers of an earlier run stand beside another's model."
    asked = dict(disease="pneumonia", profile="smoke", out=str(tmp_path))
    earlier = check_settings(**asked, seed=7)
    write_metrics(earlier.folder, dict(settings=earlier.recorded(), results={}))
    (earlier.folder / "model").write_text("a file, where the folder has to go")
    with pytest.raises(LazysegError, match="run stopped"): run(tmp_path)
    assert not already_there(check_settings(**asked)) and not already_there(earlier)


@pytest.mark.parametrize("text", ["", "[]", "null", '"x"', '{"settings": null}', '{"settings": {}}', '{"results": {}, "epochs": 1}', '{"settings": {}, "results": 3, "epochs": 1}'])
def test_damaged_numbers_are_no_finished_run_and_a_report_says_which_file(tmp_path, text):
    from lazyseg.report import find_runs
    asked = check_settings("pneumonia", profile="smoke", out=str(tmp_path))
    asked.folder.mkdir(parents=True), (asked.folder / "metrics.json").write_text(text)
    assert not already_there(asked)
    if text.startswith("{") and "epochs" not in text: assert find_runs(tmp_path, "phantom") == [] # of another notebook
    else:
        with pytest.raises(LazysegError, match="metrics.json is damaged"): find_runs(tmp_path, "phantom")


def test_a_run_that_is_refused_leaves_the_one_before_it_whole(tmp_path):
    folder = run(tmp_path)
    there = {p: p.read_bytes() for p in folder.rglob("*") if p.suffix in (".json", ".png", ".npz", ".safetensors")}
    assert any(p.name == "examples.npz" for p in there) and any(p.name == "films.png" for p in there)
    state = folder / "checkpoint.pt"
    kept = torch.load(state, weights_only=True)
    torch.save(kept | dict(epoch=0), state) # as if it had not come to its end
    with pytest.raises(LazysegError, match="unfinished training"): run(tmp_path, epochs=3)
    assert {p: p.read_bytes() for p in there} == there


def test_numbers_for_words_and_infinity_are_heard(tmp_path):
    from lazyseg.runs import whole_number
    with pytest.raises(LazysegError, match="whole number"): whole_number("seed", float("inf"), 0)
    (tmp_path / "t.csv").write_text("path,labels\n")
    asked = check_settings(5, "table", data=str(tmp_path / "t.csv"), healthy=0)
    assert (asked.disease, asked.healthy) == ("5", "0") and asked.recorded()["healthy"] == "0"
    with pytest.raises(LazysegError, match="columns"): check_settings("Mass", "table", data=str(tmp_path / "t.csv"), columns=3)


def test_healthy_and_columns_shape_a_run_as_where_does(tmp_path):
    table = tmp_path / "films.csv"
    table.write_text("img,case,finding\n" + "".join(f"{i}.png,p{i},{('Normal', 'Mass')[i % 2]}\n" for i in range(20)))
    Image.new("L", (32, 32)).save(tmp_path / "0.png")
    asked = dict(disease="Mass", source="table", data=str(table), profile="smoke", out=str(tmp_path))
    usual, own = check_settings(**asked), check_settings(**asked, healthy="Normal", columns="path=img patient=case")
    assert len(get_run_source(own)) == 20 and get_run_source(own).table.diseased.sum() == 10
    with pytest.raises(LazysegError): get_run_source(usual)
    assert own.recorded()["healthy"] == "Normal" and "healthy" not in usual.recorded() and "columns" not in usual.recorded(), "kept runs from before hold"
    for there, other in ((usual, own), (own, usual)):
        write_metrics(there.folder, dict(settings=there.recorded(), results={}))
        assert already_there(there) and not already_there(other)
    for wrong in (dict(columns="img"), dict(columns="path=")):
        with pytest.raises(LazysegError, match="path=img patient=case"): check_settings(**asked | wrong)


def test_another_seed_gives_other_weights(smoke, tmp_path):
    other = run(tmp_path, seed=1)
    assert (smoke / "model/weights.safetensors").read_bytes() != (other / "model/weights.safetensors").read_bytes()


def test_the_parameters_tag_is_there():
    book = nbformat.read(NOTEBOOK, as_version=4)
    assert ["parameters"] in [c.metadata.get("tags") for c in book.cells if c.cell_type == "code"]


def test_papermill_help_shows_typed_parameters():
    ran = subprocess.run([sys.executable, "-m", "papermill", "--help-notebook", str(NOTEBOOK)], capture_output=True, text=True)
    for line in ("disease: str", "size: int", "seed: int"):
        assert line in ran.stdout
    assert "Unable to parse" not in ran.stdout + ran.stderr


@pytest.mark.parametrize("wrong, said", [(dict(disease="herna"), "pneumonia, edema"), (dict(profile="cpux"), "smoke, cpu"), (dict(size=50), "divisible by 8"),
                                         (dict(method="magic"), "paper, cyclegan, lazyseg"), (dict(seed=-1), "at least 0"), (dict(epochs="many"), "whole number")])
def test_a_wrong_parameter_stops_before_any_work(wrong, said, tmp_path):
    with pytest.raises(LazysegError, match=said):
        train(**{**dict(disease="pneumonia", profile="smoke", out=str(tmp_path)), **wrong})
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_is_wrong_without_a_traceback(capsys):
    assert main(["train", "herna"]) == 1
    assert "Choose one of" in capsys.readouterr().err
