"""Sensitivities and the mixes chosen from them, on a small model; and who may carry the runs."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_model

from kvant import gguf
from kvant.cli.main import main
from kvant.errors import FormatError, ShapeError
from kvant.lab import Study, measured, optimize, sensitivity, windows
from kvant.lab.costs import Sensitivity
from kvant.quantize_file import plan_file, quantize_file

FORMATS = ("q2_k", "q4_k", "q8_0")
TOKENS = np.random.default_rng(0).integers(1, 258, 130)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    path = write_model(tmp_path_factory.mktemp("study") / "moe.gguf", experts=4)
    return Study.of(str(path), windows(TOKENS, 64), threads=1)


@pytest.fixture(scope="module")
def found(study: Study) -> Sensitivity:
    return sensitivity(study, FORMATS)


def test_costs_are_measured_where_they_were_run(study: Study, found: Sensitivity) -> None:
    steps: list[tuple[str, int, int]] = []
    every = sensitivity(study, FORMATS, measure="all", progress=lambda *step: steps.append(step))
    assert list(every.choices) == list(found.choices)
    assert every.runs == 3 * len(every.choices) == len(steps)
    assert steps[-1][1:] == (every.runs, every.runs)
    assert found.runs == len(found.choices)
    with gguf.open(study.model) as file:
        total = sum(int(np.prod(t.shape)) for t in file.tensors.values())
        kept = [n for n in file.tensors if n not in found.choices]
        assert found.fixed_bytes == sum(file.tensors.info(n).nbytes for n in kept)
    assert found.weights == total
    for name, choices in found.choices.items():
        small, middle, large = choices
        assert small.nbytes < middle.nbytes < large.nbytes
        # The middle one is the run that the estimates hang on.
        assert middle.cost == pytest.approx(every.choices[name][1].cost)
        assert small.cost > middle.cost > large.cost >= 0
    for name in ("blk.0.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight"):
        for choice in found.choices[name]:
            shares = found.experts[name][choice.format]
            assert shares.shape == (4,)
            assert shares.sum() == pytest.approx(choice.cost)


def test_a_plan_fits_its_target_and_is_written(
    study: Study, found: Sensitivity, tmp_path: Path
) -> None:
    with gguf.open(study.model) as file:
        q4 = plan_file(file, "q4_k")
    recipe = next(measured(study, [{n: f for n, f in q4.items() if n in found.choices}]))
    nbytes = found.fixed_bytes + sum(c[1].nbytes for c in found.choices.values())
    plan = optimize(found, target_bytes=nbytes, study=study)
    assert nbytes * 0.995 <= plan.nbytes <= nbytes
    assert plan.bits_per_weight == pytest.approx(8 * plan.nbytes / found.weights)
    assert plan.divergence is not None
    assert plan.divergence.kl_mean < recipe.kl_mean
    assert optimize(found, target_bpw=plan.bits_per_weight).formats == plan.formats
    done = plan.write(study.model, str(tmp_path / "mix.gguf"), threads=1)
    assert {t.name: t.format for t in done.tensors if t.name in plan.formats} == plan.formats
    assert sum(t.bytes for t in done.tensors) == plan.nbytes
    assert any("'^blk\\.0\\.attn_q\\.weight$=" in line for line in plan.llama_quantize_lines())


def test_formats_of_the_file_itself_cost_nothing(study: Study, tmp_path: Path) -> None:
    # The smallest that loses anything is what the estimates hang on.
    found = sensitivity(study, ("q4_k", "f16"))
    for choices in found.choices.values():
        assert [c.format for c in choices] == ["q4_k", "f16"]
        assert choices[0].cost > choices[1].cost == 0
    plan = optimize(found, target_bpw=10.0, study=study)
    assert 9.5 < plan.bits_per_weight <= 10
    assert set(plan.formats.values()) == {"q4_k", "f16"}
    # Most tensors are f16, and the others are written as planned.
    done = plan.write(study.model, str(tmp_path / "mix.gguf"), threads=1)
    assert sum(t.bytes for t in done.tensors) == plan.nbytes
    with gguf.open(tmp_path / "mix.gguf") as file:
        written = {name: file.tensors.info(name).type.name for name in file.tensors}
    assert {name: written[name] for name in plan.formats} == plan.formats
    exact = optimize(found, max_kl=1e-9, study=study)
    assert set(exact.formats.values()) == {"f16"}


def test_tensors_that_are_quantized_already_stay(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "part.gguf"
    name = "blk.0.ffn_up_exps.weight"
    quantize_file(study.model, path, {name: "q8_0"})
    own = Study.of(str(path), study.windows(), threads=1)
    found = sensitivity(own, FORMATS)
    assert name not in found.choices
    optimize(found, target_bpw=5.0).write(str(path), str(tmp_path / "mix.gguf"), threads=1)
    with gguf.open(tmp_path / "mix.gguf") as file:
        assert file.tensors.info(name).type.name == "q8_0"
    for type, message in (({"x": "q4_k"}, "tensors of the file, got 'x'"), ({}, "no overrides")):
        overrides = [] if type else [("a", "q4_k")]
        with pytest.raises(FormatError, match=message):
            quantize_file(path, tmp_path / "no.gguf", type, overrides=overrides)
    assert not (tmp_path / "no.gguf").exists()


def test_another_file_under_the_same_name_is_measured_anew(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    run = {"blk.0.attn_q.weight": "q2_k"}
    kl = []
    for scale in (1.0, 3.0):
        with gguf.open(study.model) as file:
            tensors = dict(file.tensors)
            q = tensors["blk.0.attn_q.weight"].dequantize() * np.float32(scale)
            gguf.write(path, dict(file.metadata), tensors | {"blk.0.attn_q.weight": q})
        kl.append(next(measured(Study.of(str(path), study.windows()), [run])).kl_mean)
    assert kl[0] != kl[1]


def test_the_smallest_mix_within_a_divergence(study: Study, found: Sensitivity) -> None:
    middle = optimize(found, target_bpw=5.0, study=study)
    assert middle.divergence is not None
    bound = middle.divergence.kl_mean
    plan = optimize(found, max_kl=bound, study=study)
    assert plan.divergence is not None
    assert plan.divergence.kl_mean <= bound
    assert plan.nbytes <= 1.1 * middle.nbytes
    with pytest.raises(ShapeError, match="expected a KL of at least"):
        optimize(found, max_kl=1e-12, study=study)


def test_goals_that_make_no_sense(study: Study, found: Sensitivity) -> None:
    cases = [{}, {"target_bpw": 4.0, "max_kl": 1.0}, {"target_bpw": -1.0}, {"target_bytes": 10}]
    for goals in (*cases, {"max_kl": 0.1}):
        with pytest.raises(ShapeError, match=r"\[optimize\] expected"):
            optimize(found, **goals)  # type: ignore[arg-type]
    for formats, measure in ((("iq1_s",), "one"), (FORMATS, "none")):
        with pytest.raises(FormatError, match=r"\[sensitivity\] expected"):
            sensitivity(study, formats, measure=measure)


@contextmanager
def carrier(kind: str) -> Iterator[Executor]:
    if kind == "threads":
        with ThreadPoolExecutor(2) as pool:
            yield pool
    elif kind == "processes":
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            yield pool
    else:
        distributed = pytest.importorskip("distributed", reason="dask carries the runs")
        options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
        with (
            distributed.LocalCluster(processes=False, **options) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client.get_executor()


@pytest.mark.parametrize("kind", ["threads", "processes", "dask"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_any_executor_carries_the_runs(study: Study, found: Sensitivity, kind: str) -> None:
    names = list(found.choices)
    runs = [{names[0]: "q2_k"}, {names[1]: "q8_0", names[2]: "q4_k"}, {}]
    alone = list(measured(study, runs))
    assert alone[2].kl_mean == 0
    done: list[int] = []
    with carrier(kind) as executor:
        assert list(measured(study, runs, executor, done.append)) == alone
    assert done == [1, 2, 3]


def test_the_command(study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 10)
    out = tmp_path / "mix.gguf"
    words = ["optimize", study.model, "--text", str(text)]
    size = 1_000_000
    assert main([*words, "--target-size", f"{size}", "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "--tensor-type '^output\\.weight$=" in shown
    assert f"written: {out}" in shown
    assert 0.995 * size <= out.stat().st_size <= size
    found = []
    for _ in range(2):
        assert main([*words, "--target-bpw", "4.5", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert found[0]["bits_per_weight"] == pytest.approx(4.5, rel=0.005)
    # What cannot be is told before anything is measured.
    for more, message in (
        (["--target-size", "1KiB"], "target of at least"),
        (["--target-bpw", "1"], "target of at least"),
        (["--target-bpw", "nan"], "target_bpw above 0"),
        (["--max-kl", "inf"], "max_kl above 0"),
        (["--target-bpw", "5", "-o", study.model], "two different files"),
        (["--target-bpw", "5", "-o", str(tmp_path / "no" / "x.gguf")], "No such folder"),
    ):
        assert main([*words, *more]) == 2, more
        assert message in capsys.readouterr().err
