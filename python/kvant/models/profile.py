"""Where the time of decoding goes: native calls by name, and what Python takes between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Any

from kvant import _core
from kvant.errors import Error

__all__ = ["Profile"]

_CALLS = (
    "matmul",
    "matmul_many",
    "matmul_experts",
    "ffn",
    "moe_ffn",
    "kv_append",
    "kv_append_many",
    "kv_attend",
    "kv_attend_many",
    "rms_norm",
    "rope",
    "softmax",
    "activation_mul",
    "route",
    "add",
    "scale",
    "embedding",
)

_ENTERED = Lock()


class Profile:
    """Counts and times native calls while it is entered, as often as one likes; one at a
    time, of all threads.

    The timing itself counts as Python's, so that its share is rather too large than too small.

    Attributes
    ----------
    seconds, calls : dict
        Of each native function, by name.
    total : float
        Seconds from entering to leaving, all times together.

    Examples
    --------
    >>> import numpy as np, kvant
    >>> with Profile() as profile:
    ...     y = kvant.rms_norm(np.ones(8, np.float32), None)
    >>> profile.calls["rms_norm"], 0 < profile.python_share < 1
    (1, True)
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.total = 0.0
        self._began = 0.0
        self._replaced: dict[str, Callable[..., Any]] = {}
        self._timed: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> Profile:
        if not _ENTERED.acquire(blocking=False):
            raise Error("[Profile] expected one profile at a time, got another that is entered")
        # Looked up here, and not before: a profile within another would time its timers.
        if not self._timed:
            self._timed = {name: self._timer(name) for name in _CALLS} | {"replay": self._replay}
        for name, timed in self._timed.items():
            self._replaced[name] = getattr(_core, name)
            setattr(_core, name, timed)
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.total += time.perf_counter() - self._began
        for name, function in self._replaced.items():
            setattr(_core, name, function)
        _ENTERED.release()

    @property
    def native(self) -> float:
        """Seconds within native calls."""
        return sum(self.seconds.values())

    @property
    def python_share(self) -> float:
        """Share of the time outside of them."""
        return 1.0 - self.native / self.total if self.total else 0.0

    def _timer(self, name: str) -> Callable[..., Any]:
        function, clock = getattr(_core, name), time.perf_counter

        def timed(*args: Any) -> Any:
            began = clock()
            try:
                return function(*args)
            finally:
                self._count(name.removeprefix("kv_"), clock() - began)

        return timed

    def _replay(self, program: _core.Program) -> None:
        """Calls that are made again from a record count as if they were made one by one."""
        before = program.seconds()
        _core.replay_timed(program)
        for (name, start), (_, end) in zip(before, program.seconds(), strict=True):
            self._count(name, end - start)

    def _count(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.calls[name] = self.calls.get(name, 0) + 1
