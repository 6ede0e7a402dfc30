#!/usr/bin/env bash
# Everything that has to hold, in the environment that make sets up. Called by `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
export MPLBACKEND=agg
# Two notebooks at a time, each with its share of the cores.
export OMP_NUM_THREADS=1

sources() { find nbs lazyseg README.md -type f \( -name '*.ipynb' -o -name '*.py' -o -name '*.md' \) -not -path '*/.ipynb_checkpoints/*' | sort | xargs sha256sum; }

echo "== notebooks, library and README agree"
before=$(sources)
nbdev_export
nbdev_clean
python tests/readme.py > README.md
after=$(sources)
if [ "$before" != "$after" ]; then
  echo "Exporting, cleaning or making the README changed files. Run nbdev_export, nbdev_clean and make readme, then commit:"
  diff <(echo "$before") <(echo "$after") | awk '/^>/ {print "  " $3}'
  exit 1
fi

echo "== the phantom that the notebooks share is rendered once"
python tests/prepare.py

echo "== notebooks"
nbdev_test --n_workers 2 --pause 0.2
# The answers are not part of the library: nbdev leaves sub-folders alone (recursive = False), so they are named here.
nbdev_test --path nbs/solutions --n_workers 2 --pause 0.2

echo "== the site"
bash tests/docs.sh

echo "== tests"
# Two files at a time: most tests wait for processes of their own, each of one thread.
python -m pytest -q -n 2 --dist loadfile tests
