#!/usr/bin/env bash
# The docs site: nbdev processes the notebooks, smalldocs renders them, and every internal link is followed.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf _proc _docs
nbdev_proc_nbs
smalldocs render _proc
smalldocs check _proc
