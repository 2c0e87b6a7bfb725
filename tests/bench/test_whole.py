"""`make bench`, small: all parts into one folder, and from there into README.md."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from kvant import Error
from kvant.bench import probes
from support import ROOT

Capture = pytest.CaptureFixture[str]
TINY = ("--quick", "--size", "4", "--rounds", "3", "--formats", "q4_0,q4_k")
SHAPES = ("--shape", "256x1024", "--experts", "4x2x256x256", "--tokens", "1,8")
PRODUCTS = ("--only", "matmul", "--only", "experts")
SEPARATE = ("encode", "wheel", "bandwidth", "compute")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_SECONDS", 1e-5)
    monkeypatch.syspath_prepend(str(ROOT))


def measure(folder: Path, *words: str, threads: str = "1,2") -> tuple[int, dict[str, Any]]:
    words = (*TINY, *SHAPES, *words, "--threads", threads, "--out", str(folder))
    status = import_module("benchmarks.report").main([*words])
    return status, json.loads((folder / "bench.json").read_text())


def test_all_parts_go_to_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(import_module("benchmarks.wheel"), "_import_seconds", lambda name: 0.01)
    only = [word for part in SEPARATE for word in ("--only", part)]
    # Threads of ggml wait for each other without sleeping: where processors are busy, for long.
    status, found = measure(tmp_path / "a" / "b", *only, *PRODUCTS, threads="1")
    assert status == 0 and found["complete"]
    assert list(found["sections"]) == [*SEPARATE, "matmul", "experts"]
    kinds = {(r["m"], r["weights"]) for r in found["sections"]["matmul"]["rows"]}
    assert kinds == {(1, "packed"), (1, "unpacked"), (8, "packed")}
    for part in ("matmul", "experts"):
        rows = found["sections"][part]["rows"]
        assert all(r["of_roofline"]["median"] > 0 for r in rows)
    about = found["machine"]
    assert about["commit"] and set(about["peers"]) >= {"ggml", "gguf-py"}
    text = (tmp_path / "a" / "b" / "bench.md").read_text()
    heading = text.splitlines()[0]
    for key in ("cpu", "system", "isa", "commit"):
        assert str(about[key]) in heading
    assert about["date"][:10] in heading and f"threads: {about['threads']}" in heading
    assert text.count("\n## ") == 6 and "| q4_k |" in text
    lacking = about["peers"]["ggml"] == "absent"
    assert lacking == ("| ggml |" not in text) == ("are left out" in text)
    assert (tmp_path / "a" / "b" / "roofline.png").read_bytes().startswith(b"\x89PNG")
    assert "matmul 1/" in capsys.readouterr().err


def test_without_ggml_its_columns_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(import_module("benchmarks.peers"), "ggml", lambda: None)
    monkeypatch.setattr(import_module("benchmarks.encode").peers, "ggml", lambda: None)
    _, found = measure(tmp_path, "--only", "encode", *PRODUCTS)
    for part in ("matmul", "experts"):
        assert {r["threads"] for r in found["sections"][part]["rows"]} == {1, 2}
    assert any("ggml's columns are left out" in text for text in found["warnings"])
    text = (tmp_path / "bench.md").read_text()
    assert "ggml's columns are left out" in text
    heads = [line for line in text.splitlines() if line.startswith("| format")]
    assert len(heads) == 3 and not any("ggml" in h or "chunk" in h for h in heads)
    block = import_module("benchmarks.readme").render(found)
    assert "nothing stands beside" in " ".join(block.split())


def test_ctrl_c_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    module = import_module("kvant.bench.matmul")
    real, calls = module.turns, []

    def turns(*args: Any, **words: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **words)

    monkeypatch.setattr(module, "turns", turns)
    status, found = measure(tmp_path, "--only", "compute", *PRODUCTS)
    assert status == 130 and not found["complete"]
    assert list(found["sections"]) == ["compute", "matmul"]
    assert len(found["sections"]["matmul"]["rows"]) == 3
    assert "rows are missing" in (tmp_path / "bench.md").read_text()
    assert capsys.readouterr().err.strip().endswith("interrupted")
    with pytest.raises(Error, match="complete"):
        import_module("benchmarks.readme").render(found)


def share(value: float) -> dict[str, float]:
    return {"median": value, "low": value, "high": value, "spread": 0.0}


def row(format: str, m: int, threads: int, weights: str, value: float, **more: Any) -> dict:
    peers = {"ggml": {"times": share(2.0)}} | (
        {"ggml repack": {"times": share(1.5)}} if more else {}
    )
    case = {"format": format, "m": m, "threads": threads, "weights": weights}
    return case | {"of_limit": share(value), "of_roofline": share(value / 2)} | peers


@pytest.fixture
def numbers() -> dict[str, Any]:
    """A report that nobody measured."""
    about = {"cpu": "Z80", "system": "CP/M", "isa": "scalar", "threads": 2, "kvant": "0.1.0"}
    about |= {"commit": "1f9a479", "date": "2026-01-02T03:04:05+00:00", "peers": {"ggml": "0.25"}}
    products = [
        row("q4_0", 1, 1, "packed", 0.75, repack=True),
        row("q4_0", 1, 2, "packed", 0.5, repack=True),
        row("q4_0", 1, 2, "unpacked", 0.25, repack=True),
        row("q4_0", 8, 2, "packed", 0.125, repack=True),
        row("q8_0", 1, 1, "packed", 1.0),
        row("q8_0", 1, 2, "packed", 1.0),
        row("iq1_s", 1, 2, "packed", 0.5),
    ]
    experts = [
        {k: v for k, v in row("q4_k", 1, n, "packed", 0.5).items() if k != "weights"}
        for n in (1, 2)
    ]
    for r in experts:
        r["composed"] = {"times": share(3.0)}
    return {
        "complete": True,
        "command": "make bench",
        "machine": about,
        "settings": {"shape": [64, 256], "experts": [4, 2, 256, 256], "threads": [1, 2]},
        "sections": {"matmul": {"rows": products}, "experts": {"rows": experts}},
    }


def test_readme_gets_the_tables_of_a_report(numbers: dict[str, Any], tmp_path: Path) -> None:
    module = import_module("benchmarks.readme")
    report, readme = tmp_path / "bench.json", tmp_path / "README.md"
    before = (ROOT / "README.md").read_text()
    report.write_text(json.dumps(numbers))
    readme.write_text(before)
    for _ in range(2):
        assert module.main([str(report), str(readme)]) == 0
        after = readme.read_text()
        assert after.split(module.BEGIN)[0] == before.split(module.BEGIN)[0]
        assert after.split(module.END)[1] == before.split(module.END)[1]
        block = after.split(module.BEGIN)[1].split(module.END)[0]
        assert block.strip() == module.render(numbers)
    tables = [line for line in block.splitlines() if line.startswith("|")]
    assert tables == [
        "| format | m = 1: of read, threads 1 / 2 | unpacked | x ggml / repacked "
        "| m = 8: of peak / of roof | x ggml / repacked |",
        "| --- | --- | --- | --- | --- | --- |",
        "| q4_0 | 0.75 / 0.50 | 0.25 | 2.0 / 1.5 | 0.12 / 0.06 | 2.0 / 1.5 |",
        "| q8_0 | 1.00 / 1.00 | - | 2.0 | - | - |",
        "| format | m = 1: of read, threads 1 / 2 | x composed / ggml |",
        "| --- | --- | --- |",
        "| q4_k | 0.50 / 0.50 | 3.0 / 2.0 |",
    ]
    words = " ".join(block.split())
    for text in (
        "Z80, CP/M, scalar, threads: 2",
        "1f9a479",
        "2026-01-02",
        "make bench",
        "64 x 256",
    ):
        assert text in words
    assert max(map(len, block.splitlines())) <= 120
    assert not re.search(r"[ \t]+$", after, re.M)


def test_what_cannot_be_put_there_is_refused(
    numbers: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    module = import_module("benchmarks.readme")
    report, readme = tmp_path / "bench.json", tmp_path / "README.md"
    block = f"{module.BEGIN}\n{module.END}\n"
    for text, given in (
        (block, numbers | {"complete": False}),
        (block, numbers | {"sections": {}}),
        (block, {}),
        (block + block, numbers),
        (f"{module.END}\n{module.BEGIN}\n", numbers),
        ("nothing\n", numbers),
    ):
        readme.write_text(text)
        report.write_text(json.dumps(given))
        assert module.main([str(report), str(readme)]) == 2
        assert capsys.readouterr().err.startswith("[readme] expected ")
        assert readme.read_text() == text
    assert module.main([str(tmp_path / "absent.json"), str(readme)]) == 2
