"""How much of the library do tests go through? `pip install coverage`, then `python tests/covered.py` (long: every test and every chapter).

Two counts stand beside each other: what pytest goes through, and what the chapters' own cells go through that use and test what the
chapter exports. A chapter's cells are run here inside the exported module, as if it had been written there; cells that nbdev_test leaves
out are left out. Lines that neither reaches are named. What runs in a child process (papermill, the command) is not counted.
`--tests tests/test_data.py ...` and `--chapters 01_data ...` take a part (`none`: none of them); data of earlier calls is kept in `--keep`."""
import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = ('export', 'exporti', 'exports', 'default_exp', 'slow', 'notest', 'cuda', 'eval: false')


def cells_of(path):
    "(module, sources of the cells that nbdev_test runs and that are not exported)"
    found, module = [], None
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        said = re.findall(r'^#\|\s*(.+?)\s*$', source, re.M)
        module = next((s.split()[1] for s in said if s.startswith('default_exp')), module)
        if cell['cell_type'] == 'code' and not any(s.startswith(LEFT_OUT) for s in said): found.append(source)
    return module, found


def run_chapter(path):
    "In a process of its own, which measures itself."
    import matplotlib
    matplotlib.use('agg')
    name, sources = cells_of(path)
    module = importlib.import_module(f'lazyseg.{name}')
    from IPython.core.interactiveshell import InteractiveShell
    os.environ['IN_TEST'] = '1'
    os.chdir(path.parent)
    shell = InteractiveShell.instance(user_module=module)
    failed = [source for source in sources if not shell.run_cell(source, store_history=False).success]
    for source in failed: print(f'{path.name}: a cell failed: {source[:300]}', file=sys.stderr)
    return len(failed)


def measure(data, *command):
    how = [f'--data-file={data}', '--append', f"--source={ROOT/'lazyseg'}"]
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]), MPLBACKEND='agg')
    return subprocess.run([sys.executable, '-m', 'coverage', 'run', *how, *map(str, command)], env=env, cwd=ROOT).returncode


def count(*files):
    "{module: (lines that hold a statement, those that were run)}"
    from coverage import Coverage, CoverageData
    whole = Coverage(data_file=None, source=[str(ROOT/'lazyseg')])
    for file in files:
        if Path(file).exists():
            data = CoverageData(str(file)); data.read(); whole.get_data().update(data)
    out = {}
    for path in sorted((ROOT/'lazyseg').glob('*.py')):
        if path.name.startswith('_'): continue
        _, lines, _, missing, _ = whole.analysis2(str(path))
        out[path.stem] = set(lines), set(lines) - set(missing)
    return out


def in_words(lines):
    "'3-5, 9'"
    spans = []
    for n in sorted(lines):
        if spans and n == spans[-1][1] + 1: spans[-1][1] = n
        else: spans.append([n, n])
    return ', '.join(f'{a}' if a == b else f'{a}-{b}' for a, b in spans)


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--tests', nargs='*', default=['tests'])
    ask.add_argument('--chapters', nargs='*', help='names without ending; all that export something')
    ask.add_argument('--keep', type=Path, default=ROOT/'.coverage-parts')
    ask.add_argument('--run-chapter', type=Path, help=argparse.SUPPRESS)
    ask = ask.parse_args()
    if ask.run_chapter: return run_chapter(ask.run_chapter)
    ask.keep.mkdir(exist_ok=True)
    files, failed = [ask.keep/'pytest', ask.keep/'chapters'], 0
    if ask.tests != ['none']: failed += bool(measure(files[0], '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *ask.tests))
    for path in sorted((ROOT/'nbs').glob('*.ipynb')):
        if cells_of(path)[0] and (path.stem in ask.chapters if ask.chapters else True): failed += bool(measure(files[1], __file__, '--run-chapter', path))
    tests, chapters, both = count(files[0]), count(files[1]), count(*files)
    sums = [0]*4
    print('| module | lines | pytest | chapters | either | reached by neither |\n|---|---|---|---|---|---|')
    for name, (lines, hit) in both.items():
        numbers = [len(lines), len(tests[name][1]), len(chapters[name][1]), len(hit)]
        sums = [a + b for a, b in zip(sums, numbers)]
        print(f"| {name} | {len(lines)} | " + ' | '.join(f'{100*n/max(len(lines), 1):.0f}%' for n in numbers[1:]) + f' | {in_words(lines - hit)} |')
    print(f'| all | {sums[0]} | ' + ' | '.join(f'{100*n/sums[0]:.1f}%' for n in sums[1:]) + ' | |')
    return failed


if __name__ == '__main__': sys.exit(main())
