"""Progress of long steps on standard error: a line when one begins, a sign of life, a line with its time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SIGN_OF_LIFE_S = 30.0


def say(text: str) -> None:
    """One line for a person; standard output stays free for what a program reads."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce `title`, say every half minute that it still goes on, and end with its time or with `failed`."""
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
