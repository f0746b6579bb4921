"""Length of the speech in a request, without decoding it: from a WAV file's header, else from the number of bytes."""

from __future__ import annotations

import struct

FRAMES_PER_S = 50
"""Positions of a Whisper encoder for a second of speech: 1,500 for 30 seconds."""

COMPRESSED_BYTES_PER_S = 8_000
"""A file in any other format: 64 kbit/s, as MP3 and Opus have for speech."""

SEARCHED_BYTES = 64 * 1024
"""The file follows the first fields of the form."""

_WAV_HEADER = struct.Struct("<4xI4s4sIHHII")


def audio_tokens(body: bytes) -> int:
    """Positions of the encoder for the speech in the body of a form; at least 1."""
    at = body.find(b"RIFF", 0, SEARCHED_BYTES)
    rate = 0
    if at >= 0 and len(body) >= at + _WAV_HEADER.size:
        _, kind, part, _, _, _, _, rate = _WAV_HEADER.unpack_from(body, at)
        rate = rate if kind == b"WAVE" and part == b"fmt " else 0
    seconds = (len(body) - max(at, 0)) / (rate or COMPRESSED_BYTES_PER_S)
    return max(1, round(seconds * FRAMES_PER_S))
