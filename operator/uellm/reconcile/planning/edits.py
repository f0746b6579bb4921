"""Which services' specs have changed since the plan in force was predicted.

Such a change may find no fresh plan to be judged by, as on a cordoned node, or be written as observed before a search
has looked at it. So it counts until the status has the answer of a search that found a plan. While searches find none,
the condition SLOFeasible is kept as one of the earlier generation: from it a restarted operator knows of the change.
"""

from __future__ import annotations

from dataclasses import dataclass

from uellm.planner.result import Plan
from uellm.reconcile.conditions import find
from uellm.reconcile.names import Key
from uellm.reconcile.observe import Observed
from uellm.reconcile.status.slo_feasible import TYPE


@dataclass
class _Edit:
    """The last change of a spec."""

    generation: int
    chosen: Plan | None = None
    """By a search that knew of the change, and found a plan; None: there was none yet."""
    waits: bool = False
    """A search that knew of this change, or of one before, found no plan."""


class Edits:
    """Those of all services."""

    def __init__(self) -> None:
        self._edits: dict[Key, _Edit] = {}

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._edits.pop(key, None)

    def look(self, observed: Observed) -> None:
        """Call it in each pass."""
        edit = self._edits.get(observed.key)
        if observed.status.get("observedGeneration") != observed.generation:
            if edit is None or edit.generation != observed.generation:
                self._edits[observed.key] = _Edit(observed.generation, waits=self.waits(observed.key))
        elif _is_of_earlier_spec(observed):
            # While one is known, its answer is on the way: the write of it may have failed.
            self._edits.setdefault(observed.key, _Edit(observed.generation, waits=True))
        elif edit is not None and edit.chosen is not None and edit.chosen == observed.incumbent:
            del self._edits[observed.key]

    def is_open(self, key: Key) -> bool:
        """Whether the plan in force is to be predicted anew."""
        return key in self._edits

    def waits(self, key: Key) -> bool:
        """Whether what is predicted is of an earlier spec, because there was no plan to judge the change by."""
        edit = self._edits.get(key)
        return edit is not None and edit.waits and edit.chosen is None

    def searched(self, observed: Observed, chosen: Plan | None, *, found: bool) -> None:
        """There was a search for the service as it was observed. `chosen`: the plan that it found, or that in force."""
        edit = self._edits.get(observed.key)
        if edit is not None and edit.generation == observed.generation:
            edit.chosen = chosen if found else edit.chosen
            edit.waits |= not found


def _is_of_earlier_spec(observed: Observed) -> bool:
    """Whether the operator, before it was restarted, found no plan to judge the last change by."""
    condition = find(observed.status, TYPE)
    return condition is not None and condition.get("observedGeneration", observed.generation) != observed.generation
