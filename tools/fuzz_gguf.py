"""Feed broken files to the GGUF reader for a while: `python tools/fuzz_gguf.py --seconds 60`.

Mutation n of a seed is always the same, so a finding is repeated with `--seed S --first N
--count 1`. The process ends with status 1 and keeps the file if one of them brings out anything
but GGUFError, takes longer than five seconds, or more memory than its size and 64 MiB.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "gguf"))

from mutate import mutation, seeds, try_bytes, try_file

SPARE = 64 << 20
SLOW = 5.0


def trouble(data: bytes, number: int, folder: Path) -> tuple[bool, str | None]:
    """Try one file; return whether it was accepted, and what went wrong if something did."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    clock = time.perf_counter()
    try:
        accepted = try_file(data, folder) if number % 16 == 0 else try_bytes(data)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - clock
    taken = tracemalloc.get_traced_memory()[1] - before
    if seconds > SLOW:
        return accepted, f"took {seconds:.1f} s"
    if taken > len(data) + SPARE:
        return accepted, f"took {taken} bytes for a file of {len(data)}"
    return accepted, None


def main() -> int:
    """Run until the time or the count is over."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--count", type=int, default=None, help="how many, instead of how long")
    parser.add_argument("--seed", type=int, default=0, help="which sequence (default 0)")
    parser.add_argument("--first", type=int, default=0, help="first mutation of it (default 0)")
    parser.add_argument("--keep", type=Path, default=Path(), help="folder for what fails")
    args = parser.parse_args()

    start = seeds()
    numbers = itertools.count(args.first)
    if args.count is not None:
        numbers = iter(range(args.first, args.first + args.count))
    began = time.perf_counter()
    done = accepted = failed = 0
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            if args.count is None and time.perf_counter() - began > args.seconds:
                break
            data = mutation(start, args.seed, number)
            fine, wrong = trouble(data, number, Path(folder))
            done += 1
            accepted += fine
            if wrong is not None:
                failed += 1
                path = args.keep / f"gguf-{args.seed}-{number}.bin"
                path.write_bytes(data)
                print(f"seed {args.seed} mutation {number}: {wrong} (kept as {path})")
    seconds = time.perf_counter() - began
    print(
        f"seed {args.seed}: mutations {args.first} to {args.first + done - 1} of {len(start)} "
        f"files in {seconds:.1f} s ({done / seconds:.0f} a second), {accepted} accepted, "
        f"{done - accepted - failed} refused, {failed} failed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
