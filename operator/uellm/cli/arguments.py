"""Argument types that several commands use, and the option `-o`."""

from __future__ import annotations

import argparse
import sys

from uellm.api.scalars import duration_s
from uellm.errors import BadInput


def count(text: str) -> int:
    """An integer, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 0 or more")
    return int(text)


def positive(text: str) -> float:
    """A number above 0."""
    number = not_negative(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def not_negative(text: str) -> float:
    """A finite number, 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return number


def add_output(parser: argparse.ArgumentParser, *formats: str) -> None:
    """The option `-o`; the first format is the default."""
    parser.add_argument(
        "-o", "--output", choices=formats, default=formats[0], help="output format (default: %(default)s)"
    )


def progress(line: str) -> None:
    """Print a line about the progress to standard error, so that standard output holds only the result."""
    print(line, file=sys.stderr, flush=True)


def duration(text: str) -> float:
    """Parse a time such as `10ms`, in seconds."""
    try:
        return duration_s(text)
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from error
