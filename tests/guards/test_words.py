"""Files of the project are ASCII where they are code, and name no place of one machine."""

from __future__ import annotations

import re
import subprocess

import pytest

from support import ROOT

TEXT = {".py", ".pyi", ".h", ".cpp", ".md", ".toml", ".txt", ".cmake", ".json", ".yml", ".yaml", ""}


def project_files():
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("needs a git checkout")
    paths = [ROOT / line for line in done.stdout.splitlines()]
    return [p for p in paths if p.is_file() and p.suffix in TEXT]


def test_no_path_of_one_machine():
    # Put together here, so that this file does not contain what it looks for.
    places = re.compile("|".join(["/" + "work/", "/" + "root/", "/" + r"home/\w+", "/" + "Users/"]))
    found = {}
    for path in project_files():
        if match := places.search(path.read_text(errors="replace")):
            found[path.relative_to(ROOT).as_posix()] = match[0]
    assert found == {}


def test_c_sources_are_ascii():
    for path in project_files():
        if path.suffix in (".h", ".cpp"):
            assert path.read_bytes().isascii(), path.relative_to(ROOT)


def test_text_files_end_with_one_newline_and_no_trailing_blanks():
    wrong = []
    for path in project_files():
        text = path.read_text(errors="replace")
        if (
            path.suffix in (".py", ".h", ".cpp", ".md", ".toml", ".cmake")
            and text
            and (
                not text.endswith("\n")
                or text.endswith("\n\n")
                or re.search(r"[ \t]+$", text, re.M)
            )
        ):
            wrong.append(path.relative_to(ROOT).as_posix())
    assert wrong == []
