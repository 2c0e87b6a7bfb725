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


def build() -> Path:
    """Cross-compile what changed into build/arm and return the server; skips without tools."""
    for tool in (COMPILER, EMULATOR, "cmake", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"the Arm tests need {tool}")
    folder = ROOT / "build" / "arm"
    toolchain = ROOT / "cmake" / "aarch64-linux-gnu.cmake"
    configure = ["cmake", "-S", str(ROOT / "tests" / "arm"), "-B", str(folder), "-G", "Ninja"]
    run([*configure, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", "-DCMAKE_BUILD_TYPE=Release"])
    run(["ninja", "-C", str(folder)])
    return folder / "codec_server"


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


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
        weighted: int = 0,
    ) -> tuple[int, bytes]:
        assert self.process.stdin and self.process.stdout
        head = struct.pack("<6q", op, format, rows, cols, weighted, len(payload))
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
        number = kvant.format_info(format).number
        code, out = self.call(2, payload, number, rows, cols, weights is not None)
        assert code == 0
        return np.frombuffer(out, np.uint8).reshape(rows, -1)

    def decode(self, data: NDArray[np.uint8], format: str) -> NDArray[np.float32]:
        info = kvant.format_info(format)
        rows, cols = len(data), data.shape[1] // info.block_bytes * info.block
        code, out = self.call(3, data.tobytes(), info.number, rows, cols)
        assert code == 0
        return np.frombuffer(out, np.float32).reshape(rows, cols)

    def first_invalid(self, data: NDArray[np.uint8], format: str) -> int:
        info = kvant.format_info(format)
        rows, cols = len(data), data.shape[1] // info.block_bytes * info.block
        code, out = self.call(4, data.tobytes(), info.number, rows, cols)
        assert code == 0
        return int(struct.unpack("<q", out)[0])

    def floats(self, op: int, x: NDArray[np.float32], payload: bytes, format: int = 0) -> Any:
        """An operation on rows of f32 that gives an array of the same shape."""
        code, out = self.call(op, payload, format, *x.shape)
        assert code == 0
        return np.frombuffer(out, np.float32).reshape(x.shape)

    def rms_norm(self, x: NDArray[np.float32], weight: NDArray[np.float32]) -> Any:
        return self.floats(5, x, x.tobytes() + weight.tobytes())

    def softmax(self, x: NDArray[np.float32]) -> Any:
        return self.floats(6, x, x.tobytes())

    def activation_mul(
        self, gate: NDArray[np.float32], up: NDArray[np.float32], number: int
    ) -> Any:
        return self.floats(7, gate, gate.tobytes() + up.tobytes(), number)

    def rope(self, x: NDArray[np.float32], positions: NDArray[np.int64], interleaved: bool) -> Any:
        return self.floats(8, x, positions.tobytes() + x.tobytes(), int(interleaved))
