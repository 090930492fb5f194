"""Event streams in any cuts."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialoop.gateway import sse
from dialoop.gateway.sse import Framer, frame

LINES = st.lists(
    st.sampled_from(
        [b"data: x", b"data:y", b"data", b"data: ", b": ping", b"event: e", b"id: 1", b"", b"",
         b"data: {\"a\": 1}", b"datax: no", b"retry: 5", "data: \u4f60\u597d".encode()]
    ),
    max_size=20,
)  # fmt: skip
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def by_lines(stream: bytes) -> list[bytes]:
    """The same by the words of the standard, line by line."""
    found: list[bytes] = []
    data: list[bytes] = []
    for line in stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]:
        if not line:
            found += [b"\n".join(data)] if data else []
            data = []
        elif line.partition(b":")[0] == b"data":
            data.append(line.partition(b":")[2].removeprefix(b" "))
    return found


@given(LINES, ENDS, st.data())
def test_any_cuts_of_a_stream_give_the_events_that_the_standard_says(
    lines: list[bytes], end: bytes, data: st.DataObject
):
    stream = b"".join(line + end for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    framer = Framer()
    found: list[bytes] = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += framer.feed(stream[start:stop])
    found += framer.feed(b"\n") if end == b"\r" else []  # the last line feed might have come
    expected = by_lines(stream)
    assert found == expected


def test_what_is_not_ended_is_not_an_event():
    framer = Framer()
    assert framer.feed(b"data: 1\n\ndata: 2") == [b"1"]
    assert framer.is_inside
    assert framer.feed(b"\n") == []
    assert framer.feed(b"\n") == [b"2"]
    assert not framer.is_inside


def test_an_event_is_bounded():
    framer = Framer()
    framer.feed(b"x" * sse.MAX_EVENT_BYTES)
    with pytest.raises(sse.FrameError, match="larger than 16 MiB"):
        framer.feed(b"x")


def test_a_frame_is_one_event():
    assert Framer().feed(frame(b'{"a": 1}')) == [b'{"a": 1}']


def test_a_large_event_is_put_together_once():
    framer = Framer()
    piece = b"x" * 2**12
    began = time.process_time()
    for _ in range(2000):
        framer.feed(piece)
    assert time.process_time() - began < 0.2  # 8 MB; it took seconds when joined each time
    assert framer.feed(b"\n") == []
    assert framer.feed(b"\ndata: 1\n\n") == [b"1"]
