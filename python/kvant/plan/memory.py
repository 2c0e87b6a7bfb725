"""Everything that is in memory when a model runs: exact, but for the buffers of computing."""

from __future__ import annotations

from dataclasses import dataclass

from kvant.errors import ShapeError
from kvant.plan.cache import kv_bytes, state_bytes
from kvant.plan.model import Model
from kvant.plan.weights import AS_IS, Weights, weights

__all__ = ["Memory", "Use", "compute_bytes", "memory"]

_F32 = 4


@dataclass(frozen=True)
class Use:
    """How a model is run.

    Attributes
    ----------
    context
        Tokens that each sequence may have.
    sequences
        How many run side by side.
    k, v
        Formats of keys and values.
    batch
        Tokens of a prompt that are computed at once.
    flash
        Whether attention keeps its scores in registers instead of in a buffer.
    llama_cpp
        Whether the cache is rounded as llama.cpp rounds it; see `cells`.
    """

    context: int
    sequences: int = 1
    k: str = "f16"
    v: str = "f16"
    batch: int = 512
    flash: bool = True
    llama_cpp: bool = False

    def __post_init__(self) -> None:
        if self.context < 0 or min(self.sequences, self.batch) < 1:
            given = f"{self.context}, {self.sequences}, {self.batch}"
            raise ShapeError(f"[plan] expected context, sequences, batch above 0, got {given}")


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for; `compute` is an estimate, the others are exact."""

    weights: Weights
    kv: int
    state: int
    compute: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights.bytes + self.kv + self.state + self.compute


def memory(model: Model, use: Use, type: str | Weights = AS_IS) -> Memory:
    """The bytes of a model in use.

    Parameters
    ----------
    model : Model
    use : Use
    type : str or Weights
        A recipe or format, `AS_IS`, or weights that have been counted already.

    Examples
    --------
    >>> from kvant import plan
    >>> m = plan.memory(plan.read("Gemma 4 31B"), plan.Use(32768), "Q4_0")
    >>> m.kv >> 20, m.state
    (3360, 0)
    """
    counted = weights(model, type) if isinstance(type, str) else type
    batch = use.batch if use.llama_cpp else None
    return Memory(
        counted,
        kv_bytes(model.layers, use.context, use.sequences, use.k, use.v, batch),
        state_bytes(model.layers, use.sequences),
        compute_bytes(model, use),
    )


def compute_bytes(model: Model, use: Use) -> int:
    """Estimated bytes of the buffers of one batch.

    In f32 and for each token of the batch: the row between layers, and the widest row that a
    matrix makes, which usually is the scores of the vocabulary. Without flash attention also one
    score for each head and token of context. llama.cpp's own buffers of dense models are within a
    few MiB of this; experts and recurrent layers add some.
    """
    widest = max((info.shape[-2] for info in model.tensors if _is_product(info.name, info.shape)),
                 default=0)  # fmt: skip
    row = model.keys.size("embedding_length") + widest
    scores = 0 if use.flash else max(model.keys.counts("attention.head_count", _blocks(model)))
    return _F32 * use.batch * (row + scores * use.context)


def _is_product(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and not name.startswith("per_layer_token_embd.")


def _blocks(model: Model) -> int:
    return model.keys.size("block_count")
