"""What having kvant costs: bytes on disk, and the time of its import in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from kvant import _core
from kvant.bench.result import Step

from .bars import Check, import_bar
from .cases import Settings
from .section import Line, Section, mark

__all__ = ["plan"]

# Times the statement and nothing of the interpreter's own start; NumPy is there already, as it is
# in any program that has arrays to quantize.
_TIMED = """
import numpy, time
start = time.perf_counter()
import {name}
print(time.perf_counter() - start)
"""


def plan(settings: Settings, formats: Iterable[str] = ()) -> tuple[Section, list[Step]]:
    """Steps that time imports of kvant and its peers in turns, and add up their compiled files.

    Formats make no difference.
    """
    section = Section(
        "wheel",
        "Wheel: import after numpy in a fresh interpreter, and compiled files on disk",
        ("package", "import ms", "compiled MB", "bar"),
    )
    for wheel in sorted((Path(__file__).parent.parent / "dist").glob("*.whl")):
        section.notes.append(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB")
    return section, [Step("imports", lambda: _lines(settings))]


def _lines(settings: Settings) -> list[Line]:
    found = [n for n in ("kvant", "libgguf", "gguf", "llama_cpp") if find_spec(n)]
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(settings.rounds + 1):
        for name in found:
            seconds[name].append(_import_seconds(name))
    lines = []
    for name in found:
        # The first round reads the disk.
        ms = 1e3 * float(np.median(seconds[name][1:]))
        size = _compiled_bytes(name) / 1e6
        checks = [Check("import kvant, ms", ms, import_bar(), True)] if name == "kvant" else []
        row = {"package": name, "import_ms": ms, "compiled_mb": size}
        lines.append(Line(row, checks, (name, f"{ms:.0f}", f"{size:.1f}", mark(checks))))
    return lines


def _import_seconds(name: str) -> float:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ran = subprocess.run(
        [sys.executable, "-c", _TIMED.format(name=name)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(ran.stdout.splitlines()[-1])


def _compiled_bytes(name: str) -> int:
    spec = find_spec(name)
    origin = _core.__file__ if name == "kvant" else spec.origin if spec else None
    if origin is None:
        return 0
    files = {f.resolve() for f in Path(origin).parent.rglob("*.so*") if f.is_file()}
    return sum(f.stat().st_size for f in files)
