"""The side of every other pod of the group: it goes to the leader, and does what it is told."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import Any

from uellm.errors import PlanError
from uellm.launcher.group.hello import Hello
from uellm.launcher.group.membership import Membership
from uellm.launcher.group.wire import Connection, Deadline, PeerGone
from uellm.placement_report import GROUP_BROKEN, GROUP_DIFFERS, GROUP_INCOMPLETE

RETRY_S = 0.5


class Following:
    """A pod's connection to its leader. Use it as a context: on an error the leader is told of it."""

    def __init__(self, own: Hello, place: Membership, port: int, timeout_s: float) -> None:
        self._own = own
        self._place = place
        self._port = port
        self._timeout_s = timeout_s
        self._deadline = Deadline.after(timeout_s)
        self._connection: Connection | None = None

    def __enter__(self) -> Following:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or self._connection is None:
            return
        with suppress(PeerGone):
            self._connection.send({"failed": str(error)}, Deadline.after(RETRY_S))
        self._connection.close()

    def placement(self) -> dict[str, Any]:
        """Go to the leader until it is there, and wait for the placement. Raises PlanError."""
        problem = ""
        while not self._deadline.is_over:
            try:
                return self._asked()
            except (OSError, PeerGone) as error:
                problem = str(error)
            time.sleep(min(RETRY_S, self._deadline.left_s))
        raise PlanError(
            GROUP_INCOMPLETE,
            f"the leader at {self._place.leader} port {self._port} gave no placement within {self._timeout_s:g} s "
            f"({problem}): see whether it has a node, and whether this pod may reach it",
        )

    def confirm(self, digest: str) -> tuple[str, socket.socket]:
        """Say what was made of the placement, and wait to be let go. Returns the connection. Raises PlanError."""
        connection = self._connection
        assert connection is not None, "the placement comes first"
        try:
            connection.send({"digest": digest}, self._deadline)
            answer = connection.receive(self._deadline)
        except PeerGone as error:
            raise PlanError(GROUP_BROKEN, f"the leader was lost before the engine started: {error}") from error
        _check(answer)
        return f"the leader {self._place.leader}", connection.socket

    def _asked(self) -> dict[str, Any]:
        wait_s = min(self._deadline.left_s, 10 * RETRY_S)
        connection = Connection(socket.create_connection((self._place.leader, self._port), timeout=wait_s))
        try:
            connection.send(self._own.to_dict(), self._deadline)
            answer = connection.receive(self._deadline)
            _check(answer)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return answer


def _check(answer: dict[str, Any]) -> None:
    if (refused := answer.get("refused")) is not None:
        reason = refused.get("reason") if isinstance(refused, dict) else None
        raise PlanError(str(reason or GROUP_DIFFERS), str(refused.get("message") if reason else refused))
