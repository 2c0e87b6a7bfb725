"""The parts of a benchmark by name, and how one of them gets into a report."""

from __future__ import annotations

from .bandwidth import start as bandwidth
from .codecs import start as codecs
from .compute import start as compute
from .experts import start as experts
from .ggml import Ggml
from .matmul import start as matmul
from .result import Report, Section, Update
from .settings import Settings

__all__ = ["PARTS", "measure"]

_ALONE = {"bandwidth": bandwidth, "compute": compute}
_BESIDE = {"codecs": codecs, "matmul": matmul, "experts": experts}
PARTS = (*_ALONE, *_BESIDE)


def measure(
    name: str,
    report: Report,
    settings: Settings,
    peer: Ggml | None = None,
    update: Update | None = None,
) -> Section:
    """Measure a part; its section belongs to the report from the start, so that it survives Ctrl-C.

    Parameters
    ----------
    name
        One of `PARTS`.
    settings
        Those of the report, or others for this part.
    peer
        What stands beside kvant where there is something to compare.
    """
    section = Section(name, name, ())
    report.sections.append(section)
    if name in _ALONE:
        return _ALONE[name](section, settings, update)
    return _BESIDE[name](section, settings, peer, update)
