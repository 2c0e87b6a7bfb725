"""Where and when: the head of every report."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np

import kvant

from . import peers
from .cases import Settings
from .probes import bandwidths, buffer, clock_hertz

__all__ = ["describe", "load", "usable_cpus", "warnings"]

_CPU = Path("/sys/devices/system/cpu")
_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def usable_cpus() -> int:
    """Processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> float | None:
    """Programs that wanted a processor over the last minute; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def describe(settings: Settings) -> dict[str, str]:
    """Machine, versions, commit, and what memory gives right now."""
    hertz = clock_hertz()
    rates = bandwidths(buffer(settings.decode_mib << 20), min(settings.rounds, 7))
    busy = load()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpus usable": str(usable_cpus()),
        "caches": _caches(),
        "clock": f"{hertz / 1e9:.2f} GHz" if hertz else "unknown (no C compiler)",
        "huge pages": _read(_PAGES) or "unknown",
        "memory GB/s": ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items()),
        "load": "unknown" if busy is None else f"{busy:.2f}",
        "isas": ", ".join(kvant.isa.available()),
        "threads": str(kvant.threads()),
        "kvant": f"{kvant.__version__} {_commit()}",
        "python, numpy": f"{sys.version.split()[0]}, {np.__version__}",
        "peers": ", ".join(f"{name} {version}" for name, version in peers.versions().items()),
        "clock of one-threaded work": settings.clock,
    }


def warnings(head: dict[str, str]) -> list[str]:
    """What makes these numbers doubtful."""
    found = []
    busy = load()
    if busy is not None and busy > 0.5 * usable_cpus():
        found.append(f"the machine is busy (load {busy:.1f}): only ratios mean anything, if those")
    if "stream" not in head["memory GB/s"]:
        found.append(
            "no streaming probe here: shares of store bandwidth are against memset and fill"
        )
    if "[never]" in head["huge pages"]:
        found.append("huge pages are off: memory is slower than it could be")
    return found


def _cpu_name() -> str:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def _caches() -> str:
    found = []
    for index in sorted((_CPU / "cpu0" / "cache").glob("index*")):
        if _read(index / "type") != "Instruction":
            found.append(f"L{_read(index / 'level')} {_read(index / 'size')}")
    return ", ".join(found) or "unknown"


def _commit() -> str:
    root = Path(__file__).parent.parent
    try:
        ran = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return "(no commit known)"
    return f"({ran.stdout.strip()})"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
