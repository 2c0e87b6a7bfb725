"""Opens libkvant through its own header: the part between the cffi marks is plain C."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvant import _core
from support import ROOT

# Beside the extension: an editable install keeps both apart from the Python files.
PACKAGE = Path(_core.__file__).parent


class Library(NamedTuple):
    """What cffi needs to call the C ABI."""

    ffi: Any
    lib: Any


def header() -> str:
    """The text of kvant.h: the installed one, or that of the checkout."""
    for path in (PACKAGE / "include" / "kvant.h", ROOT / "csrc" / "capi" / "kvant.h"):
        if path.exists():
            return path.read_text()
    raise FileNotFoundError("kvant.h is neither installed nor in a checkout")


def declarations() -> str:
    """What stands between the marks."""
    found = re.search(r"cffi:begin.*?\n(.*?)\n[^\n]*cffi:end", header(), re.S)
    assert found, "kvant.h has no cffi marks"
    return found[1]


def functions() -> list[str]:
    """Names of all functions that the header declares."""
    return re.findall(r"\b(kvant_\w+)\(", re.sub(r"/\*.*?\*/", "", declarations(), flags=re.S))


def open_library() -> Library:
    cffi = pytest.importorskip("cffi")
    ffi = cffi.FFI()
    ffi.cdef(declarations())
    suffix = "dylib" if sys.platform == "darwin" else "so"
    return Library(ffi, ffi.dlopen(str(PACKAGE / f"libkvant.{suffix}")))
