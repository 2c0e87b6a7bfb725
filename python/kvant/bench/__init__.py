"""Measure this machine and the library on it: memory, arithmetic, codecs, products, experts.

Every rate stands beside a limit of the machine that was measured in turns with it.

>>> from kvant import bench
>>> found = bench.bandwidth(bench.settings(threads=[1], memory=4 << 20, quick=True))
>>> [r.of_limit.median > 0 for r in found.rows if r.case["what"] == "store"][:1]
[True]
"""

from __future__ import annotations

from .bandwidth import bandwidth
from .codecs import codecs
from .compute import compute
from .experts import experts
from .machine import machine
from .matmul import matmul
from .result import Report, Row, Section
from .settings import Settings, settings

__all__ = [
    "Report",
    "Row",
    "Section",
    "Settings",
    "bandwidth",
    "codecs",
    "compute",
    "experts",
    "machine",
    "matmul",
    "settings",
]
