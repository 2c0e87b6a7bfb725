"""`kvant plan MODEL`: what a model needs to run, what fits, and how fast a token can come."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..plan import Device, Model

__all__ = ["add", "run"]

_HELP = "say what a model needs to run: weights, caches, what fits where, how fast at most"
_DESCRIPTION = """\
MODEL is a GGUF file, a Hugging Face config.json or its folder, or a name such as "Qwen3.5 27B".
Only headers are read. `kvant plan --list` shows the names of models and devices.
"""
_EXAMPLES = """\
examples:
  kvant plan model.gguf --ctx 65536 --kv q8_0
  kvant plan "Gemma 4 31B" --device "RTX 4090" --recipe Q4_K_M,Q5_K_M --out gemma.png
  kvant plan gpt-oss-120b --device "RTX 5090" --device DDR5-5600:64GiB
  kvant plan "Qwen3.5 35B-A3B" --memory 24GiB --bandwidth 400 --sequences 4
  kvant plan "Phi-4" --host
"""


def add(commands: Any) -> None:
    """Add this command to the program."""
    from .console import positive

    parser = commands.add_parser(
        "plan",
        help=_HELP,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="file, folder or name")
    parser.add_argument("--list", action="store_true", help="list known models and devices")
    parser.add_argument(
        "--recipe",
        action="append",
        default=[],
        metavar="LIST",
        help="recipes or formats, separated by commas (default: as the file is; the usual ones)",
    )
    parser.add_argument("--ctx", type=positive, metavar="N", help="tokens a sequence (32768)")
    parser.add_argument(
        "--kv", default="f16", metavar="K[,V]", help="formats of keys and values (f16)"
    )
    parser.add_argument("--sequences", type=positive, default=1, metavar="N", help="side by side")
    parser.add_argument(
        "--ubatch", type=positive, default=512, metavar="N", help="tokens computed at once (512)"
    )
    parser.add_argument(
        "--no-flash", action="store_true", help="attention keeps its scores in a buffer"
    )
    parser.add_argument(
        "--llama-cpp", action="store_true", help="round the cache as llama.cpp rounds it"
    )
    parser.add_argument("--memory", metavar="SIZE", help="memory that is there, such as 24GiB")
    parser.add_argument(
        "--bandwidth", type=_positive_real, metavar="GB/s", help="of --memory or --host"
    )
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="NAME[:SIZE]",
        help="a device of the table; several share the model",
    )
    parser.add_argument("--host", action="store_true", help="this machine, measured")
    parser.add_argument(
        "--headroom",
        type=_share,
        metavar="SHARE",
        help="of each device's memory that is not for the model "
        "(default: 0.05 of a card; 0.25 of unified memory, 0.30 up to 32 GiB)",
    )
    parser.add_argument("--imatrix", action="store_true", help="recipes as with an imatrix")
    parser.add_argument(
        "--tensor-type", action="append", default=[], metavar="REGEX=FORMAT", help="as in quantize"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="draw where the bytes go")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan and print."""
    from ..errors import ModelError
    from ..gguf.replace import replacing
    from ..plan import make, read
    from ..plan.report import print_plan
    from .console import console, overrides

    if args.list:
        _print_list(console())
        return 0
    if args.model is None:
        raise ModelError("[plan] expected a model or --list, got neither")
    model = read(args.model)
    found = make(
        model,
        [word for words in args.recipe for word in words.split(",") if word],
        _use(args, model),
        _devices(args),
        imatrix=args.imatrix,
        overrides=overrides(args.tensor_type),
    )
    if args.out:
        from ..plan.plot import plan_png

        image = plan_png(found)
        with replacing(args.out) as file:
            file.write(image)
    if args.json:
        print(json.dumps(found.to_json(), indent=1, allow_nan=False))
    else:
        print_plan(found, console())
    return 0


def _use(args: argparse.Namespace, model: Model) -> Any:
    from ..errors import FormatError
    from ..plan import Use

    formats = args.kv.split(",")
    if len(formats) > 2:
        raise FormatError(f"[plan] expected one or two formats for --kv, got {args.kv!r}")
    return Use(
        context=args.ctx or min(32768, model.context or 32768),
        sequences=args.sequences,
        k=formats[0],
        v=formats[-1],
        batch=args.ubatch,
        flash=not args.no_flash,
        llama_cpp=args.llama_cpp,
    )


def _devices(args: argparse.Namespace) -> list[Device]:
    from ..errors import ShapeError
    from ..plan import Device, device, host
    from ..plan.devices import parse_memory

    speed = 1e9 * args.bandwidth if args.bandwidth else None
    if speed and not (args.memory or args.host):
        raise ShapeError("[plan] expected --memory or --host beside --bandwidth, got neither")
    found = [device(name, args.headroom) for name in args.device]
    if args.memory:
        # Who states a size means that size.
        kept = args.headroom or 0.0
        found.append(Device(args.memory, parse_memory(args.memory), speed or 0.0, headroom=kept))
    if args.host:
        found.append(host(speed, args.headroom or 0.0))
    return found


def _print_list(out: Any) -> None:
    from rich.table import Table

    from ..plan import DEVICES, FAMILIES
    from ..plan.report import size

    table = Table(title="models", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("sizes from")
    for entry in FAMILIES:
        table.add_row(", ".join(entry.names), entry.source)
    out.print(table)
    table = Table(title="devices", title_justify="left")
    table.add_column("name", no_wrap=True)
    for title in ("memory", "for a model", "GB/s"):
        table.add_column(title, justify="right")
    for known in DEVICES:
        speed = f"{known.bandwidth / 1e9:.0f}"
        table.add_row(known.name, size(known.memory), size(known.usable), speed)
    out.print(table)


def _positive_real(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, got {text!r}")
    return value
