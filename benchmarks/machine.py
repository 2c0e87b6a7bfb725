"""Where and when: the head of every report."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from kvant.bench.machine import machine
from kvant.bench.machine import warnings as doubts
from kvant.bench.report import head_lines

from . import peers

__all__ = ["describe", "heading", "lines", "warnings"]


def describe() -> dict[str, Any]:
    """The machine as `kvant bench` describes it, the commit, and versions of the peers."""
    return machine() | {"commit": _commit(), "peers": peers.versions()}


def heading(about: dict[str, Any]) -> str:
    """What must stand beside every number.

    >>> about = {"cpu": "Z80", "system": "Linux", "isa": "scalar", "threads": 1, "kvant": "0.1.0"}
    >>> heading(about | {"commit": "1f9a479", "date": "2026-01-02T03:04:05+00:00"})
    'Z80, Linux, scalar, threads: 1; kvant 0.1.0 (1f9a479), 2026-01-02'
    """
    host = f"{about['cpu']}, {about['system']}, {about['isa']}, threads: {about['threads']}"
    return f"{host}; kvant {about['kvant']} ({about['commit']}), {about['date'][:10]}"


def lines(about: dict[str, Any]) -> list[tuple[str, str]]:
    """The head as pairs of words and values."""
    versions = ", ".join(f"{name} {version}" for name, version in about["peers"].items())
    return [*head_lines(about), ("commit", about["commit"]), ("peers", versions)]


def warnings(about: dict[str, Any]) -> list[str]:
    """What makes these numbers doubtful, and what they lack."""
    found = doubts(about)
    if about["peers"]["ggml"] == "absent":
        found.append("llama-cpp-python is absent or does not load: ggml's columns are left out")
    return found


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
        return "no commit known"
    return ran.stdout.strip()
