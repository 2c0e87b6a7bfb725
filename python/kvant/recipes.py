"""Which format each tensor of a model gets: the recipes of llama-quantize as a pure function.

`plan` looks at metadata and tensor shapes only, never at data. Two kinds of type exist:

* a *recipe* such as `Q4_K_M`: a mix that llama-quantize knows by this name (`recipe_table`);
* a *format* such as `q4_k`, spelled in lower case as in `kvant.formats()`: every tensor that may be
  quantized gets exactly this format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import FormatError, ModelError
from .formats import format_info, formats
from .recipe_table import ALIASES, FALLBACKS, RECIPES, UNIFORM_FILE_TYPES, Recipe, Role, Site

__all__ = [
    "Recipe",
    "TensorInfo",
    "fitting",
    "may_quantize",
    "parse_override",
    "plan",
    "recipe",
    "recipes",
]


class TensorInfo(NamedTuple):
    """Name, shape in NumPy order (last axis contiguous) and current format of a tensor."""

    name: str
    shape: tuple[int, ...]
    format: str


Override = tuple[str, str]

_FLOATS = frozenset({"f32", "f16", "bf16"})

# The first pattern found in a tensor's name gives its role.
_ROLES: tuple[tuple[str, Role], ...] = (
    ("attn_qkv.weight", "v"),
    ("attn_kv_b.weight", "v"),
    ("attn_v.weight", "v"),
    ("attn_k.weight", "k"),
    ("attn_q.weight", "q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
_EMBEDDINGS = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})

# Small or delicate tensors that are kept as they are: routers, norms, positions, convolutions,
# low-rank pieces of recurrent blocks, and the small parts of multimodal encoders.
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT_PARTS = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    *(f"time_mix_{part}.weight" for part in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2")),
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
_KEPT_PARTS_BY_ARCH: Mapping[str, tuple[str, ...]] = {
    "glm5-next": (
        "hc_",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        *(f"ssm_{part}.weight" for part in ("f_a", "f_b", "g_a", "g_b", "beta")),
        "attn_kv_a_mqa.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}
_EIGHT_BIT_PARTS_BY_ARCH: Mapping[str, tuple[str, ...]] = {
    "glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj"),
}

# Architectures whose models of this depth share each value head among eight query heads.
_70B_LAYERS: Mapping[str, int] = {
    "llama": 80,
    "llama-embed": 80,
    "qwen2": 80,
    "deci": 80,
    "olmo": 80,
    "jais2": 68,
}

_LAYER = re.compile(r"blk\.(\d+)")


def recipes() -> tuple[Recipe, ...]:
    """All recipes of llama-quantize, from the largest to the smallest.

    >>> [r.name for r in recipes()][4:7]
    ['Q6_K', 'Q5_K_M', 'Q5_K_S']
    """
    return tuple(RECIPES.values())


def recipe(name: str) -> Recipe:
    """The recipe, or the uniform type, of this name.

    A name spelled exactly like a format (`q4_k`, lower case) means that format everywhere. Any
    other spelling is looked up among the recipes regardless of case, so `Q4_K` is llama-quantize's
    alias for `Q4_K_M`.

    Parameters
    ----------
    name : str
        `Q4_K_M`, `IQ4_XS`, ... or `q4_k`, `nvfp4`, ...

    Raises
    ------
    FormatError
        If neither a recipe nor a format has this name.

    >>> recipe("Q4_K").name, recipe("Q4_K").file_type
    ('Q4_K_M', 15)
    >>> recipe("q4_k").family
    'uniform'
    """
    if name in UNIFORM_FILE_TYPES and any(info.name == name for info in formats()):
        return Recipe(name, UNIFORM_FILE_TYPES[name], name, "uniform")
    upper = name.upper()
    found = RECIPES.get(ALIASES.get(upper, upper))
    if found is None:
        if name.lower() in UNIFORM_FILE_TYPES:
            return recipe(name.lower())
        known = ", ".join(RECIPES)
        raise FormatError(f"[recipe] expected a format name or one of {known}, got {name!r}")
    return found


def parse_override(text: str) -> Override:
    """Split `REGEX=FORMAT` at its last `=` and check both halves.

    >>> parse_override("ffn_down=q6_k")
    ('ffn_down', 'q6_k')
    """
    pattern, sep, format = text.rpartition("=")
    if not sep or not pattern or not format:
        raise FormatError(f"[tensor-type] expected REGEX=FORMAT, got {text!r}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise FormatError(
            f"[tensor-type] expected a regular expression, got {pattern!r}: {error}"
        ) from error
    return pattern, format_info(format.lower()).name


def may_quantize(info: TensorInfo, arch: str = "") -> bool:
    """Whether llama-quantize would touch this tensor at all.

    Only weights with at least two axes longer than one are quantized; norms, routers, positions and
    small special tensors are kept.

    >>> may_quantize(TensorInfo("blk.0.ffn_up.weight", (512, 256), "bf16"))
    True
    >>> may_quantize(TensorInfo("blk.0.ffn_gate_inp.weight", (8, 256), "f32"))
    False
    """
    outer = [axis for axis, length in enumerate(info.shape[:-1]) if length > 1]
    name = info.name
    return (
        bool(outer)
        and name.endswith("weight")
        and name not in _KEPT_NAMES
        and not any(part in name for part in _KEPT_PARTS)
        and not any(part in name for part in _KEPT_PARTS_BY_ARCH.get(arch, ()))
    )


def role_of(name: str) -> Role:
    """What a tensor does, judged by its name.

    >>> role_of("blk.3.attn_qkv.weight"), role_of("blk.3.ffn_down_exps.weight")
    ('v', 'ffn_down')
    """
    if name == "output.weight":
        return "output"
    if name in _EMBEDDINGS:
        return "token_embd"
    return next((role for part, role in _ROLES if part in name), "other")


def file_order(name: str) -> tuple[int, str]:
    """Sort key of the order in which llama.cpp visits and writes tensors: by layer, then by name.

    >>> sorted(["blk.10.a", "token_embd.weight", "blk.2.b"], key=file_order)
    ['token_embd.weight', 'blk.2.b', 'blk.10.a']
    """
    match = _LAYER.match(name)
    return (int(match[1]) if match else -1, name)


def plan(
    type: str | Recipe,
    metadata: Mapping[str, Any],
    tensors: Iterable[TensorInfo],
    *,
    has_imatrix: bool = False,
    overrides: Sequence[Override] = (),
    pure: bool = False,
) -> dict[str, str]:
    """The format of every tensor under a recipe, as llama-quantize chooses it.

    Parameters
    ----------
    type : str or Recipe
        See `recipe`.
    metadata : mapping
        GGUF metadata; only the architecture and its layer, head and expert counts are read.
    tensors : iterable of TensorInfo
        All tensors of the file, in any order.
    has_imatrix : bool
        Whether an importance matrix will be used; some recipes choose differently without one.
    overrides : sequence of (regex, format)
        The first pattern found in a tensor's name sets its format. Tensors that are never quantized
        ignore overrides, and so do the float types `F32`, `F16` and `BF16`.
    pure : bool
        Use the recipe's base format for every tensor that may be quantized.

    Returns
    -------
    dict
        Tensor name to format name, in the order in which llama.cpp writes the tensors. A format
        whose block does not divide the row length has already been replaced.

    >>> tensors = [
    ...     TensorInfo("token_embd.weight", (1000, 256), "f16"),
    ...     TensorInfo("blk.0.attn_norm.weight", (256,), "f32"),
    ...     TensorInfo("blk.0.ffn_down.weight", (256, 96), "f16"),
    ... ]
    >>> plan("Q4_K_M", {"general.architecture": "llama", "llama.block_count": 1}, tensors)
    {'token_embd.weight': 'q6_k', 'blk.0.attn_norm.weight': 'f32', 'blk.0.ffn_down.weight': 'q8_0'}
    """
    chosen = recipe(type) if isinstance(type, str) else type
    model = _Model(chosen, metadata, has_imatrix)
    patterns = [(re.compile(pattern), format) for pattern, format in overrides]
    ordered = sorted(tensors, key=lambda info: file_order(info.name))
    model.look_over(ordered)

    result: dict[str, str] = {}
    for info in ordered:
        if info.format not in UNIFORM_FILE_TYPES or not may_quantize(info, model.arch):
            result[info.name] = info.format
        elif chosen.base in _FLOATS:
            result[info.name] = chosen.base
        else:
            named = next((format for p, format in patterns if p.search(info.name)), None)
            if named is not None:
                format = named
            elif pure or chosen.family == "uniform":
                format = chosen.base
            else:
                format = model.choose(info)
            result[info.name] = fitting(format, info.shape[-1])
    return result


def fitting(format: str, columns: int) -> str:
    """The format itself, or what replaces it where a row is not a whole number of blocks."""
    if columns % format_info(format).block == 0:
        return format
    other = FALLBACKS.get(format, "f16")
    return other if columns % format_info(other).block == 0 else "f16"


@dataclass
class _Counter:
    seen: int = 0
    total: int = 0


class _Model:
    """What a recipe knows of a model, and how many tensors of each role it has met."""

    def __init__(self, chosen: Recipe, metadata: Mapping[str, Any], imatrix: bool) -> None:
        self.recipe = chosen
        self.imatrix = imatrix
        self.arch = str(metadata.get("general.architecture", ""))
        self.layers = self._count(metadata, "block_count", 0)
        self.experts = self._count(metadata, "expert_count", 0)
        heads = self._count(metadata, "attention.head_count", 0)
        kv_heads = self._count(metadata, "attention.head_count_kv", heads)
        self.gqa = heads // kv_heads if kv_heads else 0
        trunk = self.layers - self._count(metadata, "nextn_predict_layers", 0)
        self.is_70b = _70B_LAYERS.get(self.arch) == trunk and not (
            self.arch.startswith("llama") and (heads == kv_heads or self.experts == 8)
        )
        self.tied = True
        self.counters: dict[Role, _Counter] = {
            role: _Counter(total=self.layers) for role in ("ffn_up", "ffn_gate", "ffn_down")
        }
        self.counters["v"] = _Counter()

    def _count(self, metadata: Mapping[str, Any], key: str, default: int) -> int:
        """An integer of this architecture; the first layer's where the value is per layer."""
        value = metadata.get(f"{self.arch}.{key}")
        if value is None:
            return default
        try:
            return int(value)
        except TypeError:
            return int(value[0])

    def look_over(self, tensors: Sequence[TensorInfo]) -> None:
        roles = [role_of(info.name) for info in tensors]
        self.counters["v"].total = roles.count("v")
        self.tied = "output" not in roles

    def choose(self, info: TensorInfo) -> str:
        """The format by the recipe's own rules; must be called once per tensor, in file order."""
        chosen, role = self.recipe, role_of(info.name)
        if any(part in info.name for part in _EIGHT_BIT_PARTS_BY_ARCH.get(self.arch, ())):
            return "q8_0"
        if role == "output" or (role == "token_embd" and self.tied):
            return self._output(info)
        if chosen.family == "experts":
            return self._expert(info, role)
        if role == "token_embd":
            return chosen.embedding or chosen.base

        site = self._site(role, info.name)
        rules = chosen.rules.get(role, ())
        format = next((rule.format for rule in rules if rule.when(site)), "") or chosen.base
        if chosen.family == "mix":
            if role == "v" and self.is_70b and format in ("q3_k", "q4_k"):
                format = "q5_k"
            if role in ("v", "k") and self.experts == 8:
                format = "q8_0"
        return format

    def _output(self, info: TensorInfo) -> str:
        chosen = self.recipe
        fits = info.shape[-1] % format_info(chosen.base).block == 0
        if chosen.family == "experts" or self.arch == "falcon" or not fits:
            return "q8_0"
        return chosen.output or ("q8_0" if chosen.base == "q8_0" else "q6_k")

    def _expert(self, info: TensorInfo, role: Role) -> str:
        stacked = len(info.shape) > 2 and info.shape[-3] > 1
        if self.arch == "bailingmoe3":  # its attention has stacked projections as well
            stacked = stacked and role.startswith("ffn")
        return self.recipe.base if stacked else "q8_0"

    def _site(self, role: Role, name: str) -> Site:
        counter = self.counters.get(role, _Counter())
        index = counter.seen
        counter.seen += 1
        # Experts do not come layer by layer in every file, so the name tells the layer.
        if role.startswith("ffn") and self.experts > 1 and self.recipe.family == "mix":
            index = file_order(name)[0]
            if not 0 <= index < counter.total:
                raise ModelError(
                    f"[plan] expected a layer below {counter.total} in the name of an expert "
                    f"model's tensor, got {name!r}"
                )
        return Site(
            index, counter.total, self.gqa, self.experts, self.imatrix, self.arch == "falcon"
        )
