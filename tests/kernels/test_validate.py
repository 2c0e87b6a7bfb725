"""kvant.validate: takes what encoders write, and names the first block that no encoder writes."""

from __future__ import annotations

import numpy as np
import pytest
from blocks import ENCODED, NAMES, cols_of, random_rows, seeds
from hypothesis import given
from hypothesis import strategies as st

import kvant
from distributions import NAMES as FAMILIES
from distributions import distribution
from kvant.reference import FORMATS, decode
from support import every_isa

# Formats in which every byte is one that the encoder may write, or that decodes to a number.
ALWAYS_VALID = ("mxfp4", "nvfp4")
CAN_BE_BAD = [name for name in NAMES if name not in ALWAYS_VALID]
CALM = [family for family in FAMILIES if family != "extreme"]


def tensor(data, name):
    fmt = FORMATS[name]
    cols = data.shape[-1] // fmt.block_bytes * fmt.block
    return kvant.QTensor(data, name, (*data.shape[:-1], cols))


@pytest.mark.parametrize("name", ENCODED)
@given(family=st.sampled_from(CALM), seed=seeds)
def test_what_was_encoded_is_valid(name, family, seed):
    q = kvant.quantize(distribution(family, 3, cols_of(name, 2), seed), name)
    for _ in every_isa():
        kvant.validate(q)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32 - 1))
def test_valid_data_decode_to_numbers(name, seed):
    data = random_rows(name, 1, 1, seed)[:, : FORMATS[name].block_bytes]
    answers = set()
    for _ in every_isa():
        try:
            kvant.validate(tensor(data, name))
            answers.add("valid")
        except kvant.FormatError as error:
            answers.add(str(error))
    assert len(answers) == 1
    if answers == {"valid"}:
        # The largest exponents of mxfp4 overflow f32; nothing else does.
        x = decode(data, name)
        assert not np.isnan(x).any() if name == "mxfp4" else np.isfinite(x).all()


@pytest.mark.parametrize("name", CAN_BE_BAD)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_bad_block_is_named(name, threads, isa):
    size = FORMATS[name].block_bytes
    blocks = 40_000 // FORMATS[name].block + 3  # beyond one task
    data = np.zeros((2, 3, blocks * size), np.uint8)
    kvant.validate(tensor(data, name), threads=threads)
    for row, block in [((1, 2), 1), ((1, 1), blocks - 1), ((1, 1), 2), ((0, 0), 0)]:
        data[row][block * size : (block + 1) * size] = 255
        wanted = f"block {block} of row ({row[0]}, {row[1]})"
        with pytest.raises(kvant.FormatError, match=r"^\[validate\] expected finite") as caught:
            kvant.validate(tensor(data, name), threads=threads)
        assert str(caught.value).endswith(f"({name}), got {wanted}")


@pytest.mark.parametrize("name", ALWAYS_VALID)
def test_formats_whose_every_byte_is_valid(name):
    data = np.arange(256, dtype=np.uint8).repeat(FORMATS[name].block_bytes)
    kvant.validate(tensor(data, name))
    assert not np.isnan(decode(data, name)).any()


@pytest.mark.parametrize("name", [n for n in CAN_BE_BAD if FORMATS[n].block > 1])
def test_a_vector_has_row_nothing(name):
    data = np.full(FORMATS[name].block_bytes, 255, np.uint8)
    with pytest.raises(kvant.FormatError, match=r"block 0 of row \(\)"):
        kvant.validate(tensor(data, name))
