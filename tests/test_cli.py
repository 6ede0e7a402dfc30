"""The command `lazyseg`: exit codes, JSON, reruns, Ctrl-C, and that nobody's name gets out."""
import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from PIL import Image

from lazyseg import cli
from lazyseg.core import LazysegError
from lazyseg.phantom import VERSIONS
from lazyseg.runs import data_name
from lazyseg.thresholding import OperatingPoint
from lazyseg.training import Method
from test_segmenter import FILM, lungs_like, model, write_dicom  # noqa: F401  (model is a fixture)

START = [sys.executable, "-c", "import sys; from lazyseg.cli import main; sys.exit(main())"]


@pytest.fixture
def kept(model, tmp_path): return model.save(tmp_path / "model")  # noqa: F811


@pytest.fixture
def films(tmp_path):
    (tmp_path / "films").mkdir()
    for i, film in enumerate(lungs_like(5, 48)): Image.fromarray(film).save(tmp_path / "films" / f"film{i}.png")
    return tmp_path / "films"


def rows(out): return list(csv.DictReader(open(out / "films.csv", newline="")))


def segment(films, kept, out, *more): return cli.main(["segment", str(films), "-m", str(kept), "-o", str(out), *more])


def test_help_is_quick_and_complete():
    said = subprocess.run([*START, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(name in said for name in cli.COMMANDS) and "exit codes" in said and "Not a medical device" in " ".join(said.split())
    heavy = subprocess.run([sys.executable, "-c", "import sys; from lazyseg.cli import parser; parser(); print([m for m in ('torch', 'fastai', 'pandas', 'matplotlib', 'numpy') if m in sys.modules])"],
                           capture_output=True, text=True, check=True).stdout
    assert heavy.strip() == "[]"
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as stopped: cli.main([name, "--help"])
        assert stopped.value.code == 0


@pytest.mark.parametrize("args", [[], ["segmnt"], ["segment", "films"], ["evaluate", "m", "--split", "tests"], ["phantom", "-n", "many"]])
def test_what_is_not_understood_is_code_2(args, capsys):
    with pytest.raises(SystemExit) as stopped: cli.main(args)
    assert stopped.value.code == 2 and "usage" in capsys.readouterr().err


def test_a_folder_becomes_masks_pictures_and_a_table(films, kept, tmp_path, capsys):
    assert segment(films, kept, tmp_path / "out") == 0
    table = rows(tmp_path / "out")
    assert [r["number"] for r in table] == list("12345") and all(len(r["film"]) == 12 for r in table)
    for r in table:
        assert np.asarray(Image.open(tmp_path / "out" / r["mask"])).shape == (48, 48) and set(np.unique(Image.open(tmp_path / "out" / r["mask"]))) <= {0, 255}
        assert np.asarray(Image.open(tmp_path / "out" / r["overlay"])).shape == (48, 48, 3)
    said = capsys.readouterr()
    assert "5 of 5 films done" in said.out and "Not a medical device" in said.out


def test_json_is_all_that_standard_output_holds(films, kept, tmp_path, capsys):
    assert segment(films, kept, tmp_path / "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["films"] == 5 and found["faults"] == 0 and len(found["rows"]) == 5


def test_a_bad_film_is_named_and_the_rest_go_on(films, kept, tmp_path, capsys):
    (films / "film2.png").write_bytes((films / "film2.png").read_bytes()[:80])
    (films / "film3.png").write_bytes(b"")
    assert segment(films, kept, tmp_path / "out") == 3
    said = capsys.readouterr().err
    assert "film 3 of 5" in said and "film 4 of 5" in said
    assert [bool(r["fault"]) for r in rows(tmp_path / "out")] == [False, False, True, True, False]
    assert segment(films, kept, tmp_path / "names", "--names") == 3
    assert "film2.png" in capsys.readouterr().err and (tmp_path / "names/masks/film0.png").is_file()
    for i in (0, 1, 4): (films / f"film{i}.png").unlink()
    assert segment(films, kept, tmp_path / "none") == 1


def test_a_second_call_does_only_what_is_missing(films, kept, tmp_path, capsys):
    out = tmp_path / "out"
    segment(films, kept, out)
    first = {p: p.stat().st_mtime_ns for p in (out / "masks").iterdir()}
    next(iter(first)).unlink()
    Image.fromarray(FILM).save(films / "new.png")
    capsys.readouterr()
    assert segment(films, kept, out) == 0
    assert "6 of 6 films done (4 from an earlier call)" in capsys.readouterr().out and len(rows(out)) == 6
    assert sum(p.stat().st_mtime_ns == t for p, t in first.items()) == 4
    segment(films, kept, out, "--threshold", "0.9")
    assert "(0 from an earlier call)" in capsys.readouterr().out
    assert segment(films.parent, kept, out) == 0, "marks in a folder below the films are not marked again"
    assert len(rows(out)) == 6


def test_a_lung_mask_that_two_films_claim_is_refused(kept, tmp_path, capsys):
    for who in ("anna", "bert"):
        (tmp_path / "films" / who).mkdir(parents=True)
        Image.fromarray(FILM).save(tmp_path / "films" / who / "chest.png")
    (tmp_path / "lungs").mkdir()
    Image.fromarray(FILM).save(tmp_path / "lungs/chest.png")
    assert segment(tmp_path / "films", kept, tmp_path / "out", "--lungs", str(tmp_path / "lungs")) == 1
    assert "named like several films" in capsys.readouterr().err


def test_names_that_scanners_give_are_kept_whole(kept, tmp_path):
    films, masks = tmp_path / "films", tmp_path / "lungs"
    films.mkdir(), masks.mkdir()
    for i, film in enumerate(lungs_like(2, 48)):
        write_dicom(films / f"1.2.840.113619.2.5.10.{i}", film)
        Image.fromarray(film).save(masks / f"1.2.840.113619.2.5.10.{i}.png")
    assert segment(films, kept, tmp_path / "out", "--names", "--lungs", str(masks)) == 0
    assert [r["film"] for r in rows(tmp_path / "out")] == ["1.2.840.113619.2.5.10.0", "1.2.840.113619.2.5.10.1"]
    assert all("-" in r["made_of"] for r in rows(tmp_path / "out")), "each was marked with its own lung mask"


def test_a_file_that_was_not_read_is_not_done_because_another_holds_the_same_bytes(kept, tmp_path, capsys):
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    bare = write_dicom(tmp_path / "whole.dcm").read_bytes()[132:] # without the mark of DICOM only a name says that it is one
    for name in ("a.dcm", "b.png", "c.dcm"): (films / name).write_bytes(bare)
    for more in ([], [], ["--names"], ["--names"]):
        assert segment(films, kept, out, *more) == 3
        assert [bool(r["fault"]) for r in sorted(rows(out)[:3], key=lambda r: int(r["number"]))] == [False, True, False]
        assert len({r["film"] for r in rows(out)}) == len(rows(out)), "a row and a mask for each"
    (films / "a.dcm").unlink(), (films / "c.dcm").unlink()
    assert segment(films, kept, out) == 1


def test_nobody_is_given_the_marks_of_somebody_of_the_same_name(kept, tmp_path, capsys):
    for who, film in (("anna", FILM), ("bert", 255 - FILM)):
        (tmp_path / who).mkdir()
        Image.fromarray(film).save(tmp_path / who / "chest.png")
    out, score = tmp_path / "out", lambda folder: rows(folder)[0]["image_score"]
    segment(tmp_path / "bert", kept, tmp_path / "alone", "--names")
    segment(tmp_path / "anna", kept, out, "--names")
    anna = score(out)
    capsys.readouterr()
    assert segment(tmp_path / "bert", kept, out, "--names") == 0
    said = capsys.readouterr()
    assert "chest" in said.err and "replaced" in said.err and "from an earlier call" not in said.out.replace("(0 from an earlier call)", "")
    assert score(out) == score(tmp_path / "alone") != anna and len(rows(out)) == 1
    segment(tmp_path / "bert", kept, out, "--names")
    assert "(1 from an earlier call)" in capsys.readouterr().out


def test_the_table_is_written_on_the_way_and_other_settings_keep_their_rows(films, kept, tmp_path, capsys, monkeypatch):
    "Whoever is killed has lost five seconds."
    out, clock, there = tmp_path / "out", iter(range(0, 10_000, 10)), []
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(cli, "_bar", lambda items, *more: (there.append(len(rows(out)) if i else 0) or i for i in items))
    for i in range(20): Image.fromarray(np.roll(FILM, i)).save(films / f"more{i:02d}.png")
    assert segment(films, kept, out) == 0 and there == [0, 16]
    monkeypatch.undo()
    capsys.readouterr()
    assert segment(films, kept, out) == 0 and "(25 from an earlier call)" in capsys.readouterr().out
    (tmp_path / "one").mkdir()
    Image.fromarray(255 - FILM).save(tmp_path / "one/new.png")
    assert segment(tmp_path / "one", kept, out, "--threshold", "0.9") == 0
    assert len(rows(out)) == 26 == len(list((out / "masks").iterdir())), "a row for every mask"
    with FileLock(out / ".lock"): assert segment(films, kept, out) == 1
    assert "Another call" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["train", "pneumonia", "--data", "x.csv"], ["train", "pneumonia", "--where", "x == 1"], ["audit", "--source", "phantom", "--data", "x"],
                                   ["sweep", "--data", "x.csv"], ["report", "--data", "x.csv"], ["evaluate", "MODEL", "--data", "x"], ["evaluate", "MODEL", "--seed", "-1"],
                                   ["audit", "--source", "phantom", "--most", "-3"], ["phantom", "--size", "100000"], ["train", "pneumonia", "--size", "8"],
                                   pytest.param(["train", "pneumonia", "--device", "cuda"], marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"))])
def test_what_would_not_be_looked_at_is_refused(words, kept, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(kept) if w == "MODEL" else w for w in words]) == 1
    assert capsys.readouterr().err.startswith("lazyseg: ")


@pytest.mark.parametrize("given, said", [(["nowhere"], "not there"), (["films", "-m", "nowhere"], "nowhere")])
def test_wrong_paths_are_code_1(films, kept, tmp_path, capsys, given, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["segment", "-m", str(kept), "-o", "out", *given]) == 1
    assert said in capsys.readouterr().err


def test_a_panel_takes_no_threshold_and_writes_no_dicom(films, tmp_path, capsys):
    (tmp_path / "panel").mkdir()
    (tmp_path / "panel/panel.json").write_text("{}")
    for more in (["--dicom"], ["--threshold", "0.5"]):
        assert segment(films, tmp_path / "panel", tmp_path / "out", *more) == 1
        assert "A panel has a threshold for each disease and writes no DICOM SEG" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_table_that_is_not_ours_any_more_is_made_anew(films, kept, tmp_path, capsys):
    assert segment(films, kept, tmp_path / "out") == 0
    (tmp_path / "out/films.csv").write_bytes(b"\xff\xfe not a table")
    capsys.readouterr()
    assert segment(films, kept, tmp_path / "out") == 0 and len(rows(tmp_path / "out")) == 5
    assert "5 of 5 films done (0 from an earlier call)" in capsys.readouterr().out


def test_training_needs_a_checkout_and_papermill(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "papermill", None)
    assert cli.main(["train", "pneumonia", "--profile", "smoke", "--out", str(tmp_path)]) == 1
    assert "pip install 'lazyseg[lab]'" in capsys.readouterr().err
    monkeypatch.setattr(cli, "project_root", lambda: tmp_path)
    assert cli.main(["train", "pneumonia", "--profile", "smoke", "--out", str(tmp_path)]) == 1
    assert "work in a checkout of lazyseg" in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_done(films, kept, tmp_path, monkeypatch, capsys):
    batches, work = [], cli.segment_batch
    def stop_at_the_second(job, paths, first, kept_rows=None):
        batches.append(first)
        if len(batches) == 2: raise KeyboardInterrupt
        return work(job, paths, first)
    for i, film in enumerate(lungs_like(15, 48, seed=3)): Image.fromarray(film).save(films / f"more{i}.png")
    monkeypatch.setattr(cli, "segment_batch", stop_at_the_second)
    assert segment(films, kept, tmp_path / "out") == 130
    assert len(rows(tmp_path / "out")) == 16 and not list((tmp_path / "out").rglob("*.tmp"))
    capsys.readouterr()
    assert segment(films, kept, tmp_path / "out") == 0
    assert "20 of 20 films done (16 from an earlier call)" in capsys.readouterr().out


HEARS_CTRL_C = partial(signal.signal, signal.SIGINT, signal.SIG_DFL) # what a shell starts in the background would not


def test_a_real_ctrl_c_is_code_130(tmp_path):
    ran = subprocess.Popen([*START, "phantom", "-n", "500", "--size", "32", "-o", str(tmp_path / "ph")], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=HEARS_CTRL_C)
    end = time.monotonic() + 240
    while not list(tmp_path.glob("ph/films/*.png")) and time.monotonic() < end and ran.poll() is None: time.sleep(.2)
    ran.send_signal(signal.SIGINT)
    said = ran.communicate(timeout=300)[1] # a film that is being rendered is finished, on however busy a machine
    assert ran.returncode == 130 and "Stopped" in said and "Traceback" not in said
    for file in (tmp_path / "ph/films").glob("*.png"): Image.open(file).load()


def test_a_real_ctrl_c_while_films_are_marked_breaks_nothing(kept, tmp_path, capsys):
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    for i, film in enumerate(lungs_like(200, 48)): Image.fromarray(film).save(films / f"{i}.png")
    ran = subprocess.Popen([*START, "segment", films, "-m", kept, "-o", out], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=HEARS_CTRL_C)
    end = time.monotonic() + 240
    while not list(out.glob("overlays/*.png")) and time.monotonic() < end and ran.poll() is None: time.sleep(.01)
    ran.send_signal(signal.SIGINT)
    said = ran.communicate(timeout=120)[1]
    assert ran.returncode == 130 and "Stopped" in said and "Traceback" not in said
    for file in out.rglob("*.png"): Image.open(file).load()
    done = rows(out)
    assert len(done) < 200 and all((out / r["mask"]).is_file() and (out / r["overlay"]).is_file() for r in done) and not list(out.rglob("*.tmp"))
    assert segment(films, kept, out) == 0 and len(rows(out)) == 200
    assert f"({len(done)} from an earlier call)" in capsys.readouterr().out


# Each is long: four digits alone stand in some hash or seconds of every few reports, and were once "found" there.
NAMES = ("Quixote", "Dulcinea", "PLANTED-4711", "1.2.4711", "19230517", "20210304", "RossiMaria")


def everything(folder):
    for p in folder.rglob("*"):
        yield str(p.relative_to(folder)).encode()
        if p.is_file(): yield p.read_bytes()


def test_nobodys_name_is_written_but_in_the_seg_object(kept, tmp_path, capfd):
    pytest.importorskip("highdicom")
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    write_dicom(films / "Quixote_Dulcinea_19230517.dcm")
    write_dicom(films / "1.2.4711", FILM[::-1], Modality="CT")
    write_dicom(films / "PLANTED-4711-twice.dcm", NumberOfFrames=2)
    (films / "RossiMaria_20210304_cut.dcm").write_bytes((films / "1.2.4711").read_bytes()[:-900])
    (films / "RossiMaria_20210304.png").write_bytes(b"no picture")
    Image.fromarray(FILM).save(films / "RossiMaria.png")
    for more in ([], ["--json"]): assert segment(films, kept, out, "--dicom", *more) == 3
    log = capfd.readouterr()
    segs = list((out / "dicom_seg").iterdir())
    assert len(segs) == 2 and all(b"Quixote" in p.read_bytes() for p in segs), "the object itself has to name its patient"
    for p in segs: p.unlink()
    written = b"\n".join([*everything(out), *everything(kept), log.out.replace(str(films), "").encode(), log.err.encode()])
    assert [n for n in NAMES if n.encode() in written] == []


@pytest.fixture
def named_films(tmp_path):
    "A folder as the source `folder` wants it, of DICOM films whose names, headers and file names are somebody's."
    for kind, shade in (("healthy", 0), ("diseased", 40)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i, film in enumerate(lungs_like(12, 32, seed=shade)):
            write_dicom(tmp_path / "data" / kind / f"RossiMaria{shade + i}__20210304.dcm", (film + shade * (np.arange(32) > 20)).clip(0, 255))
    return tmp_path / "data"


def test_a_model_folder_names_nobody(named_films, tmp_path, model):  # noqa: F811
    from types import SimpleNamespace
    from lazyseg.data import get_films, get_source
    from lazyseg.segmenter import Segmenter
    films = get_films(get_source("folder", str(named_films)), 32)
    assert films.table.patient.str.startswith("RossiMaria").all()
    scorer, settings = model.scorer, SimpleNamespace(view="film", disease="pneumonia", source="folder", seed=0)
    scorer.learn = SimpleNamespace(model=SimpleNamespace(m=Method(**model.about["choices"])))
    point = OperatingPoint(.5, chosen_on=frozenset(films.table.patient))
    kept = Segmenter.of_run(scorer, point, settings, films).save(tmp_path / "kept")
    written = b"\n".join(everything(kept))
    assert [n for n in NAMES if n.encode() in written] == [] and Segmenter.load(kept).known is not None


@pytest.mark.dev
def test_a_report_names_nobody(named_films, tmp_path):
    folder = cli.train(progress=False, disease="pneumonia", source="folder", data=str(named_films), profile="smoke", epochs=1, out=str(tmp_path / "reports"))
    written = b"\n".join(everything(folder)).replace(str(named_films).encode(), b"")
    assert [n for n in NAMES if n.encode() in written] == [] and (folder / "model/README.md").is_file()


def test_evaluate_and_audit_on_files_of_the_phantom(kept, tmp_path, capsys, monkeypatch):
    assert cli.main(["phantom", "hernia", "-n", "4", "--size", "32", "-o", str(tmp_path / "ph"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["films"] == 8 and len(list((tmp_path / "ph/films").iterdir())) == 8
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "ph/films").iterdir()}
    assert cli.main(["phantom", "hernia", "-n", "4", "--size", "32", "-o", str(tmp_path / "ph")]) == 0
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "ph/films").iterdir()}
    monkeypatch.setitem(VERSIONS, "hernia", 99) # drawn otherwise by now: none of these films is taken for a new one
    assert cli.main(["phantom", "hernia", "-n", "4", "--size", "32", "-o", str(tmp_path / "ph")]) == 0
    assert len(list((tmp_path / "ph/films").iterdir())) == 16 and pd.read_csv(made["table"]).path.str.contains("hernia-v99-").all()
    monkeypatch.undo()
    assert cli.main(["phantom", "hernia", "-n", "4", "--size", "32", "-o", str(tmp_path / "ph")]) == 0
    assert times.items() <= {p: p.stat().st_mtime_ns for p in (tmp_path / "ph/films").iterdir()}.items()
    capsys.readouterr()
    source = ["--source", "table", "--data", made["table"], "--disease", "hernia"]
    assert cli.main(["evaluate", str(kept), *source, "--split", "all", "--json", "-o", str(tmp_path / "numbers.json")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["results"]["empty mask"]["dice"]["value"] == 0 and found["results"]["lazyseg"]["about"]["films"] == 8
    assert json.loads((tmp_path / "numbers.json").read_text()) == found
    assert cli.main(["evaluate", str(kept), *source, "--split", "valid"]) == 1
    next((tmp_path / "ph/films").glob(f"hernia-v{VERSIONS['hernia']}-*-00003.png")).write_bytes(b"no picture")
    capsys.readouterr()
    assert cli.main(["audit", *source, "-o", str(tmp_path / "audit"), "--json"]) == 3
    page = json.loads(capsys.readouterr().out)
    assert page["films"] == 8 and "all" in page["shortcuts"] and Image.open(tmp_path / "audit/audit.png").size[0] > 300
    assert any("can't be read" in f and "00003" not in f for f in page["faults"])


def test_an_audit_says_who_is_left_out(tmp_path, capsys):
    for i, film in enumerate(lungs_like(30, 32)): Image.fromarray(film).save(tmp_path / f"{i}.png")
    labels = ["No Finding"]*13 + ["Mass"]*13 + ["Effusion"]*4
    pd.DataFrame(dict(path=[f"{i}.png" for i in range(30)], patient=[i % 25 for i in range(30)], labels=labels)).to_csv(tmp_path / "films.csv", index=False)
    assert cli.main(["audit", "--source", "table", "--data", str(tmp_path / "films.csv"), "--disease", "Mass", "-o", str(tmp_path / "audit")]) == 0
    notes = json.loads((tmp_path / "audit/audit.json").read_text())["notes"]
    said = capsys.readouterr().out
    assert len(notes) == 2 and "4 of 30 films are neither" in notes[0] and "effusion (4)" in notes[0] and notes[1].startswith("1 of 25 patients") and all(n in said for n in notes)


def test_an_audit_says_what_is_wrong_with_each_film_and_not_whose_it_is(tmp_path, capsys):
    for kind, shade in (("healthy", 0), ("diseased", 50)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i, film in enumerate(lungs_like(12, 32, seed=shade)): Image.fromarray(film).save(tmp_path / "data" / kind / f"RossiMaria{shade + i}.png")
    (tmp_path / "data/healthy/RossiMaria3.png").write_bytes(b"")
    (tmp_path / "data/diseased/RossiMaria54.png").write_bytes(b"no picture of RossiMaria")
    ask = ["audit", "--data", str(tmp_path / "data"), "-o", str(tmp_path / "audit")]
    assert cli.main(ask) == 3
    said = capsys.readouterr().out
    assert "2 of 24 films opened can't be read." in said and "it is empty." in said and "damaged, or not a picture" in said and "of the table" not in said
    assert "Rossi" not in said + (tmp_path / "audit/audit.json").read_text() and json.loads((tmp_path / "audit/audit.json").read_text())["unread"] == 2
    assert cli.main([*ask, "--names"]) == 3 and "healthy/RossiMaria3.png is empty." in capsys.readouterr().out
    for i in range(11): (tmp_path / f"data/healthy/RossiMaria{i}.png").write_bytes(b"")
    cli.main([*ask, "--most", "24"])
    assert capsys.readouterr().out.count("it is empty.") <= 10


@pytest.mark.parametrize("source, seed", [("table", 3), ("phantom", 4)])
def test_a_model_is_measured_with_the_seed_of_its_split_and_on_other_phantom_films(model, tmp_path, monkeypatch, source, seed):  # noqa: F811
    kept = replace(model, about=model.about | dict(seed=3)).save(tmp_path / "model")
    def ask(source, **how): raise LazysegError(f"seed {how['seed']}")
    monkeypatch.setattr("lazyseg.data.get_source", ask)
    data = "films.csv" if source == "table" else ""
    with pytest.raises(LazysegError, match=f"seed {seed}"): cli.evaluate(kept, source, data)
    with pytest.raises(LazysegError, match="seed 7"): cli.evaluate(kept, source, data, seed=7)


def test_it_is_said_where_training_patients_may_be_among_those_measured(model, tmp_path, capsys):  # noqa: F811
    cli.main(["phantom", "hernia", "-n", "12", "--size", "32", "-o", str(tmp_path / "ph")])
    data = tmp_path / "ph/films.csv"
    table = pd.read_csv(data)
    table.assign(split=["train", "train", "valid", "valid", "test", "test"] * 4).to_csv(data, index=False)
    trained_on = dict(data=data_name(str(data)), where="", seed=model.about["seed"])
    kept = replace(model, about=model.about | dict(source="table", disease="hernia", trained_on=trained_on)).save(tmp_path / "model")
    for more, said, part in (([], False, "test"), (["--where", "patient == patient"], True, "test"), (["--seed", "77"], True, "test"), (["--healthy", "without hernia"], True, "test"),
                             (["--split", "train"], True, "training"), (["--split", "valid"], True, "validation"), (["--split", "all"], True, "healthy")):
        capsys.readouterr()
        assert cli.main(["evaluate", str(kept), "--source", "table", "--data", str(data), *more]) == 0
        out = capsys.readouterr().out
        assert ("training patients" in out) == said and f"{part} films of" in out, more


SAME = dict(source="table", disease="Mass", split="test", seed=3, data="films.csv sha256:0", where="", healthy="", columns="")


@pytest.mark.parametrize("asked, sure", [({}, True), (dict(disease="Hernia"), False), (dict(split="all"), False), (dict(split="train"), False), (dict(source="folder"), False), (dict(seed=4), False),
                                         (dict(healthy="Normal"), False), (dict(columns="path=img"), False), (dict(data=""), False)])
def test_only_the_test_part_of_its_own_split_is_unseen_by_a_model(asked, sure):
    "Another disease gives another split, and so do other healthy films."
    about = dict(source="table", disease="Mass", seed=3, trained_on=dict(data="films.csv sha256:0", where="", seed=3))
    assert cli._is_unseen(about, **SAME | asked) == sure
    assert not cli._is_unseen({k: v for k, v in about.items() if k != "trained_on"} | dict(trained_on="?" * bool(asked)), **SAME | asked), "who does not say it is not known"


@pytest.mark.parametrize("asked, sure", [(dict(seed=4, split="all"), True), (dict(seed=3, split="test"), True), (dict(seed=3, split="train"), False), (dict(seed=3, split="all"), False), (dict(seed=3, disease="edema"), False)])
def test_a_phantom_of_the_same_seed_is_seen_but_for_its_test_part(asked, sure):
    about = dict(source="phantom", disease="hernia", seed=3, trained_on=dict(data="", where="", seed=3))
    assert cli._is_unseen(about, **SAME | dict(source="phantom", data="", disease="hernia") | asked) == sure


def test_a_model_of_ones_own_films_is_not_measured_on_the_phantom_by_accident(model, tmp_path, capsys):  # noqa: F811
    kept = replace(model, about=model.about | dict(source="table", disease="Infiltration")).save(tmp_path / "model")
    assert cli.main(["evaluate", str(kept)]) == 1
    said = capsys.readouterr().err
    assert "learned 'Infiltration' from films of somebody's own" in said and "--source and --data" in said


def test_a_table_may_call_healthy_films_and_columns_otherwise(model, tmp_path, capsys):  # noqa: F811
    rows = []
    for i, film in enumerate(lungs_like(24, 32)):
        Image.fromarray(film).save(tmp_path / f"{i}.png")
        rows.append(dict(img=f"{i}.png", case=f"p{i}", finding=("Normal", "Mass")[i % 2], split=("train", "valid", "test")[i // 2 % 3]))
    pd.DataFrame(rows).to_csv(tmp_path / "films.csv", index=False)
    kept, words = model.save(tmp_path / "model"), ["--healthy", "Normal", "--columns", "path=img", "patient=case"]
    source = ["--source", "table", "--data", str(tmp_path / "films.csv"), "--disease", "Mass"]
    assert cli.main(["evaluate", str(kept), *source, *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"]["lazyseg"]["about"]["films"] == 8
    assert cli.main(["audit", *source, *words, "-o", str(tmp_path / "audit")]) == 0
    lines = cli.sweep_lines(["Mass"], ["lazyseg"], [0], source="table", data="films.csv", healthy="Normal", columns="path=img patient=case")
    given = cli.parser().parse_args(lines[0][1:])
    assert (given.healthy, given.columns) == ("Normal", "path=img patient=case")
    for wrong, said in ((["--healthy", "Well"], "No film carries the label 'well'"), (["--columns", "img"], "path=img patient=case"), (["--columns", "path=image"], "'image'")):
        assert cli.main(["evaluate", str(kept), *source, *words, *wrong]) == 1 and said in capsys.readouterr().err


def test_paths_that_somebody_types_begin_where_they_stand(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(cli, "train", lambda **parameters: given.append(parameters) or tmp_path)
    monkeypatch.setattr(cli, "headline", str)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "mass", "--source", "folder", "--data", "films", "--out", "../here"]) == cli.main(["train", "hernia"]) == 0
    assert [(g["data"], g["out"]) for g in given] == [(str(tmp_path / "films"), str(tmp_path.parent / "here")), ("", "reports")]


def test_nobody_minds_that_a_reader_goes_away(tmp_path):
    reads, writes = os.pipe()
    os.close(reads)
    ran = subprocess.run([*START, "phantom", "hernia", "-n", "1", "--size", "32", "-o", str(tmp_path / "ph"), "--json"], stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert ran.returncode == 0 and "pipe" not in ran.stderr.lower()


@pytest.mark.parametrize("words, labels", [(["Lung Opacity", "Mass/Nodule"], ["Lung Opacity", "Mass/Nodule"]), (["Edema,", "Lung Opacity"], ["Edema", "Lung Opacity"]), (["Edema, Hernia"], ["Edema", "Hernia"])])
def test_a_label_of_films_of_ones_own_may_hold_spaces(words, labels, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("lazyseg.report.make_report", lambda diseases, *more, **how: asked.append(diseases) or {})
    assert cli.main(["report", "--diseases", *words, "--source", "table", "--data", str(tmp_path)]) == 0
    assert cli.main(["report", "--diseases", "edema hernia"]) == 0 # as make hands them over
    assert asked == [labels, ["edema", "hernia"]]


def test_wrong_diseases_and_sources_are_named(capsys, tmp_path):
    for args in (["train", "herna"], ["phantom", "herna", "-o", str(tmp_path / "x")], ["audit", "--source", "nosuch"], ["audit", "--data", "nowhere"]):
        assert cli.main(args) == 1
    assert capsys.readouterr().err.count("lazyseg: ") == 4 and not list(tmp_path.iterdir())


def test_marking_a_film_waits_for_nothing_it_does_not_need(kept, films, tmp_path):
    "What training, tables and figures need takes longer to import than all of the work."
    code = ("import sys; from lazyseg.cli import main; done = main(sys.argv[1:]); "
            "print(sorted({'pandas', 'matplotlib', 'sklearn', 'skimage', 'scipy.stats', 'fastai', 'IPython', 'ipywidgets', 'torchvision'} & set(sys.modules)), done)")
    said = subprocess.run([sys.executable, "-c", code, "segment", films / "film0.png", "-m", kept, "-o", tmp_path / "out"], capture_output=True, text=True)
    assert said.stdout.endswith("[] 0\n"), said.stdout + said.stderr
