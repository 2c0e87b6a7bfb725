"""The recipes of llama-quantize as a table: which format each kind of tensor gets, and when.

A recipe has one base format and, for some roles, rules that are tried in order; the first whose
condition holds decides, otherwise the base format stays. What all recipes of a family share is
applied by `kvant.recipes`. The choices are llama.cpp's (ggml 0.25.3); the table form is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Role = Literal[
    "token_embd", "output", "q", "k", "v", "attn_output", "ffn_up", "ffn_gate", "ffn_down", "other"
]


@dataclass(frozen=True)
class Site:
    """Where a tensor stands in its model: all that a rule may look at."""

    index: int
    layers: int
    gqa: int
    experts: int
    imatrix: bool
    falcon: bool

    @property
    def more_bits(self) -> bool:
        """True in the first and last eighth of the layers and in every third one between."""
        eighth = self.layers // 8
        return (
            self.index < eighth
            or self.index >= 7 * self.layers // 8
            or (self.index - eighth) % 3 == 2
        )


Condition = Callable[[Site], bool]


class Rule(NamedTuple):
    """`format` where `when` holds."""

    format: str
    when: Condition


def always(site: Site) -> bool:
    return True


def more_bits(site: Site) -> bool:
    return site.more_bits


def wide_gqa(site: Site) -> bool:
    return site.gqa >= 4


def falcon(site: Site) -> bool:
    return site.falcon


def eight_experts(site: Site) -> bool:
    return site.experts == 8


def imatrix(site: Site) -> bool:
    return site.imatrix


def early(part: int) -> Condition:
    """The first `1/part` of the layers."""
    return lambda site: site.index < site.layers // part


def below(count: int) -> Condition:
    return lambda site: site.index < count


def no(condition: Condition) -> Condition:
    return lambda site: not condition(site)


def both(*conditions: Condition) -> Condition:
    return lambda site: all(condition(site) for condition in conditions)


def either(*conditions: Condition) -> Condition:
    return lambda site: any(condition(site) for condition in conditions)


def to(format: str, when: Condition = always) -> Rule:
    return Rule(format, when)


Rules = Mapping[Role, tuple[Rule, ...]]


@dataclass(frozen=True)
class Recipe:
    """One named type of llama-quantize.

    `file_type` is what goes into `general.file_type`. `family` is "mix" (the common rules),
    "tiny" (below three bits, rules of their own), "experts" (MXFP4 experts, Q8_0 elsewhere) or
    "uniform" (one format for every tensor that may be quantized). `output` overrides the format of
    the output matrix, `embedding` that of an untied token embedding.
    """

    name: str
    file_type: int
    base: str
    family: Literal["mix", "tiny", "experts", "uniform"] = "mix"
    rules: Rules = field(default_factory=dict)
    output: str | None = None
    embedding: str | None = None
    needs_imatrix: frozenset[str] = frozenset()


_Q5_FOR_EIGHT = to("q5_k", both(eight_experts, no(falcon)))
_KEEP_FOR_EIGHT = to("", eight_experts)  # an empty format keeps the base format and ends the search
_MIDDLE_XXS = (to("iq3_xxs", lambda s: s.layers // 8 <= s.index < 7 * s.layers // 8),)
_IQ4_RULES: Rules = {
    "v": (to("q5_k", wide_gqa),),
    "ffn_down": (to("q5_k", both(early(8), no(imatrix))),),
    "attn_output": (_Q5_FOR_EIGHT,),
}


def _tiny_rules(low: str, attn_output: tuple[Rule, ...]) -> Rules:
    return {
        "v": (to("q4_k", either(wide_gqa, lambda s: s.experts >= 4)), to(low)),
        "k": (to("q4_k", eight_experts),),
        "ffn_down": (to(low, early(8)),),
        "attn_output": (to("q5_k", eight_experts), *attn_output),
    }


_TINY = _tiny_rules("q2_k", ())
_TINY_1 = _tiny_rules("q2_k", (to("iq2_xxs"),))
_TINY_2S = _tiny_rules("iq3_s", (to("iq3_s"),))

_NEED = frozenset({"iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s"})

_TABLE = (
    Recipe("F32", 0, "f32"),
    Recipe("F16", 1, "f16"),
    Recipe("BF16", 32, "bf16"),
    Recipe("Q8_0", 7, "q8_0"),
    Recipe("Q6_K", 18, "q6_k"),
    Recipe(
        "Q5_K_M",
        17,
        "q5_k",
        rules={"v": (to("q6_k", more_bits),), "ffn_down": (to("q6_k", more_bits),)},
    ),
    Recipe("Q5_K_S", 16, "q5_k"),
    Recipe("Q5_1", 9, "q5_1"),
    Recipe("Q5_0", 8, "q5_0", rules={"ffn_down": (to("q5_1", both(imatrix, early(8))),)}),
    Recipe(
        "Q4_K_M",
        15,
        "q4_k",
        rules={
            "v": (to("q6_k", more_bits),),
            "ffn_down": (
                to("q6_k", both(falcon, early(16))),
                to("q5_k", both(falcon, more_bits)),
                to("q6_k", both(no(falcon), more_bits)),
            ),
            "attn_output": (_Q5_FOR_EIGHT,),
        },
    ),
    Recipe(
        "Q4_K_S",
        14,
        "q4_k",
        rules={
            "v": (to("q5_k", below(4)),),
            "ffn_down": (to("q5_k", both(no(falcon), early(8))),),
            "attn_output": (_Q5_FOR_EIGHT,),
        },
    ),
    Recipe("Q4_1", 3, "q4_1"),
    Recipe("Q4_0", 2, "q4_0", rules={"ffn_down": (to("q4_1", both(imatrix, early(8))),)}),
    Recipe("IQ4_NL", 25, "iq4_nl", rules=_IQ4_RULES),
    Recipe("IQ4_XS", 30, "iq4_xs", rules=_IQ4_RULES),
    Recipe("MXFP4_MOE", 38, "mxfp4", family="experts"),
    Recipe(
        "Q3_K_L",
        13,
        "q3_k",
        rules={
            "v": (to("q5_k"),),
            "ffn_down": (to("q4_k", falcon), to("q5_k")),
            "attn_output": (to("q4_k", falcon), _KEEP_FOR_EIGHT, to("q5_k")),
        },
    ),
    Recipe(
        "Q3_K_M",
        12,
        "q3_k",
        rules={
            "v": (to("q5_k", below(2)), to("q4_k")),
            "ffn_down": (to("q5_k", early(16)), to("q4_k", either(no(falcon), more_bits))),
            "attn_output": (_Q5_FOR_EIGHT, to("q4_k", no(falcon))),
        },
    ),
    Recipe("Q3_K_S", 11, "q3_k", rules={"attn_output": (_Q5_FOR_EIGHT,)}),
    Recipe(
        "IQ3_M",
        27,
        "iq3_s",
        rules={
            "v": (to("q4_k"),),
            "ffn_down": (to("q4_k", either(early(8), both(eight_experts, more_bits))),),
            "attn_output": (_Q5_FOR_EIGHT, to("q4_k", no(falcon))),
        },
        needs_imatrix=_NEED,
    ),
    Recipe(
        "IQ3_S",
        26,
        "iq3_s",
        rules={"v": (to("q4_k", wide_gqa),), "attn_output": (_Q5_FOR_EIGHT,)},
        needs_imatrix=_NEED,
    ),
    Recipe(
        "IQ3_XS",
        22,
        "iq3_s",
        rules={
            "v": (to("q4_k", wide_gqa),),
            "k": (to("iq3_xxs"),),
            "q": (to("iq3_xxs"),),
            "ffn_gate": _MIDDLE_XXS,
            "ffn_up": _MIDDLE_XXS,
            "attn_output": (_Q5_FOR_EIGHT,),
        },
        needs_imatrix=_NEED,
    ),
    Recipe(
        "IQ3_XXS",
        23,
        "iq3_xxs",
        output="q5_k",
        embedding="iq3_s",
        rules={
            "v": (to("q4_k", wide_gqa), to("iq3_s", no(imatrix)), to("iq3_xxs")),
            "k": (to("iq2_s"),),
            "q": (to("iq2_s"),),
            "ffn_down": (to("q4_k", both(no(imatrix), early(8))), to("q3_k", no(imatrix))),
            "attn_output": (_Q5_FOR_EIGHT, to("iq3_s", no(falcon))),
        },
        needs_imatrix=_NEED,
    ),
    Recipe(
        "Q2_K",
        10,
        "q2_k",
        rules={
            "v": (to("q4_k", wide_gqa), to("q3_k")),
            "ffn_down": (to("q3_k"),),
            "attn_output": (_Q5_FOR_EIGHT, to("q3_k", no(falcon))),
        },
    ),
    Recipe(
        "Q2_K_S",
        21,
        "q2_k",
        rules={"v": (to("q4_k", wide_gqa),), "ffn_down": (to("q4_k", early(8)),)},
        needs_imatrix=_NEED | {"q2_k"},
    ),
    Recipe("Q2_0", 41, "q2_0", embedding="q4_k"),
    Recipe("TQ2_0", 37, "tq2_0", embedding="q4_k"),
    Recipe("TQ1_0", 36, "tq1_0", embedding="q4_k"),
    Recipe("Q1_0", 40, "q1_0"),
    Recipe("IQ2_M", 29, "iq2_s", "tiny", _TINY_2S, "q5_k", "iq3_s", _NEED),
    Recipe("IQ2_S", 28, "iq2_xs", "tiny", _TINY_2S, "q5_k", "iq3_s", _NEED),
    Recipe("IQ2_XS", 20, "iq2_xs", "tiny", _TINY, "q5_k", "q2_k", _NEED),
    Recipe("IQ2_XXS", 19, "iq2_xxs", "tiny", _TINY, "q5_k", "q2_k", _NEED),
    Recipe("IQ1_M", 31, "iq1_m", "tiny", _TINY_1, "q5_k", "q2_k", _NEED),
    Recipe("IQ1_S", 24, "iq1_s", "tiny", _TINY_1, "q5_k", "q2_k", _NEED),
)

RECIPES: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _TABLE}

ALIASES: Mapping[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

# A uniform file carries the file type of the recipe that is nearest to it.
UNIFORM_FILE_TYPES: Mapping[str, int] = {
    "f32": 0,
    "f16": 1,
    "bf16": 32,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 8,
    "q5_1": 9,
    "q8_0": 7,
    "q2_k": 10,
    "q3_k": 11,
    "q4_k": 14,
    "q5_k": 16,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "mxfp4": 38,
    "nvfp4": 39,
    "tq1_0": 36,
    "tq2_0": 37,
    "q1_0": 40,
    "q2_0": 41,
    "iq1_s": 24,
    "iq1_m": 31,
    "iq2_xxs": 19,
    "iq2_xs": 20,
    "iq2_s": 28,
    "iq3_xxs": 23,
    "iq3_s": 26,
}

# What takes over where a row is not a whole number of blocks. llama-quantize stops with an error
# at q1_0 and nvfp4; here they fall back like the other formats.
FALLBACKS: Mapping[str, str] = {
    "iq1_s": "iq4_nl",
    "iq1_m": "iq4_nl",
    "iq2_xxs": "iq4_nl",
    "iq2_xs": "iq4_nl",
    "iq2_s": "iq4_nl",
    "iq3_xxs": "iq4_nl",
    "iq3_s": "iq4_nl",
    "iq4_xs": "iq4_nl",
    "q1_0": "q4_0",
    "q2_0": "q4_0",
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "tq1_0": "q4_0",
    "tq2_0": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    "nvfp4": "q4_0",
}
