"""What the modules about matrix products share: weights of arbitrary bytes, activations, shapes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import kvant
from distributions import NAMES as FAMILIES
from distributions import distribution
from kvant import reference
from kvant.reference import FORMATS, decode

U8 = NDArray[np.uint8]
PLAIN = ("f32", "f16", "bf16")
CANONICAL_NAN = 0x7FC00000

# near: weights of like size, so that every block shows in the sums, some of equal bytes throughout;
# finite: of any size; any: also scales that are no numbers.
KINDS = ("near", "finite", "any")
_POOL = 300
_LIMITS = {"near": (2.0**-8, 2.0**8), "finite": (-1.0, np.inf)}


def _fits(name: str, kind: str, blocks: U8) -> NDArray[np.bool_]:
    low, high = _LIMITS[kind]
    largest = np.abs(decode(blocks, name)).max(axis=1)
    return (largest > low) & (largest < high)


def _uniform_blocks(name: str, base: U8) -> list[U8]:
    """`base` with one value in every byte that can take it: codes at the ends of their range."""
    found = []
    for value in (0x00, 0x7F, 0x80, 0xFF, 0x0F, 0xF0):
        changed = np.repeat(base[None], base.size, axis=0)
        np.fill_diagonal(changed, value)
        block = np.where(_fits(name, "near", changed), np.uint8(value), base)
        if _fits(name, "near", block[None])[0]:
            found.append(block)
    return found


@functools.cache
def block_pool(name: str, kind: str) -> U8:
    """Some hundred blocks of bytes; of the kind `near`, those of `end_blocks` come last."""
    size, rng = FORMATS[name].block_bytes, np.random.default_rng(len(name))
    blocks = rng.integers(0, 256, (_POOL, size), np.uint8)
    while kind != "any" and not (fit := _fits(name, kind, blocks)).all():
        blocks[~fit] = rng.integers(0, 256, ((~fit).sum(), size), np.uint8)
    if kind == "near":
        blocks = np.concatenate([blocks, *(b[None] for b in _uniform_blocks(name, blocks[0]))])
    return blocks


def end_blocks(name: str) -> U8:
    """Those of the pool whose codes stand at the ends of their range."""
    return block_pool(name, "near")[_POOL:]


def weights(name: str, rows: int, cols: int, seed: int, kind: str = "near") -> kvant.QTensor:
    """A matrix of blocks drawn from the pool."""
    pool, count = block_pool(name, kind), cols // FORMATS[name].block
    chosen = np.random.default_rng(seed).integers(0, len(pool), (rows, count))
    data = pool[chosen].reshape(rows, count * pool.shape[1])
    return kvant.QTensor(data, name, (rows, cols))


def cols_near(name: str, length: int) -> int:
    """The multiple of the block at or below `length`, one block at least."""
    block = FORMATS[name].block
    return max(length // block, 1) * block


def reference_product(x: Any, q: kvant.QTensor, act: str = "q8") -> NDArray[np.float32]:
    """What `kvant.matmul(x, q, act=act)` must give."""
    rows = np.asarray(x, dtype=np.float32).reshape(-1, q.shape[1])
    y = reference.matmul(rows, q.data, q.format, act)
    return y.reshape(*np.shape(x)[:-1], q.shape[0])


def words(y: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The bits themselves: of NaNs, the canonical one only is right."""
    return np.ascontiguousarray(y).view(np.uint32)


def check(label: str, got: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    """Every word is equal, or say how many are not and where."""
    assert (got.dtype, got.shape) == (np.float32, wanted.shape), label
    wrong = np.argwhere(words(got) != words(wanted))
    if len(wrong):
        at = tuple(wrong[0])
        raise AssertionError(
            f"{label}: {len(wrong)} of {got.size} words differ, first at {tuple(map(int, at))}: "
            f"got {got[at]!r}, expected {wanted[at]!r}"
        )


def _narrowed(x: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore", under="ignore"):
        if dtype == "bf16":
            import ml_dtypes

            return x.astype(ml_dtypes.bfloat16)
        return x.astype(np.float16 if dtype == "f16" else np.float32)


def _laid_out(x: NDArray[Any], layout: str) -> NDArray[Any]:
    """The same numbers with other strides, or at an odd address."""
    rows, cols = x.shape
    if layout == "pitch":
        room = np.full((rows, cols + 5), 7, x.dtype)
        room[:, :cols] = x
        return room[:, :cols]
    if layout == "every second row":
        room = np.full((2 * rows, cols), 7, x.dtype)
        room[::2] = x
        return room[::2]
    if layout == "backwards":
        return x[::-1].copy()[::-1]
    if layout == "odd address":
        raw = np.zeros(x.nbytes + 1, np.uint8)
        raw[1:] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
        return raw[1:].view(x.dtype).reshape(x.shape)
    return x


LAYOUTS = ("plain", "pitch", "every second row", "backwards", "odd address")


def activations(
    shape: tuple[int, ...],
    cols: int,
    family: str,
    seed: int,
    dtype: str = "f32",
    layout: str = "plain",
) -> NDArray[Any]:
    """Numbers [*shape, cols] of a family, in a dtype and a layout of memory."""
    x = distribution(family, int(np.prod(shape)), cols, seed)
    return _laid_out(_narrowed(x, dtype), layout).reshape(*shape, cols)


seeds = st.integers(0, 2**20)
families = st.sampled_from(FAMILIES)
kinds = st.sampled_from(KINDS)
acts = st.sampled_from(["q8", "q8", "f32"])
dtypes = st.sampled_from(["f32", "f32", "f16", "bf16"])
layouts = st.sampled_from(LAYOUTS)
threads = st.integers(1, 4)
# Around the columns and rows of register tiles.
leading = st.one_of(
    st.sampled_from([(), (1,), (2, 3), (3, 1, 5), (2, 2, 2), (1, 4, 16)]),
    st.integers(1, 9).map(lambda m: (m,)),
    st.integers(1, 70).map(lambda m: (m,)),
)
outputs = st.one_of(
    st.integers(1, 100), st.sampled_from([1, 15, 16, 17, 31, 33, 47, 48, 49, 63, 65])
)
lengths = st.integers(1, 1500)
