"""Event streams are cut at frame boundaries only, and not a byte is changed."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from slotd.exchange.frames import FrameGate

ENDS = (b"\n\n", b"\r\n\r\n")

frames = st.lists(
    st.sampled_from(
        [
            b"data: {}\n\n",
            b"data: [DONE]\n\n",
            b": quiet\n\n",
            b"\n\n",
            b"event: x\r\ndata: 1\r\n\r\n",
            b"data: a\ndata: b\n\n",
            b"data: " + b"x" * 40 + b"\n\n",
            b"no end",
            b"\n",
            b"\r\n",
        ]
    ),
    max_size=12,
).map(b"".join)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({min(c, len(data)) for c in cuts})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


@given(frames, st.lists(st.integers(0, 300)))
@example(b":\n\ndata: x", [])
@example(b"\n\nx", [])
def test_what_comes_out_is_what_went_in_and_ends_on_a_boundary(data: bytes, cuts: list[int]) -> None:
    gate, out, fed = FrameGate(), b"", b""
    for piece in pieces(data, cuts):
        fed += piece
        out += gate.feed(piece)
        assert fed.startswith(out)
        assert gate.clean
        assert not out or out.endswith(ENDS)
        held = fed[len(out) :]
        assert not any(end in held for end in ENDS), "a whole frame is not held back"
    assert out + gate.rest() == data
    assert gate.rest() == b""


@given(frames, st.lists(st.integers(0, 300)), st.integers(0, 30))
def test_a_frame_over_the_limit_goes_in_pieces_and_is_known_to(
    data: bytes, cuts: list[int], limit: int
) -> None:
    gate, out, fed = FrameGate(limit), b"", b""
    for piece in pieces(data, cuts):
        fed += piece
        out += gate.feed(piece)
        assert len(fed) - len(out) <= limit, "what is held is bounded"
        if gate.clean:
            assert not out or out.endswith(ENDS)
    assert out + gate.rest() == data


def test_after_a_frame_over_the_limit_it_is_clean_again() -> None:
    gate = FrameGate(10)
    assert gate.feed(b"data: " + b"x" * 20) == b"data: " + b"x" * 20
    assert not gate.clean
    assert gate.feed(b"tail\n\ndata: y") == b"tail\n\n"
    assert gate.clean
    assert gate.rest() == b"data: y"
