"""A training step, against what it could be: `python benchmarks/training.py` measures

- machine: how fast memory is copied;
- limit: a step of each method as a fraction of the machine's own matrix product (GEMM), taken in turns in one process; where its time goes; memory;
- avx2: the same at width 32 by a processor that is held to AVX2, so that its convolutions use the instructions that its matrix product uses;
- narrow: the same with convolutions in 16 bits (bfloat16), where the processor has units for them;
- peers: the same networks trained by a plain loop in the manner of the public CycleGAN codes, of torch's own layers and of ours, in turns with our trainer;
- growing: time a film and memory with 1,000 to 100,000 films;
- size: time and memory against the size of the films and the width of the networks;
- dice: how long until pneumonia is outlined with a Dice of 0.5, `lazyseg` against `cyclegan` (an hour, and not done unless it is named).

All times are of the processor, since a machine is seldom quiet. Operations are counted by torch's own counter, over all that a step computes, and twice:
as if each convolution were computed plainly, which is the work asked for (`gflop`), and as done, since `winograd` does it with fewer (`gflop_done`).
`python benchmarks/training.py peers` does one of them. What was measured is kept in training.json, beside this file; the chapter on many machines draws it."""
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import fastai.callback.progress  # noqa: F401  (no_bar)
from fastai.callback.core import Callback, CancelFitException
from lazyseg.ablation import SHORT, watch_validation
from lazyseg.data import Films, get_films, get_source, unpaired_loaders
from lazyseg.models import Discriminator, EnlargeConv, Generator, GeneratorScorer, MaxPool, ReflectConv
from lazyseg.scale import device_profile
from lazyseg.training import Translator, fit_method, get_learner, method

KEPT, BATCH, clock = Path(__file__).with_name("training.json"), 8, time.process_time


def gemm(n=1536, dtype=torch.float32, kept={}):
    "GFLOP a second of a matrix product of n x n."
    if dtype not in kept: kept[dtype] = [torch.randn(n, n).to(dtype) for _ in range(3)]
    a, b, out = kept[dtype]
    start = clock()
    torch.mm(a, b, out=out)
    return 2 * n**3 / (clock() - start) / 1e9


def resident():
    "MiB that this process holds now, its own pages alone, and the most that it held."
    own = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(own.split()[1]) / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def noise_films(n, size, folder):
    "Bytes on disk, mapped into memory, as the cache of a large set is."
    film = np.memmap(Path(folder) / f"{n}-{size}", np.uint8, "w+", shape=(n, size, size))
    rng = np.random.default_rng(0)
    for i in range(0, n, 1000): film[i:i + 1000] = rng.integers(0, 255, film[i:i + 1000].shape, dtype=np.uint8)
    film.flush()
    film = np.memmap(film.filename, np.uint8, "r", shape=film.shape)
    name = np.arange(n).astype(str)
    return Films(film, pd.DataFrame(dict(path=name, patient=name, labels="", diseased=np.arange(n) % 2 == 1, split=np.where(np.arange(n) % 20 < 18, "train", "valid"))))


class Clock(Callback):
    "Seconds of each part of a step, and a matrix product between two steps."
    order = 100
    def __init__(self, steps): self.steps, self.times, self.gemm, self.now = steps, [], [], clock()
    def mark(self):
        spent, self.now = clock() - self.now, clock()
        return spent
    def before_batch(self): self.row = dict(data=self.mark())
    def after_loss(self): self.row["forward"] = self.mark()
    def after_backward(self): self.row["backward"] = self.mark()
    def after_batch(self):
        self.row["optimiser"] = self.mark() # and the moving average
        self.times.append(self.row), self.gemm.append(gemm())
        self.mark()
        if len(self.times) > self.steps: raise CancelFitException


def flops(m, size, few, batch=BATCH):
    "GFLOP of a step, with plain convolutions or with fewer multiplications."
    model, films, ReflectConv.few = Translator(m), torch.rand(2, batch, 1, size, size), few
    try:
        with FlopCounterMode(display=False) as counted: model(*films)["loss"].backward()
    finally: ReflectConv.few = True
    return counted.get_total_flops() / 1e9


def one_setting(name, width, size, steps, device="auto"):
    "A few steps of one method by the trainer itself."
    with tempfile.TemporaryDirectory() as folder:
        m = method(name, width=width, batch_size=BATCH, height=0) # the networks at this size
        gemm()
        learn, watch = get_learner(unpaired_loaders(noise_films(200, size, folder), BATCH), m, device=device), Clock(steps)
        before = resident()[0]
        with learn.no_logging(), learn.no_bar(): learn.fit(steps, cbs=watch)
    peak = resident()[1]
    table, speed = pd.DataFrame(watch.times[1:]), float(np.median(watch.gemm[1:]))
    seconds, (plain, done) = float(table.sum(axis=1).median()), (flops(m, size, few) for few in (False, True))
    share = lambda work: round(work / seconds / speed, 3)
    return dict(method=name, width=width, size=size, gflop=round(plain, 2), gflop_done=round(done, 2), ms=round(1000 * seconds, 1), gemm=round(speed, 1),
                of_gemm=share(plain), of_gemm_done=share(done), memory_mib=round(peak - before), **{k: round(float(v), 3) for k, v in (table.median() / table.median().sum()).items()})


def apart(work, *args):
    "Run in a process of its own, which begins as this one is: so that memory is counted from nothing."
    def run(send):
        warnings.simplefilter("ignore")
        send.send(work(*args))
    context = multiprocessing.get_context("fork")
    take, send = context.Pipe(False)
    process = context.Process(target=run, args=(send,))
    process.start()
    send.close()
    found = take.recv()
    process.join()
    return found


def machine():
    "GB a second read and written by copying an array that no cache holds, in turns with the matrix product."
    a, b, found = torch.zeros(2**26), torch.zeros(2**26), []
    for _ in range(9):
        start = clock()
        b.copy_(a)
        found.append((2 * 4 * a.numel() / (clock() - start) / 1e9, gemm()))
    copy, product = np.median(found[1:], axis=0)
    return show(dict(copy_gb=round(float(copy), 1), gemm=round(float(product), 1), threads=torch.get_num_threads(), torch=torch.__version__))


def limit():
    return [show(apart(one_setting, name, width, size, 5)) for size in (64, 128) for width in (16, 32) for name in ("paper", "cyclegan", "lazyseg")]


def avx2():
    "`limit` at width 32 in a process that may use AVX2 and nothing wider."
    code = ("import json, training as t; t.torch.set_num_threads(1); m = t.machine(); "
            "print(json.dumps(dict(machine=m, limit=[t.apart(t.one_setting, n, 32, s, 15) for s in (64, 128) for n in ('cyclegan', 'lazyseg')])))")
    env = os.environ | dict(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    found = json.loads(subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    for row in found["limit"]: show(row)
    return found


def has_16_bits(): return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def narrow():
    "A step in 16 bits against one in 32, each beside the 32-bit product; and what the product itself gains."
    if not has_16_bits(): return show(dict(left_out="no units for bfloat16"))
    product = apart(lambda: float(np.median([gemm(dtype=torch.bfloat16) / gemm() for _ in range(8)][1:])))
    rows = []
    for size in (64, 128):
        for name in ("cyclegan", "lazyseg"):
            turns = [[apart(one_setting, name, 32, size, 3, device_profile("cpu", autocast=a)) for a in (False, True)] for _ in range(3)]
            middle = lambda key, i: float(np.median([pair[i][key] for pair in turns]))
            rows.append(show(dict(method=name, width=32, size=size, ms=middle("ms", 0), ms_16=middle("ms", 1), of_gemm=middle("of_gemm", 0), of_gemm_16=middle("of_gemm", 1),
                                  faster=round(float(np.median([wide["ms"] / thin["ms"] for wide, thin in turns])), 2), product_faster=round(product, 2))))
    return rows


def size():
    return [show(apart(one_setting, "lazyseg", width, size, 2)) for width in (8, 16, 32) for size in (32, 64, 128, 256)]


# Peers

class Pairs(torch.utils.data.Dataset):
    "As the public codes do it: a file of the one pile, by chance one of the other, turned over by chance, -1..1."
    def __init__(self, piles, films): self.piles, self.films = piles, films
    def __len__(self): return self.films
    def read(self, path):
        film = np.asarray(Image.open(path).convert("L"), np.float32) / 127.5 - 1
        return torch.from_numpy(film[:, ::random.choice((1, -1))].copy())[None]
    def __getitem__(self, i): return self.read(self.piles[0][i % len(self.piles[0])]), self.read(random.choice(self.piles[1]))


class Pool:
    "The last fifty counterparts; a discriminator is shown an old one half of the time (Shrivastava 2017)."
    def __init__(self): self.films = []
    def __call__(self, films):
        out = []
        for film in films.detach():
            if len(self.films) < 50: self.films.append(film), out.append(film)
            elif random.random() < .5:
                i = random.randrange(50)
                out.append(self.films[i])
                self.films[i] = film
            else: out.append(film)
        return torch.stack(out)


def torch_layers(net):
    "The same function of layers that come with torch, as the public codes are written; weights and all."
    for name, layer in net.named_children():
        conv = lambda: torch.nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, padding_mode="reflect", bias=layer.bias is not None)
        if isinstance(layer, ReflectConv): new = weighted = conv()
        elif isinstance(layer, EnlargeConv): new = torch.nn.Sequential(torch.nn.Upsample(scale_factor=2), weighted := conv())
        elif isinstance(layer, MaxPool): new, weighted = torch.nn.MaxPool2d(2), None
        elif isinstance(layer, torch.nn.GroupNorm): new = weighted = torch.nn.InstanceNorm2d(layer.num_channels, affine=True)
        else:
            torch_layers(layer)
            continue
        if weighted is not None: weighted.load_state_dict(layer.state_dict())
        setattr(net, name, new)
    return net


class Reference:
    "A plain CycleGAN loop, in the order of the public codes: generators, then each discriminator on real and on pooled films."
    def __init__(self, m, ours=False): # of our layers, or of torch's
        def kind(net):
            if ours: return net
            film = torch.rand(2, 1, 64, 64)
            first = lambda out: getattr(out, "film", out).detach()
            before, net = first(net(film)), torch_layers(net)
            assert torch.allclose(first(net(film)), before, atol=1e-3) and not any(isinstance(layer, (ReflectConv, MaxPool, EnlargeConv)) for layer in net.modules())
            return net
        net = lambda: kind(Generator(m.width, m.blocks, "instance", m.upsample, "plain"))
        self.ab, self.ba, self.da, self.db = net(), net(), *(kind(Discriminator(m.critic_width, "instance", m.critic_steps)) for _ in range(2))
        adam = lambda *nets: torch.optim.Adam(chain(*(n.parameters() for n in nets)), lr=2e-4, betas=(.5, .999))
        self.og, self.od, self.pools = adam(self.ab, self.ba), adam(self.da, self.db), (Pool(), Pool())

    def freeze(self, yes):
        for p in chain(self.da.parameters(), self.db.parameters()): p.requires_grad = not yes

    def step(self, a, b):
        a, b, near, real = (a + 1) / 2, (b + 1) / 2, torch.nn.functional.l1_loss, lambda v, to: (v - to).square().mean()
        fake_b, fake_a = self.ab(a).film, self.ba(b).film
        back_a, back_b = self.ba(fake_b).film, self.ab(fake_a).film
        self.freeze(True)
        self.og.zero_grad()
        same = 5 * (near(self.ab(b).film, b) + near(self.ba(a).film, a))
        (real(self.db(fake_b), 1.) + real(self.da(fake_a), 1.) + 10 * (near(back_a, a) + near(back_b, b)) + same).backward()
        self.og.step()
        self.freeze(False)
        self.od.zero_grad()
        for d, pool, truth, fake in ((self.db, self.pools[0], b, fake_b), (self.da, self.pools[1], a, fake_a)):
            ((real(d(truth), 1.) + real(d(pool(fake)), 0.)) / 2).backward()
        self.od.step()


def all_clocks():
    "Processor seconds of this process and of its workers that have ended."
    return sum(r.ru_utime + r.ru_stime for r in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def plain_round(peer, piles, batch, steps):
    for _ in range(2): peer.step(*torch.rand(2, batch, 1, 64, 64) * 2 - 1) # not counted
    start = all_clocks()
    for a, b in torch.utils.data.DataLoader(Pairs(piles, batch * steps), batch, num_workers=2): peer.step(a, b)
    return batch * steps / (all_clocks() - start)


def our_round(films, name, width, batch, steps, device="auto"):
    learn, watch = get_learner(unpaired_loaders(films, batch), method(name, width=width, batch_size=batch), device=device), Stop(steps)
    with learn.no_logging(), learn.no_bar(): learn.fit(1, cbs=watch)
    return batch * steps / watch.spent


class Stop(Callback):
    "After so many steps, of which the first two are not counted."
    def __init__(self, steps): self.steps = steps + 2
    def before_batch(self):
        if self.iter == 2: self.start = all_clocks()
        if self.iter == self.steps:
            self.spent = all_clocks() - self.start
            raise CancelFitException


def peers(width=32, size=64, rounds=7):
    with tempfile.TemporaryDirectory() as folder:
        films = noise_films(200, size, folder)
        piles = [[], []]
        for i, film in enumerate(films.film):
            piles[i % 2].append(f"{folder}/{i}.png")
            Image.fromarray(film).save(piles[i % 2][-1])
        m, found = method("cyclegan", width=width), []
        loops = {"plain loop": (1, lambda b, n: plain_round(Reference(m), piles, b, n)),
                 "plain loop, our layers": (1, lambda b, n: plain_round(Reference(m, ours=True), piles, b, n)), "cyclegan": (1, lambda b, n: our_round(films, "cyclegan", width, b, n)),
                 "lazyseg": (0, lambda b, n: our_round(films, "lazyseg", width, b, n))}
        if has_16_bits(): loops["cyclegan in 16 bits"] = 1, lambda b, n: our_round(films, "cyclegan", width, b, n, device_profile("cpu", autocast=True))
        for r in range(rounds):
            row = {}
            for name, (one, go) in loops.items(): # each in a process of its own: what ours asks of the system is not done for the plain loop
                row[f"{name}, batch 8"] = apart(go, 8, 2)
                if one: row[f"{name}, batch 1"] = apart(go, 1, 8)
            found.append(row)
    table = pd.DataFrame(found)
    ratio = lambda a, b: round(float((table[a] / table[b]).median()), 2)
    return show(dict(width=width, size=size, rounds=rounds, films_a_second={k: round(float(v), 2) for k, v in table.median().items()},
                     **({"in_16_bits_8": ratio("cyclegan in 16 bits, batch 8", "plain loop, batch 8"), "in_16_bits_8_against_plain_1":
                         ratio("cyclegan in 16 bits, batch 8", "plain loop, batch 1")} if "cyclegan in 16 bits, batch 8" in table else {}),
                     equal_batch_8=ratio("cyclegan, batch 8", "plain loop, batch 8"), equal_batch_1=ratio("cyclegan, batch 1", "plain loop, batch 1"),
                     equal_batch_8_and_layers=ratio("cyclegan, batch 8", "plain loop, our layers, batch 8"),
                     cyclegan_8_against_plain_1=ratio("cyclegan, batch 8", "plain loop, batch 1"), lazyseg_8_against_plain_8=ratio("lazyseg, batch 8", "plain loop, batch 8"),
                     lazyseg_8_against_plain_1=ratio("lazyseg, batch 8", "plain loop, batch 1")))


# Growing

def one_set(n, batches=300, steps=4):
    with tempfile.TemporaryDirectory() as folder:
        films, loading, watch = noise_films(n, 64, folder), [], Clock(steps)
        learn = get_learner(unpaired_loaders(films, BATCH), method("lazyseg"))
        with films.set_aside(): # as `fit_method` does
            dealt = iter(chain.from_iterable(iter(learn.dls.train) for _ in range(-(-batches * BATCH * 2 // n) + 1)))
            next(dealt)
            before = resident()[0]
            for _ in range(batches):
                start = clock()
                next(dealt)
                loading.append(clock() - start)
            after = resident()[0]
            with learn.no_logging(), learn.no_bar(): learn.fit(1, cbs=watch)
    step = pd.DataFrame(watch.times[1:])
    return dict(films=n, mib_of_films=round(n * 64 * 64 / 2**20), loader_ms_a_film=round(1000 * float(np.median(loading)) / 2 / BATCH, 3),
                step_ms_a_film=round(1000 * float(step.sum(axis=1).median()) / 2 / BATCH, 2), before_mib=round(before), after_300_batches_mib=round(after))


def growing(): return [show(apart(one_set, n)) for n in (1000, 10_000, 100_000)]


# Until it is good

class UntilGood(Callback):
    "After each pass, the best Dice that any threshold has on validation films; stops when it is good enough or the time is over. Looking takes no time."
    run_valid = False

    def __init__(self, valid, wanted, most): self.valid, self.wanted, self.most, self.rows, self.looked = valid, wanted, most, [], 0.

    def before_fit(self): self.start = clock()

    def after_epoch(self):
        begun, net = clock(), self.learn.model
        found = watch_validation(GeneratorScorer(net.generator, net.m.map), self.valid)
        net.train()
        self.rows.append(show(dict(passes=self.epoch + 1, minutes=round((begun - self.start - self.looked) / 60, 2), best_dice=round(found["best_dice"], 3))))
        self.looked += clock() - begun
        if self.rows[-1]["best_dice"] >= self.wanted or self.rows[-1]["minutes"] >= self.most: raise CancelFitException


def dice(wanted=.5, times=5, films=2000, passes=32):
    "Minutes of the processor. `lazyseg` at half its length (`SHORT`), from first to last and with a threshold from labels; `cyclegan` with twice its passes, until it is good or has had `times` as long."
    films = get_films(get_source("phantom", disease="pneumonia", n=films), 64)
    valid, start = films.split("valid"), clock()
    ours = fit_method(films, "lazyseg", "cpu", **SHORT)
    minutes = (clock() - start) / 60
    lazyseg = show(dict(minutes=round(minutes, 2), dice=round(watch_validation(ours, valid)["dice"], 3)))
    other = UntilGood(valid, wanted, times * minutes)
    fit_method(films, "cyclegan", "cpu", epochs=passes, cbs=[other])
    return dict(wanted=wanted, films_a_class=len(films) // 2, lazyseg=lazyseg, cyclegan=other.rows, times=round(other.rows[-1]["minutes"] / minutes, 1),
                good=dict(lazyseg=lazyseg["dice"] >= wanted, cyclegan=other.rows[-1]["best_dice"] >= wanted))


def show(row):
    print("  " + ", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    return row


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for part in sys.argv[1:] or ("machine", "limit", "avx2", "narrow", "peers", "growing", "size"):
        print(part, flush=True)
        found = {"machine": machine, "limit": limit, "avx2": avx2, "narrow": narrow, "peers": lambda: apart(peers), "growing": growing, "size": size, "dice": lambda: apart(dice)}[part]()
        kept = (json.loads(KEPT.read_text()) if KEPT.is_file() else {}) | {part: found}
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__": main()
