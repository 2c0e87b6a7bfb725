"""What is said about a machine, on machines that this one is not."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest

from kvant.bench.machine import caches, gpus, last_level_bytes, machine, page_setting, warnings
from kvant.bench.report import head_lines
from kvant.bench.settings import settings

# kvant.bench has functions of the same names.
module = import_module("kvant.bench.machine")
chosen = import_module("kvant.bench.settings")
LISTED = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0123)\nGPU 1: NVIDIA L4 (UUID: GPU-4567)\n"


def tool(folder: Path, body: str) -> None:
    """A program of that name on PATH."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(module, "_NVIDIA", tmp_path / "gpus")
    return tmp_path


def test_nvidia_devices_are_seen_and_said_to_be_unused(path: Path) -> None:
    (path / "listed").write_text(LISTED)
    tool(path, f'test "$1" = -L && cat {path / "listed"}')
    assert gpus() == ["GPU 0: NVIDIA H100 80GB HBM3", "GPU 1: NVIDIA L4"]
    notes = warnings(machine())
    assert "seen, but not used by this version: GPU 1: NVIDIA L4" in notes


def test_a_driver_without_its_tool_is_seen_too(path: Path) -> None:
    tool(path, "exit 9")
    assert gpus() == []
    information = path / "gpus" / "0000:01:00.0" / "information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: \t NVIDIA H200\nIRQ:  70\n")
    assert gpus() == ["GPU 0: NVIDIA H200"]


def test_no_device_is_fine(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(path))
    assert gpus() == []


def test_caches_of_another_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, (level, kind, size, shared) in enumerate(
        [
            ("1", "Data", "64K", "0"),
            ("1", "Instruction", "64K", "0"),
            ("2", "Unified", "2M", "0-1"),
            ("3", "Unified", "98304K", "0-7,16-23"),
        ]
    ):
        folder = tmp_path / "cpu0" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        texts = {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}
        for name, text in texts.items():
            (folder / name).write_text(f"{text}\n")
    monkeypatch.setattr(module, "_CPU", tmp_path)
    assert [(c["level"], c["bytes"], c["shared_by"]) for c in caches()] == [
        (1, 64 << 10, 1),
        (2, 2 << 20, 2),
        (3, 96 << 20, 16),
    ]
    assert last_level_bytes() == 96 << 20


def test_buffers_exceed_the_last_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for cache, memory, quick, wanted in (
        (32 << 20, 64 << 30, False, 320 << 20),
        (256 << 20, 64 << 30, False, 1 << 30),
        (48 << 20, 64 << 30, True, 96 << 20),
        (48 << 20, 1 << 30, False, 128 << 20),
        (48 << 20, 0, False, 320 << 20),
    ):
        monkeypatch.setattr(chosen, "last_level_bytes", lambda cache=cache: cache)
        monkeypatch.setattr(chosen, "available_bytes", lambda memory=memory: memory)
        assert settings(quick=quick).memory == wanted


def test_the_head_names_everything() -> None:
    lines = dict(head_lines(machine()))
    assert {"machine", "cpu", "instruction sets", "threads", "caches", "pages"} <= set(lines)
    assert {"clock", "load", "kvant"} <= set(lines)
    assert page_setting() in ("always", "madvise", "never") or "KiB" in page_setting()


def test_pages_as_the_kernel_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "enabled"
    monkeypatch.setattr(module, "_PAGES", path)
    assert page_setting().endswith("KiB")
    path.write_text("always madvise [never]\n")
    assert page_setting() == "never"
    assert any("huge pages are off" in note for note in warnings(machine()))
