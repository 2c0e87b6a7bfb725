"""The thread pool under ThreadSanitizer: the one place where threads share memory."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from support import ROOT

POOL = ROOT / "csrc" / "runtime" / "pool.cpp"
DRIVER = ROOT / "tests" / "guards" / "pool_driver.cpp"
FLAGS = ["-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread", "-I", str(ROOT / "csrc")]


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_the_pool_has_no_races(tmp_path):
    program = tmp_path / "pool"
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}")
    if subprocess.run(
        ["c++", *FLAGS, str(empty), "-o", str(program)], capture_output=True
    ).returncode:
        pytest.skip("needs a compiler with ThreadSanitizer")
    built = subprocess.run(
        ["c++", *FLAGS, str(DRIVER), str(POOL), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[:2000]
    assert done.stdout == "0 tasks not run once\n"
