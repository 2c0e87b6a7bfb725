"""`kvant convert HF_DIR OUT`: a Hugging Face model folder to GGUF."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add", "run"]

_HELP = "convert a Hugging Face folder to GGUF"


def add(commands: Any) -> None:
    """Add this command to the program."""
    parser = commands.add_parser("convert", help=_HELP, description=_HELP)
    parser.add_argument("folder", metavar="HF_DIR", help="folder with config.json and safetensors")
    parser.add_argument("out", metavar="OUT", help="GGUF file to write")
    parser.add_argument(
        "--dtype",
        choices=("f32", "f16", "bf16"),
        help="type of the matrices (default: as in the folder)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert and say what was written."""
    from .. import gguf
    from ..convert import convert
    from ..lab.table import mib

    convert(args.folder, args.out, dtype=args.dtype)
    with gguf.open(args.out) as file:
        nbytes = sum(file.tensors.info(name).nbytes for name in file.tensors)
        print(f"{args.out}: {len(file.tensors)} tensors, {mib(nbytes)} MiB")
    return 0
