"""A row that is cut into padded parts loses no token and mixes none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserve.runtime.packing import pack

pytestmark = pytest.mark.wide


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    row=st.integers(1, 120),
    most=st.integers(0, 200),
)
def test_what_is_spread_out_comes_back_and_every_sequence_stands_in_a_line_of_its_own(lengths, row, most):
    torch = pytest.importorskip("torch", reason="the models extra is not installed")
    from gpuserve.models.row import Row

    for packed in pack(lengths, row):
        made = Row.of(packed, torch.device("cpu"), most=most)
        assert [made.parts[0].start, *(one.end for one in made.parts)] == [
            *(one.start for one in made.parts), packed.tokens,
        ]  # fmt: skip
        in_order = iter(packed.order)
        for part in made.parts:
            assert part.count * part.length <= most or part.mask is None
            count = part.end - part.start
            tokens = torch.arange(count, dtype=torch.float32)
            heads = tokens.repeat(2, 1)[..., None]
            batch = part.spread(heads)
            assert batch.shape == (part.count, 2, part.length, 1)
            assert torch.equal(part.gather(batch), heads.transpose(0, 1))
            lines, inside = part.batch(tokens[:, None])
            expected = 0
            for line, kept, place in zip(lines[..., 0], inside, in_order, strict=False):
                assert line[kept.bool()].tolist() == list(range(expected, expected + lengths[place]))
                expected += lengths[place]
            assert expected == count
