"""Under which licences is what lazyseg needs? `python tests/licences.py > LICENCES.md` writes a table of every package that is installed
because of `requirements` or of an extra for use (dicom, download, audit, hub) in settings.ini, directly or through others.
tests/test_safety.py asks that none of them is under the GPL and that none says nothing. The licence is what the package itself declares."""
import re
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

EXTRAS = ('', 'dicom_', 'download_', 'audit_', 'hub_') # of settings.ini, with which somebody uses the library


def wanted():
    "{name of a package: which line of settings.ini names it}"
    settings = ConfigParser()
    settings.read(Path(__file__).resolve().parents[1]/'settings.ini', encoding='utf-8')
    return {Requirement(word).name: extra.rstrip('_') or 'always' for extra in EXTRAS for word in settings['DEFAULT'][f'{extra}requirements'].split()}


def walk(name, found, extras=()):
    "Into `found`, {name: distribution}: an installed package and all that it needs here."
    key = re.sub('[-_.]+', '-', name).lower()
    if key in found: return
    try: found[key] = distribution(name)
    except PackageNotFoundError: return
    for need in map(Requirement, found[key].requires or ()):
        if need.marker is None or any(need.marker.evaluate(dict(extra=e)) for e in ('', *extras)): walk(need.name, found, need.extras)


SHORT = {'MIT License': 'MIT', 'BSD License': 'BSD', 'Apache Software License': 'Apache-2.0', 'Mozilla Public License 2.0 (MPL 2.0)': 'MPL-2.0', 'ISC License (ISCL)': 'ISC',
         'Python Software Foundation License': 'PSF', 'Other/Proprietary License': 'proprietary', 'LicenseRef-NVIDIA-Proprietary': 'proprietary', 'NVIDIA Proprietary Software': 'proprietary'}


def licence(about):
    "One line for what a package's metadata declares; empty where it declares nothing."
    if about.get('License-Expression'): return SHORT.get(about['License-Expression'], about['License-Expression'])
    named = [c.rpartition(' :: ')[2] for c in about.get_all('Classifier') or () if c.startswith('License ::') and not c.endswith('OSI Approved')]
    first = (about.get('License') or '').strip().split('\n')[0]
    return '; '.join(SHORT.get(n, n) for n in named) if named else first if 0 < len(first) < 60 and first != 'UNKNOWN' else ''


def licences():
    "{name: licence} of all that is installed for use; `wanted` may name more, which is not."
    found = {}
    for name in wanted(): walk(name, found)
    return {k: licence(d.metadata) for k, d in sorted(found.items())}


def main():
    groups, direct = {}, {re.sub('[-_.]+', '-', k).lower(): v for k, v in wanted().items()}
    for name, what in licences().items(): groups.setdefault(what or 'declares none', []).append(f'**{name}**' if name in direct else name)
    print('# What lazyseg stands on\n\nlazyseg itself is under Apache-2.0. Using it installs these packages, directly (bold) or through others, each under the licence that it declares.\n'
          'torch brings the libraries of NVIDIA on Linux, under terms of their own; they are not needed where there is no such card. Nothing is under the GPL.\n'
          'Made by `python tests/licences.py`, on Linux with every extra for use.\n\n| licence | packages |\n|---|---|')
    for what, names in sorted(groups.items(), key=lambda o: -len(o[1])): print(f"| {what} | {', '.join(names)} |")
    if gone := set(direct) - set(licences()): print(f"\nNot installed when this was made: {', '.join(sorted(gone))}.")


if __name__ == '__main__': main()
