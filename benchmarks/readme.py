"""`python -m benchmarks.readme bench.json`: the tables of products in README.md, from a report.

They stand between two comments; nothing else of the file changes. A report that was interrupted,
or without products, is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from kvant import Error
from kvant.gguf.replace import replacing

from .machine import heading

__all__ = ["BEGIN", "END", "main", "render", "replaced"]

BEGIN = "<!-- products: python -m benchmarks.readme replaces what stands here -->"
END = "<!-- products end -->"
# What most models are made of; the report has every format.
_FORMATS = ("q4_0", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4")
_PEERS = {"composed": "composed", "ggml": "ggml", "ggml repack": "repacked"}

Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Replace the tables; 2 with a line on stderr where that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("report", type=Path, help="bench.json of benchmarks.report")
    parser.add_argument(
        "readme", type=Path, nargs="?", default=Path(__file__).parent.parent / "README.md"
    )
    options = parser.parse_args(arguments)
    try:
        numbers = json.loads(options.report.read_text(encoding="utf-8"))
        text = replaced(options.readme.read_text(encoding="utf-8"), render(numbers))
    except (OSError, ValueError, Error) as error:
        print(error, file=sys.stderr)
        return 2
    with replacing(options.readme) as file:
        file.write(text.encode())
    return 0


def replaced(text: str, block: str) -> str:
    """Put a block between the two comments.

    >>> replaced(f"a {BEGIN} old {END} b", "new").split()[-6:]
    ['new', '<!--', 'products', 'end', '-->', 'b']
    """
    if (text.count(BEGIN), text.count(END)) != (1, 1) or text.index(BEGIN) > text.index(END):
        raise Error(f"[readme] expected {BEGIN} and {END} once each, in this order")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def render(numbers: dict[str, Any]) -> str:
    """The block of markdown for a report as JSON."""
    sections, about = numbers.get("sections", {}), numbers.get("machine", {})
    if not numbers.get("complete") or not sections.get("matmul", {}).get("rows"):
        raise Error("[readme] expected a complete report with products")
    n, k = numbers["settings"]["shape"]
    peer = about["peers"]["ggml"]
    text = (
        f"Matrix products, weights {n} x {k} that come from memory (`{numbers['command']}` on "
        f"{heading(about)}). *of read*: share of the bandwidth of a read loop; *of peak*: share of "
        "the peak of int8 in registers; *of roof*: share of the lower of that peak and what this "
        "bandwidth allows; each measured in turns with the product, with as many threads: "
        f"{max(numbers['settings']['threads'])} where nothing else is said. "
    )
    if peer == "absent":
        text += "llama-cpp-python was not installed: nothing stands beside."
    else:
        text += f"x: times the speed of ggml {peer}'s `mul_mat` / of its repacked layout."
    blocks = [_prose(text), _table(sections["matmul"]["rows"])]
    if sections.get("experts", {}).get("rows"):
        count, top, f, cols = numbers["settings"]["experts"]
        title = f"Feed-forward networks, {top} of {count} experts, {f} x {cols}"
        theirs = "by expert" if peer == "absent" else "by expert / ggml's graph / that repacked"
        blocks += [
            _prose(f"{title}, others in each call (`moe_ffn`); x: times the same {theirs}."),
            _table(sections["experts"]["rows"]),
        ]
    return "\n\n".join(blocks)


def _prose(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _table(rows: list[Row]) -> str:
    threads, tokens = (sorted({r[key] for r in rows}) for key in ("threads", "m"))
    most = threads[-1]
    peers = [name for name in _PEERS if any(name in r for r in rows)]
    found = {(r["format"], r["m"], r["threads"], r.get("weights", "packed")): r for r in rows}
    head, columns = ["format"], []
    for m in tokens:
        packed = (m, most, "packed")
        if m == 1:
            head.append(f"m = 1: of read, threads {' / '.join(map(str, threads))}")
            columns.append([((m, n, "packed"), "of_limit") for n in threads])
            if any(r.get("weights") == "unpacked" and r["m"] == 1 for r in rows):
                head.append("unpacked")
                columns.append([((m, most, "unpacked"), "of_limit")])
        else:
            head.append(f"m = {m}: of peak / of roof")
            columns.append([(packed, "of_limit"), (packed, "of_roofline")])
        if peers:
            head.append(f"x {' / '.join(_PEERS[name] for name in peers)}")
            columns.append([(packed, name) for name in peers])
    formats = [f for f in _FORMATS if any(r["format"] == f for r in rows)]
    lines = [[f, *(_cell(found, f, column) for column in columns)] for f in formats]
    return "\n".join(f"| {' | '.join(c)} |" for c in (head, ["---"] * len(head), *lines))


def _cell(found: dict[Any, Row], format: str, column: list[tuple[tuple[Any, ...], str]]) -> str:
    """Numbers of one or more rows; none for a peer that did not do the work."""
    rows = [(found.get((format, *where), {}), key) for where, key in column]
    return " / ".join(_number(row[key]) for row, key in rows if key in row) or "-"


def _number(value: dict[str, Any]) -> str:
    """A share of a limit, or how many times faster than a peer.

    >>> _number({"median": 0.954}), _number({"times": {"median": 1.27}})
    ('0.95', '1.3')
    """
    return f"{value['times']['median']:.1f}" if "times" in value else f"{value['median']:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
