from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable

import pytest

from uellm.cli.local.children import ChildCommand, Children, Ended

# A child with a grandchild that ignores SIGTERM and keeps the child's output open.
WITH_GRANDCHILD = """
    import signal, subprocess, sys
    grandchild = "import os, signal; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); signal.pause()"
    subprocess.Popen([sys.executable, "-S", "-c", grandchild])
    signal.pause()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"


class Log:
    """Collects lines, and lets a test wait for one."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self._told = asyncio.Event()

    def __call__(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        self._told.set()

    async def until(self, wanted: Callable[[tuple[str, str]], bool]) -> tuple[str, str]:
        while True:
            for line in self.lines:
                if wanted(line):
                    return line
            self._told.clear()
            await asyncio.wait_for(self._told.wait(), 20)


def python(name: str, program: str) -> ChildCommand:
    return ChildCommand(name, [sys.executable, "-S", "-c", textwrap.dedent(program)], dict(os.environ))


async def within(children: Children, body: Callable[[Children], Awaitable[None]]) -> None:
    async with children:
        await body(children)


class Watched:
    """A process that is not ours to reap. Created while it is alive, so that a reused pid is not mistaken for it."""

    def __init__(self, pid: int) -> None:
        self._descriptor = os.pidfd_open(pid)

    def ended(self, within_s: float = 0.0) -> bool:
        """Wait for the end. A killed process closes its files, which ends its relay, slightly before it is gone."""
        readable, _, _ = select.select([self._descriptor], [], [], within_s)
        return bool(readable)


async def test_every_line_comes_with_its_childs_name_also_the_last_without_an_end():
    log = Log()
    async with Children(log) as children:
        await children.start(python("a", "import sys; print('one'); print('two', file=sys.stderr, end='')"))
        assert await children.first_end() == Ended("a", 0)
    assert sorted(log.lines) == [("a", "one"), ("a", "two")]


async def test_a_line_of_any_length_is_relayed():
    log = Log()
    async with Children(log) as children:
        await children.start(python("a", "print('x' * 300000); print('after')"))
        await children.first_end()
    assert sum(len(line) for _, line in log.lines if line != "after") == 300000
    assert log.lines[-1] == ("a", "after")


async def test_the_others_end_when_the_body_does():
    log = Log()
    async with Children(log) as children:
        await children.start(python("a", WITH_GRANDCHILD))
        await children.start(python("b", "raise SystemExit(3)"))
        grandchild = Watched(int((await log.until(lambda line: line[0] == "a"))[1]))
        assert await children.first_end() == Ended("b", 3)
        assert not grandchild.ended()
    assert grandchild.ended(within_s=5)


async def test_a_child_counts_as_ended_even_if_its_descendants_hold_its_output():
    log = Log()
    async with Children(log) as children:
        await children.start(python("a", WITH_GRANDCHILD.removesuffix("    signal.pause()\n")))
        assert await children.first_end() == Ended("a", 0)
        grandchild = Watched(int((await log.until(lambda line: line[0] == "a"))[1]))
        assert not grandchild.ended()
    assert grandchild.ended(within_s=5)


async def test_children_end_also_when_the_body_fails():
    log, watched = Log(), []

    async def body(children: Children) -> None:
        await children.start(python("a", WITH_GRANDCHILD))
        watched.append(Watched(int((await log.until(lambda line: line[0] == "a"))[1])))
        raise RuntimeError("the body's own")

    with pytest.raises(RuntimeError, match="the body's own"):
        await within(Children(log), body)
    assert watched[0].ended(within_s=5)


async def test_a_child_that_ignores_sigterm_is_finally_killed():
    log = Log()
    async with Children(log, end_timeout_s=0.1) as children:
        await children.start(python("a", STUBBORN))
        await log.until(lambda line: line[1] == "up")


async def test_hurry_does_not_wait():
    log = Log()
    async with asyncio.timeout(10):
        async with Children(log, end_timeout_s=3600) as children:
            await children.start(python("a", STUBBORN))
            await log.until(lambda line: line[1] == "up")
            children.hurry()


async def test_a_killed_child_is_reported_with_its_signal():
    log = Log()
    async with Children(log) as children:
        await children.start(python("a", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
        ended = await children.first_end()
    assert ended.how == "by SIGKILL"
    assert Ended("a", 1).how == "with exit status 1"


async def test_a_program_that_is_not_there_is_an_error_and_the_others_end():
    log, watched = Log(), []

    async def body(children: Children) -> None:
        await children.start(python("a", "import os, signal; print(os.getpid(), flush=True); signal.pause()"))
        watched.append(Watched(int((await log.until(lambda line: line[0] == "a"))[1])))
        await children.start(ChildCommand("b", ["/nonexistent/program"], {}))

    with pytest.raises(FileNotFoundError):
        await within(Children(log), body)
    assert watched[0].ended(within_s=5)


def test_children_end_when_their_parent_is_killed_outright():
    program = f"""
        import asyncio, os, sys
        from uellm.cli.local.children import Children, ChildCommand

        async def main():
            async with Children(lambda name, line: print(line, flush=True)) as children:
                child = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
                await children.start(ChildCommand("a", [{sys.executable!r}, "-S", "-c", child], dict(os.environ)))
                await children.first_end()

        asyncio.run(main())
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = Watched(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert child.ended(within_s=20)
