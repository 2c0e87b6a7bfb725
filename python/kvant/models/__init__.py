"""A small decoder on top of the library: GGUF in, logits out.

>>> import numpy as np
>>> from kvant import models
>>> rng = np.random.default_rng(0)
>>> def random(*shape):
...     return rng.standard_normal(shape, dtype=np.float32)
>>> metadata = {
...     "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 8,
...     "llama.embedding_length": 8, "llama.feed_forward_length": 4, "llama.vocab_size": 5,
...     "llama.attention.head_count": 2, "llama.attention.layer_norm_rms_epsilon": 1e-5,
... }
>>> layer = {
...     "attn_norm": (8,), "attn_q": (8, 8), "attn_k": (8, 8), "attn_v": (8, 8),
...     "attn_output": (8, 8), "ffn_norm": (8,), "ffn_gate": (4, 8), "ffn_up": (4, 8),
...     "ffn_down": (8, 4),
... }
>>> tensors = {f"blk.0.{name}.weight": random(*shape) for name, shape in layer.items()}
>>> tensors |= {"token_embd.weight": random(5, 8), "output_norm.weight": random(8)}
>>> model = models.Model(metadata, tensors)
>>> model.logits([1, 2, 3]).shape
(3, 5)
>>> len(model.generate([1], 4))
4
"""

from __future__ import annotations

from os import PathLike

from kvant import gguf
from kvant.models.architectures import ARCHITECTURES
from kvant.models.config import ModelConfig
from kvant.models.llama2c import load_llama2c
from kvant.models.model import Model
from kvant.models.session import Session
from kvant.models.tokenizer import Tokenizer

__all__ = [
    "ARCHITECTURES",
    "Model",
    "ModelConfig",
    "Session",
    "Tokenizer",
    "load",
    "load_llama2c",
]


def load(
    source: str | PathLike[str] | gguf.GGUFFile,
    *,
    act: str = "q8",
    pack: bool = True,
    threads: int | None = None,
    kv: str | None = None,
) -> Model:
    """Load a model from a GGUF file.

    Weights stay in the file (memory-mapped) until they are first used, so the file must stay open
    and unchanged as long as the model is used.

    Parameters
    ----------
    source : path, or a file opened by `kvant.gguf.open`
    act, pack, threads, kv
        As for `Model`.

    Returns
    -------
    Model

    Raises
    ------
    GGUFError
        The file breaks the rules of GGUF.
    ModelError
        The architecture is none of `kvant.models.ARCHITECTURES`, or something is missing.
    """
    file = source if isinstance(source, gguf.GGUFFile) else gguf.open(source)
    return Model(file.metadata, file.tensors, act=act, pack=pack, threads=threads, kv=kv)
