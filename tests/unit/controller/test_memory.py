"""Free memory goes back to the machine."""

from __future__ import annotations

import asyncio
import ctypes

import pytest

from uellm.controller import memory


class Libc:
    """A C library that counts how often memory was given back."""

    def __init__(self):
        self.trimmed = asyncio.Semaphore(0)

    def malloc_trim(self, pad):
        assert pad == 0
        self.trimmed.release()


@pytest.fixture
def libc(monkeypatch):
    def use(library):
        monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
        monkeypatch.setattr(memory, "EVERY_S", 0.0)
        return library

    return use


async def test_it_is_given_back_again_and_again(libc):
    library = libc(Libc())
    task = asyncio.create_task(memory.give_back())
    async with asyncio.timeout(10):
        for _ in range(3):
            await library.trimmed.acquire()
    task.cancel()


async def test_a_c_library_that_cannot_give_it_back_ends_nothing(libc):
    libc(object())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(memory.give_back(), 0.05)
