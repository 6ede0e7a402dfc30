"""The faults of tests/mutations.py still fit the library and the tests: what runs only now and then would go stale unseen."""
from collections import Counter

import pytest

import mutations
from mutations import FAULTS, ROOT

pytestmark = pytest.mark.dev


@pytest.mark.parametrize("what, module, old, new, test", FAULTS, ids=[f[0] for f in FAULTS])
def test_a_fault_fits(what, module, old, new, test):
    text = (ROOT / "lazyseg" / f"{module}.py").read_text(encoding="utf-8")
    assert text.count(old) == 1, f"lazyseg/{module}.py holds {text.count(old)} times: {old}"
    compile(text.replace(old, new), module, "exec")
    file, _, name = test.partition("[")[0].partition("::")
    assert f"def {name.rpartition('::')[2]}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_every_fault_is_another_one():
    assert [k for k, n in Counter(f[0] for f in FAULTS).items() if n > 1] == []
    assert not [f[0] for f in FAULTS if f[2] == f[3]]


def test_a_fault_that_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(LookupError, match="holds 0 times"): mutations.make_copy(tmp_path / "copy", "core", "no such line", "")
