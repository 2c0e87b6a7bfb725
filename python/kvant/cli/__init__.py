"""The command line `kvant`: one small module per command, each with `add` and `run`."""
