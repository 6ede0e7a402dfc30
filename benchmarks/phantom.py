"""Films a second and memory of the phantom: `python benchmarks/phantom.py`, beside this machine's own arithmetic speed.

Half of the films are sick, each with its twin, as in a set. The targets, on two free cores: 20 films a second at 64 px, 8 at 128, under 2 GB."""
import argparse
import resource
import time

import torch

from lazyseg import phantom as P


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


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--films', type=int, default=40)
    ask.add_argument('--sizes', type=int, nargs='+', default=[64, 128])
    ask = ask.parse_args()
    P.working_grid()
    print(f'{torch.get_num_threads()} threads, matrix product {gemm():.0f} GFLOP/s')
    print(f'{"disease":12}{"size":>6}{"films/s":>10}{"films/s of one core":>22}')
    for size in ask.sizes:
        for disease in P.DISEASES:
            by_clock, by_core = measure(disease, size, ask.films)
            print(f'{disease:12}{size:6}{by_clock:10.1f}{by_core:22.1f}')
    print(f'memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.2f} GB')


if __name__ == '__main__': main()
