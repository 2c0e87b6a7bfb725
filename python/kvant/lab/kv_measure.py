"""What codecs cost a cache of keys and values, layer by layer and side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import models
from ..errors import ShapeError
from ..kv import KVCalibration, KVSide, calibrate
from ..kv.codecs import row_bits
from .kv_dump import KVDump, capture
from .kv_error import Rows, Try, coded, moved
from .kv_result import KVRow, KVStudy, KVTraits
from .kv_sides import DEFAULT_CODECS, key_side, name_of, value_sides

__all__ = ["kv_study"]

_OUTLIER = 3.0

Source = KVDump | models.Model | str | os.PathLike[str]


def kv_study(
    source: Source,
    codecs: Sequence[str | KVSide] = DEFAULT_CODECS,
    *,
    tokens: npt.ArrayLike | None = None,
    v_codecs: Sequence[str | KVSide] | None = None,
    calibration: KVCalibration | None = None,
    sink: int = 0,
    tail: int = 0,
    rows: int = 128,
    top: int = 8,
    name: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> KVStudy:
    """Code keys alone and values alone, and compare attention with what it should be.

    Queries of the second half of the text are looked at, each over everything before it. Means and
    factors come from the first half, so that no codec is judged by numbers it was made from.

    Parameters
    ----------
    source : KVDump, Model or path
        A dump or its `.npz` file, or a model or its GGUF file, which then reads `tokens`.
    codecs : sequence of str or KVSide
        What keys are stored as; names may have words behind the codec: `iq4_nl+rot+signs+mean+eq`
        rotates, with signs, takes the mean off and equalizes.
    tokens : integers [T]
        The text, of a model.
    v_codecs : sequence of str or KVSide, optional
        What values are stored as; those of keys without `mean` and `eq` by default.
    calibration : KVCalibration, optional
        Means and factors to use instead.
    sink, tail : int
        So many first tokens, and so many up to a query's own, are exact, as in `KVPolicy`.
    rows : int
        Queries to look at, at most, evenly spread.
    top : int
        Of each row, so many largest scores are compared.
    name : str, optional
        Of the source, in tables.
    progress : callable, optional
        Called with what is being done, how many layers are done, and how many there are.

    Returns
    -------
    KVStudy

    Raises
    ------
    ShapeError
        The text is shorter than four tokens, or something does not fit the source.
    FormatError
        There is no such codec, or no such file.

    Notes
    -----
    Only what codes lose is counted. Attention over codes also rounds queries and weights to eight
    bits, unless it is asked to be exact; next to codes of fewer than eight bits that is little.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((64, 2, 32), dtype=np.float32) for _ in range(3))
    >>> study = kv_study(KVDump([q], [k], [v]), ["q8_0", "q4_0"])
    >>> for row in study.rows:
    ...     print(row.side, row.codec, row.bits, f"{row.output_error:.3f}")
    k q8_0 8.5 0.005
    k q4_0 4.5 0.083
    v q8_0 8.5 0.005
    v q4_0 4.5 0.084
    """
    if min(rows, top) < 1 or min(sink, tail) < 0:
        raise ShapeError(
            f"[kv_study] expected rows and top above 0 and no negative sink or tail, got {rows}, "
            f"{top}, {sink} and {tail}"
        )
    dump = _dump(source, tokens)
    if dump.tokens < 4:
        raise ShapeError(f"[kv_study] expected at least 4 tokens, got {dump.tokens}")
    keys = list(dict.fromkeys(key_side(codec) for codec in codecs))
    values = value_sides(codecs if v_codecs is None else v_codecs)
    half = dump.tokens // 2
    if calibration is None:
        calibration = calibrate([x[:half] for x in dump.k], [x[:half] for x in dump.q])
    if len(calibration.center) != dump.layers or len(calibration.equalize) != dump.layers:
        raise ShapeError(f"[kv_study] expected a calibration of {dump.layers} layers, got another")
    spread = np.linspace(half, dump.tokens - 1, min(rows, dump.tokens - half)).round()
    looked = Rows(spread.astype(np.int64), sink, tail, top)
    found: list[KVRow] = []
    traits: list[KVTraits] = []
    for layer in range(dump.layers):
        own = KVCalibration([calibration.center[layer]], [calibration.equalize[layer]])
        found += _layer(dump, layer, keys, values, own, looked)
        traits.append(_traits(dump, layer))
        if progress is not None:
            progress("coding layers", layer + 1, dump.layers)
    return KVStudy(
        name=_name(source) if name is None else name,
        tokens=dump.tokens,
        queries=len(looked.positions),
        sink=sink,
        tail=tail,
        window=tuple(dump.window),
        rows=tuple(found),
        traits=tuple(traits),
        calibration=calibration,
    )


def _dump(source: Source, tokens: npt.ArrayLike | None) -> KVDump:
    if isinstance(source, KVDump):
        return source
    if not isinstance(source, models.Model):
        if Path(source).suffix == ".npz":
            return KVDump.load(source)
        source = models.load(source)
    if tokens is None:
        raise ShapeError("[kv_study] expected tokens for a model to read, got none")
    return capture(source, tokens)


def _name(source: Source) -> str:
    return Path(source).name if isinstance(source, str | os.PathLike) else ""


def _layer(
    dump: KVDump,
    layer: int,
    keys: list[KVSide],
    values: list[KVSide],
    calibration: KVCalibration,
    looked: Rows,
) -> list[KVRow]:
    k, v = dump.k[layer], dump.v[layer]
    sides = [(False, side) for side in keys] + [(True, side) for side in values]
    tries = [
        Try(value, coded(v if value else k, side, value, calibration), side.quantized)
        for value, side in sides
    ]
    found = moved(dump, layer, tries, looked)
    rows = []
    for (value, side), own in zip(sides, found, strict=True):
        _, heads, dim = (v if value else k).shape
        bits = row_bits(side.codec, dim)
        rows.append(
            KVRow(
                layer,
                "v" if value else "k",
                name_of(side, value),
                side,
                bits,
                heads * dim,
                round(bits * dim / 8) * heads,
                *own,
            )
        )
    return rows


def _traits(dump: KVDump, layer: int) -> KVTraits:
    k, v = dump.k[layer].astype(np.float64), dump.v[layer].astype(np.float64)
    sizes = [math.sqrt(float(np.square(x).sum(-1).mean())) for x in (k, v)]
    return KVTraits(
        layer=layer,
        norm_ratio=sizes[0] / sizes[1] if sizes[1] else math.inf if sizes[0] else 1.0,
        k_mean_share=_mean_share(k),
        v_mean_share=_mean_share(v),
        k_outliers=_outliers(k),
        v_outliers=_outliers(v),
    )


def _mean_share(x: Any) -> float:
    """Part of the squares that the mean of each channel makes."""
    whole = float(np.square(x).mean())
    return float(np.square(x.mean(0)).mean()) / whole if whole else 0.0


def _outliers(x: Any) -> tuple[tuple[int, int], ...]:
    """(head, channel) of channels with more than three times the median RMS of their head."""
    sizes = np.sqrt(np.square(x).mean(0))
    large = sizes > _OUTLIER * np.median(sizes, axis=1, keepdims=True)
    return tuple((int(head), int(channel)) for head, channel in np.argwhere(large))
