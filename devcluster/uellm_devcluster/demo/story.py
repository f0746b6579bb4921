"""The demo's steps: named and timed, with a table of results at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class StepFailed(Exception):
    """A step did not have the expected result; the message says what happened instead."""


@dataclass
class Step:
    """One row of the closing table."""

    title: str
    seconds: float
    outcome: str
    note: str = ""


class Story:
    """Collects the steps and prints each as it happens."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._began_s = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Run one step. The body may set `note`, which the table shows beside the result."""
        print(f"\n--- {title}", flush=True)
        began_s = time.monotonic()
        step = Step(title, 0.0, "failed")
        self.steps.append(step)
        try:
            yield step
            step.outcome = "ok"
        except BaseException as error:
            step.note = " ".join(str(error).split()) or type(error).__name__
            raise
        finally:
            step.seconds = time.monotonic() - began_s

    @property
    def went_well(self) -> bool:
        """Whether at least one step ran and all succeeded."""
        return bool(self.steps) and all(step.outcome == "ok" for step in self.steps)

    def table(self) -> str:
        """The closing table, one row for each step."""
        width = max((len(step.title) for step in self.steps), default=0)
        lines = [f"{'what happened'.ljust(width)}  result  seconds"]
        for step in self.steps:
            lines.append(f"{step.title.ljust(width)}  {step.outcome:6}  {step.seconds:7.1f}  {step.note}".rstrip())
        lines.append(f"{'in all'.ljust(width)}  {'ok' if self.went_well else 'FAILED':6}  {self._elapsed():7.1f}")
        return "\n".join(lines)

    def _elapsed(self) -> float:
        return time.monotonic() - self._began_s
