"""The id of a response that the engine may keep, read from the first bytes of the answer that creates it."""

from __future__ import annotations

import re

RESPONSES = "/v1/responses"
_ONE = f"{RESPONSES}/"
"""Beginning of the paths that are about one of them."""
OPENING_BYTES = 4096
"""A response begins with its id, and a stream with an event that has the response."""

_CHARACTERS = rb"[A-Za-z0-9_.:-]{1,256}"
_WHOLE = re.compile(_CHARACTERS.decode())
_ID = re.compile(rb'"id":[ ]?"(' + _CHARACTERS + rb')"')
_PREVIOUS = re.compile(rb'"previous_response_id"[ \t\r\n]*:[ \t\r\n]*"(' + _CHARACTERS + rb')"')


def kept_id(method: str, path: str) -> str:
    """The id in a path that is about one response; empty: it is about none."""
    if not path.startswith(_ONE):
        return ""
    response_id, _, rest = path.removeprefix(_ONE).partition("/")
    about_one = rest == "cancel" if method == "POST" else method in ("GET", "HEAD", "DELETE")
    return response_id if about_one and _WHOLE.fullmatch(response_id) else ""


def previous_id(body: bytes) -> str:
    """The id of the response that a request goes on from; empty: of none. Inside of a JSON string it is not found."""
    if b'"previous_response_id"' not in body:
        return ""
    found = _PREVIOUS.search(body)
    return "" if found is None else found[1].decode()


class OpeningId:
    """Finds the first id in an answer that comes in pieces."""

    __slots__ = ("_opening", "found", "looking")

    def __init__(self) -> None:
        self._opening = b""
        self.looking = True
        """It may still come."""
        self.found = ""

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the body."""
        if not self.looking:
            return
        self._opening += piece[: OPENING_BYTES - len(self._opening)]
        match = _ID.search(self._opening)
        if match is not None:
            self.found = match[1].decode()
        if match is not None or len(self._opening) >= OPENING_BYTES:
            self.looking, self._opening = False, b""
