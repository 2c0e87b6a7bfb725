"""The command `kvant kv study` from end to end on a small model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kvant.cli.main import main
from kvant.kv import KVCalibration
from kvant.lab import KVDump, kv_optimize, kv_study

TEXT = "The quick brown fox jumps over the lazy dog; then it rests. " * 4
Capture = pytest.CaptureFixture[str]


def kv(*words: object) -> int:
    return main(["kv", "study", *map(str, words)])


def test_a_study_is_shown_written_and_printed_as_json(
    dense: Path, tmp_path: Path, capsys: Capture
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    files = [tmp_path / name for name in ("dump.npz", "means.npz", "plot.png")]
    options = zip(("--dump", "--calibration", "--plot"), files, strict=True)
    words = [word for pair in options for word in pair]
    assert kv(dense, "--text", text, "--ctx", 64, *words, "--budget-bits", 5, "--layers") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "dense.gguf: 2 layers, 64 tokens, 32 queries" in shown.out
    assert "iq4_nl+rot+mean+eq" in shown.out
    assert "by layer" in shown.out
    assert "bits a number" in shown.out
    assert files[2].read_bytes().startswith(b"\x89PNG")
    dump = KVDump.load(files[0])
    study = kv_study(dump, name="dense.gguf")
    assert np.array_equal(KVCalibration.load(files[1]).center[1], study.calibration.center[1])

    assert kv(files[0], "--json", "--max-kl", 0.01, "--sink", 4) == 0
    record = json.loads(capsys.readouterr().out)
    study = kv_study(dump, name="dump.npz", sink=4)
    plan = record.pop("plan")
    assert record == json.loads(json.dumps(study.to_json()))
    assert plan == kv_optimize(study, max_kl=0.01).to_json()


def test_a_model_writes_its_own_text(moe: Path, capsys: Capture) -> None:
    assert kv(moe, "--ctx", 16, "--codecs", "q8_0, q4_0+rot", "--json", "--queries", 4) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["queries"] == 4
    assert record["plan"] is None
    assert {row["codec"] for row in record["rows"]} == {"q8_0", "q4_0+rot"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--codecs", "q9"], "got 'q9'"),
        (["--plot", "/nowhere/x.png"], "No such folder"),
        (["--budget-bits", "1"], "at least 2."),
        (["--budget-bits", "-1"], "above 0"),
        (["--max-kl", "1e-30"], "KL of at least"),
    ],
)
def test_errors_are_one_line(dense: Path, words: list[str], told: str, capsys: Capture) -> None:
    assert kv(dense, "--ctx", 16, *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert told in error


def test_a_file_that_is_no_dump(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK")
    assert kv(tmp_path / "x.npz") == 2
    assert "expected a dump" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        kv("x.npz", "--tail", "-1")
