"""The leader's side of the agreement: it hears every pod of the group, places the layers, and tells each its part.

    pod -> leader    who it is, what it runs, its devices
    leader -> pod    the placement
    pod -> leader    digest of the command that it has made of it
    leader -> pod    go

Any difference is refused, to every pod, with its sentence: engines of different splits would answer with wrong text.
The connections stay open for as long as the engines run.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from uellm.errors import PlanError
from uellm.launcher.group.hello import Hello, difference
from uellm.launcher.group.membership import Membership
from uellm.launcher.group.wire import Connection, Deadline, PeerGone
from uellm.placement_report import GROUP_BROKEN, GROUP_DIFFERS, GROUP_INCOMPLETE
from uellm.text import counted

HELLO_S = 5.0
"""For which a peer may stay silent: it may be anybody in the cluster, where no policy forbids it."""


class Peer(NamedTuple):
    """A pod of the group that has said who it is."""

    hello: Hello
    connection: Connection


class Gathering:
    """The leader's group, from the first pod on. Use it as a context: on an error every pod is told of it."""

    def __init__(self, own: Hello, place: Membership, port: int, timeout_s: float) -> None:
        self._own = own
        self._place = place
        self._port = port
        self._timeout_s = timeout_s
        self._deadline = Deadline.after(timeout_s)
        self._peers: dict[int, Peer] = {}

    def __enter__(self) -> Gathering:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        reason, message = (error.reason, str(error)) if isinstance(error, PlanError) else (GROUP_BROKEN, str(error))
        for peer in self._peers.values():
            with suppress(PeerGone):
                peer.connection.send({"refused": {"reason": reason, "message": message}}, Deadline.after(HELLO_S))
            peer.connection.close()

    def hear(self) -> Sequence[Hello]:
        """Wait for all pods; what each says, in the order of the group. Raises PlanError."""
        with self._listening() as server:
            while len(self._peers) < self._place.size - 1:
                if self._deadline.is_over:
                    raise PlanError(GROUP_INCOMPLETE, self._missing())
                self._accept(server)
        hellos = [self._own, *(self._peers[index].hello for index in sorted(self._peers))]
        if problem := next((problem for each in hellos if (problem := difference(each, self._own))), ""):
            raise PlanError(GROUP_DIFFERS, problem)
        return hellos

    def tell(self, document: dict[str, Any], digest: Callable[[], str]) -> tuple[tuple[str, socket.socket], ...]:
        """Give the placement to every pod, and let them go once all have made the same of it as `digest`.

        Returns the connections, each with what is at its other end. Raises PlanError.
        """
        for peer in self._in_order():
            self._with(peer, lambda connection: connection.send(document, self._deadline))
        ours = digest()
        for peer in self._in_order():
            answer = self._with(peer, lambda connection: connection.receive(self._deadline))
            if "failed" in answer:
                raise PlanError(GROUP_DIFFERS, f"{peer.hello.name} cannot start its part: {answer['failed']}")
            if answer.get("digest") != ours:
                raise PlanError(
                    GROUP_DIFFERS,
                    f"{peer.hello.name} would start its engine with other flags or another split of layers than its "
                    f"leader, {self._own.name}: see that engine.env and the images are the same for both",
                )
        for peer in self._in_order():
            self._with(peer, lambda connection: connection.send({"go": True}, self._deadline))
        return tuple((peer.hello.name, peer.connection.socket) for peer in self._in_order())

    def _listening(self) -> socket.socket:
        family = socket.AF_INET6 if ipaddress.ip_address(self._place.address).version == 6 else socket.AF_INET
        server = socket.socket(family, socket.SOCK_STREAM)
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((self._place.address, self._port))
            server.listen(self._place.size)
        except OSError as error:
            server.close()
            raise PlanError(GROUP_INCOMPLETE, f"{self._place.address} port {self._port}: {error.strerror}") from error
        return server

    def _accept(self, server: socket.socket) -> None:
        """Take in one pod of the group. Anybody else is turned away."""
        server.settimeout(self._deadline.left_s)
        try:
            connection = Connection(server.accept()[0])
        except OSError:
            return
        try:
            hello = Hello.from_dict(connection.receive(Deadline.after(min(HELLO_S, self._deadline.left_s))))
        except PeerGone:
            connection.close()
            return
        if hello.leader != self._place.leader or not 0 < hello.index < self._place.size:
            connection.close()
            return
        # A pod whose container was restarted comes again.
        if (before := self._peers.pop(hello.index, None)) is not None:
            before.connection.close()
        self._peers[hello.index] = Peer(hello, connection)

    def _missing(self) -> str:
        missing = [str(index) for index in range(1, self._place.size) if index not in self._peers]
        return (
            f"{counted(len(self._peers) + 1, 'pod')} of {self._place.size} of the group came within "
            f"{self._timeout_s:g} s; missing: worker {', '.join(missing)}: see whether it has a node and an image, and "
            f"whether it may reach {self._place.address} port {self._port}"
        )

    def _in_order(self) -> list[Peer]:
        return [self._peers[index] for index in sorted(self._peers)]

    def _with(self, peer: Peer, do: Callable[[Connection], Any]) -> Any:
        try:
            return do(peer.connection)
        except PeerGone as error:
            raise PlanError(GROUP_BROKEN, f"{peer.hello.name} was lost before the engine started: {error}") from error
