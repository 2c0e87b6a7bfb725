"""Statistics of activations, gathered while a model runs: the importance matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import Error, ShapeError
from ..imatrix import Imatrix
from ..models import Model
from .scoring import Window

__all__ = ["collect_imatrix"]


def collect_imatrix(
    model: Model,
    texts: Sequence[Window],
    *,
    output: bool = False,
    datasets: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> Imatrix:
    """Run a model over windows of text and sum up the squares of what multiplies each weight.

    Parameters
    ----------
    model : Model
    texts : sequence of Window
        See `kvant.lab.windows`; every token of a window counts.
    output : bool
        Also for the head, which llama.cpp leaves out by default.
    datasets : sequence of str
        Names of the texts, for the file.
    progress : callable, optional
        Called with the number of windows done.

    Returns
    -------
    Imatrix
        An entry for every matrix of the layers, with a count for each expert.

    Raises
    ------
    ShapeError
        There are no windows.
    Error
        An activation is not finite.

    Notes
    -----
    These are the sums of llama.cpp's llama-imatrix; `Imatrix.save` writes them as it reads them.
    """
    if not texts:
        raise ShapeError("[collect_imatrix] expected at least one window, got none")
    sums = _Sums(model, output)
    for done, window in enumerate(texts, 1):
        hidden = model.hidden(window.tokens, observe=sums)
        if output:
            model.head(hidden, observe=sums)
        if progress is not None:
            progress(done)
    result = Imatrix(chunk_size=len(texts[0].tokens), datasets=datasets)
    for name, (squares, counts) in sums.entries.items():
        if not np.isfinite(squares).all():
            raise Error(f"[collect_imatrix] expected finite activations, got others for {name}")
        result.add_sums(name, squares, counts)
    return result


class _Sums:
    """An observer: sums of squares [matrices, columns] and counts [matrices], by tensor."""

    def __init__(self, model: Model, output: bool) -> None:
        self._tensors = model.tensors
        self._output = output
        self.entries: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]] = {}

    def __call__(self, name: str, x: npt.NDArray[Any], expert: int | None) -> None:
        if not self._output and not name.startswith("blk."):
            return
        if name not in self.entries:
            shape = self._tensors[name].shape
            matrices = shape[0] if len(shape) == 3 else 1
            self.entries[name] = (np.zeros((matrices, shape[-1])), np.zeros(matrices, np.int64))
        squares, counts = self.entries[name]
        squares[expert or 0] += np.einsum("ij,ij->j", x, x, dtype=np.float64)
        counts[expert or 0] += len(x)
