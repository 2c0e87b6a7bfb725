"""`kvant plan` from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import write_model

from kvant import plan
from kvant.cli.main import main
from kvant.plan.plot import bars

Capture = pytest.CaptureFixture[str]


def kvant(*words: object) -> int:
    return main(["plan", *map(str, words)])


def test_text(capsys: Capture) -> None:
    assert kvant("gpt-oss 120b", "--recipe", "MXFP4_MOE,Q8_0", "--device", "RTX 5090") == 0
    shown = capsys.readouterr().out
    for part in ("4 of 128 experts", "18 sliding (128 tokens)", "59.02 GiB", "~ estimated", "1792"):
        assert part in shown
    assert kvant("Qwen3.5 27B", "--recipe", "Q4_K_M", "--ctx", 300000, "--kv", "q8_0,q4_0") == 0
    shown = capsys.readouterr().out
    for part in ("149.6 MiB of recurrent state", "keys q8_0, values q4_0", "feed-forward", "note:"):
        assert part in shown
    assert "fits" not in shown


def test_a_file_as_it_is(tmp_path: Path, capsys: Capture) -> None:
    path = write_model(tmp_path / "m.gguf", experts=4)
    assert kvant(path) == 0
    shown = capsys.readouterr().out
    assert plan.AS_IS in shown
    assert f"{path.stat().st_size:,} bytes" in shown


def test_json(tmp_path: Path, capsys: Capture) -> None:
    path = write_model(tmp_path / "m.gguf", experts=4)
    words = ("--memory", "1GiB", "--device", "M4:16GiB", "--bandwidth", 50, "--headroom", 0.5)
    assert kvant(path, "--recipe", "Q8_0", "--sequences", 3, "--llama-cpp", "--json", *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"model", "use", "devices", "types"}
    assert found["use"]["sequences"] == 3 and found["use"]["context"] == 64
    assert [d["usable"] for d in found["devices"]] == [8 << 30, 1 << 29]
    (row,) = found["types"]
    assert row["type"] == "Q8_0" and row["fits"] is True and row["most_context"] == 64
    exact = row["weights_bytes"] + row["kv_bytes"] + row["state_bytes"]
    assert row["total_bytes"] == exact + row["compute_bytes_estimated"]
    assert row["kv_bytes"] == 3 * 256 * 2 * 2 * (64 + 64) * 2
    assert row["weights_bytes"] == sum(part["bytes"] for part in row["parts"].values())
    assert row["read_bytes_per_token"] < row["weights_bytes"]
    speed = row["tokens_per_second_at_most"]
    assert speed["empty"] > speed["full"] > 0


def test_the_list_names_everything(capsys: Capture) -> None:
    assert kvant("--list") == 0
    shown = capsys.readouterr().out
    assert all(entry.names[0] in shown for entry in plan.FAMILIES)
    assert all(device.name in shown for device in plan.DEVICES)


def test_host_is_this_machine(capsys: Capture) -> None:
    assert kvant("Qwen3.5 0.8B", "--host", "--bandwidth", 10, "--recipe", "Q4_K_M") == 0
    assert "on this machine (" in capsys.readouterr().out


def test_host_is_measured() -> None:
    assert plan.host().bandwidth > 1e8


def test_picture(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "p.png"
    assert kvant("Gemma 4 E4B", "--memory", "6GiB", "--out", out) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert len(out.read_bytes()) > 20000
    found = plan.make(plan.read("Gemma 4 E4B"), ["Q8_0"])
    lengths = bars(found)["Q8_0"]
    assert sum(lengths.values()) == found.verdicts[0].memory.total
    assert "per-layer embedding" in lengths and "recurrent state" not in lengths


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a model or --list"),
        (["no such model"], "expected a file or a model"),
        (["Phi-4", "--recipe", "Q9"], "expected a format name"),
        (["Phi-4", "--kv", "q8_0,q8_0,q8_0"], "one or two formats"),
        (["Phi-4", "--kv", "q4_k"], "heads of a multiple of 256"),
        (["Phi-4", "--device", "Abacus"], "expected a device"),
        (["Phi-4", "--memory", "lots"], "expected a size"),
        (["Phi-4", "--bandwidth", "5"], "--memory or --host"),
        (["Phi-4", "--tensor-type", "x"], "REGEX=FORMAT"),
        (["Phi-4", "--out", "/nowhere/p.png"], "No such file"),
    ],
)
def test_errors_are_one_line(words: list[str], message: str, capsys: Capture) -> None:
    assert kvant(*words) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1
    assert shown.out == ""
