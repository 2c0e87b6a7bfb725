"""Importance matrices: sums, means and merges. Their files: gguf/test_imatrix_files.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvant.errors import FormatError, ShapeError
from kvant.imatrix import Imatrix

DENSE = "blk.0.ffn_down.weight"
MOE = "blk.0.ffn_up_exps.weight"


def test_importance_is_the_mean_square() -> None:
    im = Imatrix()
    im.add(DENSE, [[1.0, 2.0], [3.0, 0.0]])
    im.add(DENSE, [[[2.0, 4.0]]])
    found = im.importance(DENSE)
    assert found is not None
    assert found.dtype == np.float32
    assert found.tolist() == [np.float32(14) / np.float32(3), np.float32(20) / np.float32(3)]
    assert im.importance("unknown") is None


def test_experts_have_their_own_rows_and_unseen_ones_get_one() -> None:
    im = Imatrix()
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    im.add(MOE, x, experts=[[0, 2], [2, 0]], n_expert=4)
    im.add(MOE, [[5.0, 0.0]], experts=[2], n_expert=4)
    found = im.importance(MOE)
    assert found is not None
    assert found.shape == (4, 2)
    assert found[0].tolist() == [5.0, 10.0]
    assert found[2].tolist() == [np.float32(35) / np.float32(3), np.float32(20) / np.float32(3)]
    assert found[1].tolist() == found[3].tolist() == [1.0, 1.0]
    coverage = im.coverage()[MOE]
    assert (coverage.matrices, coverage.tokens, coverage.unseen) == (4, 3, (1, 3))


def test_each_chosen_expert_may_have_its_own_input() -> None:
    im = Imatrix()
    im.add(MOE, [[[1.0], [10.0]]], experts=[[1, 0]], n_expert=2)
    found = im.importance(MOE)
    assert found is not None
    assert found.tolist() == [[100.0], [1.0]]


def test_adding_in_parts_is_adding_at_once() -> None:
    x = np.random.default_rng(0).standard_normal((30, 5))
    whole, parts = Imatrix(), Imatrix()
    whole.add(DENSE, x)
    for row in x:
        parts.add(DENSE, row)
    assert np.array_equal(whole.importance(DENSE), parts.importance(DENSE))


def test_chunks_are_counted() -> None:
    im = Imatrix(chunk_size=8)
    im.add(DENSE, np.ones((20, 2)))
    assert im.chunk_count == 2


def test_merging_is_adding() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 16, 4))
    a, b, both = Imatrix(8, ["x"]), Imatrix(8, ["y"]), Imatrix(8)
    a.add(DENSE, x)
    b.add(DENSE, y)
    b.add("other", y)
    both.add(DENSE, x)
    both.add(DENSE, y)
    before = b.importance(DENSE)
    assert a.merge(b) is a
    assert np.array_equal(a.importance(DENSE), both.importance(DENSE))
    assert np.array_equal(a.importance("other"), b.importance("other"))
    assert np.array_equal(b.importance(DENSE), before)
    assert a.datasets == ("x", "y")
    assert a.chunk_count == 4
    a.add("other", y)
    assert b.coverage()["other"].tokens == 16  # a holds no view of b


def test_a_merge_that_fails_changes_nothing() -> None:
    a, b = Imatrix(), Imatrix()
    a.add("n", np.ones((2, 4)))
    b.add("m", np.ones((2, 4)))
    b.add("n", np.ones((2, 6)))
    with pytest.raises(ShapeError, match=r"\[Imatrix\.merge\] expected 4 values for 'n', got 6"):
        a.merge(b)
    assert list(a) == ["n"]
    assert a.coverage()["n"].tokens == 2


def test_flat_entries_are_cut_into_rows() -> None:
    im = Imatrix()
    im.add(DENSE, [1.0, 2.0, 3.0, 4.0])
    found = im.importance(DENSE, columns=2)
    assert found is not None
    assert found.tolist() == [[1.0, 4.0], [9.0, 16.0]]
    assert im.importance(DENSE, columns=4).shape == (4,)  # type: ignore[union-attr]
    for columns in (3, 0, 8):
        with pytest.raises(ShapeError, match=r"\[Imatrix\.importance\] expected rows of"):
            im.importance(DENSE, columns=columns)


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (1.0, {}),
        (np.ones((3, 0)), {}),
        (np.ones((3, 5)), {}),  # 4 before
        (np.ones((2, 4)), {"experts": [0, 1]}),
        (np.ones((2, 4)), {"experts": [0, 2], "n_expert": 2}),
        (np.ones((2, 4)), {"experts": [0, -1], "n_expert": 2}),
        (np.ones((2, 4)), {"experts": [0.0, 1.0], "n_expert": 2}),
        (np.ones((2, 4)), {"experts": [0], "n_expert": 2}),
        (np.ones((2, 3, 4)), {"experts": [[0, 1], [1, 0]], "n_expert": 2}),
        (np.ones((2, 4)), {"experts": [0, 1], "n_expert": 2}),  # dense before
    ],
)
def test_shapes_that_do_not_fit(x: Any, options: dict[str, Any]) -> None:
    im = Imatrix()
    im.add(DENSE, np.ones(4))
    with pytest.raises(ShapeError, match=r"^\[Imatrix\.add\] expected .*, got "):
        im.add(DENSE, x, **options)
    assert im.coverage()[DENSE].tokens == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e20])
def test_values_that_no_file_could_hold(bad: float) -> None:
    with pytest.raises(FormatError, match=r"\[Imatrix\.add\]"):
        Imatrix().add(DENSE, [bad, 1.0])


def test_a_chunk_has_tokens() -> None:
    with pytest.raises(ShapeError):
        Imatrix(chunk_size=0)
