"""What two profilers say to each other, over several TCP connections at once, and its limits.

    sink    -> GO, BUSY or UNKNOWN; after the last two it closes
    asker   -> PINGS times one byte, each of which comes back before the next
    asker   -> as many bytes as it can until it is done, and closes its direction
    sink    -> DONE

The sink never says more than it hears after these few bytes, so nobody gains by asking it under another's name.
"""

from __future__ import annotations

import socket
import time

GREETING_BYTES = 16
GO = b"uellm-net-1 go  "
BUSY = b"uellm-net-1 busy"
UNKNOWN = b"uellm-net-1 who?"
DONE = b"."
PING = b"?"

STREAMS = 4
"""Connections. One alone is limited by the core that copies its bytes."""
PINGS = 25
"""By connection."""
SEND_S = 1.0
"""How long bytes are sent, unless MOST_BYTES are through before."""
MOST_BYTES = 4 << 30
"""By connection; 16 GiB are what 100 Gbit/s carry in 1.4 s."""
CHUNK_BYTES = 1 << 20
LIMIT_S = 8.0
"""Of a whole measurement, at both ends."""


def limit(connection: socket.socket, deadline: float) -> None:
    """Let the next call on a connection take until a deadline of `time.monotonic`. Raises TimeoutError after it."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    connection.settimeout(left_s)
