"""The C ABI of the installed library, as cffi sees it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from c_library import Library, open_library


@pytest.fixture(scope="session")
def c() -> Library:
    """`c.lib` calls, `c.ffi` allocates."""
    return open_library()


@pytest.fixture
def call(c):
    """Calls by name; NumPy arrays become pointers of the declared type."""

    def pointer(value, kind):
        if isinstance(value, np.ndarray):
            return c.ffi.cast(kind, value.ctypes.data)
        return c.ffi.NULL if value is None else value

    def run(name, *args):
        function = getattr(c.lib, name)
        kinds = c.ffi.typeof(function).args
        assert len(kinds) == len(args)
        return function(*(pointer(a, k) for a, k in zip(args, kinds, strict=True)))

    return run
