"""llama.cpp as a peer for whole models, through llama-cpp-python's low-level functions."""

from __future__ import annotations

import ctypes
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["LlamaCpp", "settings"]


def settings() -> dict[str, dict[str, Any]]:
    """Ways to load a model, by name; none where llama-cpp-python is not installed."""
    try:
        import_module("llama_cpp")
    except ModuleNotFoundError:
        return {}
    return {
        "repacked": {"load_mode": 0, "use_extra_bufts": True},
        "mapped": {"load_mode": 1, "use_extra_bufts": False},
    }


class LlamaCpp:
    """A model in one of these ways, with flash attention, and as many threads as ours."""

    def __init__(self, path: Path, threads: int, context: int, how: dict[str, Any]) -> None:
        self._lib: Any = import_module("llama_cpp")
        lib = self._lib
        self._callback = lib.llama_log_callback(lambda level, text, data: None)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))
        options = lib.llama_model_default_params()
        known = [name for name, _ in options._fields_]
        for key, value in how.items():
            if key not in known:
                raise RuntimeError(f"this llama-cpp-python has no {key}: a newer one is needed")
            setattr(options, key, value)
        self._model = lib.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = context
        params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp has no memory for a context of {context}")

    def _feed(self, tokens: np.ndarray) -> None:
        array = (ctypes.c_int32 * len(tokens))(*map(int, tokens))
        batch = self._lib.llama_batch_get_one(array, len(tokens))
        if self._lib.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        self._lib.llama_synchronize(self._context)

    def _forget(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)

    def prefill(self, tokens: np.ndarray) -> None:
        """Pass a prompt; logits of its last token only."""
        self._forget()
        self._feed(tokens)

    def decode(self, count: int) -> None:
        """Pass tokens one by one, from an empty context on."""
        self._forget()
        for token in range(count):
            self._feed(np.array([token]))

    def close(self) -> None:
        """Give its memory back."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)
