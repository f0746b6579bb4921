"""metav1.Condition, and the three that kstatus reads (`helm --wait`, `kubectl wait`).

Ready        True: everything is as the spec asks for.
Reconciling  True: it is not yet, and the operator or the cluster is working on it.
Stalled      True: it is not, and only a person can change that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

MESSAGE_LENGTH = 4096
REASON_LENGTH = 63


class Condition(NamedTuple):
    """One aspect of the state, as it is now."""

    type: str
    status: str
    """True, False or Unknown."""
    reason: str
    message: str

    @property
    def holds(self) -> bool:
        """True where the status is "True"."""
        return self.status == "True"


def clip(text: str, length: int) -> str:
    """The text, cut to `length` characters with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def condition_entries(
    conditions: Iterable[Condition],
    before: Iterable[Mapping[str, Any]],
    *,
    generation: int,
    now: str,
    earlier: Collection[str] = (),
) -> list[dict[str, Any]]:
    """The entries of `status.conditions`. A transition time changes only with the condition's status.

    `earlier`: types that still are about the generation that they were about before.
    """
    known = {entry["type"]: entry for entry in before}
    seen = {type_: known.get(type_, {}).get("observedGeneration", generation) for type_ in earlier}
    return [_entry(each, known.get(each.type), seen.get(each.type, generation), now) for each in conditions]


def _entry(condition: Condition, before: Mapping[str, Any] | None, generation: int, now: str) -> dict[str, Any]:
    same = before is not None and before.get("status") == condition.status
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": clip(condition.reason, REASON_LENGTH),
        "message": clip(condition.message, MESSAGE_LENGTH),
        "lastTransitionTime": before["lastTransitionTime"] if before is not None and same else now,
        "observedGeneration": generation,
    }


def find(status: Mapping[str, Any], type_: str) -> Mapping[str, Any] | None:
    """The entry of a status's conditions, or None."""
    return next((entry for entry in status.get("conditions") or () if entry.get("type") == type_), None)


def transitions(conditions: Iterable[Condition], before: Iterable[Mapping[str, Any]]) -> list[Condition]:
    """The conditions whose status or reason has changed."""
    known = {entry["type"]: (entry.get("status"), entry.get("reason")) for entry in before}
    return [
        condition
        for condition in conditions
        if known.get(condition.type) != (condition.status, clip(condition.reason, REASON_LENGTH))
    ]
