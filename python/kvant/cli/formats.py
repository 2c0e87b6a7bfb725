"""`kvant formats`: the table of formats and recipes."""

from __future__ import annotations

import argparse
import json
from typing import Any

__all__ = ["add", "run"]

_HELP = "list the formats and recipes"


def add(commands: Any) -> None:
    """Add this command to the program."""
    parser = commands.add_parser("formats", help=_HELP, description=_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print both tables."""
    from rich.table import Table

    from ..formats import formats
    from ..recipes import recipes
    from .console import console

    if args.json:
        print(
            json.dumps(
                {
                    "formats": [
                        {
                            "name": f.name,
                            "ggml_type": f.ggml_type,
                            "block": f.block,
                            "block_bytes": f.block_bytes,
                            "bits_per_weight": f.bits_per_weight,
                            "can_encode": f.can_encode,
                            "uses_importance": f.uses_importance,
                        }
                        for f in formats()
                    ],
                    "recipes": [
                        {"name": r.name, "file_type": r.file_type, "base": r.base}
                        for r in recipes()
                    ],
                },
                indent=1,
            )
        )
        return 0
    table = Table(title="formats", title_justify="left")
    table.add_column("name")
    for title in ("bits per weight", "block", "bytes", "ggml id"):
        table.add_column(title, justify="right")
    for title in ("encode", "imatrix"):
        table.add_column(title)
    for f in formats():
        table.add_row(
            f.name,
            f"{f.bits_per_weight:g}",
            str(f.block),
            str(f.block_bytes),
            str(f.ggml_type),
            "yes" if f.can_encode else "decode only",
            "used" if f.uses_importance else "",
        )
    encodable = {f.name for f in formats() if f.can_encode}
    names = [r.name for r in recipes() if r.base in encodable]
    out = console()
    out.print(table)
    out.print("recipes: " + ", ".join(names), soft_wrap=False)
    return 0
