"""The engine of the benchmarks: answers at once, or streams at a steady pace, and does nothing else.

/v1/completions             a short answer, whole, or of a single event where the request says `"stream":true`
/v1/chat/completions        a stream without end, an event each 50 ms
/v1/chat/completions?ends   a stream of 20 to 60 events, in the end the finish reason and, where asked for, the usage
/v1/embeddings              no answer at all
ROUTE?play=NAME             a stream without end as real vLLM sent it on that route (tests/data/recorded-streams.json)
/v1/chat/completions?events=N   a recorded chat of N events, one each 10 ms; whole where no stream is asked for; in
                            batches of eight tokens where the request has a `stream_interval`
/health, /metrics           as vLLM answers them
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

from uellm.http.loop import run
from uellm.sidecar.wire.call import BATCH_TOKENS

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "tests/data/recorded-streams.json").read_text()
)
for _name in ("completions", "completions-usage"):
    # Other versions of vLLM write the usage into every event of a completion, mostly as null.
    _chunks = [text.replace("}]}", '}],"usage":null}') for text in RECORDED[_name]["chunks"]]
    RECORDED[_name.replace("completions", "completions-null")] = RECORDED[_name] | {"chunks": _chunks}
PLAYED = {
    name: f"{each['path']}?play={name}"
    for name, each in RECORDED.items()
    if each["request"].get("stream") and not name.endswith(("-usage", "-batched"))
}
"""The target of each recorded stream."""

INTERVAL_S = 0.05
SHORT_INTERVAL_S = 0.01
EVENTS = range(20, 61)
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
FINISH = EVENT.replace(b'"finish_reason":null', b'"finish_reason":"stop"')
USAGE = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    b'"usage":{"prompt_tokens":500,"total_tokens":540,"completion_tokens":40}}\n\n'
)
DONE = b"data: [DONE]\n\n"
STREAM, ENDING_STREAM, COMPLETION = "/v1/chat/completions", "/v1/chat/completions?ends", "/v1/completions"
_ANSWER = b'{"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[%b]%b}'
_CHOICE = b'{"index":0,"text":" word","logprobs":null,"finish_reason":"length","stop_reason":null}'
_USAGE = b',"usage":{"prompt_tokens":500,"total_tokens":501,"completion_tokens":1}'
SHORT = _ANSWER % (_CHOICE, _USAGE)

METRICS = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 8.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.1
"""
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = RECORDED["whole-chat"]["chunks"][0].encode()
WHOLE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(WHOLE)
_SHORT_EVENTS = [b"data: %b\n\n" % (_ANSWER % parts) for parts in ((_CHOICE, b""), (b"", _USAGE))]
_SHORT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(SHORT), SHORT)


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.buffer = b""
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n") + 4) > 3:
            head = self.buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
            if len(self.buffer) < end + length:
                return
            body, self.buffer = self.buffer[end : end + length], self.buffer[end + length :]
            self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1].decode()
        if path == "/v1/embeddings":
            return
        if path in ("/health", "/metrics"):
            kind = b"Content-Type: text/plain; version=0.0.4\r\n" if path == "/metrics" else b""
            text = METRICS if path == "/metrics" else b""
            self.transport.write(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (kind, len(text), text))
            return
        if "?play=" in path:
            self.play(path.partition("?play=")[2], body)
            return
        if "?events=" in path:
            self.exchange(int(path.partition("?events=")[2]), body)
        elif path in (STREAM, ENDING_STREAM):
            self.left = random.choice(EVENTS) if path == ENDING_STREAM else sys.maxsize
            self.ends = (FINISH, USAGE, DONE) if b"include_usage" in body else (FINISH, DONE)
            self.transport.write(_STREAM + _chunk(EVENT))
            # Every stream at a moment of its own: the next event comes when it comes, not when the others' do.
            self.timer = self.loop.call_later(random.random() * INTERVAL_S, self.event)
        elif b'"stream":true' in body:
            self.transport.write(_STREAM + b"".join(map(_chunk, (*_SHORT_EVENTS, DONE))) + b"0\r\n\r\n")
        else:
            self.transport.write(_SHORT)

    def play(self, name: str, body: bytes) -> None:
        more = f"{name}-usage"
        chunks = RECORDED[more if more in RECORDED and b"include_usage" in body else name]["chunks"]
        middle = len(chunks) // 2
        self.transport.write(_STREAM + b"".join(_chunk(text.encode()) for text in chunks[:middle]))
        self.again(_chunk(chunks[middle].encode()), random.random() * INTERVAL_S)

    def exchange(self, events: int, body: bytes) -> None:
        asked = json.loads(body)
        if not asked.get("stream"):
            self.transport.write(WHOLE_HEAD + WHOLE)
            return
        self.transport.write(_STREAM)
        if "stream_interval" in asked:
            self.exchange_batches(events)
            return
        first, *middle = RECORDED["chat"]["chunks"][:-2]
        last = RECORDED["chat-usage" if b"include_usage" in body else "chat"]["chunks"][len(middle) + 1 :]
        pieces = [first, *(middle[number % len(middle)] for number in range(events - 2))]
        self.pieces = [_chunk(text.encode()) for text in pieces]
        self.pieces.append(b"".join(_chunk(text.encode()) for text in last) + b"0\r\n\r\n")
        self.next_piece()

    def exchange_batches(self, events: int) -> None:
        """The same chat as vLLM sends it in batches of tokens: role and first token at once, then eight each 80 ms."""
        role, first, batch, *last = RECORDED["chat-batched"]["chunks"]
        self.pieces = [_chunk(role.encode()) + _chunk(first.encode())]
        self.pieces += [_chunk(batch.encode())] * ((events - 3) // BATCH_TOKENS)
        self.pieces.append(b"".join(_chunk(text.encode()) for text in last) + b"0\r\n\r\n")
        self.next_piece((events - 1) / len(self.pieces) * SHORT_INTERVAL_S)

    def next_piece(self, interval_s: float = SHORT_INTERVAL_S) -> None:
        self.transport.write(self.pieces.pop(0))
        if self.pieces:
            self.timer = self.loop.call_later(interval_s, self.next_piece, interval_s)

    def again(self, piece: bytes, delay_s: float = INTERVAL_S) -> None:
        self.timer = self.loop.call_later(delay_s, self.once_more, piece)

    def once_more(self, piece: bytes) -> None:
        self.transport.write(piece)
        self.again(piece)

    def event(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.transport.write(b"".join(map(_chunk, self.ends)) + b"0\r\n\r\n")
            return
        self.transport.write(_chunk(EVENT))
        self.timer = self.loop.call_later(INTERVAL_S, self.event)

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


async def serve() -> None:
    """Print the port and serve until killed."""
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    run(serve())
