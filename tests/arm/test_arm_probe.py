"""The probes of the Arm build do all the work that they are timed for."""

from __future__ import annotations

import subprocess

import pytest
from codec_client import EMULATOR, ISAS, SYSROOT, build

pytestmark = pytest.mark.arm


def test_the_probes_compute_what_they_should() -> None:
    program = build().with_name("probe_check")
    done = subprocess.run(
        [EMULATOR, "-L", SYSROOT, str(program)], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split("\n")[:-1] == [f"{isa} 0" for isa in ISAS], done.stderr
    assert done.returncode == 0
