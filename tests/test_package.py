"""What `pip` makes of the project: a source archive that can be built, and a wheel that holds all that the library needs."""
import shutil
import subprocess
import sys
import zipfile

import pytest

from lazyseg.core import project_root


@pytest.mark.dev
def test_a_wheel_can_be_built_from_the_source_archive(tmp_path):
    build = lambda where, *words: subprocess.run([sys.executable, "setup.py", "-q", *words], cwd=where, check=True, capture_output=True, text=True)
    if not (project_root() / ".git").exists(): pytest.skip("no clone, and building in place leaves folders behind")
    here = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", str(project_root()), str(here)], check=True)
    build(here, "sdist", "-d", str(tmp_path))
    archive, = tmp_path.glob("lazyseg-*.tar.gz")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    source, = (tmp_path / "unpacked").iterdir()
    build(source, "bdist_wheel", "-d", str(tmp_path))
    wheel, = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"lazyseg/{p.name}" for p in (here / "lazyseg").iterdir() if p.suffix in (".py", ".json", ".safetensors")} <= held
    assert not [n for n in held if not n.startswith(("lazyseg/", "lazyseg-"))], "nothing else lands in site-packages"
