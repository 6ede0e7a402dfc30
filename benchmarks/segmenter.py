"""How quick a kept model is: `python benchmarks/segmenter.py`.

One 128 px film, a hundred of them, an update of `explore`, and the command from nothing. The networks have random weights, which costs the same as
trained ones; beside `segment` stands a bare pass of the same networks, the limit that no wrapping can beat.
Targets, on two free cores: one film in 50 ms, 30 films a second, an update in 100 ms, the command in 4 s, its help in 1 s.
Twice each: by the clock with all cores, and by processor time with one thread, which is what a single free core would take however busy the machine is
(several threads that wait for one another on a busy machine use up processor time and do nothing)."""
import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.simplefilter('ignore')
LAZYSEG = 'import sys; from lazyseg.cli import main; sys.exit(main())'


def small_model(size):
    "A segmenter with the networks of the method `lazyseg`, both stages."
    import numpy as np
    import torch
    from lazyseg.exercises import PupilScorer
    from lazyseg.models import Outliner
    from lazyseg.segmenter import KnownFilms, Segmenter
    from lazyseg.thresholding import OperatingPoint
    from lazyseg.training import GeneratorScorer, Translator, method
    torch.manual_seed(0)
    m = method('lazyseg', average=0.)
    teacher = GeneratorScorer(Translator(m).there.generator, m.map)
    films = (np.random.default_rng(0).random((100, size, size))*255).astype(np.uint8)
    about = dict(choices=m.__dict__, name='lazyseg', size=size, width=size, view='film', disease='pneumonia', source='phantom', seed=0, credit='')
    return Segmenter(PupilScorer(Outliner(m.width), teacher), OperatingPoint(.5, smoothing=1.), about, KnownFilms.of(films[:60], films[60:])), films


def clock(work, repeats=1):
    "Seconds of one call: by the clock (median), and by processor time with one thread (median)."
    import torch
    work()
    threads, found = torch.get_num_threads(), []
    for n, now in ((threads, time.perf_counter), (1, time.process_time)):
        torch.set_num_threads(n)
        times = []
        for _ in range(repeats):
            start = now()
            work()
            times.append(now() - start)
        found.append(sorted(times)[len(times)//2])
    torch.set_num_threads(threads)
    return found


def command(args, code=LAZYSEG, out=None, repeats=3):
    "Seconds of a command from nothing, the best of a few: by the clock, and by processor time with one thread."
    best = [1e9, 1e9]
    for _ in range(repeats):
        for i, env in enumerate((os.environ, os.environ | dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1'))):
            if out: shutil.rmtree(out, ignore_errors=True) # or the second call would find its work done
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *args], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            took = (time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)[i]
            best[i] = min(best[i], took)
    return best


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--size', type=int, default=128)
    size = ask.parse_args().size
    import torch
    from PIL import Image
    from lazyseg.segmenter import Explorer
    segmenter, films = small_model(size)
    batch = torch.rand(16, 1, size, size)
    def bare():
        with torch.inference_mode(): segmenter.scorer(batch), segmenter.scorer.counterpart(batch)
    print(f'{torch.get_num_threads()} threads of {os.cpu_count()} processors; load {os.getloadavg()[0]:.1f}')
    rows = [('one film, ms', *(1e3*t for t in clock(lambda: segmenter.segment(films[0]), 20)), '50 at most'),
            ('100 films, a second', *(100/t for t in clock(lambda: segmenter.segment(list(films)), 2)), '30 at least'),
            ('the same, networks alone', *(16/t for t in clock(bare, 4)), 'the limit')]
    hand = Explorer(segmenter, list(films[:4]))
    rows.append(('an update of explore, ms', *(1e3*t for t in clock(lambda: hand.draw(1, .4, .25), 20)), '100 at most'))
    with tempfile.TemporaryDirectory() as home:
        segmenter.save(f'{home}/model')
        Image.fromarray(films[0]).save(f'{home}/film.png')
        rows.append(('lazyseg segment, one film, s', *command(['segment', f'{home}/film.png', '-m', f'{home}/model', '-o', f'{home}/out'], out=f'{home}/out'), '4 at most'))
    rows.append(('python -c "import torch", s', *command([], 'import torch'), 'the limit'))
    rows.append(('lazyseg --help, s', *command(['--help']), '1 at most'))
    print(f'{"":30}{"by the clock":>14}{"one free core":>15}  target')
    for name, wall, cpu, target in rows: print(f'{name:30}{wall:14.2f}{cpu:15.2f}  {target}')


if __name__ == '__main__': main()
