"""`kvant bench` from end to end, small: every part runs, says what it should, can be stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import kvant
from kvant import FormatError, IsaError, ShapeError, bench
from kvant.bench import probes
from kvant.bench.ggml import ggml
from kvant.cli.main import main
from support import ROOT

Capture = pytest.CaptureFixture[str]
SMALL = ("--size", "4", "--rounds", "3", "--threads", "1,2", "--quick")
PARTS = ("bandwidth", "compute", "codecs", "matmul")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_SECONDS", 1e-5)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Notes (weights, m) of every product."""
    module = import_module("kvant.bench.matmul")
    real, calls = module.product, []

    def product(x: Any, w: Any, **options: Any) -> Any:
        calls.append((id(w), len(x)))
        return real(x, w, **options)

    monkeypatch.setattr(module, "product", product)
    return calls


def run(*words: object) -> int:
    return main(["bench", *(str(word) for word in words)])


def documented(heading: str) -> set[str]:
    """Keys that docs/bench.md lists in the table below a heading."""
    text = (ROOT / "docs" / "bench.md").read_text()
    part = text.split(f"### {heading}\n")[1].split("\n#")[0]
    cells = re.findall(r"^\| ([^|]+) \|", part, re.M)
    return {key for cell in cells for key in re.findall(r"`(\w+(?: \w+)?)`", cell)}


def check_row(row: dict[str, Any]) -> None:
    assert row["value"] > 0 and row["limit_value"] > 0 and row["spread"] >= 0
    share = row["of_limit"]
    assert 0 < share["low"] <= share["median"] <= share["high"]
    assert row["unit"] in ("GB/s", "GOP/s") and row["rounds"] >= 3
    if (ROOT / "docs" / "bench.md").exists():
        assert set(row) <= documented("Rows")


@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs(part: str, tmp_path: Path, capsys: Capture) -> None:
    words = ("--formats", "q4_0,q4_k,f16", "--shape", "64x256", "--tokens", "1,8")
    files = ("--json", tmp_path / "a.json", "--plot", tmp_path / "a.png")
    assert run(part, *SMALL, *words, *files) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and "avx" in shown.out + "avx"
    for word in ("machine", "cpu", "caches", "pages", "clock", "load", "kvant", "threads"):
        assert re.search(rf"^ +{word}  ", shown.out, re.M), word
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["kvant_bench"] == 1 and result["complete"]
    assert list(result["sections"]) == [part]
    rows = result["sections"][part]["rows"]
    assert rows and {row["threads"] for row in rows} == {1, 2}
    for row in rows:
        check_row(row)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    if (ROOT / "docs" / "bench.md").exists():
        assert set(result) == documented("Report")
        assert set(result["machine"]) <= documented("Machine")
        assert set(result["sections"][part]) == documented("Sections")


def test_bandwidth_covers_pages_and_ways(capsys: Capture) -> None:
    section = bench.bandwidth(bench.settings(threads=[1], memory=4 << 20, rounds=3))
    ways = {row.case["what"] for row in section.rows}
    assert ways == {*(f"read, {n} at once" for n in (1, 2, 4, 8)), "copy", "copy around", "store"}
    pages = {row.case["pages"] for row in section.rows}
    assert pages == {"huge", "small"} or section.notes


def test_compute_covers_every_isa(isa: str) -> None:
    section = bench.compute(bench.settings(threads=[1], rounds=3, quick=True))
    rows = {(row.case["isa"], row.case["what"]) for row in section.rows}
    assert rows == {(name, what) for name in kvant.isa.available() for what in ("int8", "f32")}
    assert kvant.isa.current() == isa


def test_isa_can_be_named(capsys: Capture) -> None:
    section = bench.codecs(
        bench.settings(threads=[1], isas=["scalar"], formats=["q8_0"], memory=4 << 20, rounds=3)
    )
    assert [(r.case["what"], r.case["isa"]) for r in section.rows] == [
        ("decode", "scalar"),
        ("encode", "scalar"),
    ]


def test_matmul_rotates_weights_that_no_cache_holds(products: list[tuple[int, int]]) -> None:
    wanted = bench.settings(
        threads=[1], formats=["q8_0"], tokens=[1, 8], shape=(64, 256), memory=1 << 21, rounds=3
    )
    section = bench.matmul(wanted)
    copies = -(-wanted.memory // (64 * 272))
    assert [(r.case["m"], r.case["weights"], r.unit) for r in section.rows] == [
        (1, "packed", "GB/s"),
        (1, "unpacked", "GB/s"),
        (8, "packed", "GOP/s"),
        (8, "unpacked", "GOP/s"),
    ]
    weights = [w for w, m in products if m == 1]
    assert all(a != b for a, b in pairwise(weights))
    assert len(set(weights)) <= 2 * copies
    for row in section.rows:
        assert row.more["weight_bytes"] == 64 * 272
        assert row.more["operations_per_byte"] > 0


@pytest.mark.parametrize("part", ["codecs", "matmul"])
def test_ggml_stands_beside(part: str, tmp_path: Path, capsys: Capture) -> None:
    if ggml() is None:
        pytest.skip("needs llama-cpp-python and cffi")
    words = ("--formats", "q4_0", "--shape", "256x256", "--tokens", "1,8", "--vs", "ggml")
    assert run(part, *SMALL, *words, "--json", tmp_path / "a.json") == 0
    shown = capsys.readouterr()
    assert "ggml" in shown.out and "repack" not in shown.err
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["machine"]["ggml"]
    rows = [r for r in result["sections"][part]["rows"] if part == "matmul" or r["threads"] == 1]
    for row in rows:
        assert row["ggml"]["value"] > 0 and row["ggml"]["times"]["median"] > 0
        check_row(row)


def test_ctrl_c_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    compute = import_module("kvant.bench.compute")
    real, calls = compute.turns, []

    def turns(*args: Any, **words: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **words)

    monkeypatch.setattr(compute, "turns", turns)
    before = kvant.isa.current()
    assert run("compute", "bandwidth", *SMALL, "--json", tmp_path / "a.json") == 130
    shown = capsys.readouterr()
    assert "interrupted" in shown.err and "rows are missing" in shown.out
    result = json.loads((tmp_path / "a.json").read_text())
    assert not result["complete"] and list(result["sections"]) == ["compute"]
    assert {row["threads"] for row in result["sections"]["compute"]["rows"]} == {1, 2}
    assert kvant.isa.current() == before


def test_ctrl_c_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    words = ("compute", "--rounds", "100000", "--threads", "1", "--json", str(path))
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from kvant.cli.main import main; sys.exit(main(sys.argv[1:]))"
    program = subprocess.Popen(
        [sys.executable, "-c", code, "bench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(kvant.__file__).parent.parent)},
    )
    assert program.stdout is not None
    # The head is printed before anything is measured; a pipe keeps it until the end.
    time.sleep(3)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=60)
    assert program.returncode == 130, err
    assert "Traceback" not in err and "interrupted" in err
    if path.exists():
        assert not json.loads(path.read_text())["complete"]
        assert "rows are missing" in out


def test_unknown_names_are_typed_errors(capsys: Capture) -> None:
    with pytest.raises(FormatError, match="q4_x"):
        bench.settings(formats=["q4_x"])
    with pytest.raises(IsaError, match="sse2"):
        bench.settings(isas=["sse2"])
    with pytest.raises(ShapeError, match="256"):
        bench.settings(formats=["q4_k"], shape=(64, 128))
    with pytest.raises(kvant.Error, match="above 0"):
        bench.settings(threads=[0])
    for words in (("--formats", "q4_x"), ("--isa", "sse2"), ("--json", "none/such/a.json")):
        assert run("compute", *SMALL, *words) == 2
        assert capsys.readouterr().err.count("\n") == 1
    for words in (("--shape", "64"), ("--threads", "0"), ("--size", "x"), ("--vs", "nobody")):
        with pytest.raises(SystemExit) as stop:
            run("compute", *words)
        assert stop.value.code == 2
    with pytest.raises(SystemExit):
        run("everything")


def test_the_roofs_and_points_of_a_report() -> None:
    from kvant.bench.plot import points, roofline_png, roofs

    wanted = bench.settings(
        threads=[1, 2], formats=["q8_0"], tokens=[1, 8], shape=(64, 256), memory=1 << 21, rounds=3
    )
    report = bench.Report(bench.machine(), wanted)
    assert roofs(report) == {} and points(report) == []
    assert roofline_png(report).startswith(b"\x89PNG")
    report.sections.append(bench.matmul(wanted))
    assert [(p.format, p.m) for p in points(report)] == [("q8_0", 1), ("q8_0", 8)]
    assert set(roofs(report)) == {"GB/s", "GOP/s"}
    assert roofline_png(report).startswith(b"\x89PNG")
