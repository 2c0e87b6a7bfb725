"""Helpers that several rooms of the tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent


def shared_path(relative: str) -> Path:
    """A file or folder of real data, below `KVANT_SHARED` or beside the checkout; skips without."""
    base = Path(os.environ.get("KVANT_SHARED", ROOT.parent / "shared"))
    path = base / relative
    if not path.exists():
        pytest.skip(f"real data are absent: {relative} (set KVANT_SHARED to their folder)")
    return path


def every_isa() -> Iterator[str]:
    """Force each ISA of this machine in turn; the one in use before is put back at the end.

    For loops inside one example, where the oracle's answer is worth computing once only.
    """
    import kvant

    before = kvant.isa.current()
    try:
        for name in kvant.isa.available():
            kvant.isa.use(name)
            yield name
    finally:
        kvant.isa.use(before)


def bits(x: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Floats as words, every NaN made the canonical one, so that equal means equal."""
    words = np.ascontiguousarray(x).view(np.uint32)
    return np.where(np.isnan(x), np.uint32(0x7FC00000), words)


def words(x: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Floats as words, NaNs as they are: for results whose every NaN is canonical."""
    return np.ascontiguousarray(x).view(np.uint32)


def differing(name: str, got: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> str:
    """Say where two equally shaped arrays differ first."""
    at = np.argwhere(got != wanted)
    place = tuple(int(i) for i in at[0])
    return f"{name}: {len(at)} differ, first at {place}: got {got[place]}, expected {wanted[place]}"


def run_python(code: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds kvant and this folder; never raises."""
    import kvant

    paths = [str(Path(kvant.__file__).parent.parent), str(ROOT / "tests")]
    everything = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **env}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=everything,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
