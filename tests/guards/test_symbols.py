"""Objects of one ISA export their table and nothing else: what leaks could run on any machine."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from support import ROOT

OBJECTS = sorted((ROOT / "build").glob("**/CMakeFiles/kvant_isa_*.dir/csrc/isa/*.o"))
LISTED = (ROOT / "cmake" / "KvantIsa.cmake").read_text()
ISAS = re.findall(r'^\s+"(\w+)\|', LISTED, re.M)
UNITS = re.findall(r"KVANT_ISA_UNITS ([\w ]+)\)", LISTED)[0].split()


def sources(isa, unit):
    """Files that an object of an ISA is made from."""
    names = ["base/contracts.h", "base/f16.h", *headers(f"simd/{isa}.h"), f"isa/{unit}.cpp"]
    shared = [p for room in ("formats", "kernels") for p in (ROOT / "csrc" / room).glob("*.h")]
    return [ROOT / "csrc" / name for name in names] + shared


def headers(name):
    """A header of simd/ and those of simd/ it is built on."""
    text = (ROOT / "csrc" / name).read_text()
    below = re.findall(r'^#include "(simd/\w+\.h)"', text, re.M)
    return {name}.union(*map(headers, below))


def symbols(path):
    """(type, name) of every symbol that the object defines."""
    done = subprocess.run(
        ["nm", "--defined-only", str(path)], capture_output=True, text=True, check=True
    )
    return [tuple(line.split()[-2:]) for line in done.stdout.splitlines() if len(line.split()) > 2]


@pytest.mark.skipif(not (ROOT / "build").exists(), reason="nothing was built in this checkout")
def test_there_are_objects():
    assert OBJECTS, "build/ holds no object of an ISA"


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: str(p.relative_to(ROOT / "build")))
def test_one_exported_symbol_and_no_weak_ones(path):
    unit = path.name.split(".")[0]
    isa = path.parents[2].name.removeprefix("kvant_isa_").removesuffix(".dir")
    assert isa in ISAS and unit in UNITS
    if path.stat().st_mtime < max(source.stat().st_mtime for source in sources(isa, unit)):
        pytest.skip("older than its sources: build again")
    found = symbols(path)
    exported = [name for kind, name in found if kind.isupper() and kind not in "WVU"]
    assert len(exported) == 1 and re.fullmatch(rf"_ZN5kvant\d+kernels_{unit}_{isa}E", exported[0])
    assert [name for kind, name in found if kind in "WVwvu"] == []
    # Nothing may run before the processor was asked what it can do.
    assert [name for _, name in found if "GLOBAL__sub_I" in name] == []
