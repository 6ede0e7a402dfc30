"""Speed and memory of the phantom: `python benchmarks/phantom.py`. Gates: `python benchmarks/phantom.py --gates`.

Half of the films are sick, each with its twin, as in a set. The targets, on two cores: 20 films a second at 64 px, 8 at 128, under 2 GB.
Times are of the processor, not of the clock, and a matrix product is timed between the films: a slow or busy machine shows in it."""
import argparse
import json
import resource
import time
from itertools import product

import torch
from filelock import FileLock

from lazyseg import phantom as P
from lazyseg.core import cache_dir, whole_file


def processor_seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(disease, size, films):
    "Processor seconds a film, and GFLOP a second of a matrix product between the films: both suffer alike on a busy machine."
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    P.render(disease, size=size, seed='warm'), a @ b
    film = multiply = 0.
    for i in range(films):
        film += processor_seconds(lambda: P.render(disease if i % 2 else None, size=size, seed=i))
        multiply += processor_seconds(lambda: a @ b)
    return film/films, 2*1024**3*films/multiply/1e9


def measure_gates(diseases, questions, n, size=64, seed=0):
    "The gates of the chapter, question by question, each written as soon as it is known; what is there for these films stands."
    for question, disease in product(questions, diseases):
        about = dict(films_a_class=n, size=size, version=P.VERSIONS[disease])
        if question not in known_gates(disease, about)[1]: keep(disease, about, P.gates(disease, n, size, seed, [question]))
        known = known_gates(disease, about)[1]
        print(disease, question, known[question], P.passed(known), flush=True)


def known_gates(disease, about): # everything in the file, and what it says of this disease on these films
    every = json.loads(P.gates_file().read_text()) if P.gates_file().is_file() else {}
    known = every.get(disease, {})
    return every, known if about.items() <= known.items() else {}


def keep(disease, about, found):
    with FileLock(cache_dir('gates')/'lock'): # two may measure at once
        every, known = known_gates(disease, about)
        known = known | found
        every[disease] = {k: known[k] for k in [*P.ASK, *about] if k in known}
        with whole_file(P.gates_file()) as part: part.write_text(json.dumps({d: every[d] for d in P.DISEASES if d in every}, indent=1) + '\n')


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--films', type=int, default=40)
    ask.add_argument('--sizes', type=int, nargs='+', default=[64, 128])
    ask.add_argument('--gates', nargs='*', choices=P.DISEASES, metavar='DISEASE', help='measure the gates instead; default: all four diseases')
    ask.add_argument('--ask', nargs='+', default=list(P.ASK), choices=P.ASK, metavar='QUESTION', help=f'which questions: {", ".join(P.ASK)}; default: all')
    ask.add_argument('--class-films', type=int, default=2000, help='films a class, for the gates')
    ask = ask.parse_args()
    P.working_grid()
    if ask.gates is not None: return measure_gates(ask.gates or P.DISEASES, ask.ask, ask.class_films)
    torch.set_num_threads(1) # a film a thread is how a set is rendered
    print(f'{"disease":12}{"size":>6}{"ms a film":>12}{"films/s, two cores":>20}{"matrix product, GFLOP/s of a core":>36}')
    for size, disease in product(ask.sizes, P.DISEASES):
        seconds, gflops = measure(disease, size, ask.films)
        print(f'{disease:12}{size:6}{1000*seconds:12.0f}{2/seconds:20.1f}{gflops:36.0f}', flush=True)
    print(f'memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20:.2f} GB')


if __name__ == '__main__': main()
