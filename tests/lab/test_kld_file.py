"""Base files of llama-perplexity: the bytes of its formulas, read back; broken ones refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_figures import figures, token

from kvant.errors import FormatError, ShapeError
from kvant.lab.kld import KldFile, decode_rows, encode_rows, write_kld
from kvant.lab.metrics import Comparison

CTX, VOCAB = 10, 7


def row_of_llama(logits: Any) -> tuple[float, float, list[int]]:
    """Scale, offset and 16-bit numbers of a row, one step after the other, all in f32."""
    x = [np.float32(v) for v in logits]
    most, least = max(x), max(min(x), max(x) - np.float32(16))
    log_sum = np.float32(np.log(sum(float(np.exp(v - most)) for v in x)))
    scale = (most - least) / np.float32(65535)
    steps = []
    for v in x:
        over = v > least and scale > 0
        steps.append(int(np.rint(np.float32(1) / scale * (v - least))) if over else 0)
    return scale, least - most - log_sum, steps


@given(st.integers(1, 40), st.sampled_from([0.0, 0.1, 3.0, 30.0]), st.integers(0, 1000))
def test_rows_are_those_of_llama_perplexity(vocab: int, spread: float, seed: int) -> None:
    x = (np.random.default_rng(seed).standard_normal((3, vocab)) * spread).astype(np.float32)
    words = encode_rows(x)
    assert words.shape == (3, 2 * ((vocab + 1) // 2) + 4)
    for row, logits in zip(words, x, strict=True):
        scale, offset, steps = row_of_llama(logits)
        found_scale, found_offset = row[:4].copy().view("<f4")
        assert found_scale == scale
        assert found_offset == pytest.approx(offset, rel=1e-6, abs=1e-6)
        assert row[4 : 4 + vocab].tolist() == steps


@given(st.integers(2, 40), st.integers(0, 1000))
def test_decoding_is_off_by_half_a_step(vocab: int, seed: int) -> None:
    x = (np.random.default_rng(seed).standard_normal((3, vocab)) * 3).astype(np.float32)
    log_p = decode_rows(encode_rows(x), vocab)
    shifted = x.astype(float) - x.max(axis=1, keepdims=True)
    exact = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    assert np.abs(log_p - np.maximum(exact, exact.max(axis=1, keepdims=True) - 16)).max() < 1.3e-4


def made(rng: np.random.Generator, windows: int) -> tuple[Any, Any]:
    tokens = rng.integers(0, VOCAB, (windows, CTX))
    rows = CTX - 1 - CTX // 2
    return tokens, (rng.standard_normal((windows, rows, VOCAB)) * 3).astype(np.float32)


def write(path: Path, tokens: Any, logits: Any) -> Path:
    with write_kld(path, tokens, VOCAB) as file:
        for rows in logits:
            file.append(rows)
    return path


def test_the_file_is_laid_out_as_llama_perplexity_reads_it(tmp_path: Path) -> None:
    tokens, logits = made(np.random.default_rng(0), 3)
    raw = write(tmp_path / "base.kld", tokens, logits).read_bytes()
    assert raw[:8] == b"_logits_"
    assert struct.unpack_from("<Iii", raw, 8) == (CTX, VOCAB, 3)
    assert np.frombuffer(raw, "<i4", 30, 20).tolist() == tokens.reshape(-1).tolist()
    words = np.frombuffer(raw, "<u2", offset=20 + 120).reshape(3, 4, 12)
    assert np.array_equal(words, [encode_rows(rows) for rows in logits])


def test_what_was_written_is_read(tmp_path: Path) -> None:
    tokens, logits = made(np.random.default_rng(1), 4)
    with KldFile(write(tmp_path / "base.kld", tokens, logits), bos=5) as base:
        assert (base.ctx, base.vocab, len(base.windows)) == (CTX, VOCAB, 4)
        assert np.array_equal(base.tokens, tokens)
        for index, (window, log_p) in enumerate(base):
            assert window.tokens.tolist() == [5, *tokens[index, 1:]]
            assert window.targets.tolist() == tokens[index, 6:].tolist()
            assert np.array_equal(log_p, decode_rows(encode_rows(logits[index]), VOCAB))
        assert np.array_equal(base.words(3), encode_rows(logits[3]))
        with pytest.raises(ShapeError, match=r"\(4, 7\)"):
            base.compare(0, logits[0][:3])
        with pytest.raises(IndexError):
            base.compare(4, logits[0])


def test_figures_are_those_that_llama_perplexity_prints(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tokens, logits = made(rng, 40)
    # Some tokens are so unlikely that they lie below its floor.
    logits[:, :, 0] -= 14
    test = logits + rng.standard_normal(logits.shape).astype(np.float32) / 2
    path = write(tmp_path / "base.kld", tokens, logits)
    comparison, wanted = Comparison(), []
    with KldFile(path) as base:
        for index, (window, log_p) in enumerate(base):
            comparison.add(base.compare(index, test[index]))
            rows = zip(log_p, test[index], window.targets, strict=True)
            wanted += [token(p, x, int(t)) for p, x, t in rows]
    found = comparison.result()
    expected = figures(wanted)
    kl, change = expected.pop("kl"), expected.pop("delta_p")
    for name, value in expected.items():
        got = getattr(found, name) if hasattr(found, name) else found.errors[name[:-6]]
        assert got == pytest.approx(value, abs=5e-7), name
    assert found.kl_max == pytest.approx(max(kl), abs=5e-7)
    assert found.kl_quantiles["min"] == pytest.approx(min(kl), abs=5e-7)
    assert found.delta_p_quantiles["max"] == pytest.approx(max(change), abs=5e-7)


def test_the_floor_of_sixteen_bits(tmp_path: Path) -> None:
    """A model against itself: not 0, because terms are left out and steps are rounded."""
    rng = np.random.default_rng(3)
    tokens, logits = made(rng, 20)
    path = write(tmp_path / "base.kld", tokens, logits)
    with KldFile(path) as base:
        kl = np.concatenate([base.compare(i, rows).kl for i, rows in enumerate(logits)])
    assert 0 < np.abs(kl).max() < 1.3e-4
    assert kl.min() < 0


def test_every_cut_and_every_addition_is_refused(tmp_path: Path) -> None:
    tokens, logits = made(np.random.default_rng(4), 2)
    raw = write(tmp_path / "base.kld", tokens, logits).read_bytes()
    broken = tmp_path / "broken.kld"
    for length in range(len(raw)):
        broken.write_bytes(raw[:length])
        with pytest.raises(FormatError, match="KldFile"):
            KldFile(broken)
    broken.write_bytes(raw + b"\0")
    with pytest.raises(FormatError, match="KldFile"):
        KldFile(broken)


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, b"_LOGITS_"), (8, b"\xff" * 4), (8, bytes(4)), (12, b"\xff" * 4), (12, bytes(4)),
     (12, b"\xff\xff\xff\x7f"), (16, b"\xff" * 4), (16, bytes(4)), (16, b"\xff\xff\xff\x7f"),
     (20, b"\xff" * 4), (20, b"\x07\0\0\0")],
)  # fmt: skip
def test_wrong_numbers_are_refused(tmp_path: Path, at: int, value: bytes) -> None:
    tokens, logits = made(np.random.default_rng(5), 2)
    raw = bytearray(write(tmp_path / "base.kld", tokens, logits).read_bytes())
    raw[at : at + len(value)] = value
    (tmp_path / "broken.kld").write_bytes(raw)
    with pytest.raises(FormatError, match=r"broken\.kld"):
        KldFile(tmp_path / "broken.kld")


def test_nothing_half_written(tmp_path: Path) -> None:
    tokens, logits = made(np.random.default_rng(6), 3)
    path = tmp_path / "base.kld"
    path.write_bytes(b"before")
    with pytest.raises(ShapeError, match="1 too few"):
        write(path, tokens, logits[:2])
    with pytest.raises(ShapeError, match="for 0 more windows"):
        write(path, tokens, [*logits, logits[0]])
    with pytest.raises(KeyboardInterrupt), write_kld(path, tokens, VOCAB) as file:
        file.append(logits[0])
        raise KeyboardInterrupt
    with pytest.raises(ShapeError, match=r"0\.\.6"), write_kld(path, tokens + 1, VOCAB):
        pass
    with pytest.raises(ShapeError, match=r"\[windows, ctx\]"), write_kld(path, tokens[0], VOCAB):
        pass
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
