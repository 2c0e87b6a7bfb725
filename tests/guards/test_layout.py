"""The direction of dependency, and the few rules of layout that a program can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from support import ROOT

CSRC, SRC, PYTHON = ROOT / "csrc", ROOT / "src", ROOT / "python" / "kvant"
SOURCES = sorted(
    p for folder in (CSRC, SRC) for p in folder.rglob("*") if p.suffix in (".h", ".cpp")
)

# What each room of csrc may include, besides itself.
MAY_SEE = {
    "base": set(),
    "formats": {"base"},
    "simd": {"base"},
    "kernels": {"base", "formats", "simd"},
    "isa": {"base", "simd", "kernels"},
    "runtime": {"base"},
    "files": {"base"},
    "codec": {"base", "kernels", "isa", "runtime"},
    "kv": {"base", "kernels", "isa", "runtime"},
    "matmul": {"base", "kernels", "isa", "runtime"},
    "ops": {"base", "kernels", "isa", "runtime"},
    "probe": {"base", "kernels", "isa", "runtime"},
    "capi": {"base", "codec", "files", "isa", "kv", "matmul", "ops", "probe", "runtime"},
}
USERS_OF_KERNELS = {"kernels", "isa", *(room for room in MAY_SEE if "kernels" in MAY_SEE[room])}
# Where words of one processor may stand outside of simd/: its control register, its pause.
PROCESSOR_WORDS = {"runtime/float_env.h", "runtime/pool.cpp", "isa/detect.cpp"}
INTRINSICS = re.compile(
    r"\b(_mm\d*_\w+|__m(?:128|256|512)\w*|v\w+_[fsu](?:8|16|32|64)|(?:float|u?int)\d+x\d+_t)\b"
    r"|\w*(?:mmintrin|arm_neon)\.h"
)
GENERATED = {"formats/grids.h"}


def includes(path):
    """(quoted, name) of every include."""
    return re.findall(r'^#\s*include ([<"])([^">]+)[">]', path.read_text(), re.M)


def code(path):
    """The text without comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.S)


def name(path):
    return path.relative_to(CSRC if path.is_relative_to(CSRC) else ROOT).as_posix()


def paths(*folders):
    return [p for p in SOURCES if any(p.is_relative_to(CSRC / f) for f in folders)]


def test_every_room_is_known():
    assert {p.name for p in CSRC.iterdir() if p.is_dir()} == set(MAY_SEE)


@pytest.mark.parametrize("room", MAY_SEE)
def test_rooms_include_only_what_they_may_see(room):
    for path in paths(room):
        for quote, included in includes(path):
            if quote == '"':
                assert (CSRC / included).exists(), f"{name(path)} includes {included}"
                assert included.split("/")[0] in {room, *MAY_SEE[room]}, (
                    f"{name(path)} includes {included}"
                )


def units():
    """The sources of csrc/isa that every ISA compiles."""
    listed = (ROOT / "cmake" / "KvantIsa.cmake").read_text()
    return re.findall(r"KVANT_ISA_UNITS ([\w ]+)\)", listed)[0].split()


def test_kernel_loops_are_compiled_by_isas_only():
    loops = {p.name for p in (CSRC / "kernels").glob("*.h")} - {"kernels.h", "attend_kernels.h"}
    assert set(units()) == {p.stem for p in (CSRC / "isa").glob("*.cpp")} - {"detect", "select"}
    for path in SOURCES:
        used = {i for _, i in includes(path) if i.startswith("kernels/")}
        inner = {i for i in used if i.split("/")[1] in loops}
        if path.parent.name == "isa" and path.stem in units():
            assert used == {f"kernels/make_{path.stem}.h"}
        elif path.parent.name != "kernels":
            assert not inner, f"{name(path)} includes {inner}"
        if used and path.parent.name not in USERS_OF_KERNELS:
            raise AssertionError(f"{name(path)} includes {used}")


def test_an_isa_unit_is_a_few_lines():
    for unit in units():
        text = (CSRC / "isa" / f"{unit}.cpp").read_text()
        assert len(text.splitlines()) <= 12
        assert f"make_{unit}<" in text


def test_isa_units_use_no_standard_containers():
    allowed = {"cstdint", "cstddef", "cstring", "immintrin.h", "arm_neon.h"}
    for path in paths("base", "formats", "simd", "kernels"):
        outside = {i for quote, i in includes(path) if quote == "<"} - allowed
        assert not outside, f"{name(path)} includes {outside}"


def test_intrinsics_stand_in_simd_only():
    for path in SOURCES:
        if path.parent.name == "simd" or name(path) in PROCESSOR_WORDS:
            continue
        found = [match[0] for match in INTRINSICS.finditer(code(path))]
        assert not found, f"{name(path)} uses {found[:3]}"


def test_the_pattern_knows_intrinsics():
    """Or the rule above could not fail."""
    for path in (CSRC / "simd").glob("*.h"):
        if path.name not in ("scalar.h", "vec.h"):
            assert len(INTRINSICS.findall(code(path))) > 20
    assert INTRINSICS.findall(code(CSRC / "simd" / "scalar.h")) == []


def test_the_exceptions_need_to_be_ones():
    for listed in PROCESSOR_WORDS:
        text = (CSRC / listed).read_text()
        assert re.search(r"__x86_64__|__aarch64__", text)


def test_formats_know_no_processor():
    word = re.compile(r"__(x86_64|aarch64|AVX\w*|ARM\w*|SSE\w*)__|__ARM_")
    for path in paths("formats", "kernels", "codec", "capi", "files", "probe", "base"):
        assert not word.search(code(path)), name(path)


def test_only_src_knows_python():
    for path in SOURCES:
        for quote, included in includes(path):
            if path.is_relative_to(CSRC):
                assert not re.match(r"nanobind|Python\.h|numpy", included), name(path)
            elif quote == '"':
                own = ("errors.h", "program.h", "capi/kvant.h")
                assert included in own, f"{name(path)} includes {included}"


def test_one_header_is_installed():
    text = (ROOT / "CMakeLists.txt").read_text()
    assert re.findall(r"install\(FILES (\S+)", text) == ["csrc/capi/kvant.h"]
    assert all(quote == "<" for quote, _ in includes(CSRC / "capi" / "kvant.h"))


def test_headers_are_guarded_once():
    for path in SOURCES:
        if path.suffix == ".h" and path.name != "kvant.h":
            assert "#pragma once" in path.read_text(), name(path)


def imported(path):
    """Top-level names of every module that a Python file imports, relative ones as '.'."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else str(node.module)


def test_the_reference_needs_numpy_only():
    for path in (PYTHON / "reference").rglob("*.py"):
        for module in imported(path):
            top = module.split(".")[0]
            assert top in {"", "numpy", *sys.stdlib_module_names}, f"{path.name} imports {module}"


def test_the_reference_loads_without_the_extension():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import reference; "
        "assert 'kvant' not in sys.modules; print(len(reference.FORMATS))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(PYTHON)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_the_extension_is_reached_through_few_modules():
    """Rooms of Python use the public functions; the private module is for the lowest ones."""
    users = {
        path.relative_to(PYTHON).as_posix()
        for path in PYTHON.rglob("*.py")
        if re.search(r"import .*\b_core\b|kvant\._core", path.read_text())
    }
    lowest = {
        "__init__.py",
        "arithmetic.py",
        "arrays.py",
        "experts.py",
        "formats.py",
        "isa.py",
        "networks.py",
    }
    lowest |= {"ops.py", "packed.py", "products.py", "qtensor.py", "quant.py", "weights.py"}
    lowest |= {"bench/probes.py", "lab/divergence.py", "models/profile.py"}
    lowest |= {"models/replay.py", "transforms.py"}
    lowest |= {"kv/batches.py", "kv/cache.py", "kv/codecs.py", "kv/selection.py", "kv/sequence.py"}
    assert {u for u in users if not u.startswith("gguf/")} <= lowest


def test_files_are_short():
    # The C header is one: that is a promise.
    own = [p for p in SOURCES if name(p) not in {*GENERATED, "capi/kvant.h"}]
    for folder in ("python", "tests", "tools", "examples", "benchmarks", "docs/decisions"):
        own += [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".cpp", ".md")]
    lengths = {p.relative_to(ROOT).as_posix(): p.read_text().count("\n") for p in own}
    assert {path: n for path, n in lengths.items() if n > 400} == {}
