"""Our files against those of llama.cpp's own quantizer, byte for byte.

Needs the package llama-cpp-python; its ggml must be built without floating-point contraction in
the quantizers, as all its binaries for x86-64 are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from kvant import gguf, models
from kvant.formats import format_info
from kvant.imatrix import Imatrix
from kvant.lab import collect_imatrix, windows
from kvant.qtensor import QTensor
from kvant.quantize_file import quantize_file
from kvant.quantize_tensor import importance_of
from kvant.recipes import Recipe, TensorInfo, plan, recipe, recipes
from support import shared_path

llama = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

SHORT = settings.get_current_profile_name() == "dev"


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Any:
    callback = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    yield callback
    llama.llama_log_set(ctypes.cast(None, llama.llama_log_callback), ctypes.c_void_p(0))


def llama_quantize(
    src: Path,
    dst: Path,
    type: str,
    *,
    pure: bool = False,
    imatrix: dict[str, np.ndarray[Any, Any]] | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    keys: Sequence[tuple[str, int | str]] = (),
) -> bool:
    """Run llama_model_quantize; False if it refuses."""
    params = llama.llama_model_quantize_default_params()
    params.ftype = recipe(type).file_type
    params.nthread = 1
    params.pure = pure
    params.max_buf_size = 1 << 24
    kept: list[Any] = []
    if imatrix:
        entries = (llama.llama_cpp.llama_model_imatrix_data * (len(imatrix) + 1))()
        for entry, (name, values) in zip(entries, imatrix.items(), strict=False):
            flat = np.ascontiguousarray(values, np.float32).reshape(-1)
            entry.name, entry.size = name.encode(), flat.size
            entry.data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            kept.append(flat)
        params.imatrix = entries
        kept.append(entries)
    if overrides:
        patterns = (llama.llama_cpp.llama_model_tensor_override * (len(overrides) + 1))()
        for entry, (pattern, format) in zip(patterns, overrides, strict=False):
            entry.pattern, entry.type = pattern.encode(), format_info(format).ggml_type
        params.tt_overrides = patterns
        kept.append(patterns)
    if keys:
        # The last entry, all zero, ends the list. Tags: 0 a number, 3 a text.
        extra = (llama.llama_cpp.llama_model_kv_override * (len(keys) + 1))()
        for entry, (key, value) in zip(extra, keys, strict=False):
            entry.key, entry.tag = key.encode(), 0 if isinstance(value, int) else 3
            if isinstance(value, int):
                entry.value.val_i64 = value
            else:
                entry.value.val_str = value.encode()[:127]
        params.kv_overrides = extra
        kept.append(extra)
    return bool(
        llama.llama_model_quantize(str(src).encode(), str(dst).encode(), ctypes.byref(params)) == 0
    )


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    with gguf.open(ours) as a, gguf.open(theirs) as b:
        assert list(a.tensors) == list(b.tensors)
        for name in a.tensors:
            x, y = a.tensors[name], b.tensors[name]
            assert isinstance(x, QTensor)
            assert isinstance(y, QTensor)
            assert (name, x.format, x.shape) == (name, y.format, y.shape)
            assert np.array_equal(x.data, y.data), name


def models_and_types() -> list[tuple[str, str]]:
    """The short profile leaves out what takes llama.cpp seconds to encode."""
    types = ["Q4_K_M", "Q5_K_S", "Q3_K_M", "IQ4_XS", "Q8_0"]
    quick = ["Q4_K_M", "Q8_0"] if SHORT else types
    return [
        *((name, type) for name in ("tiny-moe", "novels-dense") for type in types),
        *(("novels-moe", type) for type in quick),
    ]


@pytest.mark.parametrize(("name", "type"), models_and_types())
def test_real_models_give_the_same_file(name: str, type: str, tmp_path: Path) -> None:
    src = shared_path(f"models/{name}/model.gguf")
    quantize_file(src, tmp_path / "ours.gguf", type)
    assert llama_quantize(src, tmp_path / "theirs.gguf", type)
    assert_same_tensors(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


ENCODABLE = [r.name for r in recipes() if format_info(r.base).can_encode]


@pytest.mark.parametrize("type", ENCODABLE)
def test_every_type_gives_the_same_file(type: str, dense: Path, moe: Path, tmp_path: Path) -> None:
    for src in (dense, moe):
        for pure in (False, True):
            ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
            accepted = llama_quantize(src, theirs, type, pure=pure)
            if not accepted:
                # It has no fallback for these; no row of this model needs one.
                assert recipe(type).needs_imatrix
                continue
            quantize_file(src, ours, type, pure=pure)
            assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("type", ["Q4_K_M", "IQ4_XS", "Q4_0", "Q2_K", "Q2_K_S"])
def test_importance_is_used_as_llama_cpp_does(type: str, moe: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    matrix = Imatrix(chunk_size=8, datasets=["a book.txt"])
    with gguf.open(moe) as file:
        infos = {name: file.tensors.info(name) for name in file.tensors}
    for name, info in infos.items():
        x = rng.standard_normal((40, info.shape[-1])) * rng.uniform(0.1, 3, info.shape[-1])
        if len(info.shape) == 3:
            # The last expert sees nothing, so its importance is one everywhere.
            matrix.add(name, x, np.arange(40) % (info.shape[0] - 1), info.shape[0])
        elif len(info.shape) == 2:
            matrix.add(name, x)
    given = {name: importance_of(matrix, name, infos[name].shape) for name in matrix}
    path = tmp_path / "imatrix.gguf"
    matrix.save(path)
    quantize_file(moe, tmp_path / "ours.gguf", type, imatrix=path)
    # The program llama-quantize tells the library to record these.
    keys: list[tuple[str, int | str]] = [
        ("quantize.imatrix.file", str(path)),
        ("quantize.imatrix.dataset", "a book.txt"),
        ("quantize.imatrix.entries_count", len(matrix)),
        ("quantize.imatrix.chunks_count", 5),
    ]
    values = {name: found for name, found in given.items() if found is not None}
    assert llama_quantize(moe, tmp_path / "theirs.gguf", type, imatrix=values, keys=keys)
    assert_same_tensors(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_overrides_are_applied_as_llama_cpp_does(moe: Path, tmp_path: Path) -> None:
    overrides = [(r"blk\.0\.ffn_(up|gate)", "q5_1"), ("ffn", "iq4_nl"), ("attn_v", "q6_k")]
    quantize_file(moe, tmp_path / "ours.gguf", "Q4_K_M", overrides=overrides)
    assert llama_quantize(moe, tmp_path / "theirs.gguf", "Q4_K_M", overrides=overrides)
    assert_same_tensors(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


# architecture, layers, heads, key heads, experts, tied, columns, one tensor for q, k and v
SHAPES = [
    ("llama", 18, 4, 4, 0, False, 256, False),
    ("qwen3", 11, 8, 2, 0, True, 256, False),
    ("llama", 9, 8, 4, 8, False, 256, False),
    ("qwen3moe", 10, 8, 1, 16, False, 256, False),
    ("llama", 80, 8, 4, 0, False, 256, False),
    ("qwen2", 80, 8, 8, 0, False, 256, False),
    ("falcon", 17, 8, 1, 0, True, 256, True),
    ("llama", 3, 4, 4, 0, False, 288, False),
    ("llama", 3, 4, 4, 0, True, 172, False),
    ("phi3", 5, 4, 4, 0, False, 256, True),
]


def write_skeleton(path: Path, shape: tuple[Any, ...]) -> None:
    """A model of the given shape with matrices of two rows: enough to see which types it gets."""
    arch, layers, heads, kv_heads, experts, tied, cols, fused = shape
    keys: dict[str, Any] = {
        "block_count": layers,
        "context_length": 64,
        "embedding_length": cols,
        "feed_forward_length": cols,
        "vocab_size": 2,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "attention.layer_norm_epsilon": np.float32(1e-5),
        "rope.dimension_count": 64,
    }
    if experts:
        keys |= {
            "expert_count": experts,
            "expert_used_count": 2,
            "expert_feed_forward_length": 256,
        }
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (2, cols), "output_norm": (cols,)}
    if not tied:
        shapes["output"] = (2, cols)
    for layer in range(layers):
        parts = ["attn_qkv"] if fused else ["attn_q", "attn_k", "attn_v"]
        found: dict[str, tuple[int, ...]] = {part: (2, cols) for part in [*parts, "attn_output"]}
        found["attn_norm"] = (cols,)
        for kind in ("gate", "up", "down"):
            if experts:
                found[f"ffn_{kind}_exps"] = (2, 2, cols)
                found[f"ffn_{kind}_shexp"] = (2, cols)
            else:
                found[f"ffn_{kind}"] = (2, cols)
        shapes |= {f"blk.{layer}.{part}": size for part, size in found.items()}
    tensors = {}
    for name, size in shapes.items():
        format = "f32" if len(size) == 1 else "f16"
        data = np.ones(size, np.float32 if format == "f32" else np.float16)
        tensors[f"{name}.weight"] = QTensor.from_bytes(data.tobytes(), format, size)
    metadata = {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in keys.items()}}
    gguf.write(path, metadata, tensors)


def chosen_recipes() -> list[Recipe]:
    """All recipes; the short profile leaves out those whose tables take llama.cpp ten seconds."""
    return [r for r in recipes() if not SHORT or format_info(r.base).can_encode]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}-{s[1]}x{s[6]}-{s[4]}experts")
def test_types_agree_on_many_architectures(shape: tuple[Any, ...], tmp_path: Path) -> None:
    src, dst = tmp_path / "skeleton.gguf", tmp_path / "quantized.gguf"
    write_skeleton(src, shape)
    with gguf.open(src) as file:
        metadata = dict(file.metadata)
        infos = [
            TensorInfo(name, file.tensors.info(name).shape, file.tensors.info(name).type.name)
            for name in file.tensors
        ]
    matrix = {
        t.name: np.ones(t.shape[-1] * (t.shape[0] if len(t.shape) == 3 else 1), np.float32)
        for t in infos
        if len(t.shape) > 1
    }
    compared = 0
    for chosen in chosen_recipes():
        # The largest model is there for one rule only.
        for given in (None,) if shape[1] == 80 else (None, matrix):
            if not llama_quantize(src, dst, chosen.name, imatrix=given):
                refused = chosen.needs_imatrix and given is None
                no_fallback = chosen.name == "Q1_0" and shape[6] % 128
                assert refused or no_fallback, chosen.name
                continue
            expected = plan(chosen, metadata, infos, has_imatrix=given is not None)
            with gguf.open(dst) as file:
                got = {name: file.tensors.info(name).type.name for name in file.tensors}
            assert list(got.items()) == list(expected.items()), chosen.name
            compared += 1
    assert compared >= 20


class _Tensor(ctypes.Structure):
    """The head of ggml's tensor."""


_Tensor._fields_ = [
    ("type", ctypes.c_int32),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int32),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


def _array(tensor: _Tensor, dtype: type) -> np.ndarray[Any, Any]:
    """A tensor in the processor's memory, last axis contiguous, in NumPy order."""
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    extent = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 4
    raw = (ctypes.c_char * extent).from_address(tensor.data)
    return np.ndarray(shape, dtype, raw, strides=strides).copy()


def llama_statistics(path: Path, texts: Sequence[Any]) -> dict[str, list[Any]]:
    """Sums of squares and counts of what multiplies each weight while llama.cpp runs."""
    found: dict[str, list[Any]] = {}

    def look(address: int, ask: bool, data: Any) -> bool:
        node = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents
        if not node.src[0] or not node.src[1]:
            return False
        name = node.src[0].contents.name.decode()
        x = node.src[1].contents
        if not (name.startswith("blk.") and name.endswith(".weight")) or x.type != 0:
            return False
        if not tuple(node.src[0].contents.ne)[1] > 1:
            return False
        if ask:
            return True
        rows = _array(x, np.float32).astype(np.float64)[0]
        if node.src[2]:
            ids = _array(node.src[2].contents, np.int32)[0, 0]
            experts = int(tuple(node.src[0].contents.ne)[2])
            rows = np.broadcast_to(rows, (*ids.shape, rows.shape[-1]))
            squares = np.zeros((experts, rows.shape[-1]))
            np.add.at(squares, ids, rows * rows)
            counts = np.bincount(ids.ravel(), minlength=experts)
        else:
            flat = rows.reshape(-1, rows.shape[-1])
            squares, counts = (flat * flat).sum(axis=0)[None], np.array([len(flat)])
        if name in found:
            found[name][0] += squares
            found[name][1] += counts
        else:
            found[name] = [squares, counts]
        return True

    options = llama.llama_model_default_params()
    options.use_extra_bufts = False
    model = llama.llama_model_load_from_file(str(path).encode(), options)
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = 2
    kept = llama.llama_cpp.ggml_backend_sched_eval_callback(look)
    params.cb_eval = kept
    context = llama.llama_init_from_model(model, params)
    try:
        for text in texts:
            llama.llama_memory_clear(llama.llama_get_memory(context), True)
            batch = llama.llama_batch_init(len(text.tokens), 0, 1)
            batch.n_tokens = len(text.tokens)
            for i, token in enumerate(text.tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), i, 1
                # All logits, or the last layer would see the last token only.
                batch.seq_id[i][0], batch.logits[i] = 0, True
            assert llama.llama_decode(context, batch) == 0
            llama.llama_batch_free(batch)
    finally:
        llama.llama_free(context)
        llama.llama_model_free(model)
    return found


def test_importance_matrices_are_those_of_llama_cpp(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "examples/models/tiny-moe/model.gguf"
    # In f32, because llama.cpp rounds what multiplies bf16 to bf16.
    path = tmp_path / "tiny.gguf"
    with gguf.open(source) as file:
        tensors = {
            name: t.dequantize() if isinstance(t, QTensor) else t
            for name, t in file.tensors.items()
        }
        gguf.write(path, dict(file.metadata), tensors)
    model = models.load(path)
    text = "It was a cold morning, and the wind from the moor was sharp. " * 60
    texts = windows(model.tokenizer.encode(text), 256, bos=0)[:3]
    expected = llama_statistics(path, texts)
    matrix = collect_imatrix(model, texts)
    assert set(expected) == set(matrix)
    for name, (squares, counts) in expected.items():
        assert np.array_equal(matrix.counts(name), counts), name
        importance = matrix.importance(name, squares.shape[-1])
        assert importance is not None
        mean = squares / np.maximum(counts, 1)[:, None]
        seen = counts > 0
        np.testing.assert_allclose(
            importance.reshape(mean.shape)[seen], mean[seen], rtol=1e-3, err_msg=name
        )
