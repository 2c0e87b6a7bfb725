"""kvant.isa: listing, forcing, and KVANT_ISA."""

from __future__ import annotations

import platform

import pytest

import kvant
from support import run_python


def test_the_list_is_best_first_and_ends_with_scalar():
    names = [i.name for i in kvant.isa.listed()]
    wanted = {
        "x86_64": ["avx512vnni", "avx2", "scalar"],
        "aarch64": ["neon_i8mm", "neon_dotprod", "scalar"],
        "arm64": ["neon_i8mm", "neon_dotprod", "scalar"],
    }
    assert names == wanted.get(platform.machine(), ["scalar"])
    assert kvant.isa.listed()[-1].supported
    assert kvant.isa.available() == tuple(i.name for i in kvant.isa.listed() if i.supported)


def test_forcing_one_makes_it_the_current_one(isa):
    assert kvant.isa.current() == isa


@pytest.mark.parametrize("name", ["", "sse9", "AVX2", "scalar ", None])
def test_an_unknown_name_is_refused_and_changes_nothing(name):
    before = kvant.isa.current()
    with pytest.raises(kvant.IsaError, match=r"^\[isa.use\] expected one of .*scalar, got"):
        kvant.isa.use(name)
    assert kvant.isa.current() == before


def test_an_isa_of_another_machine_is_refused():
    other = "avx2" if platform.machine() != "x86_64" else "neon_dotprod"
    with pytest.raises(kvant.IsaError, match=f"got '{other}'"):
        kvant.isa.use(other)


SHOW = "import kvant; print(kvant.isa.current())"


@pytest.mark.parametrize("name", kvant.isa.available())
def test_the_environment_chooses(name):
    done = run_python(SHOW, KVANT_ISA=name)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, name, "")


def test_without_a_choice_the_best_is_used():
    assert run_python(SHOW, KVANT_ISA="").stdout.strip() == kvant.isa.available()[0]


@pytest.mark.parametrize("name", ["doesnotexist", "neon_dotprodx", "AVX2"])
def test_an_unknown_isa_in_the_environment_fails_at_import(name):
    done = run_python("import kvant", KVANT_ISA=name)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("kvant.errors.IsaError: [isa] expected KVANT_ISA to be one of ")
    assert last.endswith(f"got '{name}'")


def test_a_choice_holds_in_every_thread():
    from concurrent.futures import ThreadPoolExecutor

    before = kvant.isa.current()
    try:
        for name in kvant.isa.available():
            kvant.isa.use(name)
            with ThreadPoolExecutor(2) as pool:
                assert pool.submit(kvant.isa.current).result() == name
    finally:
        kvant.isa.use(before)
