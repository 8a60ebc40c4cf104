"""LineSet behaves as Python's set of int does, in memory and on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.lines import ENTRY, LineSet, LineSpan, read_index

lines = st.sets(st.integers(min_value=0, max_value=3000))


@given(lines)
def test_what_goes_in_comes_out(chosen: set[int]) -> None:
    made = LineSet.of(chosen)
    assert list(made) == sorted(chosen)
    assert len(made) == len(chosen)
    assert bool(made) == bool(chosen)
    assert made.max() == max(chosen, default=-1)
    assert made.min() == min(chosen, default=0)


@given(lines, lines)
def test_operations_are_those_of_sets(a: set[int], b: set[int]) -> None:
    assert set(LineSet.of(a) | LineSet.of(b)) == a | b
    assert set(LineSet.of(a) - LineSet.of(b)) == a - b
    assert LineSet.of(a).isdisjoint(LineSet.of(b)) == a.isdisjoint(b)
    assert (LineSet.of(a) == LineSet.of(b)) == (a == b)


@given(lines, st.integers(min_value=0, max_value=4000))
def test_bytes_round_trip_from_any_base_at_or_below_the_lowest(chosen: set[int], probe: int) -> None:
    made = LineSet.of(chosen)
    first = made.min()
    assert LineSet.from_bytes(made.to_bytes(first), first) == made
    assert LineSet.from_bytes(made.to_bytes()) == made
    assert (probe in made) == (probe in chosen)


@given(st.integers(min_value=0, max_value=500))
def test_first_n(count: int) -> None:
    assert set(LineSet.first_n(count)) == set(range(count))


def test_negative_lines_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        LineSet.of([-1])
    with pytest.raises(ValueError, match="negative"):
        LineSet.from_bytes(b"\x01", -1)


def test_the_index_round_trips_and_a_cut_one_is_refused() -> None:
    data = ENTRY.pack(0, 10) + ENTRY.pack(2**40, 2**31)
    assert list(read_index(data)) == [LineSpan(0, 0, 10), LineSpan(1, 2**40, 2**31)]
    with pytest.raises(ValueError, match="cut short"):
        list(read_index(data[:-1]))
