"""`kvant run` and `kvant imatrix` from end to end on small models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kvant import gguf, models
from kvant import imatrix as imatrices
from kvant.cli.main import main

PROMPT = "the quick"
Capture = pytest.CaptureFixture[str]


def kvant(*words: object) -> int:
    return main([str(word) for word in words])


def test_run_writes_the_text_and_the_speed(moe: Path, capsys: Capture) -> None:
    assert kvant("run", moe, "-p", PROMPT, "-n", 8, "--ignore-eos", "--profile") == 0
    shown = capsys.readouterr()
    model = models.load(moe)
    ids = model.tokenizer.encode(PROMPT, bos=model.tokenizer.add_bos)
    whole = model.tokenizer.decode(ids + model.generate(ids, 8))
    assert shown.out == f"{whole}\n"
    for part in ("prefill", "decode  7 tokens", "MB/token", "GB/s", "moe_ffn", "Python"):
        assert part in shown.err


def test_run_as_json(dense: Path, capsys: Capture) -> None:
    words = ("-n", 5, "--temperature", 0.7, "--top-p", 0.9, "--seed", 3, "--ignore-eos")
    assert kvant("run", dense, "-p", PROMPT, *words, "--json", "--profile") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decoded_tokens"] == 4
    assert found["share_of_bandwidth"] > 0
    # All matrices once, the tied embedding as the head among them, and the cache.
    with gguf.open(dense) as file:
        nbytes = sum(t.nbytes for t in file.tensors.values() if len(t.shape) > 1)
    position = found["prompt_tokens"] + 2
    assert found["cache_bytes_per_token"] == 2 * 2 * 2 * 2 * 64 * (position + 1)
    assert found["bytes_per_token"] == nbytes + found["cache_bytes_per_token"]
    assert sum(line["share"] for line in found["profile"]) == pytest.approx(1)


@pytest.mark.parametrize("options", [("--no-pack",), ("--threads", 1), ("--act", "f32")])
def test_options_hardly_change_the_text(
    dense: Path, capsys: Capture, options: tuple[object, ...]
) -> None:
    for more in ((), options):
        assert kvant("run", dense, "-p", PROMPT, "-n", 6, "--ignore-eos", *more) == 0
    # Float weights take activations as they are, whatever is asked for.
    first, second, _ = capsys.readouterr().out.split("\n")
    assert first == second


def test_what_cannot_run_is_one_line(dense: Path, tmp_path: Path, capsys: Capture) -> None:
    bare = tmp_path / "bare.gguf"
    with gguf.open(dense) as file:
        keys = {k: v for k, v in file.metadata.items() if not k.startswith("tokenizer.")}
        gguf.write(bare, keys, dict(file.tensors))
    short = tmp_path / "short.gguf"
    short.write_bytes(dense.read_bytes()[:-1000])
    cases = [
        ((dense, "-p", PROMPT, "-n", 100), "at most 64 tokens"),
        ((dense, "-p", PROMPT, "-n", 4, "--temperature", -1), "temperature >= 0"),
        ((dense, "-p", PROMPT, "-n", 4, "--top-p", 0), "0 < top_p"),
        ((dense, "-f", tmp_path / "none.txt"), "No such file"),
        ((bare, "-p", PROMPT), "tokenizer"),
        ((short, "-p", PROMPT), "expected"),
        ((tmp_path / "none.gguf", "-p", PROMPT), "No such file"),
    ]
    for words, message in cases:
        assert kvant("run", *words) == 2, words
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        assert message in shown.err


def test_imatrix_writes_what_quantize_reads(moe: Path, tmp_path: Path, capsys: Capture) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 10)
    out = tmp_path / "imatrix.gguf"
    assert kvant("imatrix", moe, "--text", text, "-o", out, "--ctx", 32) == 0
    shown = capsys.readouterr().out
    assert "windows of 32 tokens, 16 weights" in shown
    assert f"written: {out}" in shown
    matrix = imatrices.load(out)
    assert matrix.datasets == (str(text),)
    assert matrix.coverage()["blk.0.attn_q.weight"].tokens == 32 * matrix.chunk_count
    per_expert = matrix.importance("blk.1.ffn_down_exps.weight")
    assert per_expert is not None
    assert per_expert.shape == (4, 256)
    assert np.isfinite(per_expert).all()
    words = ("--type", "q4_k", "--imatrix", out)
    assert kvant("quantize", moe, tmp_path / "q.gguf", *words) == 0
    # The head is left out by default, and rows of the embedding are not multiplied.
    assert (
        "no importance for 2 tensors: output.weight, token_embd.weight" in capsys.readouterr().out
    )
    assert kvant("imatrix", moe, "--text", text, "-o", tmp_path / "old.dat", "--ctx", 32) == 0
    assert (tmp_path / "old.dat").exists()
