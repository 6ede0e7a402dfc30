#!/usr/bin/env bash
# The docs site: nbdev processes the notebooks, smalldocs renders them, and every internal link is followed.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf _proc _docs
python tests/docs.py before "$work"
python tests/docs.py process "$work"
python tests/docs.py after
smalldocs render _proc 2>&1 | grep -v 'is not read by smalldocs' || [ "${PIPESTATUS[0]}" = 0 ]
# check also lists Quarto keys that smalldocs has no use for; only a broken link is a fault
if smalldocs check _proc | grep -i 'link'; then exit 1; fi
python tests/docs.py polish _proc/_docs
mv _proc/_docs _docs
echo "The site is in _docs/: open _docs/index.html"
