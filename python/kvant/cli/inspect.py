"""`kvant inspect FILE`: what is in a GGUF file, without reading its weights."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError

if TYPE_CHECKING:
    from rich.console import Console

    from ..gguf import GGUFFile

__all__ = ["add", "describe", "run"]

_HELP = "show metadata, tensors, bits per weight and memory of a GGUF file"
_SHOWN = 6


def add(commands: Any) -> None:
    """Add this command to the program."""
    parser = commands.add_parser("inspect", help=_HELP, description=_HELP)
    parser.add_argument("file", metavar="FILE", help="GGUF file; any part of a split one")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--tensors", action="store_true", help="list all tensors")
    parser.add_argument("--metadata", action="store_true", help="list all metadata")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the description."""
    from .. import gguf
    from .console import console

    with gguf.open(args.file) as file:
        found = describe(file)
        if args.json:
            print(json.dumps({"file": args.file, **found}, indent=1, allow_nan=False))
            return 0
        out = console()
        if args.metadata or not args.tensors:
            _print_metadata(out, found["metadata"], everything=args.metadata)
        if args.tensors:
            _print_tensors(out, found["tensors"])
        _print_summary(out, args.file, found)
    return 0


def describe(file: GGUFFile) -> dict[str, Any]:
    """Everything about an open file as plain values that JSON can hold.

    Long arrays are cut: `{"length": n, "first": [...]}`.
    """
    infos = [file.tensors.info(name) for name in file.tensors]
    tensors = [
        {
            "name": info.name,
            "shape": list(info.shape),
            "format": info.type.name,
            "bytes": info.nbytes,
            "offset": info.start,
        }
        for info in infos
    ]
    nbytes = sum(info.nbytes for info in infos)
    weights = sum(math.prod(info.shape) for info in infos)
    by_format = Counter(info.type.name for info in infos)
    return {
        "version": int(file.version),
        "alignment": int(file.alignment),
        "metadata": {key: _plain(file.metadata[key]) for key in file.metadata},
        "tensors": tensors,
        "weights": weights,
        "bytes": nbytes,
        "bits_per_weight": 8 * nbytes / weights if weights else 0.0,
        "formats": {
            name: {
                "tensors": count,
                "bytes": sum(i.nbytes for i in infos if i.type.name == name),
                "weights": sum(math.prod(i.shape) for i in infos if i.type.name == name),
            }
            for name, count in by_format.most_common()
        },
        "memory": _memory(file, infos),
    }


def _memory(file: GGUFFile, infos: Sequence[Any]) -> dict[str, int]:
    """Bytes in use when the model runs: weights, those read for one token, and the KV cache."""
    from ..plan import from_gguf, kv_bytes, state_bytes

    result = {"weights": sum(info.nbytes for info in infos)}
    try:
        model = from_gguf(file)
        context, (used, experts) = model.context, model.experts
    except ModelError:
        # A vocabulary alone, or something that is no language model.
        return result
    stacked = sum(info.nbytes for info in infos if "_exps." in info.name)
    if experts and used and stacked:
        # An embedding table is read one row at a time unless it is the output matrix as well.
        names = {info.name for info in infos}
        table = [i for i in infos if i.name == "token_embd.weight" and "output.weight" in names]
        rest = result["weights"] - stacked - sum(info.nbytes for info in table)
        result["read_per_token"] = rest + stacked * used // experts
    state = state_bytes(model.layers)
    if state:
        result["recurrent_state"] = state
    if context:
        whole = kv_bytes(model.layers, context)
        result["kv_cache_f16_per_token"] = whole - kv_bytes(model.layers, context - 1)
        result["kv_cache_f16_at_context"] = whole
        result["context"] = context
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int | float):
        return value
    first = [_plain(value[i]) for i in range(min(_SHOWN, len(value)))]
    return first if len(value) <= _SHOWN else {"length": len(value), "first": first}


def _print_metadata(out: Console, metadata: Mapping[str, Any], everything: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="ellipsis" if not everything else "fold", no_wrap=not everything)
    for key, value in metadata.items():
        if not everything and key.startswith("tokenizer.") and key.count(".") > 2:
            continue
        table.add_row(key, Text(_one_line(value, everything)))
    out.print(table)
    out.print()


def _one_line(value: Any, everything: bool) -> str:
    if isinstance(value, dict):
        shown = ", ".join(repr(item) for item in value["first"][: None if everything else 4])
        return f"[{shown}, ...] ({value['length']})"
    text = repr(value) if isinstance(value, str | list) else str(value)
    return text if everything or len(text) <= 160 else f"{text[:157]}..."


def _print_tensors(out: Console, tensors: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("tensor", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    table.add_column("format")
    table.add_column("bytes", justify="right")
    for tensor in tensors:
        shape = " x ".join(str(n) for n in tensor["shape"])
        table.add_row(tensor["name"], shape, tensor["format"], f"{tensor['bytes']:,}")
    out.print(table)


def _print_summary(out: Console, path: str, found: Mapping[str, Any]) -> None:
    from rich.table import Table

    from ..lab.table import mib

    if found["tensors"]:
        table = Table()
        table.add_column("format")
        for title in ("tensors", "weights", "MiB", "share"):
            table.add_column(title, justify="right")
        for name, part in found["formats"].items():
            table.add_row(
                name,
                str(part["tensors"]),
                f"{part['weights']:,}",
                mib(part["bytes"]),
                f"{100 * part['bytes'] / max(1, found['bytes']):.1f}%",
            )
        out.print(table)
    memory = found["memory"]
    lines = [
        f"{path}: GGUF version {found['version']}, {len(found['metadata'])} keys, "
        f"{len(found['tensors'])} tensors",
        f"{found['weights']:,} weights, {mib(found['bytes'])} MiB, "
        f"{found['bits_per_weight']:.3f} bits per weight",
    ]
    if "read_per_token" in memory:
        lines.append(f"{mib(memory['read_per_token'])} MiB of weights read for each token")
    if "context" in memory:
        lines.append(
            f"KV cache in f16: {memory['kv_cache_f16_per_token']:,} bytes a token, "
            f"{mib(memory['kv_cache_f16_at_context'])} MiB at {memory['context']:,} tokens"
        )
    if "recurrent_state" in memory:
        lines.append(f"{mib(memory['recurrent_state'])} MiB of recurrent state for each sequence")
    for line in lines:
        out.print(line, soft_wrap=True)
