"""The Arm build under an emulator: all of its ISAs give the bits of the reference and of x86."""

from __future__ import annotations

import numpy as np
import pytest
from codec_client import ISAS, Server

import kvant
from distributions import NAMES as FAMILIES
from distributions import distribution, importance, wild
from golden_files import ANSWERS, golden
from kvant.reference import FORMATS, decode, encode, ops
from support import differing, words

pytestmark = pytest.mark.arm

ENCODED = [name for name in FORMATS if FORMATS[name].can_encode]


def test_the_build_has_its_isas_and_no_other(server: Server) -> None:
    assert server.isas() == dict.fromkeys(ISAS, True)
    assert server.use("avx2") == -6


@pytest.mark.parametrize("name", ANSWERS)
def test_golden(arm: Server, name: str) -> None:
    answer = golden(name)
    assert answer.matches_decoded_bytes(arm.decode(answer.raw, name))
    if answer.encoded is not None:
        assert np.array_equal(arm.encode(answer.numbers, name), answer.encoded)
        assert np.array_equal(arm.encode(answer.numbers, name, answer.importance), answer.weighted)
        assert answer.matches_decoded(arm.decode(answer.encoded, name))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", ENCODED)
def test_every_distribution_is_encoded_as_by_the_reference(
    arm: Server, name: str, weighted: bool
) -> None:
    block = FORMATS[name].block
    cols = 3 * block if block > 1 else 45
    weights = importance(cols, 5) if weighted else None
    x = np.concatenate([distribution(family, 9, cols, 5) for family in FAMILIES])
    found = arm.encode(x, name, weights)
    wanted = encode(x, name, weights)
    assert np.array_equal(found, wanted), differing(name, found, wanted)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", ENCODED)
def test_large_arrays_are_encoded_as_on_this_processor(
    arm: Server, name: str, weighted: bool
) -> None:
    weights = importance(1024, 6) if weighted else None
    x = np.concatenate([distribution(family, 8, 1024, 6) for family in FAMILIES])
    found = arm.encode(x, name, weights)
    wanted = kvant.quantize(x, name, importance=weights).data
    assert np.array_equal(found, wanted), differing(name, found, wanted)


@pytest.mark.parametrize("name", FORMATS)
def test_any_bytes_decode_as_by_the_reference(arm: Server, name: str) -> None:
    size = FORMATS[name].block_bytes
    data = np.random.default_rng(7).integers(0, 256, (40, 25 * size), np.uint8)
    found = arm.decode(data, name).view(np.uint32)
    wanted = decode(data, name).view(np.uint32)
    assert np.array_equal(found, wanted), differing(name, found, wanted)


# Every byte of mxfp4 and nvfp4 is valid.
@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("mxfp4", "nvfp4")])
def test_validation_finds_the_same_block(arm: Server, name: str) -> None:
    size = FORMATS[name].block_bytes
    data = np.zeros((3, 4 * size), np.uint8)
    assert arm.first_invalid(data, name) == -1
    data[2, size : 2 * size] = 255
    tensor = kvant.QTensor(data, name, (3, 4 * FORMATS[name].block))
    with pytest.raises(kvant.FormatError, match=r"block 1 of row \(2,\)"):
        kvant.validate(tensor)
    assert arm.first_invalid(data, name) == 9


@pytest.mark.parametrize("cols", [1, 15, 16, 33, 1000])
def test_operations_give_the_bits_of_the_reference(arm: Server, cols: int) -> None:
    x, y = wild(50, cols, 8), wild(50, cols, 9)
    assert np.array_equal(words(arm.rms_norm(x, y[0])), words(ops.rms_norm(x, y[0])))
    assert np.array_equal(words(arm.softmax(x)), words(ops.softmax(x, 0.5)))
    assert np.array_equal(words(arm.scale(x)), words(ops.scale(x, 0.3)))
    assert np.array_equal(words(arm.add(y, x)), words(ops.add(y, x)))
    for kind, how in enumerate(({"norm": False}, {}, {"among": "chosen"})):
        found, wanted = arm.route(x, min(cols, 8), kind), ops.route(x, min(cols, 8), **how)
        assert np.array_equal(found[0], wanted[0])
        assert np.array_equal(words(found[1]), words(wanted[1]))
    for number, name in enumerate(ops.ACTIVATIONS):
        found = arm.activation_mul(x, y, number)
        assert np.array_equal(words(found), words(ops.activation_mul(x, y, name))), name


@pytest.mark.parametrize("block", [16, 32, 128, 512])
def test_hadamard_gives_the_bits_of_the_reference(arm: Server, block: int) -> None:
    x = wild(21, 2 * block, 12, 0.01)
    signs = np.where(np.arange(block) % 3, 1, -1).astype(np.float32)
    found = arm.hadamard(x, signs)
    assert np.array_equal(words(found), words(ops.hadamard(x, block, signs)))


@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize("cols", [2, 18, 32, 128])
def test_rope_gives_the_bits_of_the_reference(arm: Server, cols: int, style: str) -> None:
    x = wild(50, cols, 10)
    positions = np.random.default_rng(11).integers(-(10**6), 10**6, 50)
    found = arm.rope(x, positions, style == "interleaved")
    wanted = ops.rope(x[:, None], positions, theta=1e6, style=style)[:, 0]
    assert np.array_equal(words(found), words(wanted))
