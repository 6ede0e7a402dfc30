"""Films at the scale of NIH ChestX-ray14: `python benchmarks/data.py` writes 112,120 small films in NIH's layout, then reads them.

It measures the time to index them, to fill the cache (and to find it filled), the resident memory of a process that trains from it
(both stages) against one that trains on a fifth of the films, and the loader's share of a training step. Asked for: memory that does not grow with
the data set, and a loader below 5% of a step. With `--keep FOLDER` films and cache stay there, and a second call goes on where the first
was stopped."""
import argparse
import gc
import io
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from PIL import Image


def write_films(root, n, side=96):
    "NIH's layout: Data_Entry_2017.csv and twelve folders of PNG. 500 different pictures, shared out."
    rng, coded = np.random.default_rng(0), []
    for _ in range(500):
        f = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (12, 12), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC).save(f, 'PNG')
        coded.append(f.getvalue())
    lines = ['Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position']
    if (root/'Data_Entry_2017.csv').is_file(): return # written by an earlier call
    for k in range(12): (root/f'images_{k + 1:03}'/'images').mkdir(parents=True, exist_ok=True)
    for i in range(n):
        name = f'{i//4:08}_{i % 4:03}.png'
        (root/f'images_{i*12//n + 1:03}'/'images'/name).write_bytes(coded[i % 500])
        lines.append(f"{name},{('No Finding', 'Edema|Effusion')[i//4 % 3 == 0]},{i % 4},{i//4},57,M,PA")
    (root/'Data_Entry_2017.csv').write_text('\n'.join(lines) + '\n')


def resident():
    "MiB of this process: its own, and mapped from files (which the system may take back at any time)."
    lines = dict(l.split(':', 1) for l in Path('/proc/self/status').read_text().splitlines())
    return [int(lines[k].split()[0])/1024 for k in ('RssAnon', 'RssFile')]


def train_memory(folder, batches):
    "What a training process holds after going through an epoch, and after the second stage: run in a process of its own."
    from lazyseg.data import get_films, get_source, hand_back, unpaired_loaders
    from lazyseg.exercises import teach
    from lazyseg.training import GeneratorScorer, get_learner, method
    films = get_films(get_source('nih', folder, 'Edema', healthy='without Edema'), 64)
    dls = unpaired_loaders(films, 8, device='cpu')
    with films.set_aside() as lean: # as `fit_method` does
        before = resident()
        for i, _ in enumerate(dls.train):
            if i + 1 == batches: break
        after = resident()
        m = method('lazyseg')
        teach(GeneratorScorer(get_learner(dls, m).model.generator, m.map, 'untrained'), lean, steps=20)
        end = resident()
        gc.collect(), hand_back() # what is free, but held by the C library
        print('MEMORY', len(films), films.film.nbytes/2**20, *before, *after, *end, resident()[0])


def loader_share(folder, steps=12):
    "Milliseconds of the loader and of a training step of `lazyseg` at 64 px, batch 8, the smaller of each over a few."
    import torch
    import fastai.callback.progress # no_bar
    from fastai.callback.core import Callback, CancelFitException
    from lazyseg.data import get_films, get_source, unpaired_loaders
    from lazyseg.training import get_learner, method
    films = get_films(get_source('nih', folder, 'Edema', healthy='without Edema'), 64)
    dls = unpaired_loaders(films, 8, device='cpu')
    loading, batch = [], iter(dls.train)
    for _ in range(200):
        start = time.perf_counter(); next(batch); loading.append(time.perf_counter() - start)

    class Clock(Callback):
        def __init__(self): self.times = []
        def before_batch(self): self.start = time.perf_counter()
        def after_batch(self):
            self.times.append(time.perf_counter() - self.start)
            if len(self.times) == steps: raise CancelFitException()
    clock = Clock()
    learner = get_learner(dls, method('lazyseg'))
    with learner.no_logging(), learner.no_bar(): learner.fit(1, cbs=clock)
    return np.median(loading)*1e3, np.median(clock.times)*1e3, torch.get_num_threads()


def count_reads(source):
    "How many films are read from their files from now on: a list that grows."
    load, read = source.load, []
    source.load = lambda row: (read.append(1), load(row))[1]
    return read


def measure(home, total):
    from lazyseg.data import get_films, get_source
    memory = []
    for n in (total//5, total):
        folder = Path(home, f'films-{n}')
        start = time.perf_counter(); write_films(folder, n); print(f'{n:,} films written in {time.perf_counter() - start:.0f} s', flush=True)
        start, cpu = time.perf_counter(), time.process_time()
        source = get_source('nih', folder, 'Edema', healthy='without Edema')
        print(f'  index and split {time.perf_counter() - start:.1f} s, of the processor {time.process_time() - cpu:.1f}', flush=True)
        read = count_reads(source)
        start, cpu = time.perf_counter(), time.process_time()
        get_films(source, 64); build, cpu = time.perf_counter() - start, time.process_time() - cpu
        start, cpu2 = time.perf_counter(), time.process_time()
        get_films(source, 64); again = time.perf_counter() - start
        print(f'  cache: {len(read):,} films read in {build:.0f} s, of the processor {cpu:.0f} ({len(read)/cpu:.0f} films a second); found again in {again:.1f} s, of the processor {time.process_time() - cpu2:.1f}', flush=True)
        out = subprocess.run([sys.executable, __file__, '--memory', str(folder), '--batches', '2000'], capture_output=True, text=True)
        if 'MEMORY' not in out.stdout: sys.exit(out.stderr[-2000:])
        memory.append([float(o) for o in out.stdout.split('MEMORY')[1].split()])
        n, size, own, mapped, own_after, mapped_after, own_taught, mapped_taught, in_use = memory[-1]
        print(f'  training process, arrays of {size:.0f} MiB: own memory {own:.0f} MiB, after 2,000 batches {own_after:.0f}, after the second stage {own_taught:.0f} (in use {in_use:.1f}); '
              f'mapped from files {mapped:.0f}, {mapped_after:.0f}, {mapped_taught:.0f}', flush=True)
    few, many = memory
    grown, own = [max((many[k] + more*many[k+1]) - (few[k] + more*few[k+1]) for k in (4, 6)) for more in (1, 0)]
    held = many[8] - few[8]
    print(f'five times the films ({many[1] - few[1]:.0f} MiB more of arrays) cost {grown:.0f} MiB more resident memory, of which {own:.0f} MiB are its own; '
          f'of that {held:.1f} MiB are in use, {held*2**20/(many[0] - few[0]):.0f} bytes a film')
    load, step, threads = loader_share(folder)
    print(f'loader {load:.2f} ms, training step {step:.0f} ms ({threads} threads): {100*load/(load + step):.1f}%')
    ok = load < .05*(load + step) and held < .01*(many[1] - few[1]) and grown < .05*(many[1] - few[1])
    print('as asked for' if ok else 'NOT as asked for')
    return 0 if ok else 1


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--films', type=int, default=112120)
    ask.add_argument('--keep', help='folder for films and cache; it is not removed')
    ask.add_argument('--memory', help=argparse.SUPPRESS)
    ask.add_argument('--batches', type=int, default=0, help=argparse.SUPPRESS)
    ask = ask.parse_args()
    warnings.simplefilter('ignore')
    if ask.memory: return train_memory(ask.memory, ask.batches)
    if ask.keep:
        os.environ['LAZYSEG_CACHE'] = f'{ask.keep}/cache'
        return measure(ask.keep, ask.films)
    with tempfile.TemporaryDirectory() as home:
        os.environ['LAZYSEG_CACHE'] = f'{home}/cache'
        return measure(home, ask.films)


if __name__ == '__main__': sys.exit(main())
