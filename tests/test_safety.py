"""What the library never does, whatever it is given: run what it reads, hand words to a shell, load a pickle. And what it stands on."""
import ast
import re
import sys
from pathlib import Path

import pytest

import lazyseg
import licences

FILES = sorted(Path(lazyseg.__file__).parent.glob("*.py"))
FOREIGN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "telnetlib", "ftplib"}
NEVER = {"eval", "exec", "compile", "__import__", "system", "popen", "read_pickle", "to_pickle", "load_learner", "load_module", "extractall", "unpack_archive", "mktemp", "urlopen", "urlretrieve"}
OURS = {"compile": {"re", "net"}, "eval": {"model", "generator", "pupil", "net"}} # torch's own switch and compiler, and re.compile, share the names


def faults_in(text):
    "Lines that do what no line may."
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            found += [f"{node.lineno}: imports {n}" for n in names if n.split(".")[0] in FOREIGN]
        if not isinstance(node, ast.Call): continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value).split(".")[-1] if isinstance(node.func, ast.Attribute) else ""
        how = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in NEVER and owner not in OURS.get(name, ()): found.append(f"{node.lineno}: calls {ast.unparse(node.func)}")
        if how.get("shell", "False") != "False": found.append(f"{node.lineno}: a shell")
        if (owner, name) == ("torch", "load") and how.get("weights_only") != "True": found.append(f"{node.lineno}: torch.load of more than weights")
        if (owner, name) == ("np", "load") and how.get("allow_pickle", "False") != "False": found.append(f"{node.lineno}: np.load of pickles")
        if name == "query": found.append(f"{node.lineno}: a query of pandas, which can call functions")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_nothing_runs_what_it_reads(file): assert faults_in(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("line", ["import pickle", "from joblib import load", "eval(text)", "exec(text)", "__import__(name)", "os.system(f'ls {name}')", "subprocess.run(words, shell=True)", "torch.load(file)",
                                  "torch.load(file, weights_only=False)", "np.load(file, allow_pickle=True)", "pd.read_pickle(file)", "table.eval(text)", "table.query(text)", "tar.extractall(folder)", "load_learner(file)"])
def test_it_would_be_seen(line): assert faults_in(line)


def test_what_is_allowed_is_not_seen():
    assert not faults_in("model.eval(); self.model.eval()(x); re.compile('x'); np.load(f); torch.load(f, weights_only=True); subprocess.run(['git', name])")


def test_numpy_loads_no_pickle_unless_told():
    import inspect
    import numpy as np
    assert inspect.signature(np.load).parameters["allow_pickle"].default is False


# -- what it stands on

def test_no_dependency_is_under_the_gpl_and_all_say_something():
    found = licences.licences()
    assert {"torch", "fastai", "numpy", "safetensors", "tqdm"} <= set(found)
    assert [f"{k}: {v}" for k, v in found.items() if re.search(r"\b(A|L)?GPL|GNU", v)] == []
    assert [k for k, v in found.items() if not v and not k.startswith(("cuda", "nvidia"))] == [], "look these up, and say what they are"


@pytest.mark.dev
def test_the_table_names_every_direct_dependency():
    said = (Path(lazyseg.__file__).parents[1] / "LICENCES.md").read_text(encoding="utf-8")
    assert [n for n in licences.wanted() if re.sub("[-_.]+", "-", n).lower() not in said] == []

