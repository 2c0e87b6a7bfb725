"""The program kvant from end to end on small models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant import gguf
from kvant.cli import demo
from kvant.cli.main import COMMANDS, build_parser, main
from kvant.imatrix import Imatrix
from kvant.quantize_file import quantize_file

TEXT = "The quick brown fox jumps over the lazy dog; then it rests. " * 4
Capture = pytest.CaptureFixture[str]


def kvant(*words: object) -> int:
    return main([str(word) for word in words])


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text.strip()


def test_help_names_every_command(capsys: Capture) -> None:
    assert kvant() == 0
    shown = capsys.readouterr().out
    assert all(f"    {name} " in shown for name in COMMANDS)
    assert "examples:" in shown
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args([name, "--help"])
        assert stop.value.code == 0
        assert f"usage: kvant {name}" in capsys.readouterr().out


def test_version(capsys: Capture) -> None:
    assert kvant("--version") == 0
    assert one_line(capsys.readouterr().out).startswith("kvant ")


def test_quantize_writes_what_the_library_writes(
    dense: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ("--tensor-type", "ffn_up=q8_0", "--tensor-type", "ffn=q5_1", "--threads", 1)
    assert kvant("quantize", dense, tmp_path / "a.gguf", "--type", "Q4_K_M", *words) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "Q4_K_M: " in shown.out
    assert "bits per weight" in shown.out
    assert "q5_1" in shown.out
    overrides = [("ffn_up", "q8_0"), ("ffn", "q5_1")]
    quantize_file(dense, tmp_path / "b.gguf", "Q4_K_M", overrides=overrides)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert kvant("quantize", dense, tmp_path / "a.gguf", "-t", "Q4_K_M", "--pure") == 0
    quantize_file(dense, tmp_path / "b.gguf", "Q4_K_M", pure=True)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_quantize_with_an_imatrix_names_what_it_lacks(
    moe: Path, tmp_path: Path, capsys: Capture
) -> None:
    matrix = Imatrix()
    matrix.add("blk.0.attn_q.weight", np.ones((4, 256)))
    matrix.save(tmp_path / "imatrix.gguf")
    words = ("--type", "q4_k", "--imatrix", tmp_path / "imatrix.gguf")
    assert kvant("quantize", moe, tmp_path / "q.gguf", *words) == 0
    assert "no importance for 15 tensors" in capsys.readouterr().out
    with gguf.open(tmp_path / "q.gguf") as file:
        assert file.metadata["quantize.imatrix.entries_count"] == 1


def test_a_dry_run_lists_tensors_and_writes_nothing(
    moe: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert kvant("quantize", moe, "--type", "MXFP4_MOE", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "blk.1.ffn_down_exps.weight" in shown
    assert "4 x 256 x 256" in shown
    assert "dry run, nothing written" in shown
    assert list(tmp_path.iterdir()) == []


def test_inspect_as_text(moe: Path, capsys: Capture) -> None:
    assert kvant("inspect", moe) == 0
    shown = capsys.readouterr().out
    assert "general.architecture" in shown
    assert "blk.0.attn_q.weight" not in shown
    assert "bits per weight" in shown
    assert "KV cache in f16: 1,024 bytes a token" in shown
    assert "of weights read for each token" in shown
    assert kvant("inspect", moe, "--tensors") == 0
    shown = capsys.readouterr().out
    assert "blk.0.ffn_up_exps.weight" in shown
    assert "general.architecture" not in shown
    assert kvant("inspect", moe, "--metadata") == 0
    assert "tokenizer.ggml.bos_token_id" in capsys.readouterr().out


def test_inspect_as_json(moe: Path, capsys: Capture) -> None:
    assert kvant("inspect", moe, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metadata"]["qwen3moe.expert_count"] == 4
    assert found["metadata"]["tokenizer.ggml.tokens"]["length"] == 258
    assert len(found["tensors"]) == 27
    assert found["bytes"] == sum(t["bytes"] for t in found["tensors"])
    assert found["weights"] == sum(int(np.prod(t["shape"])) for t in found["tensors"])
    assert found["bits_per_weight"] == pytest.approx(8 * found["bytes"] / found["weights"])
    stacked = sum(t["bytes"] for t in found["tensors"] if "_exps" in t["name"])
    table = next(t["bytes"] for t in found["tensors"] if t["name"] == "token_embd.weight")
    expected = found["bytes"] - table - stacked + stacked * 2 // 4
    assert found["memory"]["read_per_token"] == expected
    # two layers, two heads, keys and values of 64, two bytes each
    assert found["memory"]["kv_cache_f16_per_token"] == 2 * 2 * (64 + 64) * 2


def test_inspect_a_file_without_tensors(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "vocab.gguf"
    gguf.write(path, {"a": np.float32(np.nan), "b": [f"{i}" for i in range(9)]}, {})
    assert kvant("inspect", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metadata"]["a"] == "nan"
    assert found["bits_per_weight"] == 0
    assert kvant("inspect", path) == 0
    assert "0 tensors" in capsys.readouterr().out


def test_formats(capsys: Capture) -> None:
    assert kvant("formats") == 0
    shown = capsys.readouterr().out
    assert "nvfp4" in shown
    assert "decode only" in shown
    assert "Q4_K_M" in shown
    assert kvant("formats", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {"name": "Q4_K_M", "file_type": 15, "base": "q4_k"} in found["recipes"]
    q4_k = next(f for f in found["formats"] if f["name"] == "q4_k")
    assert (q4_k["block"], q4_k["block_bytes"], q4_k["ggml_type"]) == (256, 144, 12)


def test_sweep_writes_a_report(dense: Path, tmp_path: Path, capsys: Capture) -> None:
    text = tmp_path / "fox.txt"
    text.write_text(TEXT)
    out = tmp_path / "out"
    words = ["--formats", "Q8_0, q2_k", "--text", text, "--ctx", 32, "--out", out, "--save"]
    assert kvant("sweep", dense, *words) == 0
    shown = capsys.readouterr()
    assert "original (f16)" in shown.out
    assert "report.html" in shown.out
    assert shown.err == ""
    stored = json.loads((out / "sweep.json").read_text())
    assert [row["name"] for row in stored["rows"]] == ["original (f16)", "Q8_0", "q2_k"]
    assert stored["command"].startswith(f"kvant sweep {dense} --formats 'Q8_0, q2_k' --text")
    assert {p.name for p in out.glob("*.gguf")} == {"dense-Q8_0.gguf", "dense-q2_k.gguf"}


def test_demo_sweeps_the_example(
    moe: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "FORMATS", ("Q8_0", "nvfp4"))
    monkeypatch.setattr(demo, "_TOKENS", 64)
    (tmp_path / demo._MODEL).parent.mkdir(parents=True)
    (tmp_path / demo._MODEL).symlink_to(moe)
    assert kvant("demo") == 0
    assert "tiny-moe" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "demo").iterdir()} == {
        "sweep.json",
        "sweep.png",
        "report.html",
    }


def test_convert_calls_the_converter(
    dense: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(folder: Any, out: Any, dtype: Any) -> None:
        assert (folder, dtype) == ("some/folder", "f16")
        Path(out).write_bytes(dense.read_bytes())

    monkeypatch.setattr(import_module("kvant.convert"), "convert", convert)
    assert kvant("convert", "some/folder", tmp_path / "m.gguf", "--dtype", "f16") == 0
    assert "20 tensors" in one_line(capsys.readouterr().out)


ERRORS = [
    (["quantize", "{dense}", "{tmp}/q.gguf", "--type", "Q9_Z"], "expected a format name or one of"),
    (["quantize", "{dense}", "{tmp}/q.gguf", "--type", "IQ1_S"], "can be encoded"),
    (["quantize", "{dense}", "{dense}", "--type", "Q8_0"], "two different files"),
    (["quantize", "{dense}", "--type", "Q8_0"], "expected a destination"),
    (["quantize", "{tmp}/none.gguf", "{tmp}/q.gguf", "-t", "Q8_0"], "No such file"),
    (["quantize", "{dense}", "{tmp}/no/q.gguf", "-t", "Q8_0"], "No such file"),
    (["quantize", "{dense}", "{tmp}/q.gguf", "-t", "Q8_0", "--tensor-type", "x"], "REGEX=FORMAT"),
    (["inspect", "{tmp}/text.txt"], "GGUF"),
    (["inspect", "{tmp}"], "regular file"),
    (["sweep", "{dense}", "--formats", "q8_0", "--text", "{tmp}/text.txt"], "tokens of text"),
    (["sweep", "{dense}", "--formats", "q8_0", "--text", "{tmp}/latin.txt"], "UTF-8"),
    (["sweep", "{dense}", "--formats", "q8_0", "--save"], "folder"),
    (["sweep", "{dense}", "--formats", ""], "at least one"),
    (["convert", "{tmp}/none", "{tmp}/q.gguf"], "none"),
]


@pytest.mark.parametrize(("words", "message"), ERRORS)
def test_errors_are_one_line_and_leave_nothing(
    words: list[str], message: str, dense: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "text.txt").write_text("short")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    status = kvant(*(word.format(dense=dense, tmp=tmp_path) for word in words))
    shown = capsys.readouterr()
    assert status == 2
    assert one_line(shown.err).startswith("kvant: ")
    assert message in shown.err
    assert {p.name for p in tmp_path.iterdir()} == {"text.txt", "latin.txt"}


@pytest.mark.parametrize(
    "words", [["quantize", "a", "b"], ["nothing"], ["sweep", "m", "--ctx", "0"]]
)
def test_wrong_usage_ends_with_two(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: kvant" in capsys.readouterr().err


def test_a_missing_package_is_named(
    dense: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert kvant("sweep", dense, "--formats", "q8_0") == 2
    assert "pip install 'kvant[lab]'" in one_line(capsys.readouterr().err)


def environment() -> dict[str, str]:
    package = Path(gguf.__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": str(package), "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize("way", ["module", "script"])
@pytest.mark.parametrize(
    ("variable", "value"), [("KVANT_ISA", "doesnotexist"), ("KVANT_THREADS", "many")]
)
def test_a_wrong_environment_is_one_line(
    way: str, variable: str, value: str, tmp_path: Path
) -> None:
    words = ["-m", "kvant"]
    if way == "script":
        # As installers write it for an entry point.
        script = tmp_path / "kvant"
        script.write_text("import sys\nfrom kvant.cli.main import main\nsys.exit(main())\n")
        words = [str(script)]
    done = subprocess.run(
        [sys.executable, *words, "formats"],
        env={**environment(), variable: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    line = one_line(done.stderr)
    assert line.startswith("kvant: [") and variable in line and repr(value) in line


def test_ctrl_c_ends_with_130_and_no_partial_file(dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["sweep", dense, "--formats", "Q8_0,Q6_K", "--max-tokens", "200000", "--out", out]
    program = subprocess.Popen(
        [sys.executable, "-m", "kvant", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment(), "FORCE_COLOR": "1"},
        text=True,
        # What a shell starts in the background ignores the signal, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert program.stderr is not None
    # The first letter of the progress bar tells that the work has begun.
    assert program.stderr.read(1)
    time.sleep(0.2)
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=60)
    assert program.returncode == 130
    assert err.rstrip().endswith("interrupted")
    assert "Traceback" not in err
    assert not out.exists()


def test_a_closed_pipe_is_no_error(moe: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "kvant", "inspect", str(moe), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert program.stdout is not None
    program.stdout.close()
    assert program.stderr is not None
    assert program.stderr.read() == b""
    assert program.wait(timeout=60) == 141
    program.stderr.close()
