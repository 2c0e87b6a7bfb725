"""Benchmarks: kvant against ggml, gguf-py and libgguf, in one process and in turns.

`python -m benchmarks.report` prints the tables; `pytest benchmarks --benchmark-enable` times the
functions one by one. What each number means stands in docs/benchmarks.md.
"""
