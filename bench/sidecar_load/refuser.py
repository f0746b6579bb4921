"""A server that refuses every request with 429: what clients cost a machine when an engine has no part in it.

python refuser.py PORT
"""

from __future__ import annotations

import asyncio
import sys

RETRY_AFTER_S = 5
_BODY = b'{"error":{"message":"full","type":"overloaded","code":429}}'
_ANSWER = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\n"
    b"Retry-After: %d\r\nContent-Length: %d\r\n\r\n%b" % (RETRY_AFTER_S, len(_BODY), _BODY)
)
_READY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection until it is closed."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, found, rest = head.partition(b"content-length:")
            if found:
                await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
            writer.write(_READY if head.startswith(b"get ") else _ANSWER)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def serve(port: int) -> None:
    """Serve on loopback until the process is ended."""
    server = await asyncio.start_server(refuse, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
