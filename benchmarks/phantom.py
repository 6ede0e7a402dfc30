"""Films a second and memory of the phantom: `python benchmarks/phantom.py`, beside this machine's own arithmetic speed.

Half of the films are sick, each with its twin, as in a set. The targets, on two free cores: 20 films a second at 64 px, 8 at 128, under 2 GB."""
import argparse
import json
import resource
import time

import torch

from lazyseg import phantom as P
from lazyseg.core import whole_file


def gemm(n=1024, repeats=8):
    "GFLOP a second of a matrix product, so that a slow or busy machine shows."
    a, b = torch.rand(n, n), torch.rand(n, n)
    a @ b
    start = time.perf_counter()
    for _ in range(repeats): a @ b
    return 2*n**3*repeats/(time.perf_counter() - start)/1e9


def measure(disease, size, films):
    "Films a second: by the clock, and by processor time for each core (what they would be on a free one)."
    P.render(disease, size=size, seed='warm')
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(films): P.render(disease if i % 2 else None, size=size, seed=i)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return films/wall, films/cpu


def measure_gates(diseases, **settings):
    "The gates of the chapter, written to a file after each disease; one that is there for these films is not measured again."
    file = P.gates_file()
    found = json.loads(file.read_text()) if file.is_file() else {}
    for disease in diseases:
        old = found.get(disease, {})
        if old.get('version') == P.VERSION and old.get('films_a_class') == settings['n']: continue
        found[disease] = P.gates(disease, **settings)
        with whole_file(file) as part: part.write_text(json.dumps({d: found[d] for d in P.DISEASES if d in found}, indent=1))
    for disease, f in found.items():
        print(disease, {k: round(v, 3) for k, v in f.items()}, {k: 'passed' if ok else 'FAILED' for k, ok in P.passed(f).items()})


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--films', type=int, default=40)
    ask.add_argument('--sizes', type=int, nargs='+', default=[64, 128])
    ask.add_argument('--gates', nargs='*', choices=P.DISEASES, metavar='DISEASE', help='measure the gates instead; default: all four diseases')
    ask.add_argument('--class-films', type=int, default=600, help='films a class, for the gates')
    ask = ask.parse_args()
    P.working_grid()
    if ask.gates is not None: return measure_gates(ask.gates or P.DISEASES, n=ask.class_films)
    print(f'{torch.get_num_threads()} threads, matrix product {gemm():.0f} GFLOP/s')
    print(f'{"disease":12}{"size":>6}{"films/s":>10}{"films/s of one core":>22}')
    for size in ask.sizes:
        for disease in P.DISEASES:
            by_clock, by_core = measure(disease, size, ask.films)
            print(f'{disease:12}{size:6}{by_clock:10.1f}{by_core:22.1f}')
    print(f'memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.2f} GB')


if __name__ == '__main__': main()
