"""Base files of our own: what each mode keeps, and that nothing broken is read or left behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvant.errors import Error, FormatError, ShapeError
from kvant.lab.base_modes import MODES, TopK
from kvant.lab.divergence import compare_logits
from kvant.lab.logit_base import LogitBase, head_digest
from kvant.lab.scoring import Window, windows
from support import run_python

CTX, VOCAB, WIDTH, K = 10, 23, 6, 5
SIZES = {"hidden": WIDTH, "hidden-f16": WIDTH, "f16": 0, "topk": K}
WEIGHTS = np.random.default_rng(9).standard_normal((VOCAB, WIDTH)).astype(np.float32)


def head(hidden: Any) -> Any:
    return hidden @ WEIGHTS.T


def texts(count: int, seed: int = 0) -> list[Window]:
    tokens = np.random.default_rng(seed).integers(0, VOCAB, count * CTX)
    return windows(tokens, CTX)


def rows_of(mode: str, count: int) -> Any:
    rng = np.random.default_rng(count)
    width = WIDTH if MODES[mode].hidden else VOCAB
    return (rng.standard_normal((count, CTX // 2 - 1, width)) * 3).astype(np.float32)


def write(path: Path, mode: str, count: int = 3) -> Path:
    made = LogitBase.create(path, mode, vocab=VOCAB, ctx=CTX, size=SIZES[mode])
    with made as file:
        for window, rows in zip(texts(count), rows_of(mode, count), strict=True):
            file.append(window, rows)
    return path


@pytest.mark.parametrize("mode", MODES)
def test_what_was_written_is_read(mode: str, tmp_path: Path) -> None:
    with LogitBase(write(tmp_path / "base.kvl", mode)) as base:
        assert (base.mode, base.vocab, base.ctx, base.size) == (mode, VOCAB, CTX, SIZES[mode])
        assert base.head_digest == bytes(32)
        assert len(base.windows) == 3
        wanted = zip(texts(3), rows_of(mode, 3), strict=True)
        for (window, stored), (text, rows) in zip(base, wanted, strict=True):
            assert window.tokens.tolist() == text.tokens.tolist()
            assert window.first == text.first
            if mode == "hidden":
                assert np.array_equal(stored, rows)
            elif mode == "hidden-f16":
                assert np.array_equal(stored, rows.astype(np.float16))
            elif mode == "f16":
                shifted = rows - rows.max(axis=1, keepdims=True)
                assert np.array_equal(stored, shifted.astype(np.float16))


def test_hidden_states_are_exact_where_the_head_is_shared(tmp_path: Path) -> None:
    base = LogitBase(write(tmp_path / "base.kvl", "hidden"), head)
    half = LogitBase(write(tmp_path / "half.kvl", "hidden-f16"), head)
    for index, rows in enumerate(rows_of("hidden", 3)):
        logits = head(rows)
        found = base.compare(index, logits)
        assert (found.kl == 0).all()
        assert found.same.all()
        assert found.nll.tolist() == found.base_nll.tolist()
        other = compare_logits(logits, logits[:, ::-1].copy(), base.windows[index].targets)
        assert base.compare(index, logits[:, ::-1].copy()).kl.tolist() == other.kl.tolist()
        assert half.compare(index, logits).kl.max() < 1e-5
    with pytest.raises(Error, match="expected a head"):
        LogitBase(tmp_path / "base.kvl").compare(0, logits)


def test_f16_is_nearly_exact(tmp_path: Path) -> None:
    base = LogitBase(write(tmp_path / "base.kvl", "f16"))
    for index, rows in enumerate(rows_of("f16", 3)):
        assert base.compare(index, rows).kl.max() < 1e-6


def test_what_f16_cannot_hold() -> None:
    mode = MODES["f16"]
    rows = np.float32([[0, -np.inf, -1e9, -3]])
    stored = mode.decode(mode.encode(rows, np.array([0]), 0), 4, 0)
    assert stored.tolist() == [[0, -np.inf, -65504, -3]]


@given(st.integers(1, VOCAB), st.floats(0, 5), st.integers(0, 1000))
@example(20, 2.0, 247)
def test_a_lumped_tail_bounds_the_divergence_from_below(k: int, noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = (rng.standard_normal((4, VOCAB)) * 3).astype(np.float32)
    test = base + (rng.standard_normal(base.shape) * noise).astype(np.float32)
    targets = rng.integers(0, VOCAB, 4)
    mode = MODES["topk"]
    stored = mode.decode(mode.encode(base, targets, k), VOCAB, k)
    assert isinstance(stored, TopK)
    assert np.array_equal(stored.ids, np.argsort(-base, axis=1, kind="stable")[:, :k])
    found = mode.compare(stored, test, targets, None)
    full = compare_logits(base, test, targets)
    assert (found.kl <= full.kl + 1e-6).all()
    if k == VOCAB:
        np.testing.assert_allclose(found.kl, full.kl, atol=1e-6)
    np.testing.assert_allclose(found.base_nll, full.base_nll, atol=1e-5)
    assert np.array_equal(found.nll, full.nll)
    assert np.array_equal(found.same, full.same)


def test_sizes_beside_those_of_llama_cpp() -> None:
    # Vocabulary and width of Llama 3.1 8B, Qwen3 4B, Qwen3 0.6B.
    for vocab, width in ((128256, 4096), (151936, 2560), (151936, 1024)):
        theirs = 2 * (2 * ((vocab + 1) // 2) + 4)
        assert theirs / MODES["hidden"].row_bytes(vocab, width) > 15
        assert theirs / MODES["hidden-f16"].row_bytes(vocab, width) > 30
        assert theirs / MODES["topk"].row_bytes(vocab, 64) > 400


def read_all(path: Path) -> None:
    with LogitBase(path) as base:
        for _ in base:
            pass


@pytest.mark.parametrize("mode", MODES)
def test_every_cut_addition_and_change_is_refused(mode: str, tmp_path: Path) -> None:
    raw = write(tmp_path / "base.kvl", mode, 2).read_bytes()
    broken = tmp_path / "broken.kvl"
    for length in range(len(raw)):
        broken.write_bytes(raw[:length])
        with pytest.raises(FormatError, match="LogitBase"):
            read_all(broken)
    broken.write_bytes(raw + b"\0")
    with pytest.raises(FormatError, match="LogitBase"):
        read_all(broken)
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 0x40
        broken.write_bytes(changed)
        with pytest.raises(FormatError, match=r"broken\.kvl"):
            read_all(broken)


def header(**changes: int) -> bytes:
    """A header with a right checksum whatever stands in it."""
    import struct
    import zlib

    names = ("version", "mode", "vocab", "ctx", "first", "size", "windows")
    fields = dict(zip(names, (1, 2, VOCAB, CTX, CTX // 2, 0, 1), strict=True)) | changes
    packed = struct.pack("<8s6IQ32sI", b"KVLBASE\0", *fields.values(), bytes(32), 0)
    return packed + struct.pack("<I", zlib.crc32(packed))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2}, {"mode": 4}, {"vocab": 0}, {"vocab": 2**32 - 1}, {"ctx": 3},
        {"ctx": 2**32 - 1}, {"first": CTX - 1}, {"size": 1}, {"windows": 0},
        {"windows": 2**64 - 1}, {"mode": 0, "size": 0}, {"mode": 3, "size": VOCAB + 1},
        {"mode": 1, "size": 2**32 - 1}, {"windows": 2},
    ],
)  # fmt: skip
def test_wrong_numbers_are_refused(changes: dict[str, int], tmp_path: Path) -> None:
    good = write(tmp_path / "base.kvl", "f16", 1).read_bytes()
    path = tmp_path / "broken.kvl"
    path.write_bytes(header() + good[80:])
    read_all(path)
    path.write_bytes(header(**changes) + good[80:])
    with pytest.raises(FormatError, match="LogitBase"):
        LogitBase(path)


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "base.kvl"
    with pytest.raises(ShapeError, match="a mode of"):
        LogitBase.create(path, "u16", vocab=VOCAB, ctx=CTX)
    with pytest.raises(ShapeError, match="a size from 1"):
        LogitBase.create(path, "hidden", vocab=VOCAB, ctx=CTX)
    with pytest.raises(ShapeError, match="32 bytes"):
        LogitBase.create(path, "f16", vocab=VOCAB, ctx=CTX, head=b"x")
    [text] = texts(1)
    rows = rows_of("f16", 1)[0]
    strange = Window(text.tokens + VOCAB, text.first)
    bad: list[tuple[Window, Any, type[Error], str]] = [
        (text, rows[:2], ShapeError, r"\(4, 23\)"),
        (Window(text.tokens, 3), rows, ShapeError, "from 3 on"),
        (strange, rows, ShapeError, "below 23"),
        (text, rows * np.nan, Error, "finite"),
    ]
    for window, values, kind, message in bad:
        with (
            pytest.raises(kind, match=message),
            LogitBase.create(path, "f16", vocab=VOCAB, ctx=CTX) as file,
        ):
            file.append(window, values)
    with (
        pytest.raises(ShapeError, match="at least one window"),
        LogitBase.create(path, "f16", vocab=VOCAB, ctx=CTX),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    write(path, "f16")
    with pytest.raises(ShapeError, match=r"\(4, 23\)"):
        LogitBase(path).compare(0, rows[:, :5])
    with pytest.raises(IndexError):
        LogitBase(path).stored(3)


def test_interruptions_leave_what_was_there(tmp_path: Path) -> None:
    path = write(tmp_path / "base.kvl", "f16")
    before = path.read_bytes()
    with (
        pytest.raises(KeyboardInterrupt),
        LogitBase.create(path, "f16", vocab=VOCAB, ctx=CTX) as file,
    ):
        file.append(texts(1)[0], rows_of("f16", 1)[0])
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


FULL = """
import resource, signal, sys
import numpy as np
from kvant.lab.kld import write_kld
from kvant.lab.logit_base import LogitBase
from kvant.lab.scoring import windows

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
texts = windows(np.zeros(2000, int), 200)
rows = np.zeros((99, 50), np.float32)
try:
    if sys.argv[1].endswith("kld"):
        with write_kld(sys.argv[1], [w.tokens for w in texts], 50) as file:
            for window in texts:
                file.append(rows)
    else:
        with LogitBase.create(sys.argv[1], "f16", vocab=50, ctx=200) as file:
            for window in texts:
                file.append(window, rows)
except OSError as error:
    print("refused", error.errno)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
@pytest.mark.parametrize("name", ["base.kvl", "base.kld"])
def test_a_full_disk_leaves_nothing(name: str, tmp_path: Path) -> None:
    place = str(tmp_path / name)
    done = run_python(f"import sys; sys.argv = ['', {place!r}]\n{FULL}")
    assert done.stdout.startswith("refused"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_digests_tell_heads_apart() -> None:
    x = np.arange(4, dtype=np.float32)
    assert head_digest(x) == head_digest(x.copy())
    assert head_digest(x) != head_digest(x[::-1])
    assert len(head_digest(x)) == 32
