"""Packs hold each sequence once, whole, and stay within their size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserve.runtime.packing import pack


@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 600))
def test_each_sequence_stands_once_and_whole_in_a_row_of_at_most_the_size(lengths, most):
    rows = pack(lengths, most)
    assert sorted(place for row in rows for place in row.order) == list(range(len(lengths)))
    for row in rows:
        assert row.tokens == sum(lengths[place] for place in row.order)
        assert row.tokens <= most or len(row.order) == 1
        stand = [group.length for group in row.groups for _ in range(group.count)]
        assert stand == [lengths[place] for place in row.order]
        assert [group.start for group in row.groups] == [0, *(group.end for group in row.groups)][:-1]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_one_large_row_has_one_group_a_length(lengths):
    [row] = pack(lengths, sum(lengths))
    assert len(row.groups) == len(set(lengths))


@pytest.mark.parametrize(("lengths", "most"), [([0], 10), ([3], 0)])
def test_what_cannot_be_packed_is_refused(lengths, most):
    with pytest.raises(ValueError, match="at least 1"):
        pack(lengths, most)
