"""The C ABI of the installed library, as cffi sees it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from c_library import Library, open_library


@pytest.fixture(scope="session")
def c() -> Library:
    """`c.lib` calls, `c.ffi` allocates."""
    return open_library()
