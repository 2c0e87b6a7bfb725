"""The assignment of formats against every assignment there is."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvant.errors import ShapeError
from kvant.lab.assign import Choice, assign, smallest, total

options = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 60)).map(
        lambda pair: Choice(f"{pair[0]}", pair[0], pair[1] / 8)
    ),
    min_size=1,
    max_size=4,
)
problems = st.lists(options, min_size=1, max_size=5).map(
    lambda lists: {f"t{i}": choices for i, choices in enumerate(lists)}
)


def every(choices: dict[str, list[Choice]]) -> list[tuple[int, float]]:
    return [total(dict(zip(choices, row, strict=True))) for row in product(*choices.values())]


@given(problems, st.integers(1, 220))
def test_it_fits_and_no_single_change_or_exchange_is_better(
    choices: dict[str, list[Choice]], budget: int
) -> None:
    least = min(nbytes for nbytes, _ in every(choices))
    if budget < least:
        with pytest.raises(ShapeError, match="budget of at least"):
            assign(choices, budget)
        return
    found = assign(choices, budget)
    assert list(found) == list(choices)
    assert all(found[name] in choices[name] for name in choices)
    nbytes, cost = total(found)
    assert nbytes <= budget
    best = min(c for n, c in every(choices) if n <= budget)
    # With two tensors exchanges reach everything.
    assert cost == pytest.approx(best) if len(choices) <= 2 else cost >= best - 1e-9
    changes = [{name: choice} for name in choices for choice in choices[name]]
    for one, two in product(changes, changes):
        worse = total(found | one)[1] >= cost
        other = total(found | one | two)
        assert other[0] > budget or other[1] >= cost - 1e-9 or not worse
    assert assign(choices, budget) == found


@given(problems, st.floats(0, 40))
def test_the_smallest_keeps_the_promise_where_it_can(
    choices: dict[str, list[Choice]], most: float
) -> None:
    best = sum(min(c.cost for c in given) for given in choices.values())
    nbytes, cost = total(smallest(choices, most))
    if best <= most:
        assert cost <= most
        if nbytes > min(n for n, _ in every(choices)):
            assert total(assign(choices, nbytes - 1))[1] > most
    else:
        assert cost == pytest.approx(best)


def test_a_tensor_without_choices_is_refused() -> None:
    with pytest.raises(ShapeError, match="got none for b"):
        assign({"a": [Choice("q4_0", 1, 1.0)], "b": []}, 10)
