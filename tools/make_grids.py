"""Writes csrc/formats/grids.h from the code books of kvant.reference; a test compares.

python tools/make_grids.py            # rewrite the header
python tools/make_grids.py --print    # to standard output
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "csrc" / "formats" / "grids.h"
sys.path.insert(0, str(ROOT / "python" / "kvant"))

from reference.grids import BOOKS, grid  # noqa: E402  (needs no compiled extension this way)

PREAMBLE = """\
// Code books of the IQ formats, written by tools/make_grids.py; do not edit.
// A packed point holds one index per coordinate, lowest bits first, into the book's levels.
#pragma once

#include "formats/format.h"

namespace kvant {

template <class Word, int n>
struct Book {
  Word point[n];  // coordinates as bytes, first coordinate lowest
};

template <class Word, int kBits, int n>
constexpr Book<Word, n> expand_book(const uint16_t (&packed)[n],
                                    const int8_t (&levels)[1 << kBits]) {
  Book<Word, n> book{};
  for (int i = 0; i < n; ++i) {
    for (unsigned c = 0; c < sizeof(Word); ++c) {
      const int index = (packed[i] >> (kBits * c)) & ((1 << kBits) - 1);
      book.point[i] |= Word(uint8_t(levels[index])) << (8 * c);
    }
  }
  return book;
}
"""


def header() -> str:
    parts = [PREAMBLE]
    for name, book in BOOKS.items():
        bits = (len(book.levels) - 1).bit_length()
        index = np.searchsorted(np.array(book.levels), grid(name))
        packed = (index << (bits * np.arange(book.width))).sum(axis=1)
        levels = [*book.levels, *([0] * ((1 << bits) - len(book.levels)))]
        word = "uint64_t" if book.width == 8 else "uint32_t"
        title = name[0].upper() + name[1:]
        rows = [
            "    " + ", ".join(f"0x{v:04x}" for v in packed[i : i + 12]) + ","
            for i in range(0, len(packed), 12)
        ]
        parts.append(
            f"\nconstexpr uint16_t k{title}Packed[{book.points}] = {{\n"
            + "\n".join(rows)
            + f"\n}};\nconstexpr int8_t k{title}Levels[{1 << bits}] = "
            + "{"
            + ", ".join(map(str, levels))
            + "};\n"
            + f"constexpr Book<{word}, {book.points}> k{title} = "
            + f"expand_book<{word}, {bits}>(k{title}Packed, k{title}Levels);\n"
        )
    parts.append("\n}  // namespace kvant\n")
    return "".join(parts)


if __name__ == "__main__":
    if "--print" in sys.argv[1:]:
        sys.stdout.write(header())
    else:
        HEADER.write_text(header())
