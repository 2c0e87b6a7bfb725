"""csrc/formats/grids.h is what tools/make_grids.py writes from the reference's code books."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support import ROOT

TOOL = ROOT / "tools" / "make_grids.py"


@pytest.mark.skipif(not TOOL.exists(), reason="needs a checkout")
def test_the_header_is_up_to_date():
    done = subprocess.run(
        [sys.executable, str(TOOL), "--print"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (ROOT / "csrc" / "formats" / "grids.h").read_text()
