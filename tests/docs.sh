#!/usr/bin/env bash
# The docs site: nbdev processes the notebooks, smalldocs renders them, and every internal link is followed.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf _proc _docs
nbdev_proc_nbs
smalldocs render _proc
# check also lists Quarto keys that smalldocs has no use for; only a broken link is a fault
if smalldocs check _proc | grep -i 'link'; then exit 1; fi
rm -rf _docs && mv _proc/_docs _docs
echo "The site is in _docs/: open _docs/index.html"
