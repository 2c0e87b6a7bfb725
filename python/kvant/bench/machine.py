"""The machine under test: the head of every report, and the sizes that measurements depend on."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .. import isa
from ..lab.environment import environment
from ..lab.workers import usable_cpus
from .probes import ticks_task
from .timing import turns

__all__ = [
    "available_bytes",
    "caches",
    "clock_hertz",
    "gpus",
    "last_level_bytes",
    "load",
    "machine",
    "page_setting",
    "usable_cpus",
    "warnings",
]

_CPU = Path("/sys/devices/system/cpu")
_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_NVIDIA = Path("/proc/driver/nvidia/gpus")
_MIB = 1 << 20
# Where the system does not tell, the cache of a large desktop processor.
_UNKNOWN_CACHE = 32 * _MIB


def machine(threads: int | None = None) -> dict[str, Any]:
    """Describe this machine and what is installed on it, for a file.

    >>> sorted(machine())[:4]
    ['available_bytes', 'caches', 'clock_ghz', 'cpu']
    """
    about = environment(threads)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "system": about["system"],
        "cpu": about["cpu"],
        "cpus_usable": usable_cpus(),
        "threads": int(about["threads"]),
        "isa": about["instruction set"],
        "isas": list(isa.available()),
        "caches": caches(),
        "available_bytes": available_bytes(),
        "pages": page_setting(),
        "clock_ghz": round(clock_hertz() / 1e9, 3),
        "load": load(),
        "kvant": about["kvant"],
        "python": about["python"],
        "numpy": about["numpy"],
        "gpus": gpus(),
    }


def warnings(head: dict[str, Any]) -> list[str]:
    """What makes numbers taken now doubtful, and what was seen and is not used.

    >>> warnings({"load": 7.5, "cpus_usable": 2, "pages": "always", "gpus": []})
    ['the machine is busy (load 7.5): only shares and ratios mean anything, if those']
    """
    found = []
    if head["load"] is not None and head["load"] > 0.5 * head["cpus_usable"]:
        found.append(
            f"the machine is busy (load {head['load']:.1f}): "
            "only shares and ratios mean anything, if those"
        )
    if head["pages"] == "never":
        found.append("huge pages are off: memory is slower than it could be")
    for gpu in head["gpus"]:
        found.append(f"seen, but not used by this version: {gpu}")
    return found


def load() -> float | None:
    """Programs that wanted a processor over the last minute; None where the system is silent."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def caches() -> list[dict[str, Any]]:
    """Data caches of the first processor: level, bytes, and how many processors share one."""
    found = []
    for index in sorted((_CPU / "cpu0" / "cache").glob("index*")):
        size = _bytes(_read(index / "size"))
        if size and _read(index / "type") != "Instruction":
            shared = _count(_read(index / "shared_cpu_list") or "0")
            found.append(
                {"level": int(_read(index / "level") or 0), "bytes": size, "shared_by": shared}
            )
    return found or _apple_caches()


def last_level_bytes() -> int:
    """Size of the largest cache that a processor reaches."""
    return max((c["bytes"] for c in caches()), default=_UNKNOWN_CACHE)


def available_bytes() -> int:
    """Memory that programs may still take without swapping; 0 where the system is silent."""
    for line in (_read(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _sysctl("hw.memsize") // 2


def page_setting() -> str:
    """Transparent huge pages: `always`, `madvise` or `never`; else the page size.

    >>> page_setting() != ""
    True
    """
    text = _read(_PAGES)
    if text and "[" in text:
        return text.split("[")[1].split("]")[0]
    return f"{os.sysconf('SC_PAGE_SIZE') // 1024} KiB"


def clock_hertz(rounds: int = 7) -> float:
    """Estimate of the clock while one core is busy, from a chain of additions."""
    steps = 100_000
    times = turns({"ticks": ticks_task(steps)}, rounds=rounds, sample=0.0)
    return 16 * steps / float(times["ticks"].wall.min())


def gpus() -> list[str]:
    """NVIDIA devices that the system names; none is needed and none is used.

    >>> isinstance(gpus(), list)
    True
    """
    tool = shutil.which("nvidia-smi")
    if tool:
        try:
            ran = subprocess.run(
                [tool, "-L"], capture_output=True, text=True, timeout=20, check=True
            )
            listed = [line.strip() for line in ran.stdout.splitlines() if line.startswith("GPU ")]
            # The serial number of a device is nobody's business.
            return [line.split(" (UUID")[0] for line in listed]
        except (OSError, subprocess.SubprocessError):
            pass
    found: list[str] = []
    for path in sorted(_NVIDIA.glob("*/information")):
        for line in (_read(path) or "").splitlines():
            if line.startswith("Model:"):
                found.append(f"GPU {len(found)}: {line.partition(':')[2].strip()}")
    return found


def _apple_caches() -> list[dict[str, Any]]:
    found = []
    for level, names in (
        (1, ("hw.perflevel0.l1dcachesize", "hw.l1dcachesize")),
        (2, ("hw.perflevel0.l2cachesize", "hw.l2cachesize")),
        (3, ("hw.l3cachesize",)),
    ):
        size = next(filter(None, map(_sysctl, names)), 0)
        if size:
            found.append({"level": level, "bytes": size, "shared_by": 1})
    return found


def _sysctl(name: str) -> int:
    if sys.platform != "darwin":
        return 0
    try:
        ran = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=20)
        return int(ran.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def _bytes(text: str | None) -> int:
    """A size as sysfs writes it, such as 48K or 32M."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    if not text or not text.rstrip("KMG").isdecimal():
        return 0
    return int(text.rstrip("KMG")) * units.get(text[-1], 1)


def _count(ranges: str) -> int:
    """Members of a list such as 0-3,8."""
    pairs = (part.split("-") for part in ranges.split(","))
    return sum(int(pair[-1]) - int(pair[0]) + 1 for pair in pairs)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
