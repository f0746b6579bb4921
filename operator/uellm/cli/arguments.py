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


def listen_address(text: str, flag: str, example: str) -> tuple[str | None, int]:
    """Parse `HOST:PORT`, `[IPv6]:PORT` or `:PORT`; the host is None for every address of the machine, of either family.

    Raises BadInput.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not bracketed):
        raise BadInput(flag, f"{text!r} is not HOST:PORT, [IPV6]:PORT or :PORT, such as {example}")
    return host.removeprefix("[").removesuffix("]") or None, int(port)


def metrics_listen(text: str | None, example: str) -> tuple[str | None, int] | None:
    """The value of `--metrics-listen`, or None where it was not given. Raises BadInput."""
    return None if text is None else listen_address(text, "--metrics-listen", example)


def add_log_level(parser: argparse.ArgumentParser) -> None:
    """The option `--log-level` of a process that runs in the cluster."""
    parser.add_argument(
        "--log-level",
        default="INFO",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        help="the least severe lines that are logged (default: %(default)s)",
    )


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
