"""Common devices: how much memory a model may take there, and how fast it is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvant.errors import ShapeError

__all__ = ["DEVICES", "Device", "device", "host", "parse_memory"]

_GIB = 1 << 30
_UNITS = {"gib": _GIB, "gb": 10**9, "mib": 1 << 20, "mb": 10**6, "tib": 1 << 40, "tb": 10**12}
# What a graphics card's driver and desktop take.
_CARD_HEADROOM = 0.05
# What the system and its programs need of memory that they share with the model.
_HEADROOM, _SMALL_HEADROOM, _SMALL = 0.25, 0.30, 32 * _GIB


@dataclass(frozen=True)
class Device:
    """Memory of one kind.

    Attributes
    ----------
    name
    memory
        Bytes.
    bandwidth
        Bytes a second that can be read at most; 0 if it is not known.
    unified
        Whether the system and other programs live in the same memory.
    headroom
        Share of the memory that is left to them; None for the rule: 5 % of a card, 25 % of unified
        memory, 30 % up to 32 GiB.
    """

    name: str
    memory: int
    bandwidth: float = 0.0
    unified: bool = False
    headroom: float | None = None

    @property
    def usable(self) -> int:
        """Bytes that a model may take.

        >>> Device("x", 64 << 30, unified=True).usable >> 30
        48
        """
        return int(self.memory * (1.0 - self.share_kept))

    @property
    def share_kept(self) -> float:
        """The headroom in force."""
        if self.headroom is not None:
            return self.headroom
        if not self.unified:
            return _CARD_HEADROOM
        return _SMALL_HEADROOM if self.memory <= _SMALL else _HEADROOM


def _card(name: str, gib: float, gb_per_s: float) -> Device:
    return Device(name, int(gib * _GIB), gb_per_s * 1e9)


def _shared(name: str, gib: float, gb_per_s: float) -> Device:
    return Device(name, int(gib * _GIB), gb_per_s * 1e9, unified=True)


DEVICES: tuple[Device, ...] = (
    _card("RTX 3060", 12, 360),
    _card("RTX 3060 Ti", 8, 448),
    _card("RTX 3070", 8, 448),
    _card("RTX 3080", 10, 760),
    _card("RTX 3090", 24, 936),
    _card("RTX 3090 Ti", 24, 1008),
    _card("RTX 4060", 8, 272),
    _card("RTX 4060 Ti", 16, 288),
    _card("RTX 4070", 12, 504),
    _card("RTX 4070 Ti Super", 16, 672),
    _card("RTX 4080", 16, 717),
    _card("RTX 4090", 24, 1008),
    _card("RTX 5060", 8, 448),
    _card("RTX 5060 Ti", 16, 448),
    _card("RTX 5070", 12, 672),
    _card("RTX 5070 Ti", 16, 896),
    _card("RTX 5080", 16, 960),
    _card("RTX 5090", 32, 1792),
    _card("RX 7900 XTX", 24, 960),
    _card("RX 9070 XT", 16, 640),
    _shared("M1", 16, 68),
    _shared("M1 Pro", 32, 200),
    _shared("M1 Max", 64, 400),
    _shared("M1 Ultra", 128, 800),
    _shared("M2", 24, 100),
    _shared("M2 Pro", 32, 200),
    _shared("M2 Max", 96, 400),
    _shared("M2 Ultra", 192, 800),
    _shared("M3", 24, 100),
    _shared("M3 Pro", 36, 150),
    _shared("M3 Max", 128, 400),
    _shared("M3 Ultra", 512, 819),
    _shared("M4", 32, 120),
    _shared("M4 Pro", 64, 273),
    _shared("M4 Max", 128, 546),
    _shared("M5", 32, 153),
    _shared("M5 Pro", 64, 307),
    _shared("M5 Max", 128, 614),
    _shared("DGX Spark", 128, 273),
    _shared("Strix Halo", 128, 256),
    _shared("Raspberry Pi 5", 16, 17),
    _shared("DDR4-3200", 64, 51),
    _shared("DDR5-5600", 64, 90),
)
"""By maker and age, each with the most memory it is sold with; makers' bandwidth. The last two are
desktops with two channels of memory."""


def device(name: str, headroom: float | None = None) -> Device:
    """A device out of the table; case, blanks and punctuation do not matter.

    Parameters
    ----------
    name : str
        `RTX 4090`, or with another memory `M4 Max:64GiB`.
    headroom : float, optional
        Instead of the rule of `Device`.

    Raises
    ------
    ShapeError
        There is no such device, or the memory is no size.

    Examples
    --------
    >>> from kvant import plan
    >>> plan.device("m4-max:64GiB").usable >> 30
    48
    """
    wanted, _, size = name.partition(":")
    for known in DEVICES:
        if _plain(known.name) == _plain(wanted):
            memory = parse_memory(size) if size else known.memory
            return replace(known, memory=memory, headroom=headroom)
    names = ", ".join(known.name for known in DEVICES)
    raise ShapeError(f"[plan] expected a device of {names}, got {name!r}")


def parse_memory(text: str) -> int:
    """Bytes of a size such as `24GiB` or `24GB`.

    >>> parse_memory("1.5GiB"), parse_memory("2 GB")
    (1610612736, 2000000000)
    """
    lower = text.strip().lower()
    for unit, factor in _UNITS.items():
        if lower.endswith(unit):
            try:
                size = float(lower.removesuffix(unit)) * factor
            except ValueError:
                break
            if 1 <= size < 1 << 60:
                return int(size)
    raise ShapeError(f"[plan] expected a size such as 24GiB, got {text!r}")


def host(bandwidth: float | None = None, headroom: float = 0.0) -> Device:
    """This machine: the memory that is free now, and how fast all cores read it.

    Parameters
    ----------
    bandwidth : float, optional
        Bytes a second; measured, in about a second, where it is not given.
    headroom : float
        Share of the free memory that is not for the model; the system has its own already.
    """
    from kvant.bench.machine import available_bytes, machine

    speed = _measured() if bandwidth is None else bandwidth
    name = f"this machine ({machine()['cpu']})"
    return Device(name, available_bytes(), speed, unified=True, headroom=headroom)


def _measured() -> float:
    """Bytes a second that all cores of this machine read."""
    from kvant import isa
    from kvant.bench.limits import Limits
    from kvant.bench.settings import settings
    from kvant.bench.timing import turns

    before, quick = isa.current(), settings(quick=True)
    limits = Limits(quick.memory)  # its memory must live as long as the task
    try:
        limit = limits.read(max(quick.threads))
        times = turns({"read": limit.task}, rounds=5, sample=0.0)
    finally:
        isa.use(before)
    return 1e9 * limit.amount / float(times["read"].wall.min())


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
