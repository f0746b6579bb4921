"""Words and columns for people: how lists are cut short, counted and aligned, the same in every message and table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def listed(names: Sequence[str], most: int, what: str = "") -> str:
    """The first `most` names, then how many more there are; `what` is their noun in the plural.

    >>> listed(["a", "b", "c", "d", "e"], 3, "nodes"), listed(["a", "b"], 3, "nodes")
    ('a, b, c and 2 more nodes', 'a, b')
    """
    return ", ".join(names[:most]) + and_more(len(names) - most, what)


def and_more(count: int, what: str = "") -> str:
    """What ends a list of which `count` entries are not shown; empty where all are.

    >>> and_more(2, "nodes"), and_more(7), and_more(0, "nodes")
    (' and 2 more nodes', ' and 7 more', '')
    """
    if count <= 0:
        return ""
    return f" and {count} more {what}".rstrip()


def counted(count: int, one: str, several: str = "") -> str:
    """A number with its noun.

    >>> counted(1, "GPU"), counted(2, "GPU"), counted(0, "class", "classes")
    ('1 GPU', '2 GPUs', '0 classes')
    """
    return f"{count} {one if count == 1 else several or one + 's'}"


def columns(rows: Iterable[Sequence[str]], align: str = "") -> list[str]:
    """Rows of equally many cells as lines, two spaces between columns, no spaces at the end of a line.

    `align` has a character for each column: `<` left, `>` right. Columns beyond it are aligned to the left.

    >>> columns([["GPU", "MEMORY"], ["gpu-10", "8 GiB"]], "<>")
    ['GPU     MEMORY', 'gpu-10   8 GiB']
    """
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    signs = align.ljust(len(widths), "<")
    lines = ["  ".join(f"{cell:{s}{w}}" for cell, s, w in zip(row, signs, widths, strict=True)) for row in table]
    return [line.rstrip() for line in lines]
