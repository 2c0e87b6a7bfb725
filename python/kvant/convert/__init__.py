"""Hugging Face model folders to GGUF, for the architectures that `kvant.models` can run."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from kvant import gguf
from kvant.convert.hparams import (
    FILE_TYPES,
    architecture_metadata,
    architecture_of,
    expert_metadata,
    rope_factors,
)
from kvant.convert.plan import file_dtype, plan_tensors
from kvant.convert.source import open_tensors, read_json
from kvant.convert.vocab import tokenizer_metadata
from kvant.errors import FormatError, ModelError
from kvant.models.architectures import ARCHITECTURES
from kvant.models.config import read_config

__all__ = ["convert"]


def convert(
    hf_dir: str | PathLike[str],
    out_path: str | PathLike[str],
    dtype: str | None = None,
    *,
    name: str | None = None,
    add_bos: bool | None = None,
) -> None:
    """Write a Hugging Face folder as one GGUF file.

    One tensor is in memory at a time. Matrices get `dtype`; norms, biases and routers are f32, as
    other programs expect them.

    Parameters
    ----------
    hf_dir : folder
        With config.json, tokenizer.json and safetensors, whole or in shards.
    out_path : file
        Replaced if it exists; on failure nothing is written.
    dtype : {"f32", "f16", "bf16"}, optional
        Default: the type of the folder's embedding.
    name : str, optional
        `general.name`; default: the name of the folder.
    add_bos : bool, optional
        Whether texts begin with BOS; default: what the folder says, if it does.

    Raises
    ------
    ModelError
        The folder lacks something, contradicts itself, or holds a model that kvant cannot run.
    FormatError
        `dtype` is not one of the three.
    ImportError
        The package `safetensors` is not installed.

    Examples
    --------
    >>> import tempfile
    >>> convert(tempfile.mkdtemp(), "model.gguf")
    Traceback (most recent call last):
    kvant.errors.ModelError: [convert] expected the file config.json in the folder, got none
    """
    folder = Path(hf_dir)
    if dtype is not None and dtype not in FILE_TYPES:
        raise FormatError(f"[convert] expected a dtype of {', '.join(FILE_TYPES)}, got {dtype}")
    config = read_json(folder / "config.json")
    architecture = architecture_of(config)
    tensors = open_tensors(folder)
    dtype = dtype or file_dtype(tensors)
    metadata: dict[str, Any] = {
        "general.architecture": architecture,
        "general.name": name or folder.resolve().name,
        **architecture_metadata(config, architecture),
        "general.file_type": np.uint32(FILE_TYPES[dtype]),
        **expert_metadata(config, architecture),
    }
    model = read_config(metadata, ARCHITECTURES)
    sources = plan_tensors(model, tensors, dtype, _tied(config))
    metadata |= tokenizer_metadata(folder, config, model.vocab_size, add_bos)
    factors = rope_factors(config, model.key_length)
    if factors is not None:
        sources["rope_freqs.weight"] = gguf.TensorSource("f32", factors.shape, lambda: factors)
    gguf.write(out_path, metadata, sources)


def _tied(config: dict[str, Any]) -> bool | None:
    tied = config.get("tie_word_embeddings")
    if tied is not None and not isinstance(tied, bool):
        raise ModelError(f"[convert] expected true or false for tie_word_embeddings, got {tied!r}")
    return tied
