"""The pods of a group watch each other for as long as the engines run: by connections that say nothing.

vLLM notices after five minutes that a worker's node has gone, and its workers never notice that the head has. So the
parents of the engines hold the connections of the agreement. Where one ends, the engine of this pod is ended, and
LeaderWorkerSet starts the group anew. A worker that is to end waits for the leader's end first: the leader's requests
in flight need it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from uellm.errors import PlanError
from uellm.placement_report import GROUP_BROKEN, LaunchFailure

ENDS_IN_S = 2.0
"""An engine that has lost a part answers nothing more, so it is given little time."""
_MOST_BYTES = 1 << 20
_MOST_PEERS = 256


def hand_over(channel: socket.socket | None, connections: Iterable[tuple[str, socket.socket]]) -> None:
    """Give the connections to the engine's parent. Raises PlanError where there is none."""
    if channel is None:
        raise PlanError("LaunchFailed", "the engine has no parent that could watch the other pods of its group")
    named = list(connections)
    for name, connection in named:
        socket.send_fds(channel, [json.dumps(name).encode()], [connection.fileno()])
        connection.close()
    channel.close()


@dataclass(frozen=True)
class WatchedPeer:
    """The other end of a connection."""

    name: str
    connection: socket.socket

    @property
    def is_there(self) -> bool:
        """False once it has ended. Call it when there is something to read."""
        try:
            return bool(self.connection.recv(4096, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False


class GroupWatch:
    """The parent's end of the channel, and the peers that came through it."""

    def __init__(self, channel: socket.socket, *, follows: bool) -> None:
        """`follows`: the peer is the leader."""
        self.channel = channel
        self._follows = follows
        self.peers: list[WatchedPeer] = []
        self.lost = ""
        """The first peer that has ended."""

    @property
    def waits_for_leader(self) -> bool:
        """Whether this pod ends only after its leader."""
        return self._follows and bool(self.peers) and not self.lost

    def take(self, register: Callable[[WatchedPeer], None]) -> bool:
        """Take the next peer. False at the end of the channel."""
        text, descriptors, _, _ = socket.recv_fds(self.channel, _MOST_BYTES, _MOST_PEERS)
        if not text:
            return False
        for descriptor in descriptors:
            peer = WatchedPeer(str(json.loads(text)), socket.socket(fileno=descriptor))
            self.peers.append(peer)
            register(peer)
        return True

    def failure(self) -> LaunchFailure:
        """What the container's status says of it."""
        message = f"{self.lost} ended, or can no longer be reached: the group is started anew"
        return LaunchFailure(GROUP_BROKEN, message)
