"""A model, a text, and what it costs to give some tensors other formats: runs that any executor
can carry.

A study is small and can be sent to another process; each process opens the model and computes the
base's logits once.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from threading import Lock

import numpy as np

from .. import gguf, models
from ..imatrix import Imatrix
from ..imatrix import load as load_imatrix
from ..qtensor import QTensor
from ..quantize_tensor import importance_of, quantized
from .metrics import Divergence
from .scoring import BaseLogits, Window, score

__all__ = ["Study", "measured"]

Formats = Mapping[str, str]

_KEPT_BYTES = 512 << 20
_AHEAD = 64


@dataclass(frozen=True)
class Study:
    """What every run needs to know.

    Attributes
    ----------
    model
        Path of a GGUF file.
    texts
        Windows as (tokens, first scored position).
    imatrix
        Path of an importance matrix for the encoders, or None.
    threads
        Of one run; None takes the set number.
    """

    model: str
    texts: tuple[tuple[tuple[int, ...], int], ...]
    imatrix: str | None = None
    threads: int | None = None

    @staticmethod
    def of(
        model: str,
        texts: Iterable[Window],
        imatrix: str | None = None,
        threads: int | None = None,
    ) -> Study:
        """A study of windows as `kvant.lab.windows` cuts them."""
        plain = tuple((tuple(w.tokens.tolist()), w.first) for w in texts)
        return Study(str(model), plain, imatrix, threads)

    def windows(self) -> list[Window]:
        """The windows."""
        return [Window(np.array(tokens, np.int64), first) for tokens, first in self.texts]


def measured(
    study: Study,
    runs: Iterable[Formats],
    executor: Executor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Divergence]:
    """The divergence from the model as it is, for each assignment of formats to some tensors.

    Parameters
    ----------
    study : Study
    runs : iterable of mappings of tensor names to formats
        What a run does not name stays as it is.
    executor : Executor or None
        Any of `concurrent.futures`, or one that behaves like it, with threads, processes or
        machines behind it. The figures do not depend on it.
    progress : callable, optional
        Called with the number of runs done.
    """
    plain = [tuple(sorted(run.items())) for run in runs]
    if executor is None:
        found: Iterator[Divergence] = (_run(study, run) for run in plain)
    else:
        found = _carried(study, plain, executor)
    for done, divergence in enumerate(found, 1):
        if progress is not None:
            progress(done)
        yield divergence


def _carried(
    study: Study, runs: list[tuple[tuple[str, str], ...]], executor: Executor
) -> Iterator[Divergence]:
    source = iter(runs)
    waiting = [executor.submit(_run, study, run) for run in islice(source, _AHEAD)]
    try:
        while waiting:
            result = waiting.pop(0).result()
            waiting.extend(executor.submit(_run, study, run) for run in islice(source, 1))
            yield result
    finally:
        for future in waiting:
            future.cancel()


def _run(study: Study, formats: tuple[tuple[str, str], ...]) -> Divergence:
    return bench_of(study).divergence(dict(formats))


def bench_of(study: Study) -> Bench:
    """What this process knows of a study; made once, and kept until `forget` or another study."""
    status = os.stat(study.model)
    with _MAKING:
        return _bench_of(study, status.st_size, status.st_mtime_ns)


def forget() -> None:
    """Give back the memory of the study that this process has kept."""
    _bench_of.cache_clear()


@lru_cache(maxsize=1)
def _bench_of(study: Study, size: int, changed: int) -> Bench:
    # Another file under the same name is another study.
    return Bench(study)


_MAKING = Lock()


class Bench:
    """The open model, its logits, and tensors that were quantized lately."""

    def __init__(self, study: Study) -> None:
        self.file = gguf.open(study.model)
        self.model = models.load(self.file, threads=study.threads)
        self.matrix: Imatrix | None = load_imatrix(study.imatrix) if study.imatrix else None
        self._threads = study.threads
        self.texts = study.windows()
        self._base: BaseLogits | None = None
        self._made: OrderedDict[tuple[str, str], QTensor] = OrderedDict()
        # Runs may come from several threads.
        self._making = Lock()

    def tensor(self, name: str, format: str) -> QTensor:
        """A tensor of the model in another format."""
        with self._making:
            return self._tensor(name, format)

    def _tensor(self, name: str, format: str) -> QTensor:
        key = (name, format)
        if key not in self._made:
            source = self.source(name)
            importance = importance_of(self.matrix, name, source.shape)
            self._made[key] = quantized(source, format, importance, self._threads)
            while len(self._made) > 1 and sum(q.nbytes for q in self._made.values()) > _KEPT_BYTES:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]

    def divergence(self, formats: Formats) -> Divergence:
        """How far the model is from itself with these formats."""
        with self._making:
            if self._base is None:
                self._base = BaseLogits(self.model, self.texts)
        own = {
            name: self.tensor(name, format)
            for name, format in formats.items()
            if format != self.file.tensors.info(name).type.name
        }
        return score(self.model.with_weights(own), self._base)

    def source(self, name: str) -> QTensor:
        """A tensor as it is in the file."""
        tensor = self.file.tensors[name]
        assert isinstance(tensor, QTensor)
        return tensor
