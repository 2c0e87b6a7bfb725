"""`kvant quantize SRC DST --type T`: write a GGUF file with its weights in other formats."""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from ..quantize_file import QuantizeSummary

__all__ = ["add", "run"]

_HELP = "write a model in another type, byte for byte as llama-quantize does"


def add(commands: Any) -> None:
    """Add this command to the program."""
    from .console import add_recipe_options

    parser = commands.add_parser("quantize", help=_HELP, description=_HELP)
    parser.add_argument("src", metavar="SRC", help="GGUF file with f32, f16 or bf16 weights")
    parser.add_argument("dst", metavar="DST", nargs="?", help="file to write (not with --dry-run)")
    parser.add_argument(
        "--type", "-t", required=True, metavar="T", help="recipe (Q4_K_M) or format (q4_k)"
    )
    add_recipe_options(parser)
    parser.add_argument(
        "--allow-requantize", action="store_true", help="accept weights that are quantized already"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only show what each tensor would become"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Quantize and print a summary."""
    from ..quantize_file import quantize_file
    from .console import bar, console, overrides

    chosen = overrides(args.tensor_type)
    with bar() as update:
        summary = quantize_file(
            args.src,
            args.dst,
            args.type,
            imatrix=args.imatrix,
            overrides=chosen,
            pure=args.pure,
            dry_run=args.dry_run,
            threads=args.threads,
            progress=update,
            allow_requantize=args.allow_requantize,
        )
    out = console()
    if args.dry_run:
        out.print(_tensor_table(summary))
    out.print(_format_table(summary))
    out.print(_total(summary))
    missing = summary.without_importance
    if args.imatrix and missing:
        out.print(f"no importance for {len(missing)} tensors: {_some(missing)}")
    return 0


def _total(summary: QuantizeSummary) -> str:
    from ..lab.table import mib

    source = 8 * summary.source_bytes / summary.weights if summary.weights else 0.0
    seconds = "dry run, nothing written" if summary.dry_run else f"{summary.seconds:.1f} s"
    return (
        f"{summary.type}: {mib(summary.source_bytes)} MiB ({source:.2f} bits per weight) -> "
        f"{mib(summary.bytes)} MiB ({summary.bits_per_weight:.2f} bits per weight), {seconds}"
    )


def _format_table(summary: QuantizeSummary) -> Table:
    from rich.table import Table

    from ..lab.table import mib

    counts: Counter[tuple[str, str]] = Counter()
    sizes: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for change in summary.tensors:
        pair = (change.source, change.format)
        counts[pair] += 1
        sizes[pair][0] += change.source_bytes
        sizes[pair][1] += change.bytes
    table = Table()
    for title in ("from", "to"):
        table.add_column(title)
    for title in ("tensors", "MiB before", "MiB after"):
        table.add_column(title, justify="right")
    for pair in sorted(counts, key=lambda p: -sizes[p][1]):
        before, after = sizes[pair]
        to = pair[1] if pair[0] != pair[1] else "kept"
        table.add_row(pair[0], to, str(counts[pair]), mib(before), mib(after))
    return table


def _tensor_table(summary: QuantizeSummary) -> Table:
    from rich.table import Table

    table = Table()
    for title in ("tensor", "shape", "from", "to", "imatrix"):
        table.add_column(title, no_wrap=True)
    for change in summary.tensors:
        table.add_row(
            change.name,
            " x ".join(map(str, change.shape)),
            change.source,
            change.format if change.format != change.source else "kept",
            "yes" if change.importance else "",
        )
    return table


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
