"""The committed stub of the extension is the one that nanobind writes from it."""

from __future__ import annotations

import pytest

from support import ROOT, run_python

STUB = ROOT / "python" / "kvant" / "_core.pyi"


@pytest.mark.skipif(not STUB.exists(), reason="needs a checkout")
def test_the_stub_is_up_to_date():
    pytest.importorskip("nanobind")
    tool = str(ROOT / "tools" / "make_stubs.py")
    run_it = f"runpy.run_path({tool!r}, run_name='__main__')"
    done = run_python(f"import runpy, sys; sys.argv = ['x', '--print']; {run_it}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == STUB.read_text()
