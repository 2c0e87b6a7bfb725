"""docs/errors.md against the code: types of kvant.errors, codes of kvant.h and of status.h."""

from __future__ import annotations

import re

import pytest
from c_library import header

import kvant
from kvant import errors
from support import ROOT

DOCUMENT = ROOT / "docs" / "errors.md"
STATUS = ROOT / "csrc" / "base" / "status.h"
BINDING = ROOT / "src" / "errors.h"

pytestmark = pytest.mark.skipif(not DOCUMENT.exists(), reason="needs a checkout")


def table(columns):
    """Rows of the table of so many columns, code marks taken away."""
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if len(row) == columns]


def header_codes():
    return {name: int(n) for name, n in re.findall(r"(KVANT_[A-Z_]+) = (-\d+|0)\b", header())}


def test_the_types_are_those_of_the_module():
    rows = table(3)
    assert sorted(name for name, _, _ in rows) == errors.__all__
    for name, builtin, _ in rows:
        found = getattr(errors, name)
        assert found is getattr(kvant, name)
        assert issubclass(found, errors.Error)
        assert builtin in [base.__name__ for base in found.__mro__]


# What begins other lists of the header, at zero.
_FIRST_OF_OTHERS = ("KVANT_F32", "KVANT_SILU", "KVANT_SHARES_OF_ALL", "KVANT_SCALE_NORM")


def test_the_codes_are_those_of_the_header_and_of_the_rooms():
    documented = {name: int(number) for name, number, _, _ in table(4)}
    in_header = {n: v for n, v in header_codes().items() if n not in _FIRST_OF_OTHERS}
    assert documented == in_header
    enum = re.search(r"enum class Code.*?\{(.*?)\}", STATUS.read_text(), re.S)
    rooms = {f"KVANT_{n.upper()}": int(v) for n, v in re.findall(r"(\w+) = (-?\d+)", enum[1])}
    assert documented == rooms


def test_each_code_is_raised_as_documented():
    """The binding names a type for some codes; all others are the last of its choices."""
    text = BINDING.read_text()
    named = dict(re.findall(r"code == (KVANT_\w+)\s*\? \"(\w+)\"", text))
    other = re.search(r": \"(\w+)\";", text)[1]
    memory = re.search(r"code == (KVANT_\w+)\) throw std::bad_alloc", text)[1]
    for name, number, python, _ in table(4):
        if int(number) == 0:
            assert python == ""
        elif name == memory:
            assert python == "MemoryError"
        else:
            assert python == named.get(name, other)


def test_the_binding_raises_what_the_library_says():
    with pytest.raises(kvant.IsaError, match="no ISA of that name in this build"):
        kvant._core.isa_use("nowhere")
    with pytest.raises(kvant.FormatError, match="no such format"):
        kvant._core.validate(99, 0, 0, 0, 0, 0)
    with pytest.raises(kvant.ShapeError, match="negative number of rows"):
        kvant._core.validate(3, 0, 0, -1, 0, 0)
