"""A base file that llama-perplexity wrote, and what it printed about another model: once recorded.

`llama_perplexity.npz` holds the file (the f16 model of tiny_model.py, windows of 32), the logits of
its first window, the logits of the same model in q8_0, and the printed figures; llama.cpp of
November 2026.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvant.lab.kld import KldFile, encode_rows, write_kld
from kvant.lab.metrics import Comparison
from kvant.lab.statistics import Divergence


@pytest.fixture(scope="module")
def recorded() -> Any:
    return np.load(Path(__file__).parent / "llama_perplexity.npz")


@pytest.fixture(scope="module")
def base(recorded: Any, tmp_path_factory: pytest.TempPathFactory) -> KldFile:
    path = tmp_path_factory.mktemp("llama") / "base.kld"
    path.write_bytes(recorded["kld"].tobytes())
    return KldFile(path, bos=0)


@pytest.fixture(scope="module")
def found(recorded: Any, base: KldFile) -> Divergence:
    comparison = Comparison()
    for index, logits in enumerate(recorded["test_logits"]):
        comparison.add(base.compare(index, logits))
    return comparison.result()


def test_its_file_is_read_and_written(recorded: Any, base: KldFile, tmp_path: Path) -> None:
    assert (base.ctx, base.vocab, len(base.windows)) == (32, 258, 7)
    words, ours = base.words(0), encode_rows(recorded["base_logits"][0])
    # The offset is a sum that its exponentials decide in the last bit.
    assert np.array_equal(np.delete(words, (2, 3), axis=1), np.delete(ours, (2, 3), axis=1))
    offsets = (np.ascontiguousarray(x[:, 2:4]).view("<f4") for x in (words, ours))
    np.testing.assert_allclose(*offsets, rtol=2e-7)
    with write_kld(tmp_path / "again.kld", base.tokens, base.vocab) as file:
        for _, log_p in base:
            file.append(log_p)
    header = 20 + base.tokens.nbytes
    raw = recorded["kld"][:header].tobytes()
    assert (tmp_path / "again.kld").read_bytes()[:header] == raw


PRINTED = {
    "Mean PPL(Q) ": ("perplexity", 1),
    "Mean PPL(base) ": ("base_perplexity", 1),
    "Cor(ln(PPL(Q)), ln(PPL(base)))": ("correlation", 100),
    "Mean ln(PPL(Q)/PPL(base))": ("log_perplexity_ratio", 1),
    "Mean PPL(Q)/PPL(base)": ("perplexity_ratio", 1),
    "Mean PPL(Q)-PPL(base)": ("perplexity_difference", 1),
    "Mean    KLD": ("kl_mean", 1),
    "Mean    \N{GREEK CAPITAL LETTER DELTA}p": ("delta_p_mean", 100),
    "RMS \N{GREEK CAPITAL LETTER DELTA}p": ("delta_p_rms", 100),
    "Same top p": ("same_top", 100),
}


def printed(text: str, name: str) -> list[tuple[float, float]]:
    """The numbers of a line, each with half a unit of its last digit."""
    [line] = [line for line in text.splitlines() if line.startswith(name)]
    numbers = re.findall(r"-?\d+\.\d+", line[len(name) :])
    return [(float(n), 0.51 * 10.0 ** -len(n.split(".")[1])) for n in numbers]


@pytest.mark.parametrize("name", PRINTED)
def test_figures_and_errors_agree(name: str, recorded: Any, found: Divergence) -> None:
    field, scale = PRINTED[name]
    values = [getattr(found, field), found.errors.get(field)]
    lines = printed(str(recorded["printed"]), name)
    for (wanted, half), value in zip(lines, values, strict=False):
        assert value is not None
        # Its log-probabilities are f32, which shows where perplexities are subtracted.
        assert abs(scale * value - wanted) <= half + 4e-8 * found.perplexity


@pytest.mark.parametrize("kind", ["kl", "delta_p"])
def test_quantiles_agree(kind: str, recorded: Any, found: Divergence) -> None:
    text, scale = str(recorded["printed"]), 1 if kind == "kl" else 100
    label = "KLD" if kind == "kl" else "\N{GREEK CAPITAL LETTER DELTA}p"
    words = {"max": "Maximum", "min": "Minimum", "median": "Median "}
    for name, value in getattr(found, f"{kind}_quantiles").items():
        digits = name if "." in name else name.replace("%", ".0%")
        [(wanted, half)] = printed(text, f"{words.get(name, f'{digits:>5}  ')} {label}")
        # It interpolates in f32, which may turn the last digit.
        assert abs(scale * value - wanted) <= 3 * half, name
