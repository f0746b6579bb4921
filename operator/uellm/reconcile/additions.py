"""What somebody else added to a child by hand, and how to take it out again. Pure.

Server-side apply leaves fields alone that others have set. In the spec of a child they change what runs: a pause of the
Deployment, a label that no pod has in the Service's selector. The API server knows who has set which field
(`managedFields`), so that its own defaults are not taken for additions.

What is added to a pod template stays, and is told. To take it out would roll engines: all at once where an upgrade
brings this check, and without end where a tool keeps writing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from uellm.kube.kinds import DEPLOYMENT, LEADERWORKERSET, PDB, SERVICE, Kind, kind_of
from uellm.reconcile.names import MANAGER

Path = tuple[str | int, ...]

CHECKED: Mapping[Kind, tuple[str, ...]] = {DEPLOYMENT: (), LEADERWORKERSET: (), PDB: (), SERVICE: ("selector", "ports")}
"""Fields of the spec that only the operator sets, by kind; empty for all. Others of a Service are its users' affair."""

_TEMPLATES = ("template", "leaderWorkerTemplate")
_OWN_TO_OTHERS = ("metadata", "nodePort")
"""Fields below the spec that others may set: those of the pod template's metadata, where `kubectl rollout restart`
writes, and the node's port of a Service."""
_MOST_TOLD = 3
_ABSENT = object()
_DEFAULTS = {"protocol": "TCP"}


class Additions(NamedTuple):
    """What differs from the manifest in fields that others have set."""

    removable: tuple[Path, ...] = ()
    """Fields to remove, in an order in which each path is right when its turn comes."""
    replaced: bool = False
    """A value that is applied as a whole holds more than ours: applying the manifest is enough."""
    of_pods: tuple[Path, ...] = ()
    """Fields of the pod template, which stay."""

    def __bool__(self) -> bool:
        return bool(self.removable) or self.replaced


NONE = Additions()


def others_fields(kind: Kind, entries: Any) -> list[Mapping[str, Any]]:
    """Of an object's managedFields, what others than the operator have set in its spec."""
    if kind not in CHECKED:
        return []
    return [
        each
        for each in entries or ()
        if each.get("manager") != MANAGER
        and not each.get("subresource")
        and isinstance((each.get("fieldsV1") or {}).get("f:spec"), Mapping)
    ]


def additions(manifest: Mapping[str, Any], live: Mapping[str, Any]) -> Additions:
    """What others have added to the spec of a live object that was made from the manifest."""
    if not (entries := live["metadata"].get("managedFields")):
        return NONE
    only = CHECKED[kind_of(manifest)]
    found: dict[Path, bool] = {}
    for each in entries:
        fields = {name: sub for name, sub in each["fieldsV1"]["f:spec"].items() if not only or name[2:] in only}
        found |= dict(_added(fields, manifest["spec"], live["spec"], ("spec",)))
    of_pods = [path for path in found if path[1] in _TEMPLATES]
    ours = {path: whole for path, whole in found.items() if path[1] not in _TEMPLATES}
    # From the end of each list to its begin, so that no removal moves the place of a later one.
    removable = sorted((path for path, whole in ours.items() if not whole), key=_order, reverse=True)
    return Additions(tuple(removable), any(ours.values()), tuple(sorted(of_pods, key=_order)))


def told_additions(manifest: Mapping[str, Any], live: Mapping[str, Any] | None) -> str:
    """What others have added to the pod template, and what to do about it; empty for nothing."""
    if live is None or not (paths := additions(manifest, live).of_pods):
        return ""
    fields = ", ".join(".".join(str(step) for step in path[1:]) for path in paths[:_MOST_TOLD])
    more = f" and {len(paths) - _MOST_TOLD} more" if len(paths) > _MOST_TOLD else ""
    kind, name = kind_of(manifest).kind, manifest["metadata"]["name"]
    return f"somebody has added {fields}{more} to the {kind} {name}: put it into spec.template, or take it out"


def _added(fields: Mapping[str, Any], wanted: Any, live: Any, at: Path) -> Iterator[tuple[Path, bool]]:
    """Paths that are not in `wanted`; True with those of values that are, but hold less than they do now."""
    for name, inner in fields.items():
        step, ours, theirs = _step(name, wanted, live)
        if step is None or step in _OWN_TO_OTHERS or theirs is _ABSENT:
            continue
        path = (*at, step)
        if ours is _ABSENT:
            yield path, False
        elif inner:
            yield from _added(inner, ours, theirs, path)
        elif isinstance(ours, Mapping) and isinstance(theirs, Mapping) and theirs.keys() - ours.keys():
            yield path, True


def _step(name: str, wanted: Any, live: Any) -> tuple[str | int | None, Any, Any]:
    """One step into both objects, by the notation of managedFields; no step where it leads nowhere."""
    sort, _, text = name.partition(":")
    if sort == "f" and isinstance(live, Mapping):
        ours = wanted.get(text, _ABSENT) if isinstance(wanted, Mapping) else _ABSENT
        return text, ours, live.get(text, _ABSENT)
    if sort == "k" and isinstance(live, list):
        keys = json.loads(text)
        place = _place(live, keys)
        of_ours = _place(wanted, keys) if isinstance(wanted, list) else None
        ours = _ABSENT if of_ours is None else wanted[of_ours]
        return (None, _ABSENT, _ABSENT) if place is None else (place, ours, live[place])
    return None, _ABSENT, _ABSENT


def _place(entries: list[Any], keys: Mapping[str, Any]) -> int | None:
    """The place of the element with these keys in a list."""
    for place, entry in enumerate(entries):
        if isinstance(entry, Mapping) and all(
            entry.get(key, _DEFAULTS.get(key)) == value for key, value in keys.items()
        ):
            return place
    return None


def _order(path: Path) -> tuple[tuple[int, str], ...]:
    return tuple((step, "") if isinstance(step, int) else (-1, step) for step in path)
