"""However a network splits the bytes, the result is the same: request heads and bodies, and answers."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from uellm.http import Budget, EngineAddress, EngineLost, EnginePool, RequestLimits
from uellm.http.body import Body
from uellm.http.client_connection import ClientConnection
from uellm.http.head import HeadFinder, HeadParser

HEAD = b"POST /v1/completions?a=b HTTP/1.1\r\nHost: h\r\nX-Long: abc def\r\n"
LIMITS = RequestLimits(body_bytes=1 << 20)

bodies = st.binary(max_size=3000)
cuts = st.lists(st.integers(0, 4000), max_size=30)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(data)) for place in at), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


def in_chunks(body: bytes, at: list[int]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in cut(body, at)) + b"0\r\n\r\n"


@settings(max_examples=200)
@given(bodies, cuts, st.binary(max_size=50))
def test_a_head_is_found_where_it_ends_and_nowhere_else(body, at, behind):
    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
    finder, seen, end = HeadFinder(LIMITS), b"", 0
    for piece in cut(head + body + behind, at):
        seen += piece
        if end := finder.find(seen):
            break
    assert end == len(head)


@settings(max_examples=200)
@given(bodies, cuts, cuts, st.booleans())
def test_a_body_arrives_whole_and_leaves_what_follows_it(body, chunks, at, chunked):
    parser, budget = HeadParser(), Budget()
    framing = b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: %d\r\n\r\n" % len(body)
    length = parser.parse(HEAD + framing).length
    received = Body(length, parser, LIMITS.body_bytes, budget)
    left = b""
    for piece in cut(in_chunks(body, chunks) if chunked else body + b"NEXT", at):
        left += piece if received.complete else received.feed(piece)
    assert received.complete
    assert budget.held_bytes == len(body)
    assert asyncio.run(received.read()) == body
    assert left == (b"" if chunked else b"NEXT")
    received.release()
    assert budget.held_bytes == 0


class Wire:
    """A transport that records what is written."""

    def __init__(self) -> None:
        self.closed = False

    def writelines(self, pieces):
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


async def relayed(pieces: list[bytes], *, close: bool, passed: list[bytes] | None = None) -> tuple[bytes, bool]:
    """The relayed bytes of an answer that arrives in these pieces, and whether it counts as complete.

    `passed`: also pass on whole chunks unchanged, and collect them here.
    """
    connection = ClientConnection(EnginePool(EngineAddress("h", 1)))
    connection.connection_made(Wire())
    upstream = connection.ask(b"", b"", head_only=False)
    received: list[bytes] = []

    def take(chunk: bytes) -> bool:
        if len(received) % 5 == 4:
            return False  # as a reader of the answer does
        passed.append(chunk)
        received.append(chunk.partition(b"\r\n")[2][:-2])
        return True

    if passed is not None:
        upstream.pass_chunks(take)
    piping = asyncio.create_task(upstream.pipe(received.append))
    await asyncio.sleep(0)
    for piece in pieces:
        connection.data_received(piece)
    if close:
        connection.connection_lost(None)
    try:
        await piping
    except EngineLost:
        return b"".join(received), False
    return b"".join(received), True


@settings(max_examples=150)
@given(bodies, cuts, cuts, st.sampled_from(["chunks", "length", "until closed"]))
def test_an_answer_comes_out_as_it_went_in(body, chunks, at, framing):
    head = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nX: y\r\n"
    whole = {
        "chunks": head + b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks(body, chunks),
        "length": head + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        "until closed": head + b"\r\n" + body,
    }[framing]
    assert asyncio.run(relayed(cut(whole, at), close=framing == "until closed")) == (body, True)


texts = st.one_of(st.text(max_size=20), st.text("}\r\n0 a", max_size=20), st.integers(200, 5000).map("x".__mul__))
events = texts.map(lambda text: b"data: {" + text.encode() + b"}\n\n")
plain = events.map(lambda event: b"%x\r\n%b\r\n" % (len(event), event))
sizes = ["%X", "0%x", " %x", "%x ", "+%x", "0x%x", "%x_0", "%x;a=b", '%x;a="\n"', "%x\r", "-%x", "", "0", "%x\r\n"]


@st.composite
def odd(draw: st.DrawFn) -> bytes:
    """A chunk whose framing is unusual or wrong."""
    event, size = draw(events), draw(st.sampled_from(sizes))
    line = size % len(event) if "%" in size else size
    wrong = draw(st.sampled_from([0, 0, -1, 1, 16]))
    if wrong:
        line = "%x" % (len(event) + wrong)
    return line.encode() + b"\r\n" + event + draw(st.sampled_from([b"\r\n", b"\r\n", b"\n", b"", b"\r\n\r\n"]))


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@settings(max_examples=120)
@given(st.lists(st.one_of(plain, plain, plain, odd()), max_size=12), cuts, st.booleans(), st.booleans())
def test_unparsed_chunks_equal_the_parsers_result(chunks, at, recut, ends):
    whole = [CHUNKED, *chunks, *([b"0\r\n\r\n"] if ends else [])]
    pieces = cut(b"".join(whole), at) if recut else whole
    passed: list[bytes] = []
    short = asyncio.run(relayed(pieces, close=True, passed=passed))
    assert short == asyncio.run(relayed(pieces, close=True))
    for chunk in passed:
        line, _, rest = chunk.partition(b"\r\n")
        assert line == b"%x" % (len(rest) - 2)
        assert rest.endswith(b"\r\n")


def test_the_rest_of_a_size_line_and_what_follows_is_not_taken_for_a_chunk():
    event = b"data: {" + b"x" * 84 + b"}\n\n"
    chunk = b"5e\r\n" + event + b"\r\n"
    content = event + b"\r\n" + b"y" * 254
    # A chunk of 0x15e bytes, split after the first digit: the rest looks like a chunk of 0x5e.
    pieces = [CHUNKED, chunk, chunk + b"1", chunk, content[96:] + b"\r\n0\r\n\r\n"]
    passed: list[bytes] = []
    assert asyncio.run(relayed(pieces, close=False, passed=passed)) == (event + event + content, True)
    assert passed == []


@settings(max_examples=50)
@given(st.lists(plain.filter(lambda chunk: len(chunk) < 4096), min_size=1, max_size=12))
def test_whole_chunks_of_events_pass_unparsed(chunks):
    passed: list[bytes] = []
    _, complete = asyncio.run(relayed([CHUNKED, chunks[0], *chunks, b"0\r\n\r\n"], close=False, passed=passed))
    assert complete
    # The first chunk shows the parser's position; every fifth piece is not passed on.
    assert passed == [chunk for place, chunk in enumerate(chunks, 1) if place % 5 != 4]


@settings(max_examples=150)
@given(st.binary(min_size=1, max_size=3000), cuts, cuts, st.booleans(), st.data())
def test_a_truncated_answer_is_a_prefix_and_never_complete(body, chunks, at, chunked, data):
    head = b"HTTP/1.1 200 OK\r\n"
    if chunked:
        whole = head + b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks(body, chunks)
    else:
        whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    broken = whole[: data.draw(st.integers(0, len(whole) - 1))]
    received, complete = asyncio.run(relayed(cut(broken, at), close=True))
    assert not complete
    assert body.startswith(received)
