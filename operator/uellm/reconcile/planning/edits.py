"""Which services' specs have changed since the plan in force was predicted.

Such a change may find no fresh plan to be judged by, as on a cordoned node, or be written as observed before a search
has looked at it. So it counts until the status has the answer of a search that found a plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from uellm.planner.result import Plan
from uellm.reconcile.names import Key
from uellm.reconcile.observe import Observed


@dataclass
class _Edit:
    """The last change of a spec."""

    generation: int
    chosen: Plan | None = None
    """By a search that knew of the change, and found a plan; None: there was none yet."""


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
                self._edits[observed.key] = _Edit(observed.generation)
        elif edit is not None and edit.chosen is not None and edit.chosen == observed.incumbent:
            del self._edits[observed.key]

    def is_open(self, key: Key) -> bool:
        """Whether the plan in force is to be predicted anew."""
        return key in self._edits

    def answered(self, observed: Observed, chosen: Plan | None) -> None:
        """A search for the service as it was observed has found a plan. `chosen`: that one, or the one in force."""
        edit = self._edits.get(observed.key)
        if edit is not None and edit.generation == observed.generation:
            edit.chosen = chosen
