"""Forwards a port of the host's loopback to the API server in its namespace: `forward.py PORT HOST PORT`.

So the clients' kubeconfig names a loopback address, which means nothing on another machine or after the cluster has
ended. It runs as a separate script that imports only the standard library.
"""

from __future__ import annotations

import asyncio
import socket
import sys

_CHUNK_BYTES = 1 << 16


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the sender closes its side, then close the receiver's. The other direction may continue."""
    while chunk := await reader.read(_CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


async def serve(listening: socket.socket, host: str, host_port: int) -> None:
    """Forward connections to `listening` until cancelled."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, host_port)
        except OSError:
            # Not started yet, or already ended: the client sees its connection close.
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, far_writer))
                group.create_task(_pump(far_reader, writer))
        except* OSError:
            pass  # one side closed the connection; both are closed below
        finally:
            writer.close()
            far_writer.close()

    server = await asyncio.start_server(connect, sock=listening)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(socket.create_server(("127.0.0.1", int(sys.argv[1]))), sys.argv[2], int(sys.argv[3])))
