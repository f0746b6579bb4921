"""Memory that the C library keeps after a burst of work is given back to the machine."""

from __future__ import annotations

import asyncio
import ctypes

EVERY_S = 30.0


async def give_back() -> None:
    """Give back what is free, now and then, until cancelled."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    while True:
        await asyncio.sleep(EVERY_S)
        if trim is not None:
            trim(0)
