"""Where numbers were measured: the few lines that every report carries."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np

from .. import __version__, isa
from .. import threads as default_threads
from .workers import usable_cpus

__all__ = ["environment"]


def environment(threads: int | None = None) -> dict[str, str]:
    """Names and versions of what a measurement ran on.

    Parameters
    ----------
    threads : int or None
        What the caller asked for; None for the library's default.

    >>> sorted(environment())[:2]
    ['cpu', 'cpus usable']
    """
    return {
        "kvant": __version__,
        "instruction set": isa.current(),
        "cpu": _cpu(),
        "cpus usable": str(usable_cpus()),
        "threads": str(default_threads() if threads is None else threads),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version.split()[0],
        "numpy": np.__version__,
    }


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
