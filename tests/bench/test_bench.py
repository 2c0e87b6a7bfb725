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

import numpy as np
import pytest

import kvant
from kvant import FormatError, IsaError, ShapeError, bench
from kvant.bench import probes
from kvant.bench.experts import Networks, composed, routes
from kvant.bench.ggml import ggml
from kvant.bench.limits import Limit
from kvant.bench.roof import Work, product_row
from kvant.bench.timing import Task, Times
from kvant.cli.main import main
from support import ROOT

Capture = pytest.CaptureFixture[str]
SMALL = ("--size", "4", "--rounds", "3", "--threads", "1,2", "--quick")
PARTS = ("bandwidth", "compute", "codecs", "matmul", "experts")
TINY = ("--shape", "256x1024", "--experts", "4x2x256x256", "--tokens", "1,8")


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
    words = ("--formats", "q4_0,q4_k,f16", *TINY)
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
    few = bench.settings(
        threads=[1], formats=["q8_0"], tokens=[1, 8], unpacked=[1], shape=(64, 256), memory=1 << 21
    )
    kinds = [(r.case["m"], r.case["weights"]) for r in bench.matmul(few).rows]
    assert kinds == [(1, "packed"), (1, "unpacked"), (8, "packed")]


def test_the_roofline_is_the_lower_roof() -> None:
    """One byte a second of reading, 100 operations a second; a product of one second."""
    second = Times(np.ones(3), np.ones(3))
    task = Task(lambda: None)
    tops = {"read": Limit("read", task, 1.0), "arithmetic": Limit("int8", task, 100.0)}
    times = {"read": second, "arithmetic": second, "own": second, "peer": second}
    for m, work, share, of_roofline in (
        (1, Work(operations=2.0, weights=0.5, around=0.1), 0.5, 0.6),
        (8, Work(operations=16.0, weights=0.5, around=0.25), 0.16, 0.75),
        (512, Work(operations=90.0, weights=0.5, around=0.25), 0.9, 0.9),
    ):
        row = product_row({"m": m}, second, times, tops, work, ("peer", "absent"))
        assert row.of_limit.median == pytest.approx(share)
        assert row.more["of_roofline"]["median"] == pytest.approx(of_roofline)
        assert row.limit == ("read" if m == 1 else "int8")
        assert row.more["peer"]["times"]["median"] == 1 and "absent" not in row.more


def test_experts_rotate_among_all_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("kvant.bench.experts")
    real, asked = module.moe_ffn, []

    def moe_ffn(x: Any, gate: Any, up: Any, down: Any, ids: Any, *rest: Any, **options: Any) -> Any:
        asked.append((id(gate), len(x), ids.tobytes()))
        return real(x, gate, up, down, ids, *rest, **options)

    monkeypatch.setattr(module, "moe_ffn", moe_ffn)
    wanted = bench.settings(
        threads=[1],
        formats=["q8_0"],
        tokens=[1, 8],
        experts=(8, 2, 256, 256),
        memory=1 << 21,
        rounds=3,
    )
    section = bench.experts(wanted)
    calls = [(net, ids) for net, m, ids in asked if m == 1]
    assert len({net for net, _ in calls}) == 2 and len({ids for _, ids in calls}) == 4
    assert all(a != b for a, b in pairwise(calls))
    one, many = section.rows
    assert (one.case["m"], one.unit, many.case["m"], many.unit) == (1, "GB/s", 8, "GOP/s")
    assert one.more["weight_bytes"] == 2 * 3 * 256 * 272
    assert many.more["weight_bytes"] > one.more["weight_bytes"]
    assert one.more["composed"]["times"]["median"] > 0


def test_a_router_asks_every_expert_before_any_again() -> None:
    for m in (1, 2, 4):
        calls = routes(32, 4, m)
        assert sorted(np.concatenate(calls).ravel().tolist()) == list(range(32))
    for ids in routes(8, 3, 5):
        assert ids.shape == (5, 3) and all(len(set(row)) == 3 for row in ids.tolist())


def test_composed_experts_are_the_network() -> None:
    net = Networks("q8_0", (4, 2, 64, 96)).packed[0]
    rng = np.random.default_rng(0)
    x, scale = rng.standard_normal((3, 96), np.float32), rng.random((3, 2), np.float32)
    ids = routes(4, 2, 3)[0]
    wanted = kvant.moe_ffn(x, *net, ids, scale)
    assert np.allclose(composed(x, net, ids, scale, 1), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("part", ["codecs", "matmul", "experts"])
def test_ggml_stands_beside(part: str, tmp_path: Path, capsys: Capture) -> None:
    if ggml() is None:
        pytest.skip("needs llama-cpp-python and cffi")
    words = ("--formats", "q4_0", *TINY, "--vs", "ggml")
    assert run(part, *SMALL, *words, "--json", tmp_path / "a.json") == 0
    shown = capsys.readouterr()
    assert "ggml" in shown.out and "repack" not in shown.err
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["machine"]["ggml"]
    rows = [r for r in result["sections"][part]["rows"] if part != "codecs" or r["threads"] == 1]
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
    with pytest.raises(ShapeError, match="at most 4 experts"):
        bench.settings(experts=(4, 5, 64, 64))
    with pytest.raises(kvant.Error, match="above 0"):
        bench.settings(threads=[0])
    for words in (("--formats", "q4_x"), ("--isa", "sse2"), ("--json", "none/such/a.json")):
        assert run("compute", *SMALL, *words) == 2
        assert capsys.readouterr().err.count("\n") == 1
    wrong = [("--shape", "64"), ("--threads", "0"), ("--size", "x"), ("--vs", "nobody")]
    for words in (*wrong, ("--experts", "8x2x64"), ("--experts", "8x0x64x64")):
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
