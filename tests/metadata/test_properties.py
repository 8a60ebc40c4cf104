from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import IllegalTransition
from services.kit.lines import LineSet
from services.metadata.states import (
    LIFECYCLE,
    TERMINAL,
    UPLOAD_LIFECYCLE,
    BatchEvent,
    BatchState,
    UploadEvent,
    UploadState,
)

lines = st.sets(st.integers(0, 300))


@given(lines, lines)
def test_a_line_set_is_a_set(one, other):
    a, b = LineSet.of(one), LineSet.of(other)
    assert set(a) == one
    assert list(a) == sorted(one)
    assert len(a) == len(one)
    assert set(a | b) == one | other
    assert set(a - b) == one - other
    assert a.isdisjoint(b) is one.isdisjoint(other)
    assert (a == b) is (one == other)
    assert (a.min(), a.max()) == ((min(one), max(one)) if one else (0, -1))
    assert all(line in a for line in one)


@given(lines, st.integers(0, 300))
def test_a_line_set_survives_the_wire(one, first):
    whole = LineSet.of(one)
    assert LineSet.from_bytes(whole.to_bytes()) == whole
    assert set(LineSet.from_bytes(whole.to_bytes(first), first)) == {line for line in one if line >= first}
    padded = whole.to_bytes() + b"\0\0"
    assert LineSet.from_bytes(padded) == whole


@given(st.lists(st.sampled_from(BatchEvent)))
def test_whatever_happens_a_batch_ends_at_most_once(events):
    state, ends = BatchState.VALIDATING, 0
    for event in events:
        try:
            state = LIFECYCLE.after(state, event)
        except IllegalTransition:
            continue
        ends += state in TERMINAL
    assert ends == (state in TERMINAL)


@pytest.mark.parametrize("state", BatchState)
def test_every_state_has_a_way_to_an_end(state):
    reached, before = {state}, set()
    while reached != before:
        before = set(reached)
        reached |= {move.target for move in LIFECYCLE.moves.values() if move.sources & before}
    assert reached & TERMINAL


@pytest.mark.parametrize("event", UploadEvent)
def test_an_upload_ends_once(event):
    assert UPLOAD_LIFECYCLE.sources(event) == {UploadState.PENDING}
    assert UPLOAD_LIFECYCLE.moves[event].target is not UploadState.PENDING
