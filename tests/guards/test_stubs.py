"""The committed stub of the extension is the one that nanobind writes from it."""

from __future__ import annotations

import pytest
from support import ROOT, run_python

STUB = ROOT / "python" / "kvant" / "_core.pyi"


@pytest.mark.skipif(not STUB.exists(), reason="needs a checkout")
def test_the_stub_is_up_to_date():
    pytest.importorskip("nanobind")
    tool = ROOT / "tools" / "make_stubs.py"
    done = run_python(f"import sys, runpy; sys.argv = ['x', '--print']\nrunpy.run_path({str(tool)!r}, run_name='__main__')")
    assert done.returncode == 0, done.stderr
    assert done.stdout == STUB.read_text()
