"""The format table, as the compiled library lists it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from kvant import _core
from kvant.errors import FormatError, ShapeError

__all__ = ["FormatInfo", "format_info", "formats"]


@dataclass(frozen=True)
class FormatInfo:
    """One row of the format table.

    Attributes
    ----------
    name
        The file format's own name, lower case: `"q4_k"`.
    number
        Place in the table; what the C ABI calls the format.
    ggml_type
        Id in GGUF files.
    block, block_bytes
        Elements of a block and the bytes they pack into.
    group
        Elements that share a scale.
    can_encode
        Whether `kvant.quantize` writes it; every format can be decoded.
    uses_importance
        Whether importance weights change the bytes.
    """

    name: str
    number: int
    ggml_type: int
    block: int
    block_bytes: int
    group: int
    can_encode: bool
    uses_importance: bool

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage per element, scales included."""
        return 8 * self.block_bytes / self.block

    def row_bytes(self, cols: int) -> int:
        """Bytes of one packed row of `cols` elements.

        Raises
        ------
        ShapeError
            `cols` is not a multiple of the block.

        Examples
        --------
        >>> import kvant
        >>> kvant.format_info("q4_k").row_bytes(512)
        288
        """
        if cols < 0 or cols % self.block:
            raise ShapeError(
                f"[row_bytes] expected a multiple of {self.block} elements ({self.name}), "
                f"got {cols}"
            )
        return cols // self.block * self.block_bytes


@cache
def formats() -> tuple[FormatInfo, ...]:
    """List every format.

    Returns
    -------
    tuple of FormatInfo
        In the order of the library's table.

    Examples
    --------
    >>> import kvant
    >>> [f.name for f in kvant.formats() if f.bits_per_weight == 4.5]
    ['q4_0', 'q4_k', 'iq4_nl', 'nvfp4']
    """
    return tuple(FormatInfo(row[0], number, *row[1:]) for number, row in enumerate(_core.formats()))


@cache
def _by_key() -> dict[str | int, FormatInfo]:
    return {key: f for f in formats() for key in (f.name, f.ggml_type)}


def format_info(key: str | int) -> FormatInfo:
    """Find a format by its name or its GGUF id.

    Raises
    ------
    FormatError
        There is no such format.

    Examples
    --------
    >>> import kvant
    >>> kvant.format_info("q8_0").block_bytes, kvant.format_info(12).name
    (34, 'q4_k')
    """
    found = _by_key().get(key)
    if found is None:
        names = ", ".join(f.name for f in formats())
        raise FormatError(f"[format_info] expected a format ({names}), got {key!r}")
    return found
