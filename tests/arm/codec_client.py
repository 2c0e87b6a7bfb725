"""Builds the codec server for Arm and speaks with it through qemu-aarch64."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kvant
from support import ROOT

COMPILER, EMULATOR, SYSROOT = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
ISAS = ("neon_i8mm", "neon_dotprod", "scalar")


def build() -> Path:
    """Cross-compile what changed into build/arm and return the server; skips without tools."""
    for tool in (COMPILER, EMULATOR, "cmake", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"the Arm tests need {tool}")
    folder = ROOT / "build" / "arm"
    toolchain = ROOT / "cmake" / "aarch64-linux-gnu.cmake"
    configure = ["cmake", "-S", str(ROOT / "tests" / "arm"), "-B", str(folder), "-G", "Ninja"]
    configure += ["-DKVANT_ISA_OPTIMIZE=-O1"]  # what is tested is the arithmetic, under an emulator
    run([*configure, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", "-DCMAKE_BUILD_TYPE=Release"])
    run(["ninja", "-C", str(folder)])
    return folder / "codec_server"


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def number(format: str) -> int:
    return kvant.format_info(format).number


def shape(data: NDArray[np.uint8], format: str) -> tuple[int, int]:
    """Rows and columns of packed rows."""
    info = kvant.format_info(format)
    return len(data), data.shape[1] // info.block_bytes * info.block


class Server:
    """One emulated process; every method is one call of the C ABI."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen(
            [EMULATOR, "-L", SYSROOT, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        status = self.process.wait(timeout=30)
        self.process.stdout.close()
        assert status == 0

    def call(
        self,
        op: int,
        payload: bytes,
        format: int = 0,
        rows: int = 0,
        cols: int = 0,
        x_rows: int = 0,
        option: int = 0,
    ) -> tuple[int, bytes]:
        assert self.process.stdin and self.process.stdout
        head = struct.pack("<7q", op, format, rows, cols, x_rows, option, len(payload))
        self.process.stdin.write(head + payload)
        self.process.stdin.flush()
        code, size = struct.unpack("<2q", self.process.stdout.read(16))
        return code, self.process.stdout.read(size)

    def isas(self) -> dict[str, bool]:
        lines = self.call(0, b"")[1].decode().splitlines()
        return {name: supported == "1" for name, supported in map(str.split, lines)}

    def use(self, isa: str) -> int:
        return self.call(1, isa.encode())[0]

    def encode(
        self, x: NDArray[np.float32], format: str, weights: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        rows, cols = x.shape
        payload = x.tobytes() + (b"" if weights is None else weights.tobytes())
        code, out = self.call(2, payload, number(format), rows, cols, option=weights is not None)
        assert code == 0
        return np.frombuffer(out, np.uint8).reshape(rows, -1)

    def decode(self, data: NDArray[np.uint8], format: str) -> NDArray[np.float32]:
        rows, cols = shape(data, format)
        code, out = self.call(3, data.tobytes(), number(format), rows, cols)
        assert code == 0
        return np.frombuffer(out, np.float32).reshape(rows, cols)

    def first_invalid(self, data: NDArray[np.uint8], format: str) -> int:
        code, out = self.call(4, data.tobytes(), number(format), *shape(data, format))
        assert code == 0
        return int(struct.unpack("<q", out)[0])

    def pack(self, data: NDArray[np.uint8], format: str) -> bytes:
        code, out = self.call(5, data.tobytes(), number(format), *shape(data, format))
        assert code == 0
        return out

    def unpack(self, packed: bytes, format: str, rows: int, cols: int) -> NDArray[np.uint8]:
        code, out = self.call(6, packed, number(format), rows, cols)
        assert code == 0
        return np.frombuffer(out, np.uint8).reshape(rows, -1)

    def matmul(
        self, x: NDArray[np.float32], weights: bytes, format: str, rows: int, packed: bool, act: str
    ) -> NDArray[np.float32]:
        option = packed + 2 * (act == "f32")
        payload = x.tobytes() + weights
        code, out = self.call(7, payload, number(format), rows, x.shape[1], len(x), option)
        assert code == 0
        return np.frombuffer(out, np.float32).reshape(len(x), rows)

    def floats(self, op: int, x: NDArray[np.float32], payload: bytes, format: int = 0) -> Any:
        """An operation on rows of f32 that gives an array of the same shape."""
        code, out = self.call(op, payload, format, *x.shape)
        assert code == 0
        return np.frombuffer(out, np.float32).reshape(x.shape)

    def rms_norm(self, x: NDArray[np.float32], weight: NDArray[np.float32]) -> Any:
        return self.floats(8, x, x.tobytes() + weight.tobytes())

    def softmax(self, x: NDArray[np.float32]) -> Any:
        return self.floats(9, x, x.tobytes())

    def scale(self, x: NDArray[np.float32]) -> Any:
        """x * 0.3."""
        return self.floats(14, x, x.tobytes())

    def hadamard(self, x: NDArray[np.float32], signs: NDArray[np.float32]) -> Any:
        return self.floats(17, x, x.tobytes() + signs.tobytes(), len(signs))

    def add(self, y: NDArray[np.float32], x: NDArray[np.float32]) -> Any:
        return self.floats(15, y, y.tobytes() + x.tobytes())

    def route(self, scores: NDArray[np.float32], used: int, kind: int) -> tuple[Any, Any]:
        """Ids and shares; kind 0 of all, 1 of all and divided by their sum, 2 of those chosen."""
        code, out = self.call(16, scores.tobytes(), kind, *scores.shape, option=used)
        assert code == 0
        count = len(scores) * used
        ids = np.frombuffer(out, np.int64, count).reshape(-1, used)
        return ids, np.frombuffer(out, np.float32, count, 8 * count).reshape(-1, used)

    def activation_mul(
        self, gate: NDArray[np.float32], up: NDArray[np.float32], number: int
    ) -> Any:
        return self.floats(10, gate, gate.tobytes() + up.tobytes(), number)

    def rope(self, x: NDArray[np.float32], positions: NDArray[np.int64], interleaved: bool) -> Any:
        return self.floats(11, x, positions.tobytes() + x.tobytes(), int(interleaved))

    def attend(
        self,
        q: NDArray[np.float32],
        k: NDArray[np.float32],
        v: NDArray[np.float32] | None,
        codec: int,
    ) -> Any:
        """One key head, k and v [S, D]; q [T, heads, D]. Window 70, scale 0.25, unbiased rows.

        Without v keys are values, too.
        """
        payload = k.tobytes() + (b"" if v is None else v.tobytes()) + q.tobytes()
        tokens, heads, dim = q.shape
        op = 18 if v is None else 12
        code, out = self.call(op, payload, codec, len(k), dim, tokens, heads)
        assert code == 0
        return np.frombuffer(out, np.float32).reshape(q.shape)

    def divergence(self, base: NDArray[np.float32], test: NDArray[np.float32]) -> Any:
        """Of each row: kl, base_lse, test_lse, base_top, test_top."""
        code, out = self.call(13, base.tobytes() + test.tobytes(), 0, *base.shape)
        assert code == 0
        kinds = [("kl", "<f8"), ("base_lse", "<f8"), ("test_lse", "<f8")]
        return np.frombuffer(out, [*kinds, ("base_top", "<i8"), ("test_top", "<i8")])
