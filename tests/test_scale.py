"""Many processes and hard stops: two learn what one learns, a killed run goes on to the same bits, a full disk takes nothing."""
import multiprocessing
import os
import random
import resource
import signal
import socket
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lazyseg.core import LazysegError
from lazyseg.scale import device_profile

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")
many = pytest.mark.skipif(find_spec("accelerate") is None, reason="needs accelerate: pip install 'lazyseg[many]'")
TINY = dict(width=8, blocks=1, critic_width=8, critic_steps=2)

# Each process below starts from a server that has the library in memory, and has trained nothing.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["lazyseg.training", "fastai.callback.progress", "accelerate"])


def noise_films(n=40):
    from lazyseg.data import Films
    film = np.random.default_rng(0).integers(0, 255, (n, 32, 32), dtype=np.uint8)
    name = np.arange(n).astype(str)
    return Films(film, pd.DataFrame(dict(path=name, patient=name, labels="", diseased=np.arange(n) % 2 == 1, split=["train"] * (n - 8) + ["valid"] * 8)))


def start(target, *args):
    process = SERVER.Process(target=target, args=args)
    process.start()
    return process


def finish(*processes, seconds=300):
    for p in processes: p.join(seconds)
    codes = [p.exitcode for p in processes]
    for p in processes: p.kill()
    return codes


def kept(folder):
    "What shapes the rest of a training: weights, moments of the optimiser, costs."
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    moments = [v for s in state["optimiser"]["state"].values() for v in s.values()]
    return state["epoch"], [*state["model"].values(), *moments], state["costs"]


def same(a, b):
    return a[0] == b[0] and a[2] == b[2] and len(a[1]) == len(b[1]) and all(torch.equal(x, y) for x, y in zip(a[1], b[1]))


# Several processes

def join_group(rank, port):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def learn_in_doubles(folder, rank, port, choices):
    "Train with numbers of 64 bits, in a group of two or alone, and keep costs and state."
    from fastai.callback.core import Callback
    from lazyseg.data import unpaired_loaders
    from lazyseg.scale import Together
    from lazyseg.training import Checkpoint, get_learner, method

    class Doubles(Callback):
        order = 3
        def before_batch(self): self.learn.xb = tuple(x.double() for x in self.learn.xb)
        def after_loss(self): self.learn.loss = self.learn.loss.float() # fastai's recorder keeps 32 bits
    torch.set_num_threads(1)
    if port: join_group(rank, port)
    group = [Together()] if port else []
    for name, changes in choices.items():
        learn = get_learner(unpaired_loaders(noise_films(), 8, seed=0), method(name, **TINY, **changes), cbs=[Doubles(), *group, Checkpoint(folder / name / "checkpoint.pt")])
        learn.model.double()
        with learn.no_logging(), learn.no_bar(): learn.fit(3)
        assert not any("Joint" in type(m).__name__ for m in learn.model.modules())


CHOICES = dict(lazyseg={}, cyclegan={}, paper=dict(lr=2e-4))


@many
def test_two_processes_learn_what_one_learns(tmp_path):
    port = free_port()
    codes = finish(*[start(learn_in_doubles, tmp_path / f"two-{rank}", rank, port, CHOICES) for rank in (0, 1)], start(learn_in_doubles, tmp_path / "one", 0, 0, CHOICES))
    assert codes == [0, 0, 0]
    for name in CHOICES:
        one, two = kept(tmp_path / "one" / name), kept(tmp_path / "two-0" / name)
        for a, b in zip(one[2], two[2]): assert a == pytest.approx(b, rel=1e-9), name
        for a, b in zip(one[1], two[1]): torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert not (tmp_path / "two-1").exists() # one process writes


def share_a_run(folder, rank, port, die_after, out):
    "`fit_together` in a group of two; the second process is killed after an epoch, where one is named."
    import lazyseg.training as training
    from lazyseg.scale import fit_together
    torch.set_num_threads(1)
    join_group(rank, port)
    if rank: training.save_state = None # would be an error
    pace = training.Pace.after_epoch

    def die(self):
        pace(self)
        if rank and self.epoch + 1 == die_after: os.kill(os.getpid(), signal.SIGKILL)
    training.Pace.after_epoch = die
    try: fit_together(noise_films(), "lazyseg", "smoke", 0, 4, folder, **TINY)
    except LazysegError as e:
        out.write_text(str(e))
        os._exit(1)


@many
def test_a_killed_process_ends_the_others_with_a_message_and_all_go_on(tmp_path):
    def run(folder, die_after):
        port = free_port()
        return finish(*[start(share_a_run, tmp_path / folder, rank, port, die_after, tmp_path / f"said-{rank}") for rank in (0, 1)])
    assert run("killed", 2) == [1, -signal.SIGKILL]
    assert "go on from the last epoch" in (tmp_path / "said-0").read_text()
    assert kept(tmp_path / "killed")[0] in (1, 2)
    assert run("killed", 0) == run("whole", 0) == [0, 0]
    assert same(kept(tmp_path / "killed"), kept(tmp_path / "whole"))


def test_the_game_of_a_method_with_outlines_needs_none(tmp_path):
    "Several processes play the first stage; outlines are for whoever takes it up."
    from lazyseg.scale import fit_together
    one, other = (fit_together(noise_films(), name, "smoke", 0, 1, tmp_path / name, **TINY) for name in ("lazyseg", "lazyseg+20"))
    for a, b in zip(one.generator.state_dict().values(), other.generator.state_dict().values()): assert torch.equal(a, b)


# Hard stops

EPOCHS = 8


def smoke_run(folder, began=None, harm=None, after=0, out=None):
    "A small training; after the epoch `after` it is harmed."
    import lazyseg.training as training
    torch.set_num_threads(1)
    write = training.save_state

    def saved(path, state):
        if state["epoch"] == after + 1: harm(path, state)
        write(path, state)
    if harm: training.save_state = saved
    if began: began.set()
    try: training.fit_method(noise_films(), "lazyseg", "smoke", epochs=EPOCHS, folder=folder, exercises=0., **TINY)
    except LazysegError as e:
        out.write_text(str(e))
        os._exit(1)


def die_writing(path, state):
    "Killed with half of the checkpoint on disk."
    from pathlib import Path

    def half(self, data):
        with open(self, "wb") as f: f.write(bytes(data)[:len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    Path.write_bytes = half


def fill_disk(path, state): resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))


def lock_folder(path, state):
    path.parent.chmod(0o555)
    if not os.geteuid(): os.setuid(65534) # what root may not do, nobody may


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A run that nobody stopped, and how long it took."
    folder, began = tmp_path_factory.mktemp("whole"), SERVER.Event()
    process = start(smoke_run, folder, began)
    assert began.wait(300)
    started = time.monotonic()
    assert finish(process) == [0]
    return kept(folder), time.monotonic() - started


def goes_on(folder, whole):
    assert finish(start(smoke_run, folder)) == [0]
    assert same(kept(folder), whole[0])
    assert [p.name for p in folder.iterdir()] == ["checkpoint.pt"] # what the killed one left is gone


def kill_at_random(folder, whole, rng):
    began = SERVER.Event()
    process = start(smoke_run, folder, began)
    assert began.wait(300)
    time.sleep(rng.random() * whole[1])
    process.kill()
    process.join(60)
    epochs = kept(folder)[0] if (folder / "checkpoint.pt").exists() else 0
    goes_on(folder, whole)
    return epochs


def test_a_run_killed_at_a_random_moment_ends_with_the_same_bits(whole, tmp_path):
    kill_at_random(tmp_path, whole, random.Random(0))


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_with_the_same_bits(whole, tmp_path):
    rng = random.Random(1)
    epochs = []
    for k in range(10):
        (tmp_path / str(k)).mkdir()
        epochs.append(kill_at_random(tmp_path / str(k), whole, rng))
    print("killed with these epochs written:", epochs)
    assert len(set(epochs)) > 2 # the moments were different ones


@pytest.mark.parametrize("after", [0, 3, pytest.param(EPOCHS - 1, marks=pytest.mark.slow)])
def test_a_run_killed_while_it_writes_ends_with_the_same_bits(whole, tmp_path, after):
    assert finish(start(smoke_run, tmp_path, None, die_writing, after)) == [-signal.SIGKILL]
    assert (kept(tmp_path)[0] if after else 0) == after
    assert any(p.name.endswith(".tmp") for p in tmp_path.iterdir()) # it was in the middle
    goes_on(tmp_path, whole)


@pytest.mark.parametrize("harm, words", [(fill_disk, "File too large"), (lock_folder, "Permission denied")])
def test_no_room_stops_with_a_message_and_keeps_what_was_written(whole, tmp_path_factory, harm, words):
    home = tmp_path_factory.mktemp("home")
    for folder in (home, *home.parents[:3]): # the process gives up its rights
        if folder == Path(tempfile.gettempdir()): break
        folder.chmod(0o755)
    folder, out = home / "run", home / "said"
    folder.mkdir(), out.touch(), out.chmod(0o666)
    assert finish(start(smoke_run, folder, None, harm, 2, out)) == [1]
    folder.chmod(0o755)
    assert words in out.read_text() and str(folder) in out.read_text() and "goes on from there" in out.read_text()
    assert kept(folder)[0] == 2
    goes_on(folder, whole)


@pytest.mark.slow
def test_a_stopped_training_leaves_the_process_in_32_bits():
    from fastai.callback.core import Callback
    from lazyseg.data import unpaired_loaders
    from lazyseg.training import get_learner, method

    class Stop(Callback):
        order = 70
        def after_pred(self): raise KeyboardInterrupt
    learn = get_learner(unpaired_loaders(noise_films(), 8), method("lazyseg", **TINY), device=device_profile("cpu", autocast=True))
    with pytest.raises(KeyboardInterrupt), learn.no_logging(), learn.no_bar(): learn.fit(1, cbs=Stop())
    assert not torch.is_autocast_enabled("cpu")


def test_compiled_networks_learn_the_same():
    from lazyseg.data import unpaired_loaders
    from lazyseg.training import get_learner, method

    def losses(how):
        learn = get_learner(unpaired_loaders(noise_films(), 8), method("lazyseg", **TINY | dict(width=16)), device=how) # narrower ones hid a fault
        with learn.no_logging(), learn.no_bar(): learn.fit(2)
        return [e["loss"] for e in learn.costs.epochs]
    assert losses(device_profile("cpu", compile=True)) == pytest.approx(losses("plain"), rel=1e-3)


# Sweeps

def sweep(out, *more):
    from lazyseg.cli import main
    return main(["sweep", "--diseases", "pneumonia", "--methods", "lazyseg", "--seeds", "0", "1", "--profile", "smoke", "--out", str(out), "--json", *more])


def test_a_sweep_writes_one_command_a_line_and_refuses_what_no_run_would_take(tmp_path, capsys):
    import shlex
    from lazyseg.cli import main, parser
    (tmp_path / "films.csv").touch()
    assert sweep(tmp_path / "two words", "--source", "table", "--data", str(tmp_path / "films.csv"), "--where", "age > 18 and sex == 'F'") == 0
    lines = (tmp_path / "two words" / "sweep.txt").read_text().splitlines()
    given = [vars(parser().parse_args(shlex.split(line)[1:])) for line in lines] # every line is a command
    assert [g["seed"] for g in given] == [0, 1] and len({g["out"] for g in given}) == 2
    assert all(g["where"] == "age > 18 and sex == 'F'" and g["keep"] and g["profile"] == "smoke" for g in given)
    assert main(["sweep", "--diseases", "herna", "--out", str(tmp_path / "none")]) == 1
    assert "pneumonia, edema" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_finished_run_is_kept_and_a_held_one_is_not_begun(tmp_path):
    from lazyseg.cli import train
    from lazyseg.runs import check_settings, hold, write_metrics
    settings = check_settings(disease="hernia", profile="smoke", out=str(tmp_path))
    write_metrics(settings.folder, dict(settings=settings.recorded(), results={}))
    before = sorted(settings.folder.iterdir())
    pytest.importorskip("papermill")
    assert train(keep=True, disease="hernia", profile="smoke", out=str(tmp_path)) == settings.folder # no notebook was run
    assert sorted(p for p in settings.folder.iterdir() if p.name != ".lock") == before
    held = hold(settings.folder)
    with pytest.raises(LazysegError, match="Another run"): train(keep=True, disease="hernia", profile="smoke", out=str(tmp_path))
    held.release()


@pytest.mark.dev
@pytest.mark.slow
def test_a_sweep_leaves_pictures_out_only_where_it_is_told_to(tmp_path):
    for more in ([], ["--no-pictures"]):
        assert sweep(tmp_path, *more) == 0
        assert ("--no-pictures" in (tmp_path / "sweep.txt").read_text()) == bool(more)


def test_a_sweep_runs_here_in_two_processes_and_runs_nothing_twice(tmp_path, capsys):
    import json
    assert sweep(tmp_path, "--jobs", "2") == 0
    runs = {p: p.stat().st_mtime_ns for p in tmp_path.glob("seed-*/phantom/pneumonia/*/metrics.json")}
    assert len(runs) == 2
    next(iter(runs)).unlink() # as if that one had been stopped
    assert sweep(tmp_path, "--jobs", "2") == 0
    again = {p: p.stat().st_mtime_ns for p in tmp_path.glob("seed-*/phantom/pneumonia/*/metrics.json")}
    assert len(again) == 2 and sum(runs[p] == t for p, t in again.items()) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] == {}


def test_a_sweep_that_is_ended_ends_what_it_started(tmp_path):
    import subprocess
    import sys
    code = ("import sys, threading, time, os, signal; from lazyseg import cli\n"
            "out = sys.argv[1]\n"
            "cli.sys.executable = os.path.join(out, 'python')\n"
            "threading.Timer(5, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
            "cli._run_lines([['lazyseg', 'a'], ['lazyseg', 'b'], ['lazyseg', 'c']], 2)")
    (tmp_path / "python").write_text(f'#!/bin/sh\necho $$ >> {tmp_path}/pids\nexec sleep 300\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=120, capture_output=True)
    pids = (tmp_path / "pids").read_text().split()
    assert done.returncode == 143 and len(pids) == 2, done.stderr # and the third never began
    assert not any(os.path.exists(f"/proc/{p}") for p in pids)


@pytest.mark.parametrize("wrong", [["--seeds", "-1"], ["--jobs", "-3"]])
def test_a_sweep_refuses_numbers_that_can_not_be(tmp_path, wrong, capsys):
    from lazyseg.cli import main
    assert main(["sweep", "--profile", "smoke", "--out", str(tmp_path), *wrong]) == 1 and "has to be a whole number" in capsys.readouterr().err
    assert sweep(tmp_path, "--seeds", "0", "0") == 0 and len((tmp_path / "sweep.txt").read_text().splitlines()) == 1
