"""kvant.validate: takes what encoders write, and names the first block with a bad scale."""

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

# "extreme" overflows scales; mxfp4 blocks near 2^-126 get the exponent 255.
CALM = [family for family in FAMILIES if family not in ("extreme", "denormal")]


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


@pytest.mark.parametrize("name", NAMES)
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


def test_scale_bytes_of_the_four_bit_floats():
    for name, scales, refused in (("mxfp4", 1, {255}), ("nvfp4", 4, set(range(0x7F, 256)))):
        for code in range(256):
            for place in range(scales):
                data = np.zeros(FORMATS[name].block_bytes, np.uint8)
                data[place] = code
                if code in refused:
                    with pytest.raises(kvant.FormatError, match="expected finite scales"):
                        kvant.validate(tensor(data, name))
                else:
                    kvant.validate(tensor(data, name))


def test_a_tiny_mxfp4_block_is_written_as_ggml_does_and_refused():
    tiny = np.full((1, 32), 1.5 * 2.0**-126, np.float32)
    q = kvant.quantize(tiny, "mxfp4")
    assert q.data[0, 0] == 255
    with pytest.raises(kvant.FormatError, match="expected finite scales"):
        kvant.validate(q)


@pytest.mark.parametrize("name", [n for n in NAMES if FORMATS[n].block > 1])
def test_a_vector_has_row_nothing(name):
    data = np.full(FORMATS[name].block_bytes, 255, np.uint8)
    with pytest.raises(kvant.FormatError, match=r"block 0 of row \(\)"):
        kvant.validate(tensor(data, name))
