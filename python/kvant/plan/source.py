"""A model by whatever names it: a GGUF file, a config.json or its folder, or a known name."""

from __future__ import annotations

import os
from pathlib import Path

from kvant import gguf
from kvant.convert.source import read_json
from kvant.plan.configs import from_config
from kvant.plan.families import family
from kvant.plan.model import Model, from_gguf

__all__ = ["read"]


def read(what: str | os.PathLike[str]) -> Model:
    """The model that `what` names.

    Parameters
    ----------
    what : path or str
        A GGUF file (any part of a split one), a Hugging Face config.json, a folder with one, or a
        name out of `FAMILIES`. Only headers are read.

    Raises
    ------
    ModelError
        There is no such file and no such name, or the file describes no model that is known.
    GGUFError
        The file is no sound GGUF file.

    Examples
    --------
    >>> from kvant import plan
    >>> plan.read("gpt-oss-120b").experts
    (4, 128)
    """
    path = Path(what)
    if path.is_dir():
        path = path / "config.json"
    elif not path.exists():
        return family(os.fspath(what))
    if path.suffix == ".json":
        folder = path.resolve().parent.name
        return from_config(read_json(path), folder, path.name)
    with gguf.open(path) as file:
        return from_gguf(file)
