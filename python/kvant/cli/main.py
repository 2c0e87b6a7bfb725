"""The program `kvant`: finds the command, runs it, and turns errors into one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__, environment
from ..errors import Error

__all__ = ["build_parser", "main"]

# In the order in which help lists them. Each module has `add(subparsers)` and `run(args)`.
COMMANDS = (
    "inspect",
    "run",
    "imatrix",
    "quantize",
    "optimize",
    "sweep",
    "eval",
    "kv",
    "convert",
    "bench",
    "plan",
    "formats",
    "demo",
)

_DESCRIPTION = """\
Quantize language models and measure what it costs them.

Files are GGUF. `kvant quantize` writes the same tensor types and bytes as llama.cpp's
llama-quantize; `kvant sweep` quantizes one model in many ways and compares size with the
divergence of its predictions.
"""

_EXAMPLES = """\
examples:
  kvant inspect model.gguf
  kvant run model.gguf -p "It was a cold morning, and" -n 64
  kvant quantize model.gguf small.gguf --type Q4_K_M --imatrix imatrix.gguf
  kvant quantize model.gguf x.gguf --type Q4_K_M --tensor-type ffn_down=q6_k --dry-run
  kvant optimize model.gguf --target-bpw 4.25 --text book.txt -o mix.gguf
  kvant sweep model.gguf --formats Q8_0,Q4_K_M,IQ4_XS,nvfp4 --text book.txt --out report
  kvant plan "Qwen3.5 27B" --device "RTX 4090"
  kvant eval small.gguf --base model.gguf --text book.txt
  kvant kv study model.gguf --text book.txt --budget-bits 4.5
  kvant bench bandwidth compute
  kvant demo

types:
  Q4_K_M, IQ4_XS, ...  recipes of llama-quantize: a mix of formats
  q4_k, nvfp4, ...     lower case: this format for every tensor; see `kvant formats`
  mix:4.25, ...        in a sweep: the mix that loses least at so many bits for each weight

exit status: 0 done, 2 an error (one line on stderr), 130 interrupted.
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="kvant",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in COMMANDS:
        import_module(f".{name}", __package__).add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Parameters
    ----------
    argv : sequence of str or None
        Arguments without the program's name; None takes those of the process.
    """
    try:
        environment.check()
    except Error as error:
        return _fail(f"kvant: {error}")
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    args = parser.parse_args(words)
    args.words = words
    if args.version:
        print(f"kvant {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Error as error:
        return _fail(f"kvant: {error}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "kvant":
            raise
        return _fail(f"kvant: this needs the package {error.name}: pip install 'kvant[lab]'")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"kvant: {where}{error.strerror or error}")
    except UnicodeDecodeError as error:
        return _fail(f"kvant: expected UTF-8 text, got other bytes at {error.start}")


def _fail(line: str, status: int = 2) -> int:
    print(" ".join(line.split()), file=sys.stderr)
    return status
