"""Quantities formatted for people."""

from __future__ import annotations


def size(count: int) -> str:
    """Bytes for a person: GiB with one decimal, smaller ones in MiB or bytes.

    >>> size(85 * 2**30), size(3 * 2**20), size(-5)
    ('85.0 GiB', '3.0 MiB', '-5 B')
    """
    magnitude = abs(count)
    if magnitude >= 1 << 30:
        return f"{count / (1 << 30):.1f} GiB"
    return f"{count / (1 << 20):.1f} MiB" if magnitude >= 1 << 20 else f"{count} B"


def milliseconds(seconds: float) -> str:
    """Milliseconds for a person, rounded up, so that a missed target never looks met.

    >>> milliseconds(0.8123), milliseconds(0.0076), milliseconds(12.0)
    ('813 ms', '7.6 ms', '12000 ms')
    """
    value = seconds * 1e3
    return f"{-(-value // 1):.0f} ms" if value >= 20 else f"{-(-value * 10 // 1) / 10:.1f} ms"


def three_digits(value: float) -> str:
    """A figure for a person, without an exponent.

    >>> three_digits(0.2), three_digits(49.96), three_digits(2000.4)
    ('0.2', '50', '2000')
    """
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
