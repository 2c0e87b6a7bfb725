"""The examples run, and the shipped model is the one its card describes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scoring import losses

import kvant
from kvant import models

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHIPPED = EXAMPLES / "models/tiny-moe/model.gguf"


def run(script: str, *arguments: str) -> str:
    # The copy of kvant under test, wherever this process found it.
    where = str(Path(kvant.__file__).parents[1])
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": where},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_quantize_array_prints_smaller_errors_for_more_bits() -> None:
    rows = [line.split() for line in run("quantize_array.py").splitlines()[1:]]
    errors = {row[0]: float(row[2]) for row in rows}
    assert errors["q8_0"] < errors["q6_k"] < errors["q5_k"] < errors["q4_k"] < errors["q2_k"]
    assert all(float(row[5]) <= float(row[3]) for row in rows)


def test_run_model_continues_the_text() -> None:
    out = run("run_model.py", str(SHIPPED), "Mr. Sherlock Holmes")
    assert out.startswith("as it is: Mr. Sherlock Holmes, and")
    assert 0.01 < float(out.split()[-1]) < 1


def test_a_decoder_of_ones_own_is_the_decoder() -> None:
    text = "Mr. Sherlock Holmes"
    model = models.load(SHIPPED)
    ids = model.tokenizer.encode(text, bos=True)
    wanted = model.tokenizer.decode(model.generate(ids, 40))
    assert run("own_decoder.py", str(SHIPPED), text) == f"{text}{wanted}\n"


def test_the_card_describes_the_shipped_model() -> None:
    model = models.load(SHIPPED)
    c = model.config
    assert (c.architecture, c.block_count, c.embedding_length) == ("qwen3moe", 3, 256)
    assert (c.head_count, c.head_count_kv, c.key_length) == (4, 2, 64)
    assert (c.expert_count, c.expert_used_count, c.expert_feed_forward_length) == (8, 2, 256)
    assert (c.vocab_size, c.context_length) == (1024, 512)
    assert (model.tokenizer.bos_id, model.tokenizer.eos_id, model.tokenizer.add_bos) == (0, 0, True)
    head, embedding = model.tensors["output.weight"], model.tensors["token_embd.weight"]
    assert isinstance(head, kvant.QTensor)
    assert head == embedding
    assert sum(int(np.prod(t.shape)) for t in model.tensors.values()) == pytest.approx(
        5.8e6, rel=0.01
    )
    assert SHIPPED.stat().st_size == pytest.approx(11.7e6, rel=0.01)


def test_the_shipped_model_knows_english() -> None:
    model = models.load(SHIPPED)
    ids = model.tokenizer.encode("He looked at me for a long time without saying a word.", bos=True)
    loss = losses(model, ids).mean()
    shuffled = [0, *np.random.default_rng(0).permutation(ids[1:])]
    # A model that knows nothing loses log(1024) = 6.93 nats a token.
    assert loss < 4.5
    assert losses(model, shuffled).mean() > loss + 1


def test_four_bits_change_little_and_two_bits_more() -> None:
    model = models.load(SHIPPED)
    ids = model.tokenizer.encode("The moor was dark, and the wind had risen.", bos=True)
    plain = model.logits(ids)
    change = {}
    for name in ("q8_0", "q4_k", "q2_k"):
        matrices = {
            key: kvant.quantize(tensor.dequantize(), name)
            for key, tensor in model.tensors.items()
            if isinstance(tensor, kvant.QTensor) and "_exps." in key
        }
        change[name] = float(np.abs(model.with_weights(matrices).logits(ids) - plain).mean())
    # Quantized weights take activations in eight bits, which is most of what q8_0 changes.
    assert 0 < change["q8_0"] < 0.2 * change["q4_k"] < change["q4_k"] < 0.5 * change["q2_k"]
