"""The bars: ratios that the numbers of a report are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "Check",
    "encode_bar",
    "fastest_bar",
    "gguf_py_bar",
    "import_bar",
    "store_bar",
    "threads_bar",
]

_FACTORS = {
    **{f: {"avx512vnni": 8.0, "avx2": 4.0} for f in ("q2_k", "q4_k", "q5_k", "iq4_nl", "iq4_xs")},
    "q6_k": {"avx512vnni": 5.0, "avx2": 3.0},
    "q3_k": {"avx512vnni": 3.0, "avx2": 2.0},
}
_FASTEST = ("q4_0", "q4_1", "q8_0", "mxfp4")
_STORE = ("q4_0", "q8_0", "q4_k", "q6_k", "iq4_xs", "mxfp4")
_THREADS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "q8_0")


@dataclass(frozen=True)
class Check:
    """A number, what it should at least be (or at most), and what it is a number of."""

    what: str
    value: float
    bar: float
    at_most: bool = False

    @property
    def passed(self) -> bool:
        """Whether the bar is met.

        Examples
        --------
        >>> Check("speed", 8.0, 8.0).passed, Check("time", 61.0, 60.0, at_most=True).passed
        (True, False)
        """
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        side = "at most" if self.at_most else "at least"
        return {"what": self.what, "value": self.value, side: self.bar, "passed": self.passed}


def encode_bar(format: str, isa: str) -> float | None:
    """How many times the speed of ggml_quantize_chunk, one thread each."""
    return _FACTORS.get(format, {}).get(isa)


def fastest_bar(format: str, isa: str) -> float | None:
    """How many times the speed of ggml's fastest encoder of the format, one thread each."""
    return 1.0 if format in _FASTEST and isa != "scalar" else None


def threads_bar(format: str) -> float | None:
    """How many times faster two threads are than one."""
    return 1.8 if format in _THREADS else None


def store_bar(format: str, isa: str) -> float | None:
    """Share of the store bandwidth that decoding reaches."""
    return 0.8 if format in _STORE and isa != "scalar" else None


def gguf_py_bar(format: str, isa: str) -> float | None:
    """How many times the speed of gguf-py's decoder."""
    if isa == "scalar":
        return None
    return 10.0 if format.endswith("_k") or format.startswith("iq") or "fp4" in format else 5.0


def import_bar() -> float:
    """Milliseconds that `import kvant` may take."""
    return 60.0
