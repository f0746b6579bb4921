"""Progress of long steps on standard error: a line at the start, one every half minute, and one with the duration."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SIGN_OF_LIFE_S = 30.0


def say(text: str) -> None:
    """Print one line for a person. Standard output stays free for data."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print `title`, then every half minute that it is still running, and finally its duration or `failed`."""
    began_s = time.monotonic()
    over = threading.Event()

    def keep_saying() -> None:
        while not over.wait(_SIGN_OF_LIFE_S):
            say(f"    ... {title.split(':')[0]}: {time.monotonic() - began_s:.0f} s so far")

    say(f"  > {title}")
    thread = threading.Thread(target=keep_saying, daemon=True)
    thread.start()
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        over.set()
        thread.join()
        say(f"    {outcome} in {time.monotonic() - began_s:.1f} s")
