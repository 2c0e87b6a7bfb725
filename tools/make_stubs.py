"""Writes python/kvant/_core.pyi from the compiled extension (run by hand; a test compares).

python tools/make_stubs.py            # rewrite the stub
python tools/make_stubs.py --print    # to standard output
"""

from __future__ import annotations

import sys
from pathlib import Path

from nanobind.stubgen import StubGen

from kvant import _core

STUB = Path(__file__).resolve().parent.parent / "python" / "kvant" / "_core.pyi"
TITLE = '"""The private extension; written by tools/make_stubs.py."""\n\n# ruff: noqa\n'


def stub() -> str:
    generator = StubGen(_core, quiet=True)
    generator.put(_core)
    return TITLE + str(generator.get()).strip() + "\n"


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        sys.stdout.write(stub())
    else:
        STUB.write_text(stub())
