"""Instruction sets: which kernels run. Results never depend on the choice, only speed does."""

from __future__ import annotations

from dataclasses import dataclass

from kvant import _core
from kvant.errors import IsaError

__all__ = ["Isa", "available", "current", "listed", "use"]


@dataclass(frozen=True)
class Isa:
    """An instruction set of this build and whether this machine has it."""

    name: str
    supported: bool


def listed() -> tuple[Isa, ...]:
    """List the ISAs of this build, best first.

    Examples
    --------
    >>> import kvant
    >>> kvant.isa.listed()[-1]
    Isa(name='scalar', supported=True)
    """
    return tuple(Isa(name, supported) for name, supported in _core.isas())


def available() -> tuple[str, ...]:
    """Names of the ISAs that can be used here, best first."""
    return tuple(i.name for i in listed() if i.supported)


def current() -> str:
    """Name of the ISA in use: the best one, or what `KVANT_ISA` or `use` named.

    Raises
    ------
    IsaError
        `KVANT_ISA` names an ISA that is unknown or that this machine lacks.
    """
    name = _core.isa_current()
    if name is None:
        import os

        raise IsaError(
            f"[isa] expected KVANT_ISA to be one of {', '.join(available())}, "
            f"got {os.environ.get('KVANT_ISA')!r}"
        )
    return name


def use(name: str) -> None:
    """Use another ISA from now on, in every thread.

    Raises
    ------
    IsaError
        The name is unknown, or this machine lacks the ISA; the choice stays as it was.

    Examples
    --------
    >>> import kvant
    >>> before = kvant.isa.current()
    >>> kvant.isa.use("scalar")
    >>> kvant.isa.current()
    'scalar'
    >>> kvant.isa.use(before)
    """
    if name not in available():
        raise IsaError(f"[isa.use] expected one of {', '.join(available())}, got {name!r}")
    _core.isa_use(name)
