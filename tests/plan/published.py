"""Figures that others published beside ours; docs/plan.md shows this table and a test checks it.

`python tests/plan/published.py` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from kvant import plan

MIB, GIB = 1 << 20, 1 << 30
UNITS = {"GB": (1e9, 2), "GiB": (GIB, 2), "MiB": (MIB, 2), "bytes": (1, 0), "bits": (1, 4),
         "%": (1, 1), "billion": (1e9, 2)}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A figure, and why ours is another one where it is."""

    who: str
    what: str
    published: float
    unit: str
    ours: Callable[[], float]
    why: str = ""

    @property
    def close(self) -> bool:
        """Within 2 % or 100 MiB; what is no size, as exactly as it was written."""
        scale, _ = UNITS[self.unit]
        distance = abs(self.ours() / scale - self.published)
        if self.unit == "bits":
            return distance < 0.00006
        if self.unit in ("bytes", "%"):
            return distance < 0.05
        room = 100 * MIB / scale if self.unit != "billion" else 0.0
        return distance <= max(0.02 * self.published, room)

    def line(self) -> str:
        scale, digits = UNITS[self.unit]
        ours = f"{self.ours() / scale:,.{digits}f}"
        return (
            f"| {self.who} | {self.what} | {self.published:,g} {self.unit} | {ours} | {self.why} |"
        )


@cache
def model(name: str) -> plan.Model:
    return plan.read(name)


@cache
def weights(name: str, type: str, imatrix: bool = False, override: str = "") -> plan.Weights:
    overrides = [("token_embd", override)] if override else []
    return plan.weights(model(name), type, imatrix=imatrix, overrides=overrides)


@cache
def llama2() -> plan.Model:
    return plan.from_config(
        {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
         "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}
    )  # fmt: skip


def size(name: str, type: str, override: str = "") -> Callable[[], float]:
    return lambda: weights(name, type, override=override).bytes


def per_token(name: str) -> float:
    return plan.kv_bytes([layer for layer in model(name).layers if not layer.window], 1)


def fixed(name: str) -> float:
    layers = [layer for layer in model(name).layers if layer.window]
    return plan.kv_bytes(layers, 1 << 20) + plan.state_bytes(layers)


def cached(name: str, context: int) -> float:
    return plan.kv_bytes(model(name).layers, context) + plan.state_bytes(model(name).layers)


def llama_recipes() -> Iterator[Row]:
    """Bits per weight of Llama-3.1-8B, from the README of llama-quantize."""
    published = {
        "Q2_K": (3.1593, 2.95), "IQ3_XXS": (3.2548, 3.04), "Q3_K_S": (3.6429, 3.41),
        "IQ3_M": (3.7628, 3.52), "Q3_K_L": (4.2979, 4.02), "IQ4_XS": (4.4597, 4.17),
        "Q4_K_S": (4.6672, 4.36), "IQ4_NL": (4.6818, 4.38), "Q4_K_M": (4.8944, 4.58),
        "Q5_K_S": (5.5704, 5.21), "Q5_K_M": (5.7036, 5.33), "Q6_K": (6.5633, 6.14),
        "Q8_0": (8.5008, 7.95), "F16": (16.0005, 14.96),
    }  # fmt: skip
    for recipe, (bits, gib) in published.items():
        imatrix = recipe == "IQ3_XXS"
        what = f"Llama 3.1 8B {recipe}" + (" with an imatrix" if imatrix else "")
        counted = weights("Llama 3.1 8B", recipe, imatrix)
        yield Row("llama-quantize", what, bits, "bits", lambda w=counted: w.bits_per_weight)
        yield Row("llama-quantize", what, gib, "GiB", lambda w=counted: w.bytes)


def gemma() -> Iterator[Row]:
    """Google's tables."""
    no_scales = "the published figure leaves out block scales"
    for name, bf16, int4 in (("27B", 54, 14.1), ("12B", 24, 6.6), ("4B", 8, 2.6), ("1B", 2, 0.5)):
        known = f"Gemma 3 {name}"
        rounded = "rounded to whole GB" if name == "4B" else ""
        yield Row("Google, Gemma 3 QAT", f"{known} BF16", bf16, "GB", size(known, "BF16"), rounded)
        why = no_scales if name in ("27B", "12B", "1B") else no_scales + ", and is above ours"
        yield Row("Google, Gemma 3 QAT", f"{known} int4 (ours: Q4_0)", int4, "GB",
                  size(known, "Q4_0"), why)  # fmt: skip
    yield Row("Google, Gemma 3 QAT", "Gemma 3 27B Q4_0 file, embedding in f16", 16.04, "GiB",
              size("Gemma 3 27B", "Q4_0", "f16"))  # fmt: skip
    table = {
        "E2B": (11.4, 5.7, 2.9), "E4B": (17.9, 8.9, 4.5), "12B": (26.7, 13.4, 6.7),
        "26B-A4B": (57.7, 28.8, 14.4), "31B": (69.9, 34.9, 17.5),
    }  # fmt: skip
    for name, (bf16, fp8, q4) in table.items():
        known = f"Gemma 4 {name}"
        more = "of text and encoders and some 12 % on top, it seems; ours is text only"
        yield Row("Google, Gemma 4", f"{known} BF16", bf16, "GB", size(known, "BF16"),
                  f"2 bytes a weight {more}")  # fmt: skip
        yield Row("Google, Gemma 4", f"{known} SFP8 (ours: Q8_0)", fp8, "GB",
                  size(known, "Q8_0"), "half of their BF16")  # fmt: skip
        yield Row("Google, Gemma 4", f"{known} Q4_0", q4, "GB", size(known, "Q4_0"),
                  "a quarter of their BF16: no block scales, no q6_k embedding")  # fmt: skip
    for name, old in (("E2B", 3.2), ("E4B", 5.0), ("26B-A4B", 15.6), ("31B", 17.4)):
        why = "how it was counted is not said" if name == "26B-A4B" else ""
        why = why or (
            "how it was counted is not said; ours has the embedding in q6_k"
            if name[0] == "E"
            else ""
        )
        yield Row("Google, Gemma 4, older page", f"Gemma 4 {name} Q4_0", old, "GB",
                  size(f"Gemma 4 {name}", "Q4_0"), why)  # fmt: skip
    for name, advice in (("E2B", 3), ("E4B", 5), ("12B", 7), ("26B-A4B", 15), ("31B", 18)):
        why = "advice in whole GB for files of their own mix"
        yield Row("Unsloth", f"Gemma 4 {name} memory for QAT Q4 (ours: Q4_0)", advice, "GB",
                  size(f"Gemma 4 {name}", "Q4_0"), why)  # fmt: skip


def qwen() -> Iterator[Row]:
    """Files that others made, and a log of llama.cpp."""
    for name, q4, q8 in (("9B", 5.5, 9.6), ("27B", 16.5, 28.9), ("35B-A3B", 21.4, 37.5)):
        known = f"Qwen3.5 {name}"
        why = "a file with its header; given to one digit" if name == "9B" else ""
        yield Row("published files", f"{known} Q4_K_M", q4, "GB", size(known, "Q4_K_M"), why)
        yield Row("published files", f"{known} Q8_0", q8, "GB", size(known, "Q8_0"))
    yield Row("published files", "Qwen3.5 122B-A10B Q4_K_M", 74.4, "GB",
              size("Qwen3.5 122B-A10B", "Q4_K_M"))  # fmt: skip
    sizes = {"4B": 4.5, "9B": 9.5, "27B": 28.6, "35B-A3B": 36.9, "122B-A10B": 129.9,
             "397B-A17B": 421.5}  # fmt: skip
    for name, q8 in sizes.items():
        yield Row("Unsloth's files (ggml-org/Llama-macOS 63)", f"Qwen3.5 {name} Q8_0", q8, "GB",
                  size(f"Qwen3.5 {name}", "Q8_0"))  # fmt: skip
    layers = model("Qwen3.5 27B").layers
    yield Row("log of llama.cpp", "Qwen3.5 27B, KV of 262,144 tokens", 16384, "MiB",
              lambda: plan.kv_bytes(layers, 262144, batch=512))  # fmt: skip
    yield Row("log of llama.cpp", "Qwen3.5 27B, recurrent state of 4 sequences", 598.5, "MiB",
              lambda: plan.state_bytes(layers, 4))  # fmt: skip


def others() -> Iterator[Row]:
    """llama-bench and loader logs."""
    who = "llama-bench (ggml-org/llama.cpp 19922)"
    yield Row(who, "gpt-oss 120B MXFP4", 59.02, "GiB", size("gpt-oss 120B", "MXFP4_MOE"))
    yield Row(
        who, "gpt-oss 120B weights", 116.83, "billion", lambda: model("gpt-oss 120B").elements
    )
    yield Row("log of llama.cpp", "Qwen3.5 9B weights", 8.95, "billion",
              lambda: model("Qwen3.5 9B").elements)  # fmt: skip
    yield Row("log of llama.cpp", "Gemma 4 E4B weights", 7.5, "billion",
              lambda: model("Gemma 4 E4B").elements)  # fmt: skip


def claims() -> Iterator[Row]:
    """Sentences that are repeated everywhere."""
    half = "7e9 x half a byte; real formats have scales, and embedding and output have more bits"
    yield Row("often said", "a 4-bit 7B model (ours: Llama 2 7B Q4_K_M)", 3.5, "GB",
              lambda: plan.weights(llama2(), "Q4_K_M").bytes, half)  # fmt: skip
    yield Row("often said", "4 bits save of f16 (ours: Llama 3.1 8B Q4_K_M)", 75, "%",
              lambda: 100 * (1 - weights("Llama 3.1 8B", "Q4_K_M").bits_per_weight / 16),
              "holds for 4.0 bits only; 4.5 save 71.9 %")  # fmt: skip


def caches() -> Iterator[Row]:
    """Keys and values in f16, by source code and logs of several projects."""
    table: dict[str, tuple[int, float, int, int]] = {
        "Gemma 4 E2B": (6144, 6, 198, 774), "Gemma 4 E4B": (16384, 20, 532, 2068),
        "Gemma 4 12B": (16384, 320, 832, 2368), "Gemma 4 26B-A4B": (20480, 200, 840, 2760),
        "Gemma 4 31B": (81920, 800, 3360, 11040), "Qwen3.5 0.8B": (12288, 19.3, 403, 0),
        "Qwen3.5 9B": (32768, 50.2, 1074, 0), "Qwen3.5 27B": (65536, 149.6, 2198, 8342),
        "Qwen3.5 35B-A3B": (20480, 62.8, 703, 2623), "Qwen3.5 397B-A17B": (30720, 186, 1146, 4026),
        "gpt-oss 20B": (24576, 3, 771, 0), "gpt-oss 120B": (36864, 4.5, 1156, 0),
        "Llama 4 Scout": (49152, 1152, 2688, 7296), "Llama 4 Maverick": (49152, 1152, 2688, 7296),
        "Llama 3.1 8B": (131072, 0, 4096, 0), "Llama 3.3 70B": (327680, 0, 10240, 0),
        "Qwen3 8B": (147456, 0, 4608, 0), "Qwen3-30B-A3B": (98304, 0, 3072, 0),
        "DeepSeek V3": (70272, 0, 2196, 8784), "Kimi K2": (70272, 0, 2196, 8784),
        "DeepSeek V3.2": (85888, 0, 0, 0),
    }  # fmt: skip
    for name, (token, constant, short, long) in table.items():
        who = "caches in f16"
        yield Row(who, f"{name}, each further token", token, "bytes", lambda n=name: per_token(n))
        if constant:
            yield Row(who, f"{name}, windows and states", constant, "MiB", lambda n=name: (
                fixed(n) + plan.state_bytes(model(n).layers)))  # fmt: skip
        for context, total in ((32768, short), (131072, long)):
            if total:
                yield Row(who, f"{name}, {context:,} tokens", total, "MiB",
                          lambda n=name, c=context: cached(n, c))  # fmt: skip


ROWS: tuple[Row, ...] = tuple(
    row for part in (llama_recipes, qwen, others, gemma, claims, caches) for row in part()
)


def table() -> str:
    head = "| who | what | published | ours | why they differ |\n| --- | --- | --- | --- | --- |\n"
    return head + "\n".join(row.line() for row in ROWS) + "\n"


if __name__ == "__main__":
    print(table(), end="")
