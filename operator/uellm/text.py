"""Text for people: rows of cells as a table, long lists of names cut short, numbers with their nouns."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """One line per row, its cells padded to the width of their column and two spaces apart.

    The first row is the header and all rows have as many cells. `right`: indices of the columns aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def and_more(names: Sequence[str], limit: int, noun: str = "") -> str:
    """The first `limit` names and how many follow: `a, b and 3 more`, with `noun` "node": `a, b and 3 more nodes`."""
    listed, more = ", ".join(names[:limit]), len(names) - limit
    if more <= 0:
        return listed
    what = f" {noun}{'' if more == 1 else 's'}" if noun else ""
    return f"{listed} and {more} more{what}"


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 GPU`, `2 GPUs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def decimal_size(count: int) -> str:
    """Bytes as hubs and storage vendors count them, with two digits or more.

    >>> decimal_size(141_107_000_000), decimal_size(2_345_000), decimal_size(999)
    ('141 GB', '2.3 MB', '999 B')
    """
    for unit, prefix in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            amount = count / unit
            return f"{amount:.1f} {prefix}" if amount < 9.95 else f"{amount:.0f} {prefix}"
    return f"{count} B"
