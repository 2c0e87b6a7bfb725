"""The tensors of a GGUF file, listed as llama.cpp's converter would write them."""

from __future__ import annotations

from kvant.recipes import TensorInfo

__all__ = ["Tensors"]


class Tensors:
    """A growing list of names and shapes.

    Matrices are bf16, as models are published; norms, biases, routers and whatever else the
    converter keeps exact are f32.
    """

    def __init__(self) -> None:
        self.found: list[TensorInfo] = []
        self._prefix = ""

    def layer(self, index: int) -> None:
        """What follows belongs to this layer."""
        self._prefix = f"blk.{index}."

    def top(self) -> None:
        """What follows belongs to no layer."""
        self._prefix = ""

    def matrix(self, name: str, *shape: int, bias: bool = False) -> None:
        """A weight, rows before columns, and the bias of its product."""
        self.found.append(TensorInfo(f"{self._prefix}{name}.weight", shape, "bf16"))
        if bias:
            self.exact(f"{name}.bias", *shape[:-1])

    def norm(self, name: str, size: int) -> None:
        """A factor for each element."""
        self.exact(f"{name}.weight", size)

    def exact(self, name: str, *shape: int) -> None:
        """Anything that stays f32; the name is whole."""
        self.found.append(TensorInfo(f"{self._prefix}{name}", shape, "f32"))

    def ends(self, vocabulary: int, width: int, tied: bool) -> None:
        """The embedding, the last norm, and the output matrix unless the embedding serves."""
        self.top()
        self.matrix("token_embd", vocabulary, width)
        self.norm("output_norm", width)
        if not tied:
            self.matrix("output", vocabulary, width)

    def network(self, width: int, inner: int, end: str = "") -> None:
        """A gated feed-forward network; `end` tells a shared expert's."""
        self.matrix(f"ffn_gate{end}", inner, width)
        self.matrix(f"ffn_up{end}", inner, width)
        self.matrix(f"ffn_down{end}", width, inner)

    def experts(self, count: int, width: int, inner: int, bias: bool = False) -> None:
        """The router and the experts, stacked."""
        self.exact("ffn_gate_inp.weight", count, width)
        if bias:
            self.exact("ffn_gate_inp.bias", count)
        self.matrix("ffn_gate_exps", count, inner, width, bias=bias)
        self.matrix("ffn_up_exps", count, inner, width, bias=bias)
        self.matrix("ffn_down_exps", count, width, inner, bias=bias)
