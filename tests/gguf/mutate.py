"""Mutations of GGUF files, and everything a reader does with one, for the fuzz tests.

The n-th mutation of a seed is a function of (seed, n) alone, so that every finding can be made
again from the two numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import broken_rules  # noqa: F401  # adds its files to HOSTILE
from hostile import HOSTILE
from images import good

from kvant import gguf
from kvant.errors import GGUFError

NUMBERS = (0, 1, 2, 7, 8, 9, 12, 13, 31, 32, 255, 256, 1 << 16, (1 << 30) + 1, (1 << 31) - 1)
NUMBERS += (1 << 31, (1 << 32) - 1, 1 << 32, (1 << 61) + 1, 1 << 62, (1 << 63) - 1, 1 << 63)
NUMBERS += ((1 << 64) - 32, (1 << 64) - 8, (1 << 64) - 1)


def seeds() -> list[bytes]:
    """Files to start from: the good one, mostly, and every hostile one of moderate size."""
    hostile = [h.build() for h in HOSTILE.values()]
    return [good()] * 40 + [h for h in hostile if len(h) < 4096]


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xC3, 0xFF, rng.randrange(256)))


def _number(data: bytearray, rng: random.Random) -> None:
    width = rng.choice((4, 8))
    at = rng.randrange(max(1, len(data) - width))
    value = rng.choice((*NUMBERS, len(data), len(data) - at - width))
    data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


def _small_step(data: bytearray, rng: random.Random) -> None:
    """Change what looks like a length or a count by a little."""
    spots = [i for i in range(len(data) - 8) if data[i] and not any(data[i + 1 : i + 8])]
    if spots:
        at = rng.choice(spots)
        data[at] = (data[at] + rng.choice((-2, -1, 1, 2, 8))) % 256


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 32)]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    piece = data[at : at + rng.randint(1, 64)]
    data[at:at] = piece * rng.choice((1, 1, 2, 50))


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.randint(1, 16))


_WAYS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip, _byte, _number, _number, _small_step, _small_step),
    *(_cut, _remove, _repeat, _insert),
)


def mutation(start: list[bytes], seed: int, number: int) -> bytes:
    """Return mutation `number` of `seed`: one to four changes to one of the starting files."""
    rng = random.Random(f"{seed}/{number}")
    data = bytearray(rng.choice(start))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        if data:
            rng.choice(_WAYS)(data, rng)
    return bytes(data)


def use(file: gguf.GGUFFile) -> None:
    """Look at everything in an open file."""
    for value in file.metadata.values():
        if isinstance(value, gguf.StringArray):
            assert len(value.tolist()) == len(value)
        else:
            repr(value)
    for name, tensor in file.tensors.items():
        info = file.tensors.info(name)
        data = tensor.data if hasattr(tensor, "format") else tensor
        assert tuple(tensor.shape) == info.shape
        assert data.nbytes == info.nbytes
        bytes(data)


def try_bytes(data: bytes) -> bool:
    """Open and use `data`; tell whether it was accepted. Only GGUFError may come out."""
    try:
        use(gguf.from_buffer(data))
    except GGUFError:
        return False
    return True


def try_file(data: bytes, folder: Path) -> bool:
    """As `try_bytes`, through a mapped file; what was accepted must survive writing."""
    path = folder / "mutant.gguf"
    path.write_bytes(data)
    try:
        file = gguf.open(path)
    except GGUFError:
        return False
    with file:
        use(file)
        copy = folder / "copy.gguf"
        if file.metadata.get("split.count", 0) not in (0, 1):
            return True
        gguf.write(copy, file.metadata, file.tensors)
        with gguf.open(copy) as again:
            assert list(again.metadata) == list(file.metadata)
            assert list(again.tensors) == list(file.tensors)
            once = copy.read_bytes()
            gguf.write(copy, again.metadata, again.tensors)
            assert copy.read_bytes() == once
    return True
