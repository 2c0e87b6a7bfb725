"""The library against two independent implementations of ggml's codecs: libgguf (C) and gguf-py.

KVANT_ORACLE_BLOCKS sets the number of blocks per type (for encoding a tenth of it is used); the
default keeps the test short, `make oracle` runs a million. The numbers compared are printed.
"""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest

import kvant
from distributions import NAMES as FAMILIES
from distributions import distribution, importance
from kvant.reference import FORMATS
from support import bits, differing

gguf = pytest.importorskip("gguf")
libgguf = pytest.importorskip("libgguf")

BLOCKS = int(os.environ.get("KVANT_ORACLE_BLOCKS", "20000"))
LIBGGUF = {t.name.lower(): t for t in libgguf.GGMLQuantizationType}
GGUF = {t.name.lower(): t for t in gguf.GGMLQuantizationType}
QUANTIZED = [name for name in FORMATS if FORMATS[name].block > 1]
# libgguf has no q2_0; gguf-py has no q1_0 and q2_0.
IN_LIBGGUF = [name for name in QUANTIZED if name in LIBGGUF]
IN_GGUF = [name for name in QUANTIZED if name not in ("q1_0", "q2_0")]
ENCODED = [name for name in IN_LIBGGUF if FORMATS[name].can_encode]
PIECE = 20_000


def pieces(name, seed):
    """Random bytes in rows of eight blocks, at most so many at once."""
    rng = np.random.default_rng(seed)
    for start in range(0, BLOCKS, PIECE):
        rows = max(min(PIECE, BLOCKS - start) // 8, 1)
        yield rng.integers(0, 256, (rows, 8 * FORMATS[name].block_bytes), np.uint8)


def words(data, name):
    shape = (len(data), 8 * FORMATS[name].block)
    return kvant.QTensor(data, name, shape).dequantize().view(np.uint32)


def compare_decoding(name, oracle, who, capsys):
    blocks = 0
    for data in pieces(name, 1):
        wanted = bits(np.asarray(oracle(data))).reshape(len(data), -1)
        found = words(data, name)
        assert np.array_equal(found, wanted), differing(f"{name}, {who}", found, wanted)
        blocks += 8 * len(data)
    if "KVANT_ORACLE_BLOCKS" in os.environ:
        with capsys.disabled():
            count = blocks * FORMATS[name].block
            print(f"\ndecode {name:8} {blocks:9,} blocks, {count:13,} words = {who}", end="")


@pytest.mark.parametrize("name", IN_LIBGGUF)
def test_any_bytes_decode_as_by_libgguf(name, capsys):
    oracle = LIBGGUF[name]
    compare_decoding(name, lambda data: libgguf.dequantize_rows(data, oracle), "libgguf", capsys)


@pytest.mark.parametrize("name", IN_GGUF)
def test_any_bytes_decode_as_by_gguf_py(name, capsys):
    def oracle(data):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return gguf.quants.dequantize(data, GGUF[name])

    compare_decoding(name, oracle, "gguf-py", capsys)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", ENCODED)
def test_every_distribution_is_encoded_as_by_libgguf(name, weighted, capsys):
    block, blocks = FORMATS[name].block, 0
    cols = 1024
    wanted_blocks = max(BLOCKS // 10 // len(FAMILIES), 1)
    rows = -(-wanted_blocks * block // cols)
    for k, family in enumerate(FAMILIES):
        for start in range(0, rows, 2048):
            x = distribution(family, min(2048, rows - start), cols, 17 + start)
            weights = importance(cols, k + start) if weighted else None
            found = kvant.quantize(x, name, importance=weights).data
            wanted = np.asarray(libgguf.quantize_rows(x, LIBGGUF[name], weights))
            assert np.array_equal(found, wanted), differing(f"{name} {family}", found, wanted)
            blocks += x.size // block
    if "KVANT_ORACLE_BLOCKS" in os.environ:
        with capsys.disabled():
            how = "with importance" if weighted else "plain"
            print(f"\nencode {name:8} {blocks:9,} blocks {how} = libgguf", end="")
