"""The eight toxics, on a clock that is made up."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserve import DeclarationError
from gpuserve.testing import Bandwidth, Down, Latency, LimitData, ResetPeer, Slicer, SlowClose, Timeout
from gpuserve.testing.toxics import Ending, through


def passed(*toxics, sent=((0.0, b"hello"), (1.0, b"world")), ends_at=2.0):
    """All that gets through, by time."""
    dice = random.Random(1)
    links = [toxic.link(dice) for toxic in toxics]
    found = [one for place, link in enumerate(links) for one in through(links[place + 1 :], link.begin(0.0))]
    for now, data in (*sent, (ends_at, Ending.END)):
        found += through(links, iter([(now, data)]))
    return sorted(found, key=lambda one: one[0])


def test_each_toxic_does_what_its_name_says():
    assert passed() == [(0.0, b"hello"), (1.0, b"world"), (2.0, Ending.END)]
    assert passed(Down()) == passed()
    assert passed(Latency(500)) == [(0.5, b"hello"), (1.5, b"world"), (2.5, Ending.END)]
    assert passed(SlowClose(500)) == [(0.0, b"hello"), (1.0, b"world"), (2.5, Ending.END)]
    assert passed(Timeout(300)) == [(0.3, Ending.CLOSE)]
    assert passed(Timeout(0)) == []
    assert passed(ResetPeer(700))[:2] == [(0.0, b"hello"), (0.7, Ending.RESET)]
    assert passed(LimitData(7))[:3] == [(0.0, b"hello"), (1.0, b"wo"), (1.0, Ending.CLOSE)]
    assert passed(LimitData(0))[0] == (0.0, Ending.CLOSE)
    assert passed(Slicer(2, delay_us=1000))[:3] == [(0.0, b"he"), (0.001, b"ll"), (0.002, b"o")]
    narrow = passed(Bandwidth(1), sent=((0.0, b"a" * 1024),), ends_at=0.1)
    assert narrow[-2:] == [(pytest.approx(1.0), b"a" * 4), (pytest.approx(1.0), Ending.END)]


@given(
    st.lists(
        st.one_of(
            st.builds(Latency, st.integers(0, 99), st.integers(0, 99)),
            st.builds(Bandwidth, st.integers(1, 99)),
            st.builds(SlowClose, st.integers(0, 99)),
            st.builds(Slicer, st.integers(1, 9), st.integers(0, 9), st.integers(0, 99)),
        ),
        max_size=4,
    ),
    st.lists(st.binary(min_size=1, max_size=99), max_size=5),
)
def test_whatever_only_slows_things_down_loses_nothing_and_keeps_the_order(toxics, pieces):
    sent = [(float(place), piece) for place, piece in enumerate(pieces)]
    found = passed(*toxics, sent=sent, ends_at=float(len(pieces)))
    assert b"".join(what for _, what in found if isinstance(what, bytes)) == b"".join(pieces)
    assert [what for _, what in found if not isinstance(what, bytes)] == [Ending.END]
    assert found[-1][1] is Ending.END


def test_every_fault_of_a_toxic_is_told_at_once():
    with pytest.raises(DeclarationError) as refused:
        Slicer(0, -1, float("nan"), direction="sideways", toxicity=2)
    assert [one.split(" is ")[0] for one in refused.value.faults] == [
        "direction", "toxicity", "average_size", "size_variation", "delay_us",
    ]  # fmt: skip
    with pytest.raises(DeclarationError, match="kib_per_s is 0"):
        Bandwidth(0)
