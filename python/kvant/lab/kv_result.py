"""What a study of a cache found: plain records that go to JSON, to tables and to a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..gguf.replace import replacing
from ..kv import KVCalibration, KVSide
from .result import plain

__all__ = ["KVRow", "KVStudy", "KVSummary", "KVTraits"]

_LARGEST_RATIO = 50.0
_NAMED = 6


@dataclass(frozen=True)
class KVRow:
    """One side of one layer in one codec, the other side exact.

    Attributes
    ----------
    layer : int
    side : str
        `"k"` or `"v"`.
    codec : str
        A short name of `stored`.
    stored : KVSide
        How the side is stored.
    bits : float
        For each number.
    numbers, nbytes : int
        Numbers and bytes of a token.
    logit_error : float
        RMS of the error of scores over their RMS, both less the mean of a row.
    kl_mean, kl_p99, kl_max : float
        KL divergence of a row's weights from what they should be, in nats.
    top_overlap : float
        Share of a row's largest scores that are still among them.
    output_error : float
        RMS of the error of attention's output over its RMS; of values the only one that is not 0.
    """

    layer: int
    side: str
    codec: str
    stored: KVSide
    bits: float
    numbers: int
    nbytes: int
    logit_error: float
    kl_mean: float
    kl_p99: float
    kl_max: float
    top_overlap: float
    output_error: float

    @property
    def cost(self) -> float:
        """Nats: the mean KL divergence of keys, and of values that of keys with the same error.

        Small errors of scores with variance s^2 have a KL divergence of s^2 / 2 and move the output
        by s, so that an output error e of values counts e^2 / 2.
        """
        return self.kl_mean if self.side == "k" else self.output_error**2 / 2


@dataclass(frozen=True)
class KVTraits:
    """What makes a layer hard.

    Attributes
    ----------
    norm_ratio : float
        RMS of the keys' norms over that of the values'.
    k_mean_share, v_mean_share : float
        Share of the squares that the mean of each channel has.
    k_outliers, v_outliers : tuple of (int, int)
        Head and channel of those with more than three times the median RMS of their head.
    """

    layer: int
    norm_ratio: float
    k_mean_share: float
    v_mean_share: float
    k_outliers: tuple[tuple[int, int], ...]
    v_outliers: tuple[tuple[int, int], ...]

    def warnings(self) -> list[str]:
        """Sentences about what needs care."""
        found = []
        if self.norm_ratio > _LARGEST_RATIO:
            found.append(
                f"layer {self.layer}: keys are {self.norm_ratio:.0f} times as long as values; give "
                "them more bits"
            )
        for word, outliers in (("keys", self.k_outliers), ("values", self.v_outliers)):
            if outliers:
                named = ", ".join(f"{head}:{channel}" for head, channel in outliers[:_NAMED])
                more = len(outliers) - _NAMED
                found.append(
                    f"layer {self.layer}: outlier channels of {word} (head:channel) {named}"
                    + (f" and {more} more" if more > 0 else "")
                )
        return found


@dataclass(frozen=True)
class KVSummary:
    """One side of all layers in one codec: means over layers, and the worst of them."""

    side: str
    codec: str
    bits: float
    cost: float
    logit_error: float
    kl_mean: float
    kl_p99: float
    kl_max: float
    top_overlap: float
    output_error: float
    worst_layer: int
    worst_cost: float


@dataclass(frozen=True)
class KVStudy:
    """Every side of every layer in every codec that was tried.

    Attributes
    ----------
    name : str
        Of the source.
    tokens, queries : int
        Of the text, and positions that were looked at.
    sink, tail : int
        Tokens that were exact.
    window : tuple of int or None
        Of each layer.
    rows : tuple of KVRow
        By layer, keys before values.
    traits : tuple of KVTraits
        Of each layer.
    calibration : KVCalibration
        Means and factors that codecs used.
    """

    name: str
    tokens: int
    queries: int
    sink: int
    tail: int
    window: tuple[int | None, ...]
    rows: tuple[KVRow, ...]
    traits: tuple[KVTraits, ...]
    calibration: KVCalibration = field(repr=False, compare=False)

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.traits)

    def row(self, layer: int, side: str, codec: str) -> KVRow:
        """One row; KeyError if it was not tried."""
        for row in self.rows:
            if (row.layer, row.side, row.codec) == (layer, side, codec):
                return row
        raise KeyError((layer, side, codec))

    def summary(self) -> list[KVSummary]:
        """One record for each side and codec, keys first, by bits."""
        groups: dict[tuple[str, str], list[KVRow]] = {}
        for row in self.rows:
            groups.setdefault((row.side, row.codec), []).append(row)
        found = [_summary(rows) for rows in groups.values()]
        return sorted(found, key=lambda s: (s.side, -s.bits))

    def warnings(self) -> list[str]:
        """Sentences about layers that need care."""
        return [text for traits in self.traits for text in traits.warnings()]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; numbers that JSON has no word for become null."""
        record = {
            "kind": "kvant.kv.study",
            "version": 1,
            "name": self.name,
            "tokens": self.tokens,
            "queries": self.queries,
            "sink": self.sink,
            "tail": self.tail,
            "window": list(self.window),
            "summary": [asdict(each) for each in self.summary()],
            "rows": [{**asdict(row), "cost": row.cost} for row in self.rows],
            "traits": [_listed(asdict(each)) for each in self.traits],
            "warnings": self.warnings(),
        }
        values: dict[str, Any] = plain(record)
        return values

    def text(self, width: int = 120, layers: bool = False) -> str:
        """Tables for a terminal: codecs over all layers, and with `layers` each one's rows."""
        from .kv_table import study_text

        return study_text(self, width, layers)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw bits against cost, as a PNG."""
        from .kv_plot import kv_plot_png

        image = kv_plot_png(self)
        with replacing(path) as file:
            file.write(image)


def _summary(rows: Sequence[KVRow]) -> KVSummary:
    count = len(rows)
    worst = max(rows, key=lambda r: r.cost)

    def mean(name: str) -> float:
        return float(sum(getattr(row, name) for row in rows)) / count

    return KVSummary(
        side=rows[0].side,
        codec=rows[0].codec,
        bits=8 * sum(r.nbytes for r in rows) / sum(r.numbers for r in rows),
        cost=mean("cost"),
        logit_error=mean("logit_error"),
        kl_mean=mean("kl_mean"),
        kl_p99=max(r.kl_p99 for r in rows),
        kl_max=max(r.kl_max for r in rows),
        top_overlap=mean("top_overlap"),
        output_error=mean("output_error"),
        worst_layer=worst.layer,
        worst_cost=worst.cost,
    )


def _listed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples of pairs as lists."""
    return {
        key: [list(pair) for pair in value] if isinstance(value, tuple) else value
        for key, value in record.items()
    }
