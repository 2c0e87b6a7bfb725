"""Where and when: the head of every report."""

from __future__ import annotations

import subprocess
from pathlib import Path

import kvant
from kvant.bench.machine import load, machine, usable_cpus
from kvant.bench.machine import warnings as doubts

from . import peers
from .cases import Settings
from .probes import bandwidths

__all__ = ["describe", "load", "usable_cpus", "warnings"]


def describe(settings: Settings) -> dict[str, str]:
    """Machine, versions, commit, and what memory gives right now."""
    about = machine()
    rates = bandwidths(settings.decode_mib << 20, min(settings.rounds, 7))
    sizes = (f"L{c['level']} {c['bytes'] >> 10} KiB" for c in about["caches"])
    return {
        "date": about["date"],
        "system": about["system"],
        "cpu": about["cpu"],
        "cpus usable": str(about["cpus_usable"]),
        "caches": ", ".join(sizes) or "unknown",
        "clock": f"{about['clock_ghz']:.2f} GHz",
        "huge pages": about["pages"],
        "memory GB/s": ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items()),
        "load": "unknown" if about["load"] is None else f"{about['load']:.2f}",
        "isas": ", ".join(about["isas"]),
        "threads": str(about["threads"]),
        "kvant": f"{kvant.__version__} {_commit()}",
        "python, numpy": f"{about['python']}, {about['numpy']}",
        "peers": ", ".join(f"{name} {version}" for name, version in peers.versions().items()),
        "clock of one-threaded work": settings.clock,
    }


def warnings(head: dict[str, str]) -> list[str]:
    """What makes these numbers doubtful."""
    pages = head["huge pages"]
    busy = load()
    return doubts({"load": busy, "cpus_usable": usable_cpus(), "pages": pages, "gpus": []})


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
