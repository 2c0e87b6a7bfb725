"""What the environment asks for, `KVANT_ISA` and `KVANT_THREADS`, and when it is checked."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import PurePath

from kvant import isa
from kvant.errors import Error

__all__ = ["check", "is_program"]


def check() -> None:
    """Refuse what cannot be had.

    Raises
    ------
    IsaError
        `KVANT_ISA` names an instruction set that is unknown or that this machine lacks.
    Error
        `KVANT_THREADS` is no positive number.
    """
    isa.current()
    wanted = os.environ.get("KVANT_THREADS", "")
    if wanted and not (wanted.isdecimal() and int(wanted) > 0):
        raise Error(f"[threads] expected KVANT_THREADS to be a positive number, got {wanted!r}")


def is_program() -> bool:
    """Whether the package is imported by the program `kvant` or `python -m kvant`.

    The program must import the package before it can turn an error into one line, so it checks
    the environment by itself.

    >>> is_program()
    False
    """
    first = (getattr(sys, "argv", None) or [""])[0]
    # Python says -m in place of the module's file until it has found it.
    if first == "-m":
        return "-mkvant" in sys.orig_argv or ("-m", "kvant") in pairwise(sys.orig_argv)
    return PurePath(first).stem == "kvant"
