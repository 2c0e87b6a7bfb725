"""Files that appear complete or not at all."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file beside `path`; rename it over `path` at the end, remove it on failure."""
    target = os.fspath(path)
    temporary = f"{target}.tmp-{os.getpid()}"
    try:
        with builtins.open(temporary, "wb") as file:
            yield file
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
