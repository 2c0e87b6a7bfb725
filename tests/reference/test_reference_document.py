"""docs/formats.md against the reference: its worked blocks and the sizes in its overview."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from kvant.reference import FORMATS, decode, encode

TEXT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
WORKED = {
    match[1]: (match[2].split(), match[3].split())
    for match in re.finditer(r"```worked (\w+)\nbytes ([0-9a-f\s]+)\nfirst (.*)\n```", TEXT)
}
ROWS = {
    match[1]: (int(match[2]), int(match[3]), float(match[4]), match[5])
    for match in re.finditer(
        r"^\| (\w+) \| \d+ \| (\d+) \| (\d+) \| ([\d.]+) \| ([\w ]+) \|", TEXT, re.M
    )
}


def test_every_format_is_described():
    assert set(WORKED) == set(ROWS) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_the_overview_states_sizes_and_importance(name):
    fmt = FORMATS[name]
    use = "used" if fmt.uses_importance else "ignored" if fmt.can_encode else "decode only"
    assert ROWS[name] == (fmt.block, fmt.block_bytes, fmt.block_bytes * 8 / fmt.block, use)


@pytest.mark.parametrize("name", FORMATS)
def test_the_worked_block(name):
    fmt = FORMATS[name]
    shown, first = WORKED[name]
    data = np.array([int(byte, 16) for byte in shown], np.uint8)
    if fmt.can_encode:
        i = np.arange(max(fmt.block, 4))
        x = ((5 * i % 13 - 6) / 4).astype(np.float32)[: data.size // fmt.block_bytes * fmt.block]
        assert np.array_equal(encode(x, name), data)
    else:
        rule = (37 * np.arange(fmt.block_bytes) + 11) % 256
        start = 0 if name == "iq1_m" else 2
        assert data[start:].tolist() == rule[start:].tolist()
    values = decode(data, name)[:6]
    assert [float(np.float32(v)) for v in first] == [float(v) for v in values]
